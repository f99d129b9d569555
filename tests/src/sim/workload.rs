//! The rest of the guest: it allocates, writes, looks whether it is still there, frees.

use guest_mm::buddy::Gfp;
use guest_mm::memdesc::{DriverId, Order};
use guest_mm::memory::{FrozenFrames, IsolatedBlock, Memory};
use guest_mm::platform::Platform;
use guest_mm::store::{PfnStore, Select};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::scenario::Violation;

/// Blocks that the workload holds at most.
const MAX_BLOCKS: usize = 96;
/// Largest order that it allocates.
const MAX_ORDER: u8 = 5;

/// Memory that the guest uses, each page with a pattern of its own.
pub struct Workload<'m, P: Platform> {
    memory: &'m Memory<P>,
    blocks: Vec<(FrozenFrames, u64)>,
    isolated: Vec<IsolatedBlock>,
    /// Pages that were known to read as zero and did.
    pub zero_pages_seen: u64,
}

impl<'m, P: Platform> Workload<'m, P> {
    /// A workload that holds nothing.
    pub fn new(memory: &'m Memory<P>) -> Self {
        Self { memory, blocks: Vec::new(), isolated: Vec::new(), zero_pages_seen: 0 }
    }

    /// Pages that the workload holds.
    pub fn pages(&self) -> u64 {
        self.blocks.iter().map(|(frames, _)| frames.pages().get()).sum()
    }

    /// Allocates a block and fills it, or frees one after a look at it.
    ///
    /// # Errors
    /// A page does not hold what it must.
    pub fn step(&mut self, rng: &mut StdRng) -> Result<(), Violation> {
        let wants_more = self.blocks.len() < MAX_BLOCKS && rng.random_bool(0.55);
        if wants_more { self.allocate(rng) } else { self.free_one(rng) }
    }

    fn allocate(&mut self, rng: &mut StdRng) -> Result<(), Violation> {
        let order = Order::new(rng.random_range(0..=MAX_ORDER)).expect("a small order");
        let Ok(mut frames) = self.memory.alloc_frozen(order, Gfp::USER) else { return Ok(()) };
        if frames.was_reported() {
            // The host holds nothing for these pages: that has to be true.
            let is_zero = self.memory.bytes(&frames).iter().all(|&byte| byte == 0);
            if !is_zero {
                return Err(Violation::ReportedPageNotZero(frames.head()));
            }
            self.zero_pages_seen += frames.pages().get();
        }
        let seed = rng.next_u64();
        for (word, value) in words(self.memory.bytes_mut(&mut frames)).zip(pattern(seed)) {
            word.copy_from_slice(&value.to_le_bytes());
        }
        self.blocks.push((frames, seed));
        Ok(())
    }

    fn free_one(&mut self, rng: &mut StdRng) -> Result<(), Violation> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let (frames, seed) = self.blocks.swap_remove(rng.random_range(0..self.blocks.len()));
        let checked = self.look_at(&frames, seed);
        self.memory.free_frozen(frames);
        checked
    }

    /// Looks at every page that the workload holds.
    ///
    /// # Errors
    /// A page does not hold what was written to it.
    pub fn verify(&self) -> Result<(), Violation> {
        self.blocks.iter().try_for_each(|(frames, seed)| self.look_at(frames, *seed))
    }

    fn look_at(&self, frames: &FrozenFrames, seed: u64) -> Result<(), Violation> {
        let bytes = self.memory.bytes(frames);
        let intact = bytes
            .chunks_exact(8)
            .zip(pattern(seed))
            .all(|(word, value)| word == value.to_le_bytes());
        if intact { Ok(()) } else { Err(Violation::GuestPageDiscarded(frames.head())) }
    }

    /// Isolates a block of the balloon as migration would, or puts one back.
    pub fn isolate_or_put_back<S: PfnStore>(&mut self, store: &S, rng: &mut StdRng) {
        if self.isolated.len() >= 4 || rng.random_bool(0.5) {
            if !self.isolated.is_empty() {
                let block = self.isolated.swap_remove(rng.random_range(0..self.isolated.len()));
                self.memory.putback(block).expect("an isolated block stays isolated");
            }
            return;
        }
        let from = abi::Pfn::from_u32(rng.random_range(0..16_384));
        let Some(found) = store.next(from, Select::Settled) else { return };
        // It fails if the driver was faster, which is what is being tested.
        if let Ok(block) = self.memory.isolate(found.block.head(), DriverId::BALLOON) {
            self.isolated.push(block);
        }
    }

    /// Puts every isolated block back.
    pub fn put_all_back(&mut self) {
        for block in self.isolated.drain(..) {
            self.memory.putback(block).expect("an isolated block stays isolated");
        }
    }

    /// Looks at everything and frees it.
    ///
    /// # Errors
    /// A page does not hold what was written to it.
    pub fn end(&mut self) -> Result<(), Violation> {
        self.put_all_back();
        let checked = self.verify();
        for (frames, _) in self.blocks.drain(..) {
            self.memory.free_frozen(frames);
        }
        checked
    }
}

fn words(bytes: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    bytes.chunks_exact_mut(8)
}

/// A cheap sequence that is never zero for long.
fn pattern(seed: u64) -> impl Iterator<Item = u64> {
    (1u64..).map(move |n| seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
}
