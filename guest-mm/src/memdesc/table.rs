//! One word per frame of RAM.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PageCount, Pfn, PfnRange};

use super::body::{Memdesc, Tail};
use super::cell::WordCell;
use super::order::Order;
use super::section::Sections;
use super::word::{Link, UnknownWord, Word};

/// Largest number of disjoint ranges of RAM at the start.
pub const MAX_REGIONS: usize = 16;

/// A contiguous range of RAM and where its words are.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    range: PfnRange,
    words: NonNull<WordCell>,
}

impl Region {
    /// The region `range` with its words at `words`.
    ///
    /// # Safety
    /// `words` points to one initialised cell per frame of `range`, alive and
    /// reached through cells only for as long as the region is used.
    pub const unsafe fn new(range: PfnRange, words: NonNull<WordCell>) -> Self {
        Self { range, words }
    }

    /// Its frames.
    pub const fn range(&self) -> PfnRange {
        self.range
    }
}

/// A frame number without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMap(pub Pfn);

impl fmt::Display for OutOfMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame {} has no memory descriptor", self.0)
    }
}

impl core::error::Error for OutOfMap {}

/// The words of all RAM. Holes between regions cost nothing.
///
/// RAM of the start has regions that never change. Blocks that came to life later
/// come and go; who may look their frames up is said in `memdesc/section.rs`.
#[derive(Debug)]
pub struct WordTable {
    /// RAM of the start, ascending, without a gap between slots.
    regions: [Option<Region>; MAX_REGIONS],
    /// What was added later.
    sections: Sections,
    /// Frame 0 of the zone, to which links are relative.
    base: Pfn,
    /// Malformed words met by [`Self::decode`].
    unknown: AtomicU64,
}

// SAFETY: the pointers lead to atomic cells that any thread may use (`Region::new`).
unsafe impl Send for WordTable {}
// SAFETY: as for `Send`; all access is atomic.
unsafe impl Sync for WordTable {}

impl WordTable {
    /// The table of these regions; links are relative to `base`.
    pub(crate) const fn new(regions: [Option<Region>; MAX_REGIONS], base: Pfn) -> Self {
        Self { regions, sections: Sections::new(base), base, unknown: AtomicU64::new(0) }
    }

    /// The regions: those of the start, ascending, then blocks that were added, ascending.
    pub fn regions(&self) -> impl Iterator<Item = Region> {
        let added = self.sections.blocks().map(super::section::HotBlock::region);
        self.regions.iter().flatten().copied().chain(added)
    }

    /// Whether `pfn` is RAM of the start, whose words never go.
    pub(crate) fn is_of_the_start(&self, pfn: Pfn) -> bool {
        self.regions.iter().flatten().any(|region| region.range.contains(pfn))
    }

    /// The blocks that were added.
    pub(crate) const fn sections(&self) -> &Sections {
        &self.sections
    }

    /// Number of words.
    pub fn len(&self) -> PageCount {
        self.regions().fold(PageCount::ZERO, |n, region| n.saturating_add(region.range.len()))
    }

    /// Whether the table has no word.
    pub fn is_empty(&self) -> bool {
        self.len().is_zero()
    }

    /// The cell of `pfn`.
    ///
    /// # Errors
    /// The frame is not in RAM.
    #[inline]
    pub fn cell(&self, pfn: Pfn) -> Result<&WordCell, OutOfMap> {
        for region in self.regions.iter().flatten() {
            if let Some(offset) =
                region.range.contains(pfn).then(|| pfn.offset_from(region.range.start())).flatten()
            {
                let Ok(offset) = usize::try_from(offset.get()) else { break };
                // SAFETY: `offset` is below the region's length, and the region has
                // a cell for each of its frames (`Region::new`).
                let cell = unsafe { region.words.add(offset) };
                // SAFETY: the cell is initialised, lives as long as the table and is
                // only reached as a shared cell (`Region::new`).
                return Ok(unsafe { cell.as_ref() });
            }
        }
        self.added_cell(pfn)
    }

    /// The cell of a frame that was not there at the start. Out of the way of those that were.
    #[cold]
    #[inline(never)]
    fn added_cell(&self, pfn: Pfn) -> Result<&WordCell, OutOfMap> {
        self.sections.cell(pfn).ok_or(OutOfMap(pfn))
    }

    /// The word of `pfn`.
    ///
    /// # Errors
    /// The frame is not in RAM.
    #[inline]
    pub fn load(&self, pfn: Pfn) -> Result<Word, OutOfMap> {
        Ok(self.cell(pfn)?.load())
    }

    /// What the word of `pfn` says. Malformed words are counted; their frames
    /// are to be treated as busy.
    ///
    /// # Errors
    /// The frame is not in RAM, or its word is malformed.
    pub fn decode(&self, pfn: Pfn) -> Result<Memdesc, LookupError> {
        let word = self.load(pfn).map_err(LookupError::OutOfMap)?;
        word.decode().map_err(|unknown| {
            self.unknown.fetch_add(1, Ordering::Relaxed);
            LookupError::Unknown(unknown)
        })
    }

    /// The head of the block that holds `pfn`, and its word. A snapshot: the
    /// block may be split or merged as soon as this returns, so the caller
    /// acts by [`WordCell::transition`] from the word.
    ///
    /// # Errors
    /// As [`Self::decode`]; also if splits and merges kept moving the head.
    pub fn head_of(&self, pfn: Pfn) -> Result<(Pfn, Memdesc), LookupError> {
        let mut head = pfn;
        // Each step clears the lowest set bit, so a block needs at most one per order.
        for _ in 0..=Order::COUNT {
            let memdesc = self.decode(head)?;
            let Memdesc::Tail(Tail { distance, .. }) = memdesc else {
                return Ok((head, memdesc));
            };
            let below = head.number().checked_sub(u64::from(distance)).and_then(Pfn::new);
            head = below.ok_or(LookupError::NoHead(pfn))?;
        }
        Err(LookupError::NoHead(pfn))
    }

    /// How many malformed words [`Self::decode`] has met.
    pub fn unknown_words(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// Frame 0 of the zone.
    pub const fn base(&self) -> Pfn {
        self.base
    }

    /// The link to `pfn`; [`Link::NONE`] for a frame outside the zone.
    pub(crate) fn link(&self, pfn: Pfn) -> Link {
        pfn.offset_from(self.base).and_then(|index| Link::to(index.get())).unwrap_or(Link::NONE)
    }

    /// The frame that `link` names.
    pub(crate) fn follow(&self, link: Link) -> Option<Pfn> {
        self.base.checked_add(PageCount::new(link.index()?))
    }
}

/// Why a frame number led to no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupError {
    /// The frame is not in RAM.
    OutOfMap(OutOfMap),
    /// Its word is malformed.
    Unknown(UnknownWord),
    /// Its tails lead to no head.
    NoHead(Pfn),
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMap(out) => out.fmt(f),
            Self::Unknown(unknown) => unknown.fmt(f),
            Self::NoHead(pfn) => write!(f, "No block holds frame {pfn}"),
        }
    }
}

impl core::error::Error for LookupError {}
