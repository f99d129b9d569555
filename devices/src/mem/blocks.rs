//! Which blocks are plugged: a bitmap.

use std::ops::Range;

const WORD_BITS: u64 = 64;

/// A set of blocks.
///
/// Invariant: `count` is the number of bits set, none of them at `blocks` or above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockSet {
    words: Vec<u64>,
    blocks: u64,
    count: u64,
}

/// What is true of all blocks of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeState {
    Plugged,
    Unplugged,
    Mixed,
}

impl BlockSet {
    /// None of `blocks` blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let words = usize::try_from(blocks.div_ceil(WORD_BITS)).unwrap_or(usize::MAX);
        Self { words: vec![0; words], blocks, count: 0 }
    }

    /// Blocks in the set.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// What holds of all blocks of `range`, which is not empty.
    pub(super) fn state(&self, range: &Range<u64>) -> RangeState {
        let (mut any, mut all) = (false, true);
        for (at, mask) in masks(range) {
            let word = self.words.get(at).copied().unwrap_or(0);
            any |= word & mask != 0;
            all &= word & mask == mask;
        }
        match (any, all) {
            (_, true) => RangeState::Plugged,
            (false, false) => RangeState::Unplugged,
            (true, false) => RangeState::Mixed,
        }
    }

    /// Adds all blocks of `range`.
    pub(super) fn insert(&mut self, range: &Range<u64>) {
        for (at, mask) in masks(&(range.start..range.end.min(self.blocks))) {
            if let Some(word) = self.words.get_mut(at) {
                self.count += u64::from((mask & !*word).count_ones());
                *word |= mask;
            }
        }
    }

    /// Takes all blocks of `range` out.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        for (at, mask) in masks(range) {
            if let Some(word) = self.words.get_mut(at) {
                self.count -= u64::from((mask & *word).count_ones());
                *word &= !mask;
            }
        }
    }

    /// The maximal runs of blocks in the set, ascending.
    pub(super) fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (base, &word) in (0..).step_by(64).zip(&self.words) {
            let mut left = word;
            while left != 0 {
                let start = base + u64::from(left.trailing_zeros());
                let len = u64::from((left >> left.trailing_zeros()).trailing_ones());
                let end = start + len;
                match runs.last_mut().filter(|last| last.end == start) {
                    Some(last) => last.end = end,
                    None => runs.push(start..end),
                }
                // `end - base` is 64 for a run up to the top of the word.
                left &= u64::MAX.checked_shl(u32::try_from(end - base).unwrap_or(64)).unwrap_or(0);
            }
        }
        runs
    }
}

/// The words that `range` touches, each with the bits that belong to it.
fn masks(range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let Range { start, end } = *range;
    let words = if start < end { start / WORD_BITS..end.div_ceil(WORD_BITS) } else { 0..0 };
    words.map(move |at| {
        let base = at * WORD_BITS;
        let low = start.saturating_sub(base);
        let high = (end - base).min(WORD_BITS);
        let below = |bits: u64| if bits == WORD_BITS { u64::MAX } else { (1 << bits) - 1 };
        (usize::try_from(at).unwrap_or(usize::MAX), below(high) & !below(low))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 200;

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..BLOCKS, 1..BLOCKS).prop_map(|(start, len)| start..(start + len).min(BLOCKS))
    }

    proptest! {
        #[test]
        fn a_set_is_what_a_tree_of_blocks_is(steps in prop::collection::vec((range(), any::<bool>()), 0..20)) {
            let (mut set, mut model) = (BlockSet::new(BLOCKS), BTreeSet::new());
            for (range, plug) in steps {
                let plugged = range.clone().filter(|block| model.contains(block)).count() as u64;
                let expected = match plugged {
                    0 => RangeState::Unplugged,
                    n if n == range.end - range.start => RangeState::Plugged,
                    _ => RangeState::Mixed,
                };
                prop_assert_eq!(set.state(&range), expected);
                if plug {
                    set.insert(&range);
                    model.extend(range);
                } else {
                    set.remove(&range);
                    model.retain(|block| !range.contains(block));
                }
                prop_assert_eq!(set.count(), model.len() as u64);
                let runs = set.runs();
                let all: Vec<u64> = runs.iter().cloned().flatten().collect();
                prop_assert_eq!(all, model.iter().copied().collect::<Vec<_>>());
                prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "maximal: {:?}", runs);
            }
        }
    }
}
