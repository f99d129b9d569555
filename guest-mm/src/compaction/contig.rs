//! Runs of frames at a given place: everything in the way is moved.

use core::fmt;

use abi::{PageCount, Pfn, PfnRange};

use super::look::{Look, look};
use super::migrate_scanner::ScanRules;
use super::stats::CompactEvent;
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::memdesc::{Kind, Order, OutOfMap, Tail};
use crate::memory::{ContigFrames, IsolatedRange, PageblockError, Pass};
use crate::migrate::{Allocated, MigrateBatch, MigrateError, MigrateMode, MigrateStats};
use crate::mm::Mm;
use crate::platform::Platform;

/// Times that a range is gone through for pages that were busy.
const ATTEMPTS: u32 = 5;
/// Pages to reclaim when there is no destination.
const RECLAIM: u64 = 64;

/// How a run of frames is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContigOptions {
    /// How much migration may wait.
    pub mode: MigrateMode,
    /// What may stay in the range: a run for hot-unplug passes over what its driver has offline.
    pub pass: Pass,
}

impl Default for ContigOptions {
    fn default() -> Self {
        Self { mode: MigrateMode::Sync, pass: Pass::Nothing }
    }
}

/// Why there is no run of frames. Everything is as it was, but pages may have moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContigError {
    /// The range has no frame.
    Empty,
    /// The alignment is no power of two.
    Alignment(PageCount),
    /// A frame of the range is not in RAM.
    OutOfMap(OutOfMap),
    /// Somebody else is taking frames of this pageblock.
    Contended(Pfn),
    /// A frame that stays where it is, and what it is.
    Immovable(Pfn, Kind),
    /// A frame that was in use or pinned whenever it was looked at.
    Busy(Pfn),
    /// No memory to move the range's pages to.
    NoMemory(Pfn),
    /// No range of so many pages could be emptied.
    NoRange(PageCount),
    /// A free list around the frame is corrupt.
    Corrupt(Pfn),
}

impl ContigError {
    /// Linux's number for it.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Empty | Self::Alignment(_) | Self::OutOfMap(_) => Errno::EINVAL,
            Self::Contended(_) | Self::Immovable(..) | Self::Busy(_) => Errno::EBUSY,
            Self::NoMemory(_) | Self::NoRange(_) => Errno::ENOMEM,
            Self::Corrupt(_) => Errno::EIO,
        }
    }
}

impl fmt::Display for ContigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("The range has no frame"),
            Self::Alignment(align) => write!(f, "{} pages are no power of two", align.get()),
            Self::OutOfMap(out) => out.fmt(f),
            Self::Contended(pfn) => write!(f, "Somebody else empties the pageblock of frame {pfn}"),
            Self::Immovable(pfn, kind) => {
                write!(f, "Frame {pfn} of kind {} does not move", kind.name())
            }
            Self::Busy(pfn) => write!(f, "Frame {pfn} is in use"),
            Self::NoMemory(pfn) => write!(f, "No memory to move frame {pfn} to"),
            Self::NoRange(pages) => write!(f, "No {} pages in a row can be emptied", pages.get()),
            Self::Corrupt(pfn) => write!(f, "Free list is corrupt at frame {pfn}"),
        }
    }
}

impl core::error::Error for ContigError {}

impl From<PageblockError> for ContigError {
    fn from(error: PageblockError) -> Self {
        match error {
            PageblockError::Empty => Self::Empty,
            PageblockError::OutOfMap(out) => Self::OutOfMap(out),
            PageblockError::Isolated(pfn) => Self::Contended(pfn),
            PageblockError::Corrupt(pfn) => Self::Corrupt(pfn),
        }
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Takes all frames of `range`, of any length, and moves what is in them away
    /// (Linux `alloc_contig_range`). The frames come frozen, with old contents.
    ///
    /// The pageblocks are set aside meanwhile: whoever else wants one of them gets
    /// [`ContigError::Contended`]. The caller holds no spin lock and no lock of an
    /// owner of movable pages.
    ///
    /// # Errors
    /// [`ContigError`]; no frame is taken and the pageblocks are as they were.
    pub fn alloc_contig_range(
        &self,
        range: PfnRange,
        options: ContigOptions,
    ) -> Result<ContigFrames, ContigError> {
        let taken = self.isolate_and_take(range, options);
        let event = match taken {
            Ok(_) => CompactEvent::ContigSuccess,
            Err(_) => CompactEvent::ContigFail,
        };
        self.count_compact(event, 1);
        taken
    }

    /// Takes `pages` frames in a row that begin at a multiple of `align` pages, from
    /// wherever the least has to be tried (Linux `alloc_contig_pages`).
    ///
    /// # Errors
    /// [`ContigError::NoRange`], or one that holds for every range.
    pub fn alloc_contig_pages(
        &self,
        pages: PageCount,
        align: PageCount,
        options: ContigOptions,
    ) -> Result<ContigFrames, ContigError> {
        if pages.is_zero() {
            return Err(ContigError::Empty);
        }
        if !align.get().is_power_of_two() {
            return Err(ContigError::Alignment(align));
        }
        let mut next = 0;
        while let Some(region) = self.memory().region_from(next) {
            next = next.max(region.start().number());
            while let Some(candidate) = candidate(region, next, pages, align) {
                let blocked_at = match self.isolate_and_take(candidate, options) {
                    Ok(frames) => {
                        self.count_compact(CompactEvent::ContigSuccess, 1);
                        return Ok(frames);
                    }
                    Err(ContigError::Contended(pfn)) => {
                        let end = pfn.align_down(Order::PAGEBLOCK.get());
                        end.number() + Order::PAGEBLOCK.pages().get() - 1
                    }
                    Err(ContigError::Immovable(pfn, _) | ContigError::Busy(pfn)) => pfn.number(),
                    Err(ContigError::NoMemory(_)) => candidate.start().number(),
                    // The region has gone meanwhile.
                    Err(ContigError::OutOfMap(_)) => break,
                    Err(error) => return Err(error),
                };
                // Every range with that frame would fail.
                next = blocked_at.max(candidate.start().number()) + 1;
            }
            next = region.end().number();
        }
        self.count_compact(CompactEvent::ContigFail, 1);
        Err(ContigError::NoRange(pages))
    }

    fn isolate_and_take(
        &self,
        range: PfnRange,
        options: ContigOptions,
    ) -> Result<ContigFrames, ContigError> {
        self.refuse_immovable(range, options.pass)?;
        let isolated = {
            let _section = self.read_pageblocks();
            self.memory().isolate_range(range)?
        };
        let taken = self.empty_and_take(&isolated, range, options);
        self.memory().unisolate_range(isolated);
        taken
    }

    /// Refuses a range early that holds what never moves.
    fn refuse_immovable(&self, range: PfnRange, pass: Pass) -> Result<(), ContigError> {
        let words = self.memory().words();
        let mut at = range.start();
        while at < range.end() {
            // The words of a hot-plugged block go with it.
            let _section = self.read_pageblocks();
            let passed = words.load(at).ok().and_then(|word| pass.over(word)).map(Order::pages);
            let (found, pages) = look(words, at, range.end());
            match found {
                Look::Hole => return Err(ContigError::OutOfMap(OutOfMap(at))),
                Look::Immovable(kind) => return Err(ContigError::Immovable(at, kind)),
                Look::Free | Look::Movable | Look::Busy(_) => {}
            }
            at = at.checked_add(passed.unwrap_or(pages)).unwrap_or(range.end());
        }
        Ok(())
    }

    fn empty_and_take(
        &self,
        isolated: &IsolatedRange,
        range: PfnRange,
        options: ContigOptions,
    ) -> Result<ContigFrames, ContigError> {
        let mut blocked_by = ContigError::Empty;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 && options.mode != MigrateMode::Async {
                // Whoever holds a page gets on; what waits for readers comes free.
                self.platform().relax();
                self.base().poll_rcu();
            }
            let stats = self.empty(range, options);
            // What came free may be on a CPU's list, from before its pageblock was set aside.
            self.memory().drain();
            match self.memory().take_isolated(isolated, range, options.pass) {
                Ok(frames) => return Ok(frames),
                Err(pfn) if stats.failed_with(MigrateError::NoMemory) > 0 => {
                    blocked_by = ContigError::NoMemory(pfn);
                    self.direct_reclaim(RECLAIM);
                }
                Err(pfn) => blocked_by = ContigError::Busy(pfn),
            }
        }
        Err(blocked_by)
    }

    /// Moves what can move out of the range.
    fn empty(&self, range: PfnRange, options: ContigOptions) -> MigrateStats {
        let mut sum = MigrateStats::default();
        let mut batch: MigrateBatch<'_, 'm, P> = MigrateBatch::new(self);
        // Its pageblocks are set aside, so the allocator gives nothing from the range;
        // and the reserve is not for moving pages about.
        let mut elsewhere = Allocated::new(self.memory()).with_gfp(Gfp::USER);
        let rules = ScanRules { skip_huge: false, give_up: None };
        let mut at = self.start_of_block(range.start());
        while at < range.end() {
            let Some(rest) = PfnRange::new(at, range.end()) else { break };
            let scan = self.isolate_movable(rest, rules, &mut batch);
            self.count_compact(CompactEvent::MigrateScanned, scan.scanned);
            at = scan.at;
            if !batch.is_empty() {
                let stats = self.migrate_pages(&mut batch, &mut elsewhere, options.mode);
                let pages = stats.vacated() + stats.failed();
                self.count_compact(CompactEvent::Isolated, pages);
                self.count_compact(CompactEvent::Migrated, stats.vacated());
                self.count_compact(CompactEvent::NotMigrated, stats.failed());
                sum.add(&stats);
            }
        }
        sum
    }

    /// First frame of the block without a descriptor that holds `pfn`, if it begins
    /// before: an offline block may reach into the range. A folio is found by any of its frames.
    fn start_of_block(&self, pfn: Pfn) -> Pfn {
        let _section = self.read_pageblocks();
        let word = self.memory().words().load(pfn);
        if word.is_ok_and(|word| word == crate::memdesc::Memdesc::Tail(Tail::of(pfn)).encode()) {
            return self.memory().words().head_of(pfn).map_or(pfn, |(head, _)| head);
        }
        pfn
    }
}

/// The first range in `region`, from frame number `from` on.
fn candidate(region: PfnRange, from: u64, pages: PageCount, align: PageCount) -> Option<PfnRange> {
    let start = from.checked_next_multiple_of(align.get()).and_then(Pfn::new)?;
    PfnRange::from_start(start, pages).filter(|range| region.contains_range(*range))
}
