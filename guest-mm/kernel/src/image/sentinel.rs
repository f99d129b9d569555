//! Pages that the kernel fills at boot and that must never change.

use abi::Pfn;
use guest_mm::buddy::Gfp;
use guest_mm::memdesc::Order;
use guest_mm::memory::{FrozenFrames, Memory};

use super::platform::Machine;

/// Number of sentinels.
const COUNT: usize = 16;

/// The sentinels: each alone in a block of 4 MiB where there are enough of those, so that they spread over RAM and the
/// balloon surrounds them.
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
        for slot in &mut pages {
            let Ok(block) = memory.alloc_frozen(Order::MAX, Gfp::KERNEL | Gfp::OPTIONAL) else {
                break;
            };
            *slot = Some(keep_one(memory, block));
        }
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

/// Frees all of a block but one page in its middle.
fn keep_one(memory: &Memory<Machine>, mut block: FrozenFrames) -> FrozenFrames {
    let mut keep_lower = false;
    while block.order() > Order::ZERO {
        match memory.split_frozen(block) {
            Ok((lower, upper)) => {
                let (kept, freed) = if keep_lower { (lower, upper) } else { (upper, lower) };
                memory.free_frozen(freed);
                block = kept;
                keep_lower = true;
            }
            Err(error) => return error.block,
        }
    }
    block
}
