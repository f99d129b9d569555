//! From the loader's memory map to RAM that may be used.
//!
//! The map may be unsorted, overlapping, overflowing or absurd. What comes out
//! is sorted, disjoint, page-aligned, and RAM by every entry's word: an entry
//! that says otherwise wins.

use abi::{PageCount, Pfn, PfnRange};
use guest_mm::memdesc::{Order, SECTION_ORDER};

use crate::layout::{DIRECT_MAP_LIMIT, PAGE};
use crate::start_info::{MapEntry, TYPE_RAM};

/// Ranges that a [`RamMap`] holds.
pub const MAX_RANGES: usize = 16;
/// Map entries that are read.
pub const MAX_ENTRIES: usize = 128;

/// log2 of the pages at whose multiples memory set aside begins and ends.
const ASIDE_ORDER: u32 = Order::MAX.get();

/// Where APICs, HPET and firmware lie on every PC: never RAM, whatever a map says.
const APICS_START: u64 = 0xfec0_0000;
const APICS_END: u64 = 0x1_0000_0000;

/// Usable RAM: sorted, disjoint, non-adjacent ranges.
#[derive(Debug, Clone)]
pub struct RamMap {
    ranges: [PfnRange; MAX_RANGES],
    len: usize,
    dropped: u64,
}

const EMPTY: PfnRange = match PfnRange::new(Pfn::ZERO, Pfn::ZERO) {
    Some(range) => range,
    None => unreachable!(),
};

impl RamMap {
    /// Reads a map: `entries` is walked twice.
    pub fn new<I>(entries: I) -> Self
    where
        I: Iterator<Item = MapEntry> + Clone,
    {
        let mut map = Self { ranges: [EMPTY; MAX_RANGES], len: 0, dropped: 0 };
        let entries = entries.take(MAX_ENTRIES);
        for entry in entries.clone().filter(|entry| entry.kind == TYPE_RAM) {
            if let Some(range) = inner_pages(entry) {
                map.add(range);
            }
        }
        for entry in entries.filter(|entry| entry.kind != TYPE_RAM) {
            if let Some(range) = outer_pages(entry.gpa, entry.bytes) {
                map.remove(range);
            }
        }
        if let Some(apics) = outer_pages(APICS_START, APICS_END - APICS_START) {
            map.remove(apics);
        }
        map
    }

    /// The ranges in ascending order.
    pub fn ranges(&self) -> &[PfnRange] {
        self.ranges.get(..self.len).unwrap_or(&[])
    }

    /// Pages in all ranges.
    pub fn pages(&self) -> u64 {
        self.ranges().iter().map(|range| range.len().get()).sum()
    }

    /// Pages of RAM that are not used because the map is too fragmented.
    pub fn dropped_pages(&self) -> u64 {
        self.dropped
    }

    /// The range that contains `pfn`.
    pub fn containing(&self, pfn: Pfn) -> Option<PfnRange> {
        self.ranges().iter().copied().find(|range| range.contains(pfn))
    }

    /// Takes the last `pages` pages of the highest range that has as many to spare out of RAM, from and to
    /// multiples of 4 MiB and within a section of 128 MiB; `None` if no range has.
    pub fn set_aside(&mut self, pages: PageCount) -> Option<PfnRange> {
        let spare = self.ranges().iter().rev().find_map(|range| {
            let end = range.end().align_down(ASIDE_ORDER);
            let start = end.number().checked_sub(pages.get()).and_then(Pfn::new)?;
            let start = start.align_down(ASIDE_ORDER);
            let last = Pfn::new(end.number().checked_sub(1)?)?;
            let section = last.align_down(SECTION_ORDER);
            let spare = PfnRange::new(start.max(section), end)?;
            // Never the beginning of a range, where the kernel or something of the loader's may be.
            (spare.start() > range.start() && !spare.is_empty()).then_some(spare)
        })?;
        self.remove(spare);
        Some(spare)
    }

    /// Adds RAM, merging with what it touches.
    fn add(&mut self, range: PfnRange) {
        let (mut start, mut end) = (range.start(), range.end());
        let mut kept = 0;
        for at in 0..self.len {
            let other = self.ranges[at];
            if other.end() < start || end < other.start() {
                self.ranges[kept] = other;
                kept += 1;
            } else {
                start = start.min(other.start());
                end = end.max(other.end());
            }
        }
        self.len = kept;
        if let Some(merged) = PfnRange::new(start, end) {
            self.insert(merged);
        }
    }

    /// Takes pages out.
    fn remove(&mut self, hole: PfnRange) {
        let (before, len) = (self.ranges, self.len);
        self.len = 0;
        for range in before.iter().take(len) {
            let left = PfnRange::new(range.start(), range.end().min(hole.start()));
            let right = PfnRange::new(range.start().max(hole.end()), range.end());
            for piece in [left, right].into_iter().flatten().filter(|piece| !piece.is_empty()) {
                self.insert(piece);
            }
        }
    }

    /// Inserts a range disjoint from all others, in order; the smallest is dropped when there is no room.
    fn insert(&mut self, range: PfnRange) {
        if self.len == MAX_RANGES {
            let Some(smallest) = (0..self.len).min_by_key(|&at| self.ranges[at].len()) else {
                return;
            };
            if self.ranges[smallest].len() >= range.len() {
                self.dropped += range.len().get();
                return;
            }
            self.dropped += self.ranges[smallest].len().get();
            self.ranges.copy_within(smallest + 1..self.len, smallest);
            self.len -= 1;
        }
        let at = self.ranges().partition_point(|other| other.start() < range.start());
        self.ranges.copy_within(at..self.len, at + 1);
        self.ranges[at] = range;
        self.len += 1;
    }
}

/// The whole pages inside an entry and the direct map.
fn inner_pages(entry: MapEntry) -> Option<PfnRange> {
    let end = entry.gpa.saturating_add(entry.bytes).min(DIRECT_MAP_LIMIT);
    let start = entry.gpa.checked_next_multiple_of(PAGE)?;
    let range = PfnRange::new(Pfn::containing(start), Pfn::containing(end))?;
    (!range.is_empty()).then_some(range)
}

/// The pages that `bytes` from `gpa` touch, within the direct map.
pub fn outer_pages(gpa: u64, bytes: u64) -> Option<PfnRange> {
    let end = gpa.saturating_add(bytes).min(DIRECT_MAP_LIMIT);
    let end = end.checked_next_multiple_of(PAGE)?;
    let range = PfnRange::new(Pfn::containing(gpa), Pfn::containing(end))?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ram(gpa: u64, bytes: u64) -> MapEntry {
        MapEntry { gpa, bytes, kind: TYPE_RAM }
    }

    fn numbers(map: &RamMap) -> Vec<(u64, u64)> {
        map.ranges().iter().map(|r| (r.start().number(), r.end().number())).collect()
    }

    #[test]
    fn an_ordinary_map_comes_out_as_it_is() {
        let entries = [ram(0, 0x9_fc00), ram(0x10_0000, 0xbff0_0000), ram(1 << 32, 1 << 30)];
        let map = RamMap::new(entries.into_iter());
        assert_eq!(numbers(&map), [(0, 0x9f), (0x100, 0xc_0000), (0x10_0000, 0x14_0000)]);
    }

    #[test]
    fn unsorted_overlapping_ram_is_merged() {
        let map = RamMap::new(
            [ram(0x5000, 0x3000), ram(0x1000, 0x4800), ram(0x2000, 0x1000)].into_iter(),
        );
        assert_eq!(numbers(&map), [(1, 8)]);
    }

    #[test]
    fn an_entry_that_is_not_ram_wins() {
        let reserved = MapEntry { gpa: 0x2800, bytes: 0x100, kind: 2 };
        let map = RamMap::new([reserved, ram(0, 0x5000)].into_iter());
        assert_eq!(numbers(&map), [(0, 2), (3, 5)]);
    }

    #[test]
    fn apics_are_never_ram_and_overflow_ends_at_the_direct_map() {
        let map = RamMap::new([ram(0xfe00_0000, u64::MAX)].into_iter());
        assert_eq!(numbers(&map), [(0xf_e000, 0xf_ec00), (0x10_0000, DIRECT_MAP_LIMIT >> 12)]);
    }

    #[test]
    fn a_map_with_too_many_pieces_keeps_the_largest_and_counts_the_rest() {
        let entries = (0..100u64).map(|n| ram(n << 20, (n + 1) << 12));
        let map = RamMap::new(entries);
        assert_eq!(map.ranges().len(), MAX_RANGES);
        assert_eq!(map.pages(), (85..=100).sum::<u64>());
        assert_eq!(map.dropped_pages(), (1..85).sum::<u64>());
    }

    #[test]
    fn memory_set_aside_is_the_end_of_ram_within_one_section() {
        let of = |bytes: u64, pages: u64| {
            let mut map = RamMap::new([ram(0, bytes)].into_iter());
            let aside = map.set_aside(PageCount::new(pages));
            if let Some(aside) = aside {
                assert!(map.ranges().iter().all(|range| range.intersection(aside).is_none()));
                assert_eq!(map.pages() + aside.len().get(), bytes >> 12);
            }
            aside.map(|range| (range.start().number(), range.end().number()))
        };
        assert_eq!(of(64 << 20, 4096), Some((0x3000, 0x4000)));
        // Not a multiple of 4 MiB, and not more than the section has.
        assert_eq!(of((64 << 20) + 4096, 4097), Some((0x2c00, 0x4000)));
        assert_eq!(of(132 << 20, 4096), Some((0x8000, 0x8400)));
        assert_eq!(of(16 << 20, 4096), None);
        assert_eq!(of(2 << 20, 1), None);
    }

    fn entry() -> impl Strategy<Value = MapEntry> {
        let near = (0u64..60 * 4096, 0u64..20 * 4096);
        let any = (any::<u64>(), any::<u64>());
        (prop_oneof![4 => near, 1 => any], 0u32..3).prop_map(|((gpa, bytes), kind)| MapEntry {
            gpa,
            bytes,
            kind,
        })
    }

    proptest! {
        #[test]
        fn a_page_is_used_exactly_if_one_entry_says_ram_and_none_says_otherwise(
            entries in prop::collection::vec(entry(), 0..12)
        ) {
            let map = RamMap::new(entries.iter().copied());
            for page in 0..100u64 {
                let (start, end) = (u128::from(page) << 12, u128::from(page + 1) << 12);
                let bounds = |e: &MapEntry| (u128::from(e.gpa), u128::from(e.gpa) + u128::from(e.bytes));
                // Whole pages may come from two entries that meet in the middle of one: those are not used.
                let said_ram = entries.iter().filter(|e| e.kind == TYPE_RAM).any(|e| {
                    let (from, to) = bounds(e);
                    from <= start && end <= to
                });
                let denied = entries.iter().filter(|e| e.kind != TYPE_RAM).any(|e| {
                    let (from, to) = bounds(e);
                    from < end && start < to && from < to
                });
                let used = map.containing(Pfn::containing(page << 12)).is_some();
                prop_assert_eq!(used, said_ram && !denied, "page {}", page);
            }
            for pair in map.ranges().windows(2) {
                prop_assert!(pair[0].end() < pair[1].start());
            }
            prop_assert!(map.ranges().iter().all(|r| !r.is_empty() && r.end().gpa() <= DIRECT_MAP_LIMIT));
        }
    }
}
