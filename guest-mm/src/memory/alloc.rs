//! Allocation and freeing.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::Pfn;

use super::frames::FrozenFrames;
use super::pcp::PcpSlot;
use super::{Memory, MemoryCounters};
use crate::buddy::{BuddyCounters, FreeBlock, Gfp, Zone, frozen_word};
use crate::memdesc::{BlockKind, MigrateType, Order, OutOfMap, UnknownWord, Word};
use crate::platform::{FaultSite, MAX_CPUS, Platform};
use crate::sync::SpinGuard;

/// Why there is no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocError {
    /// No free block of this order that the flags allow to take.
    OutOfMemory(Order),
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(order) => write!(f, "No free block of order {order}"),
        }
    }
}

impl core::error::Error for AllocError {}

/// Why a block was not freed. It is left as it is: leaked rather than shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeError {
    /// Not a frame of this memory.
    OutOfMap(OutOfMap),
    /// The word is malformed.
    Unknown(UnknownWord),
    /// The word is not that of an allocated block: freed already, or another owner's.
    NotAllocated {
        /// The word that is there.
        found: Word,
    },
    /// The block has another order than the handle.
    WrongOrder {
        /// The order in the word.
        found: Order,
    },
    /// A free list around the block is corrupt.
    Corrupt(Pfn),
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMap(out) => out.fmt(f),
            Self::Unknown(unknown) => unknown.fmt(f),
            Self::NotAllocated { found } => write!(f, "Block is not allocated: {found:?}"),
            Self::WrongOrder { found } => write!(f, "Block has order {found}"),
            Self::Corrupt(pfn) => write!(f, "Free list is corrupt at frame {pfn}"),
        }
    }
}

impl core::error::Error for FreeError {}

/// Counts kept without the zone lock.
#[derive(Debug, Default)]
pub(super) struct AtomicCounters {
    failed_allocations: AtomicU64,
    refused_frees: AtomicU64,
    drains: AtomicU64,
    /// The zone's freely available pages when its lock was last released.
    available: AtomicU64,
}

impl AtomicCounters {
    pub(super) fn snapshot(&self, buddy: BuddyCounters) -> MemoryCounters {
        MemoryCounters {
            buddy,
            failed_allocations: self.failed_allocations.load(Ordering::Relaxed),
            refused_frees: self.refused_frees.load(Ordering::Relaxed),
            drains: self.drains.load(Ordering::Relaxed),
        }
    }

    /// A hint only: the zone lock orders the pages themselves.
    pub(super) fn available(&self) -> u64 {
        self.available.load(Ordering::Relaxed)
    }

    pub(super) fn note_available(&self, zone: &Zone) {
        self.available.store(zone.available(), Ordering::Relaxed);
    }
}

impl<P: Platform> Memory<P> {
    /// Allocates a block of `order`, frozen: owned by the handle alone.
    ///
    /// If the flags allow no block, the lists of all CPUs are emptied and the
    /// high-order reserve is opened before the answer is no. Never waits,
    /// except for short locks; may be called from a trap handler.
    ///
    /// # Errors
    /// [`AllocError::OutOfMemory`].
    pub fn alloc_frozen(&self, order: Order, gfp: Gfp) -> Result<FrozenFrames, AllocError> {
        self.assert_may_allocate();
        let block = if self.platform.inject_fault(FaultSite::BuddyAlloc) {
            None
        } else {
            self.take(order, gfp).or_else(|| {
                self.drain();
                self.counters.drains.fetch_add(1, Ordering::Relaxed);
                let mut zone = self.zone.lock(&self.platform);
                zone.unreserve_high_atomic(&self.map);
                self.counters.note_available(&zone);
                drop(zone);
                self.take(order, gfp)
            })
        };
        let Some(mut frames) = block else {
            self.counters.failed_allocations.fetch_add(1, Ordering::Relaxed);
            return Err(AllocError::OutOfMemory(order));
        };
        if gfp.contains(Gfp::ZERO) {
            self.bytes_mut(&mut frames).fill(0);
        }
        Ok(frames)
    }

    fn take(&self, order: Order, gfp: Gfp) -> Option<FrozenFrames> {
        if let Some(slot) = PcpSlot::of(order)
            && self.counters.available() >= order.pages().get() + self.reserve(gfp)
        {
            return self.take_listed(slot, gfp);
        }
        let mut zone = self.zone.lock(&self.platform);
        let block = zone.take(&self.map, order, gfp)?;
        // Before anything walks the pageblock: the block must not look free.
        let frames = self.freeze(block)?;
        if gfp.contains(Gfp::HIGH) && order > Order::ZERO {
            zone.reserve_high_atomic(&self.map, block.pfn);
        }
        self.counters.note_available(&zone);
        Some(frames)
    }

    /// The handle of a block just taken off a list.
    pub(super) fn freeze(&self, block: FreeBlock) -> Option<FrozenFrames> {
        self.transition(block.pfn, block.word, frozen_word(block.order)).ok()?;
        Some(FrozenFrames::own(block.pfn, block.order, block.reported))
    }

    /// Frees a block. Its contents are garbage from now on.
    ///
    /// A handle that does not match its word (forged by
    /// [`FrozenFrames::from_raw`], or of another memory) is refused, counted in
    /// [`MemoryCounters::refused_frees`] and leaked.
    ///
    /// # Panics
    /// In debug builds, if the block is refused.
    pub fn free_frozen(&self, frames: FrozenFrames) {
        let freed = self.try_free(frames);
        debug_assert!(freed.is_ok(), "refused free: {freed:?}");
    }

    /// Frees a block for which the host holds no memory: it reads as zero, and
    /// nobody has touched it since the host gave its memory away.
    ///
    /// # Panics
    /// In debug builds, if the block is refused, as in [`Self::free_frozen`].
    pub fn free_reported(&self, frames: FrozenFrames) {
        let freed = self.try_free_as(frames, HostMemory::Gone);
        debug_assert!(freed.is_ok(), "refused free: {freed:?}");
    }

    /// Frees a block, or says why not.
    ///
    /// # Errors
    /// The word does not say what the handle says: a double free, a wrong
    /// order, another memory's frames. Nothing is changed.
    pub fn try_free(&self, frames: FrozenFrames) -> Result<(), FreeError> {
        self.try_free_as(frames, HostMemory::Present)
    }

    fn try_free_as(&self, frames: FrozenFrames, host: HostMemory) -> Result<(), FreeError> {
        let freed = self.check_and_free(frames, host);
        if freed.is_err() {
            self.counters.refused_frees.fetch_add(1, Ordering::Relaxed);
        }
        freed
    }

    fn check_and_free(&self, mut frames: FrozenFrames, host: HostMemory) -> Result<(), FreeError> {
        let (pfn, order) = (frames.head(), frames.order());
        let word = self.map.words.load(pfn).map_err(FreeError::OutOfMap)?;
        if word != frames.word() {
            return Err(mismatch(word, frames.kind()));
        }
        self.retype(&mut frames, BlockKind::Frozen)
            .map_err(|_| FreeError::NotAllocated { found: word })?;
        let reported = host == HostMemory::Gone;
        let block = FreeBlock { pfn, order, reported, word: frozen_word(order) };
        match PcpSlot::of(order) {
            Some(slot) if !reported && self.map.pageblocks.get(pfn).is_mergeable() => {
                self.free_listed(slot, block)
            }
            Some(_) | None => {
                let mut zone = self.zone.lock(&self.platform);
                self.give_checked(&mut zone, block)
            }
        }
    }

    /// Gives a block to the zone; a failure is the caller's double free, or ours.
    pub(super) fn give_checked(
        &self,
        zone: &mut SpinGuard<'_, Zone, P>,
        block: FreeBlock,
    ) -> Result<(), FreeError> {
        let given = zone.give(&self.map, block);
        self.counters.note_available(zone);
        given.map_err(|corrupt| {
            let found = self.map.words.load(block.pfn).unwrap_or(Word::EMPTY);
            if found.as_buddy().is_none() && found != block.word {
                return FreeError::NotAllocated { found };
            }
            FreeError::Corrupt(corrupt.0)
        })
    }

    /// Pages that must stay free, by the flags.
    pub(super) fn reserve(&self, gfp: Gfp) -> u64 {
        gfp.reserve(self.watermarks())
    }

    /// Gives the blocks on all CPUs' lists back to the zone, where they merge.
    pub fn drain(&self) {
        for cpu in 0..MAX_CPUS {
            self.drain_cpu(cpu);
        }
    }

    /// Gives the pageblock around `pfn` the type `migratetype`; its free blocks
    /// follow. Lends the block as CMA, or takes it back. A pageblock that is set aside
    /// stays so, and has the type afterwards.
    ///
    /// # Errors
    /// A free list is corrupt.
    pub fn set_pageblock(&self, pfn: Pfn, migratetype: MigrateType) -> Result<(), FreeError> {
        let mut zone = self.zone.lock(&self.platform);
        let pageblocks = &self.map.pageblocks;
        if pageblocks.get(pfn) == MigrateType::Isolate && migratetype != MigrateType::Isolate {
            pageblocks.set_beneath(pfn, migratetype);
            return Ok(());
        }
        let done = zone.set_pageblock(&self.map, pfn, migratetype);
        self.counters.note_available(&zone);
        done.map_err(|corrupt| FreeError::Corrupt(corrupt.0))
    }
}

/// Whether the host has memory behind a block that is being freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostMemory {
    /// As far as we know.
    Present,
    /// No: a deflated block that nobody has touched yet.
    Gone,
}

/// What is wrong with a block whose word is not its handle's.
fn mismatch(found: Word, kind: BlockKind) -> FreeError {
    match found.decode() {
        Err(unknown) => FreeError::Unknown(unknown),
        Ok(crate::memdesc::Memdesc::Block(block)) if block.kind == kind => {
            FreeError::WrongOrder { found: block.order }
        }
        Ok(_) => FreeError::NotAllocated { found },
    }
}
