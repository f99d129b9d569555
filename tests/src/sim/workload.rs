//! The rest of the guest: it allocates, writes, looks whether it is still there, frees.

use guest_mm::buddy::Gfp;
use guest_mm::memdesc::Order;
use guest_mm::memory::{FrozenFrames, Memory};
use guest_mm::migrate::{Allocated, BATCH, MigrateBatch, MigrateMode, MigrateStats};
use guest_mm::mm::Mm;
use guest_mm::platform::Platform;
use guest_mm::store::{PfnStore, Select};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use super::scenario::Violation;

/// Blocks that the workload holds at most.
const MAX_BLOCKS: usize = 96;
/// Largest order that it allocates.
const MAX_ORDER: u8 = 5;

/// Memory that the guest uses, each page with a pattern of its own.
pub struct Workload<'r, 'm, P: Platform> {
    mm: &'r Mm<'m, P>,
    memory: &'m Memory<P>,
    blocks: Vec<(FrozenFrames, u64)>,
    /// Blocks of the balloon that migration has isolated.
    isolated: Vec<MigrateBatch<'r, 'm, P>>,
    /// What migration did.
    pub migrated: MigrateStats,
    /// Pages that were known to read as zero and did.
    pub zero_pages_seen: u64,
}

impl<'r, 'm, P: Platform> Workload<'r, 'm, P> {
    /// A workload that holds nothing.
    pub fn new(mm: &'r Mm<'m, P>) -> Self {
        Self {
            mm,
            memory: mm.memory(),
            blocks: Vec::new(),
            isolated: Vec::new(),
            migrated: MigrateStats::default(),
            zero_pages_seen: 0,
        }
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

    /// Isolates blocks of the balloon, or puts some back.
    pub fn isolate_or_put_back<S: PfnStore>(&mut self, store: &S, rng: &mut StdRng) {
        if self.isolated.len() >= 4 || rng.random_bool(0.5) {
            if !self.isolated.is_empty() {
                let mut batch = self.isolated.swap_remove(rng.random_range(0..self.isolated.len()));
                batch.putback();
            }
            return;
        }
        let batch = self.isolate(store, 1, rng);
        if !batch.is_empty() {
            self.isolated.push(batch);
        }
    }

    /// Migrates blocks of the balloon: some that were isolated long ago, or new ones.
    pub fn migrate<S: PfnStore>(&mut self, store: &S, rng: &mut StdRng) {
        let mut batch = if self.isolated.is_empty() || rng.random_bool(0.8) {
            let most = *[1, 4, BATCH].choose(rng).expect("three");
            self.isolate(store, most, rng)
        } else {
            self.isolated.swap_remove(rng.random_range(0..self.isolated.len()))
        };
        let mode = if rng.random_bool(0.5) { MigrateMode::Async } else { MigrateMode::Sync };
        // Now and then from the memory that only migration may have.
        let mut destinations = Allocated::new(self.memory);
        if rng.random_bool(0.7) {
            destinations = destinations.with_gfp(Gfp::MOVABLE);
        }
        self.migrated.add(&self.mm.migrate_pages(&mut batch, &mut destinations, mode));
    }

    /// Isolates up to `most` settled blocks, from anywhere on.
    fn isolate<S: PfnStore>(
        &self,
        store: &S,
        most: usize,
        rng: &mut StdRng,
    ) -> MigrateBatch<'r, 'm, P> {
        let mut batch = MigrateBatch::new(self.mm);
        let mut from = abi::Pfn::from_u32(rng.random_range(0..16_384));
        for _ in 0..most {
            let Some(found) = store.next(from, Select::Settled) else { break };
            let block = found.block;
            // It fails if the driver was faster, which is what is being tested.
            let _isolated = self.mm.isolate_for_migration(block.head(), &mut batch);
            from = block.head().checked_add(block.pages()).unwrap_or(abi::Pfn::ZERO);
        }
        batch
    }

    /// Puts every isolated block back.
    pub fn put_all_back(&mut self) {
        self.isolated.clear();
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
