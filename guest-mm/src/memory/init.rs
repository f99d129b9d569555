//! From ranges of RAM to free lists.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64};

use abi::{PAGE_SIZE, PageCount, Pfn, PfnRange};

use super::Memory;
use super::alloc::AtomicCounters;
use super::managed::AtomicWatermarks;
use super::pcp::CpuLists;
use crate::buddy::{FrameMap, PageblockTable, Zone, tail_word};
use crate::memdesc::{
    Block, BlockKind, MAX_REGIONS, Memdesc, MigrateType, Order, Region, Word, WordCell, WordTable,
    ZONE_MAX_PAGES,
};
use crate::platform::Platform;
use crate::sync::shim::AtomicU8;
use crate::sync::{LockClass, SpinLock};

/// Why memory could not be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitError {
    /// No range of RAM has a page.
    NoMemory,
    /// More disjoint ranges than [`MAX_REGIONS`].
    TooManyRanges,
    /// Two ranges of RAM overlap.
    Overlap(PfnRange, PfnRange),
    /// RAM spans more than a zone's links can express (256 GiB).
    ZoneTooLarge(PageCount),
    /// No range has this many free pages in a row for the tables.
    NoRoomForTables(PageCount),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("No RAM"),
            Self::TooManyRanges => write!(f, "More than {MAX_REGIONS} ranges of RAM"),
            Self::Overlap(a, b) => write!(f, "RAM ranges {a:?} and {b:?} overlap"),
            Self::ZoneTooLarge(span) => write!(f, "RAM spans {} pages", span.get()),
            Self::NoRoomForTables(pages) => {
                write!(f, "No {} free pages in a row for the frame tables", pages.get())
            }
        }
    }
}

impl core::error::Error for InitError {}

/// What the machine has: ranges of RAM, and what is taken already.
struct Layout<'a> {
    ram: [Option<PfnRange>; MAX_REGIONS],
    reserved: &'a [PfnRange],
    tables: PfnRange,
    base: Pfn,
    span: PageCount,
}

impl<P: Platform> Memory<P> {
    /// Takes over all RAM. The tables (8 bytes per page, one per 2 MiB) are
    /// carved out of it, from the top of the highest range that has room.
    ///
    /// `ram`: disjoint ranges, in any order; `reserved`: what is never handed
    /// out, in any order, may overlap and reach beyond RAM.
    ///
    /// # Errors
    /// The ranges make no sense, or there is no room for the tables.
    pub fn new(platform: P, ram: &[PfnRange], reserved: &[PfnRange]) -> Result<Self, InitError> {
        let began_ns = platform.now_ns();
        let layout = Layout::plan(ram, reserved)?;
        let map = layout.build_tables(&platform);
        let mut zone = Zone::new();
        let mut managed = PageCount::ZERO;
        for range in layout.ram.into_iter().flatten() {
            for free in layout.free_ranges(range) {
                managed = managed.saturating_add(free.len());
                for (pfn, order) in blocks_of(free) {
                    // Cannot fail: the words were written a moment ago.
                    let added = zone.add_initial(&map, pfn, order);
                    debug_assert!(added.is_ok(), "fresh zone: {added:?}");
                }
            }
        }
        zone.set_managed(managed.get());
        let counters = AtomicCounters::default();
        counters.note_available(&zone);
        let watermarks = AtomicWatermarks::new(zone.watermarks());
        let init_ns = platform.now_ns().saturating_sub(began_ns);
        Ok(Self {
            platform,
            init_ns,
            map,
            zone: SpinLock::new(LockClass::Zone, zone),
            cpus: [0, 1, 2, 3].map(|cpu| SpinLock::new(LockClass::Pcp, CpuLists::new(cpu))),
            counters,
            managed: AtomicU64::new(managed.get()),
            watermarks,
            #[cfg(not(loom))]
            hotplug: Default::default(),
            next_cache_id: AtomicU32::new(1),
            no_alloc: Default::default(),
        })
    }
}

impl<'a> Layout<'a> {
    fn plan(ram: &[PfnRange], reserved: &'a [PfnRange]) -> Result<Self, InitError> {
        let ram = sorted(ram)?;
        let first = ram.iter().flatten().next().ok_or(InitError::NoMemory)?;
        let last = ram.iter().flatten().last().ok_or(InitError::NoMemory)?;
        let base = first.start().align_down(Order::MAX.get());
        let span = last.end().offset_from(base).unwrap_or(PageCount::ZERO);
        if span.get() > ZONE_MAX_PAGES {
            return Err(InitError::ZoneTooLarge(span));
        }
        let pages: u64 = ram.iter().flatten().map(|range| range.len().get()).sum();
        let bytes = pages * size_of::<Word>() as u64 + PageblockTable::len_for(span);
        let needed = PageCount::new(bytes.div_ceil(PAGE_SIZE));
        let tables = place_tables(&ram, reserved, needed)?;
        Ok(Self { ram, reserved, tables, base, span })
    }

    /// Writes the words and pageblock types. Free frames have empty heads, for
    /// the zone to take over, and their final tails.
    fn build_tables<P: Platform>(&self, platform: &P) -> FrameMap {
        let start = platform.frame_ptr(self.tables.start());
        let mut regions = [None; MAX_REGIONS];
        let mut words = start.cast::<WordCell>();
        for (slot, range) in regions.iter_mut().zip(self.ram.iter().flatten()) {
            self.fill_words(*range, words);
            // SAFETY: `fill_words` has initialised a cell per frame; the tables lie in
            // the direct map, which outlives the platform's user, and are reserved.
            *slot = Some(unsafe { Region::new(*range, words) });
            let count = index(range.len().get());
            // SAFETY: `plan` made room for the words of all ranges, one after another.
            words = unsafe { words.add(count) };
        }
        let types = words.cast::<AtomicU8>();
        let len = index(PageblockTable::len_for(self.span));
        for i in 0..len {
            // SAFETY: `plan` made room for `len` bytes after the words.
            let cell = unsafe { types.add(i) };
            // SAFETY: as above; nobody else knows the address yet.
            unsafe { cell.write(AtomicU8::new(MigrateType::Movable as u8)) };
        }
        // SAFETY: `len` cells were just initialised; the table's frames are reserved.
        let pageblocks = unsafe { PageblockTable::new(self.base, types, len) };
        FrameMap { words: WordTable::new(regions, self.base), pageblocks }
    }

    fn fill_words(&self, range: PfnRange, words: NonNull<WordCell>) {
        let put = |pfn: Pfn, word: Word| {
            let at = index(pfn.number() - range.start().number());
            // SAFETY: `at` is below the range's length, for which `plan` made room.
            let cell = unsafe { words.add(at) };
            // SAFETY: as above; nobody else knows the address yet.
            unsafe { cell.write(WordCell::new(word)) };
        };
        let reserved = Memdesc::Block(Block::new(BlockKind::Reserved, Order::ZERO)).encode();
        let mut at = range.start();
        for free in self.free_ranges(range) {
            for pfn in (at.number()..free.start().number()).filter_map(Pfn::new) {
                put(pfn, reserved);
            }
            for pfn in free.iter() {
                put(pfn, tail_word(pfn));
            }
            for (head, _) in blocks_of(free) {
                put(head, Word::EMPTY);
            }
            at = free.end();
        }
        for pfn in (at.number()..range.end().number()).filter_map(Pfn::new) {
            put(pfn, reserved);
        }
    }

    /// The parts of `range` that are neither reserved nor tables, ascending.
    fn free_ranges(&self, range: PfnRange) -> impl Iterator<Item = PfnRange> {
        let taken = move || self.reserved.iter().copied().chain([self.tables]);
        let mut at = range.start();
        core::iter::from_fn(move || {
            while let Some(around) = taken().find(|r| r.contains(at)) {
                at = around.end();
            }
            if at >= range.end() {
                return None;
            }
            let next =
                taken().filter(|r| !r.is_empty()).map(PfnRange::start).filter(|&s| s > at).min();
            let end = next.map_or(range.end(), |next| next.min(range.end()));
            let free = PfnRange::new(at, end)?;
            at = end;
            Some(free)
        })
    }
}

/// The naturally aligned blocks, largest possible, that make up `range`.
pub(super) fn blocks_of(range: PfnRange) -> impl Iterator<Item = (Pfn, Order)> {
    let mut at = range.start();
    core::iter::from_fn(move || {
        let left = range.end().offset_from(at).filter(|left| !left.is_zero())?;
        let order = Order::alignment_of(at.number()).min(Order::fitting(left.get()));
        let pfn = at;
        at = at.checked_add(order.pages())?;
        Some((pfn, order))
    })
}

/// The ranges in ascending order, neighbours joined, empty ones dropped.
fn sorted(ram: &[PfnRange]) -> Result<[Option<PfnRange>; MAX_REGIONS], InitError> {
    let mut out = [None; MAX_REGIONS];
    let mut len = 0;
    let mut at = Pfn::ZERO;
    // Repeated minimum search: few ranges, no allocation.
    while let Some(next) =
        ram.iter().copied().filter(|r| !r.is_empty() && r.end() > at).min_by_key(|r| r.start())
    {
        let mut touching = ram.iter().filter(|r| r.intersection(next).is_some());
        // The first is `next` itself, or the one it overlaps.
        if let (Some(a), Some(b)) = (touching.next(), touching.next()) {
            return Err(InitError::Overlap(*a, *b));
        }
        at = next.end();
        let last: Option<&mut Option<PfnRange>> =
            usize::checked_sub(len, 1).and_then(|i| out.get_mut(i));
        if let Some(Some(last)) = last
            && last.end() == next.start()
        {
            *last = PfnRange::new(last.start(), next.end()).unwrap_or(next);
            continue;
        }
        *out.get_mut(len).ok_or(InitError::TooManyRanges)? = Some(next);
        len += 1;
    }
    Ok(out)
}

/// The highest `needed` free pages in a row.
fn place_tables(
    ram: &[Option<PfnRange>; MAX_REGIONS],
    reserved: &[PfnRange],
    needed: PageCount,
) -> Result<PfnRange, InitError> {
    for range in ram.iter().rev().flatten() {
        let mut end = range.end();
        while let Some(start) = end.number().checked_sub(needed.get()).and_then(Pfn::new)
            && start >= range.start()
            && let Some(candidate) = PfnRange::new(start, end)
        {
            match reserved
                .iter()
                .filter_map(|r| r.intersection(candidate))
                .map(PfnRange::start)
                .min()
            {
                None => return Ok(candidate),
                Some(taken) => end = taken,
            }
        }
    }
    Err(InitError::NoRoomForTables(needed))
}

/// A count of table entries: tables lie in RAM, so it fits an address.
#[expect(clippy::cast_possible_truncation, reason = "64-bit machines only")]
const fn index(n: u64) -> usize {
    n as usize
}

const _: () = assert!(usize::BITS == 64, "frame tables are indexed by 64-bit numbers");
