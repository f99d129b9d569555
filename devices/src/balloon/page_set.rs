//! A set of frames of guest RAM as a two-level bitmap.
//!
//! Marking a frame costs the same in any order and drops repetitions, and
//! walking the set yields maximal runs in ascending order, so a bitmap does
//! the work of a sort. The upper level holds a bit for each word of the lower
//! one that is not zero: a walk over 64 GiB of RAM with few frames marked looks
//! at 4,096 words.

use abi::{PageCount, Pfn, PfnRange};

/// Frames of a 2 MiB block, the largest piece that a backing releases at once.
pub(super) const BLOCK_PAGES: usize = 512;
const WORD_BITS: usize = 64;
pub(super) const BLOCK_WORDS: usize = BLOCK_PAGES / WORD_BITS;

/// Numbers the frames of guest RAM densely, so that bitmaps need not cover holes.
///
/// Each range starts at a number congruent to its first frame modulo 512, so
/// that blocks of numbers are 2 MiB blocks of RAM; and at least one number is
/// left out between ranges, so that no run crosses a hole.
#[derive(Debug, Clone, Default)]
pub(super) struct RamIndex {
    /// Ranges of RAM with the number of their first frame, ascending.
    ranges: Vec<(PfnRange, u64)>,
    numbers: usize,
    /// The range of which not all need be there.
    hotplug: Option<PfnRange>,
}

impl RamIndex {
    /// `ram`: sorted, disjoint, not empty; `hotplug`: above it.
    pub(super) fn new(ram: &[PfnRange], hotplug: Option<PfnRange>) -> Self {
        const BLOCK: u64 = BLOCK_PAGES as u64;
        let mut ranges = Vec::with_capacity(ram.len());
        let mut next = 0u64;
        for &range in ram.iter().chain(&hotplug) {
            let first = next + range.start().number() % BLOCK;
            ranges.push((range, first));
            let end = first + range.len().get();
            next = (end + 1).next_multiple_of(BLOCK);
        }
        Self { ranges, numbers: to_usize(next), hotplug }
    }

    /// The number of `pfn`, or `None` if it is not RAM.
    pub(super) fn number_of(&self, pfn: Pfn) -> Option<usize> {
        self.ranges.iter().find_map(|(range, first)| {
            let offset = pfn.offset_from(range.start())?;
            (offset < range.len()).then(|| to_usize(first + offset.get()))
        })
    }

    /// Whether `pfn` lies where hotplug memory may be.
    pub(super) fn is_hotplug(&self, pfn: Pfn) -> bool {
        self.hotplug.is_some_and(|range| range.contains(pfn))
    }

    /// Whether `pfn` lies above all RAM; if not and it has no number, it lies in a hole.
    pub(super) fn is_above(&self, pfn: Pfn) -> bool {
        self.ranges.last().is_none_or(|(range, _)| pfn >= range.end())
    }

    /// The frames with the numbers `[start, end)`, which must be those of a run.
    fn frames(&self, start: usize, end: usize) -> Option<PfnRange> {
        let (start, end) = (start as u64, end as u64);
        self.ranges.iter().find_map(|(range, first)| {
            let offset = start.checked_sub(*first)?;
            let from = range.start().checked_add(PageCount::new(offset))?;
            let run = PfnRange::from_start(from, PageCount::new(end - start))?;
            range.contains_range(run).then_some(run)
        })
    }
}

/// A count of frames of guest RAM as an index; `devices` runs on 64-bit hosts.
#[expect(clippy::cast_possible_truncation, reason = "the assertion below: usize has 64 bits")]
const fn to_usize(n: u64) -> usize {
    n as usize
}
const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// The set.
///
/// Invariant: bit `w % 64` of `upper[w / 64]` is set if `words[w]` is not zero;
/// `count` is the number of bits set in `words`.
#[derive(Debug, Clone, Default)]
pub(super) struct PageSet {
    words: Vec<u64>,
    upper: Vec<u64>,
    count: u64,
}

impl PageSet {
    /// The empty set over the frames of `index`.
    pub(super) fn new(index: &RamIndex) -> Self {
        let words = index.numbers.div_ceil(BLOCK_PAGES) * BLOCK_WORDS;
        Self { words: vec![0; words], upper: vec![0; words.div_ceil(WORD_BITS)], count: 0 }
    }

    /// Frames in the set.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Adds the frame `number`; `false` if it was there already (or is not a number of the index).
    pub(super) fn insert(&mut self, number: usize) -> bool {
        let at = number / WORD_BITS;
        let Some(word) = self.words.get_mut(at) else { return false };
        let bit = 1 << (number % WORD_BITS);
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.count += 1;
        self.mark(at);
        true
    }

    /// Removes the frame `number`; `false` if it was not there.
    pub(super) fn remove(&mut self, number: usize) -> bool {
        let Some(word) = self.words.get_mut(number / WORD_BITS) else { return false };
        let bit = 1 << (number % WORD_BITS);
        if *word & bit == 0 {
            return false;
        }
        *word &= !bit;
        self.count -= 1;
        true
    }

    /// Adds all of `other`, a set over the same frames; returns how many were there already.
    pub(super) fn merge(&mut self, other: &Self) -> u64 {
        let mut known = 0;
        for at in other.touched() {
            let (Some(word), Some(&new)) = (self.words.get_mut(at), other.words.get(at)) else {
                continue;
            };
            known += u64::from((*word & new).count_ones());
            self.count += u64::from((new & !*word).count_ones());
            *word |= new;
            self.mark(at);
        }
        known
    }

    /// Replaces the set by the 2 MiB blocks that it touches and that are complete in `ballooned`.
    pub(super) fn keep_complete_blocks(&mut self, ballooned: &Self) {
        let blocks: Vec<usize> = self.touched().map(|at| at / BLOCK_WORDS).collect();
        self.clear();
        for block in blocks {
            let at = block * BLOCK_WORDS;
            let complete = ballooned.words.get(at..at + BLOCK_WORDS);
            if !complete.is_some_and(|words| words.iter().all(|&word| word == u64::MAX)) {
                continue;
            }
            if let Some(words) = self.words.get_mut(at..at + BLOCK_WORDS) {
                self.count += words.iter().map(|word| u64::from(word.count_zeros())).sum::<u64>();
                words.fill(u64::MAX);
            }
            (at..at + BLOCK_WORDS).for_each(|at| self.mark(at));
        }
    }

    /// Empties the set.
    pub(super) fn clear(&mut self) {
        for (at, upper) in self.upper.iter_mut().enumerate() {
            if *upper != 0 {
                let from = at * WORD_BITS;
                let to = (from + WORD_BITS).min(self.words.len());
                self.words.get_mut(from..to).into_iter().for_each(|words| words.fill(0));
                *upper = 0;
            }
        }
        self.count = 0;
    }

    /// Calls `each` with every maximal run of frames, ascending.
    pub(super) fn for_each_run(&self, index: &RamIndex, mut each: impl FnMut(PfnRange)) {
        let mut emit = |start: usize, end: usize| {
            let run = index.frames(start, end);
            debug_assert!(run.is_some(), "only frames of RAM are in the set");
            run.into_iter().for_each(&mut each);
        };
        let mut open: Option<(usize, usize)> = None;
        for at in self.touched() {
            let mut bits = self.words.get(at).copied().unwrap_or(0);
            let base = at * WORD_BITS;
            let mut below = 0;
            while bits != 0 {
                let zeros = bits.trailing_zeros();
                // `zeros` is below 64, since a bit is set; `ones` may be 64.
                bits >>= zeros;
                let ones = bits.trailing_ones();
                bits = bits.checked_shr(ones).unwrap_or(0);
                let start = base + below + zeros as usize;
                let end = start + ones as usize;
                below = end - base;
                open = match open {
                    Some((from, to)) if to == start => Some((from, end)),
                    Some((from, to)) => {
                        emit(from, to);
                        Some((start, end))
                    }
                    None => Some((start, end)),
                };
            }
        }
        if let Some((from, to)) = open {
            emit(from, to);
        }
    }

    /// Indices of the words that may be other than zero, ascending.
    fn touched(&self) -> impl Iterator<Item = usize> {
        self.upper.iter().enumerate().flat_map(|(at, &upper)| {
            let mut left = upper;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some(at * WORD_BITS + bit as usize)
            })
        })
    }

    fn mark(&mut self, word: usize) {
        if let Some(upper) = self.upper.get_mut(word / WORD_BITS) {
            *upper |= 1 << (word % WORD_BITS);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const RAM: [(u64, u64); 3] = [(0, 700), (1000, 1), (5000, 1300)];

    fn range((start, end): (u64, u64)) -> PfnRange {
        PfnRange::new(Pfn::new(start).unwrap(), Pfn::new(end).unwrap()).unwrap()
    }

    fn ram() -> Vec<PfnRange> {
        RAM.map(|(start, len)| range((start, start + len))).to_vec()
    }

    fn runs(set: &PageSet, index: &RamIndex) -> Vec<PfnRange> {
        let mut runs = Vec::new();
        set.for_each_run(index, |run| runs.push(run));
        runs
    }

    /// Maximal runs of consecutive frames, none of which crosses a hole.
    fn naive_runs(pages: &BTreeSet<u64>) -> Vec<PfnRange> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for &page in pages {
            match runs.last_mut() {
                Some((_, end)) if *end == page => *end += 1,
                _ => runs.push((page, page + 1)),
            }
        }
        runs.into_iter().map(range).collect()
    }

    fn in_ram(page: u64) -> bool {
        RAM.iter().any(|&(start, len)| (start..start + len).contains(&page))
    }

    proptest! {
        #[test]
        fn runs_are_those_of_a_naive_set(pages in prop::collection::vec(0u64..6500, 0..400), dense in 0u64..6000) {
            let index = RamIndex::new(&ram(), None);
            let mut set = PageSet::new(&index);
            let mut model = BTreeSet::new();
            for page in pages.into_iter().chain(dense..dense + 300) {
                let number = index.number_of(Pfn::new(page).unwrap());
                prop_assert_eq!(number.is_some(), in_ram(page));
                if let Some(number) = number {
                    prop_assert_eq!(set.insert(number), model.insert(page));
                }
            }
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(runs(&set, &index), naive_runs(&model));
            set.clear();
            prop_assert_eq!(set.count(), 0);
            prop_assert!(runs(&set, &index).is_empty());
        }

        #[test]
        fn merge_and_remove_agree_with_a_naive_set(
            a in prop::collection::btree_set(0u64..700, 0..300),
            b in prop::collection::btree_set(0u64..700, 0..300),
            gone in prop::collection::vec(0u64..700, 0..300),
        ) {
            let index = RamIndex::new(&ram(), None);
            let number = |page| index.number_of(Pfn::new(page).unwrap()).unwrap();
            let (mut left, mut right) = (PageSet::new(&index), PageSet::new(&index));
            a.iter().for_each(|&page| { left.insert(number(page)); });
            b.iter().for_each(|&page| { right.insert(number(page)); });
            prop_assert_eq!(left.merge(&right), a.intersection(&b).count() as u64);
            let mut model: BTreeSet<u64> = a.union(&b).copied().collect();
            prop_assert_eq!(left.count(), model.len() as u64);
            for page in gone {
                prop_assert_eq!(left.remove(number(page)), model.remove(&page));
            }
            prop_assert_eq!(left.count(), model.len() as u64);
            prop_assert_eq!(runs(&left, &index), naive_runs(&model));
        }
    }

    #[test]
    fn only_complete_blocks_are_kept() {
        let index = RamIndex::new(&[range((0, 2048))], None);
        let (mut ballooned, mut window) = (PageSet::new(&index), PageSet::new(&index));
        (500..1536).for_each(|n| assert!(ballooned.insert(n)));
        for n in [600, 1030] {
            window.insert(n);
        }
        window.keep_complete_blocks(&ballooned);
        assert_eq!(runs(&window, &index), [range((512, 1536))]);
        assert_eq!(window.count(), 1024);
        let mut untouched = PageSet::new(&index);
        untouched.insert(3);
        untouched.keep_complete_blocks(&ballooned);
        assert_eq!((untouched.count(), runs(&untouched, &index).len()), (0, 0));
    }

    #[test]
    fn numbers_keep_the_alignment_of_blocks() {
        let index = RamIndex::new(&ram(), None);
        for page in [0, 511, 699, 1000, 5000, 6299] {
            let number = index.number_of(Pfn::new(page).unwrap()).unwrap();
            assert_eq!(number as u64 % 512, page % 512);
        }
        assert!(index.is_above(Pfn::new(6300).unwrap()));
        assert!(!index.is_above(Pfn::new(6299).unwrap()));
    }
}
