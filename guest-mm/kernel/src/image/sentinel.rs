//! Pages that the kernel fills at boot and that must never change.

use abi::Pfn;
use guest_mm::buddy::Gfp;
use guest_mm::memdesc::Order;
use guest_mm::memory::{FrozenFrames, Memory};

use super::platform::Machine;

/// Number of sentinels.
const COUNT: usize = 16;

/// The sentinels: each alone in a block of 4 MiB where there are enough of those, every second one, so that the balloon
/// surrounds them. Some are the first or last page of theirs: whoever discards a page too many beside a block of 4 MiB
/// meets one.
pub(super) struct Sentinels {
    pages: [Option<FrozenFrames>; COUNT],
}

/// What the word number `index` of sentinel page `pfn` holds.
fn pattern(pfn: Pfn, index: usize) -> u64 {
    (pfn.number() << 16 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

impl Sentinels {
    /// Takes and fills the pages; fewer where memory is short.
    pub(super) fn place(memory: &Memory<Machine>) -> Self {
        let mut pages = [const { None }; COUNT];
        let mut between = [const { None }; COUNT];
        let block = |gfp| memory.alloc_frozen(Order::MAX, gfp | Gfp::OPTIONAL).ok();
        for (index, (slot, gap)) in pages.iter_mut().zip(&mut between).enumerate() {
            let Some(block_of_its_own) = block(Gfp::KERNEL) else { break };
            *slot = Some(keep_one(memory, block_of_its_own, Place::of(index)));
            // Movable, as the balloon will ask for it.
            *gap = block(Gfp::USER);
        }
        between.into_iter().flatten().for_each(|gap| memory.free_frozen(gap));
        for slot in pages.iter_mut().filter(|slot| slot.is_none()).take(1) {
            *slot = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).ok();
        }
        for frames in pages.iter_mut().flatten() {
            let pfn = frames.head();
            let words = memory.bytes_mut(frames).as_chunks_mut::<8>().0;
            for (index, word) in words.iter_mut().enumerate() {
                *word = pattern(pfn, index).to_le_bytes();
            }
        }
        Self { pages }
    }

    /// Checks all pages; returns how many there are, or the first word that has changed.
    pub(super) fn check(&self, memory: &Memory<Machine>) -> Result<usize, Changed> {
        for frames in self.pages.iter().flatten() {
            let pfn = frames.head();
            let words = memory.bytes(frames).as_chunks::<8>().0;
            for (index, word) in words.iter().enumerate() {
                let (found, expected) = (u64::from_le_bytes(*word), pattern(pfn, index));
                if found != expected {
                    return Err(Changed { gpa: pfn.gpa() + 8 * index as u64, found, expected });
                }
            }
        }
        Ok(self.pages.iter().flatten().count())
    }
}

/// A word of a sentinel that is not what it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Changed {
    /// Its address.
    pub(super) gpa: u64,
    /// What it is.
    pub(super) found: u64,
    /// What it was.
    pub(super) expected: u64,
}

/// Where in its block a sentinel lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Middle,
    First,
    Last,
}

impl Place {
    /// Each in turn.
    const fn of(index: usize) -> Self {
        match index % 3 {
            0 => Self::Middle,
            1 => Self::First,
            _ => Self::Last,
        }
    }
}

/// Frees all of a block but one page.
fn keep_one(memory: &Memory<Machine>, mut block: FrozenFrames, place: Place) -> FrozenFrames {
    let mut keep_lower = place == Place::First;
    while block.order() > Order::ZERO {
        match memory.split_frozen(block) {
            Ok((lower, upper)) => {
                let (kept, freed) = if keep_lower { (lower, upper) } else { (upper, lower) };
                memory.free_frozen(freed);
                block = kept;
                keep_lower = place != Place::Last;
            }
            Err(error) => return error.block,
        }
    }
    block
}
