//! Runs of frames at a given place: pageblocks set aside, and what is free in them taken.
//!
//! Lock order: the zone lock, for one pageblock or one range at a time; a CPU's
//! lists before it, when they are emptied. Nothing here waits or allocates.

use core::fmt;

use abi::{PageCount, Pfn, PfnRange};

use super::Memory;
use super::frames::FrozenFrames;
use super::init::blocks_of;
use crate::buddy::{Gfp, Zone, free_block_around, frozen_word};
use crate::memdesc::{Hold, Memdesc, MigrateType, Order, OutOfMap, Word};
use crate::platform::Platform;

/// Why pageblocks could not be set aside; none is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageblockError {
    /// The range has no frame.
    Empty,
    /// A frame of the range is not in RAM.
    OutOfMap(OutOfMap),
    /// Somebody else has set this pageblock aside.
    Isolated(Pfn),
    /// A free list around the frame is corrupt.
    Corrupt(Pfn),
}

impl fmt::Display for PageblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("The range has no frame"),
            Self::OutOfMap(out) => out.fmt(f),
            Self::Isolated(pfn) => write!(f, "Pageblock of frame {pfn} is set aside already"),
            Self::Corrupt(pfn) => write!(f, "Free list is corrupt at frame {pfn}"),
        }
    }
}

impl core::error::Error for PageblockError {}

/// Pageblocks that the holder has set aside: what is free or freed in them is
/// handed out to nobody else.
#[must_use = "dropping it leaves the pageblocks unused for ever; see `Memory::unisolate_range`"]
#[derive(Debug, PartialEq, Eq)]
pub struct IsolatedRange {
    pageblocks: PfnRange,
}

impl IsolatedRange {
    /// The pageblocks, from first to last frame.
    pub const fn pageblocks(&self) -> PfnRange {
        self.pageblocks
    }
}

/// A run of frames that the holder owns, in one piece whatever its length.
///
/// Its words are frozen blocks. If the run was taken with [`Pass::Skippable`], the
/// blocks in it that are offline and skippable belong to their driver still.
#[must_use = "dropping it leaks its frames; see `Memory::free_contig`"]
#[derive(Debug, PartialEq, Eq)]
pub struct ContigFrames {
    range: PfnRange,
    pages: PageCount,
}

impl ContigFrames {
    /// From first to last frame.
    pub const fn range(&self) -> PfnRange {
        self.range
    }

    /// Frames that are the holder's: all of the range, unless some were passed over.
    pub const fn pages(&self) -> PageCount {
        self.pages
    }
}

/// What may stay in a range that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Nothing: the range comes as a whole.
    Nothing,
    /// Offline blocks whose words say *skippable*. Whoever asks for it keeps their driver from changing them.
    Skippable,
}

impl Pass {
    /// The order of the block with this word, if it stays.
    pub(crate) fn over(self, word: Word) -> Option<Order> {
        match word.decode() {
            Ok(Memdesc::Offline(block))
                if self == Self::Skippable && block.skippable && block.hold != Hold::Isolated =>
            {
                Some(block.order)
            }
            Ok(_) | Err(_) => None,
        }
    }
}

impl<P: Platform> Memory<P> {
    /// Sets all pageblocks aside that `range` touches: nothing in them is handed
    /// out from now on, and what is free or freed there stays free. CPUs' lists
    /// hold nothing of them when it returns.
    ///
    /// # Errors
    /// [`PageblockError`]; nothing is set aside.
    pub fn isolate_range(&self, range: PfnRange) -> Result<IsolatedRange, PageblockError> {
        let pageblocks = self.pageblocks_of(range)?;
        let mut done = IsolatedRange {
            pageblocks: PfnRange::new(pageblocks.start(), pageblocks.start()).unwrap_or(pageblocks),
        };
        for start in pageblock_starts(pageblocks) {
            if let Err(error) = self.isolate_one(start) {
                self.unisolate_range(done);
                return Err(error);
            }
            let end = start.checked_add(Order::PAGEBLOCK.pages()).unwrap_or(start);
            done.pageblocks = PfnRange::new(pageblocks.start(), end).unwrap_or(pageblocks);
        }
        self.drain();
        Ok(done)
    }

    /// Lets the pageblocks be used again, as what they were.
    pub fn unisolate_range(&self, isolated: IsolatedRange) {
        for start in pageblock_starts(isolated.pageblocks) {
            let mut zone = self.zone.lock(&self.platform);
            let done = zone.unisolate(&self.map, start);
            self.counters.note_available(&zone);
            debug_assert!(done.is_ok(), "{start:?}: {done:?}");
        }
    }

    fn isolate_one(&self, start: Pfn) -> Result<(), PageblockError> {
        let mut zone = self.zone.lock(&self.platform);
        let done = zone.isolate(&self.map, start);
        self.counters.note_available(&zone);
        match done {
            Ok(true) => Ok(()),
            Ok(false) => Err(PageblockError::Isolated(start)),
            Err(corrupt) => Err(PageblockError::Corrupt(corrupt.0)),
        }
    }

    fn pageblocks_of(&self, range: PfnRange) -> Result<PfnRange, PageblockError> {
        if range.is_empty() {
            return Err(PageblockError::Empty);
        }
        if !self.words().regions().any(|region| region.range().contains_range(range)) {
            let hole = range.iter().find(|&pfn| self.words().cell(pfn).is_err());
            // Two regions that touch are one; so a range in RAM lies in one region.
            return Err(PageblockError::OutOfMap(OutOfMap(hole.unwrap_or(range.end()))));
        }
        let last = range.end().number() - 1;
        let order = Order::PAGEBLOCK.get();
        let end = (last | (Order::PAGEBLOCK.pages().get() - 1)) + 1;
        let end = Pfn::new(end).unwrap_or(range.end());
        Ok(PfnRange::new(range.start().align_down(order), end).unwrap_or(range))
    }

    /// The first region of RAM that begins at frame number `from` or above: it may be gone
    /// as soon as this returns, if it came to life after the start.
    pub(crate) fn region_from(&self, from: u64) -> Option<PfnRange> {
        // The headers of added blocks go with them, but not meanwhile.
        let _zone = self.zone.lock(&self.platform);
        let ranges = self.words().regions().map(|region| region.range());
        ranges.filter(|range| range.start().number() >= from).min_by_key(|range| range.start())
    }

    /// Takes all of `range`, which lies in pageblocks that the caller has set aside.
    ///
    /// # Errors
    /// The first frame that is neither free nor passed over; nothing is taken.
    pub fn take_isolated(
        &self,
        isolated: &IsolatedRange,
        range: PfnRange,
        pass: Pass,
    ) -> Result<ContigFrames, Pfn> {
        if range.is_empty() || !isolated.pageblocks.contains_range(range) {
            return Err(range.start());
        }
        let mut zone = self.zone.lock(&self.platform);
        self.for_each_piece(range, pass, &mut |_| Ok(()))?;
        let mut pages = PageCount::ZERO;
        self.for_each_piece(range, pass, &mut |piece| {
            let (pfn, order) = piece;
            // The zone lock is held and the block free: nobody can be faster.
            let frames = self.take_at(&mut zone, pfn, order).ok_or(pfn)?;
            pages = pages.saturating_add(frames.pages());
            // The word owns the block from here on; `split_contig` makes the handle again.
            frames.into_raw();
            Ok(())
        })?;
        self.counters.note_available(&zone);
        Ok(ContigFrames { range, pages })
    }

    /// Calls `each` with the largest aligned free blocks that make up `range`
    /// but for what is passed over.
    fn for_each_piece(
        &self,
        range: PfnRange,
        pass: Pass,
        each: &mut dyn FnMut((Pfn, Order)) -> Result<(), Pfn>,
    ) -> Result<(), Pfn> {
        let mut at = range.start();
        while at < range.end() {
            let word = self.words().load(at).map_err(|_| at)?;
            let order = match pass.over(word) {
                Some(passed) => passed,
                None => {
                    let (head, free) = free_block_around(&self.map, at).ok_or(at)?;
                    let end = head.checked_add(free.pages()).ok_or(at)?.min(range.end());
                    let rest = PfnRange::new(at, end).ok_or(at)?;
                    let (_, order) = blocks_of(rest).next().ok_or(at)?;
                    each((at, order))?;
                    order
                }
            };
            at = at.checked_add(order.pages()).ok_or(at)?;
        }
        Ok(())
    }

    /// Frees a run of frames.
    ///
    /// # Panics
    /// In debug builds, if a block is refused, as in [`Self::free_frozen`].
    pub fn free_contig(&self, frames: ContigFrames) {
        self.split_contig(frames, &mut |block| self.free_frozen(block));
    }

    /// Takes the block of `order` at `pfn`, if it is free and on a list of the zone, and
    /// the flags allow an allocation.
    pub(crate) fn take_if_free(&self, pfn: Pfn, order: Order, gfp: Gfp) -> Option<FrozenFrames> {
        let is_free = || {
            free_block_around(&self.map, pfn).is_some_and(|(_, free)| free >= order)
                && self.map.pageblocks.get(pfn) != MigrateType::Isolate
        };
        // A look without the lock, which most frames do not pass. The words of a block that was
        // added may go meanwhile.
        if self.words().is_of_the_start(pfn) && !is_free() {
            return None;
        }
        let mut zone = self.zone.lock(&self.platform);
        if !is_free() || zone.available() < order.pages().get() + self.reserve(gfp) {
            return None;
        }
        let frames = self.take_at(&mut zone, pfn, order);
        self.counters.note_available(&zone);
        frames
    }

    /// Takes the block of `order` at `pfn`, frozen; `None` if it is not free as a whole, or a
    /// free list is corrupt, which is counted.
    pub(super) fn take_at(&self, zone: &mut Zone, pfn: Pfn, order: Order) -> Option<FrozenFrames> {
        let taken = zone.take_at(&self.map, pfn, order);
        self.freeze(zone.note_corruption(taken).flatten()?)
    }

    /// Gives up the run for its blocks: `each` gets every one that is the holder's.
    pub fn split_contig(&self, frames: ContigFrames, each: &mut dyn FnMut(FrozenFrames)) {
        let mut at = frames.range.start();
        let mut left = frames.pages;
        while at < frames.range.end() {
            let Ok(word) = self.words().load(at) else { break };
            let order = match word.decode() {
                Ok(Memdesc::Block(block)) if word == frozen_word(block.order) => {
                    left = left.saturating_sub(block.order.pages());
                    each(FrozenFrames::own(at, block.order, false));
                    block.order
                }
                Ok(other) => other.order().unwrap_or(Order::ZERO),
                Err(_) => Order::ZERO,
            };
            let Some(next) = at.checked_add(order.pages()) else { break };
            at = next;
        }
        debug_assert!(left.is_zero(), "{left:?} of {:?} are not ours", frames.range);
    }

    /// The run as one block, if it is one: a power of two, aligned, whole.
    ///
    /// # Errors
    /// The run, if it is no block.
    pub fn contig_into_block(&self, frames: ContigFrames) -> Result<FrozenFrames, ContigFrames> {
        let mut blocks = blocks_of(frames.range);
        let (Some((head, order)), None) = (blocks.next(), blocks.next()) else {
            return Err(frames);
        };
        if self.words().load(head) != Ok(frozen_word(order)) {
            return Err(frames);
        }
        Ok(FrozenFrames::own(head, order, false))
    }
}

/// First frames of the pageblocks in `pageblocks`.
fn pageblock_starts(pageblocks: PfnRange) -> impl Iterator<Item = Pfn> {
    let step = usize::try_from(Order::PAGEBLOCK.pages().get()).unwrap_or(usize::MAX);
    pageblocks.iter().step_by(step)
}
