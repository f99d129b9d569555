//! The word of a slot.

use abi::Pfn;

const STATE_BITS: u32 = 2;
const COUNT_BITS: u32 = 22;
const UPPER_SHIFT: u32 = STATE_BITS + COUNT_BITS;

/// Leaves that may name one slot.
pub const MAX_COUNT: u32 = (1 << COUNT_BITS) - 1;

const FREE: u64 = 0;
const USED: u64 = 1;
const CACHED: u64 = 2;
const BAD: u64 = 3;

/// What a slot's word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotWord {
    /// Nobody uses it. On the stack of free slots, above `next`.
    Free {
        /// The slot below.
        next: Option<u32>,
    },
    /// The device has the contents.
    Used {
        /// Leaves; 0 only while the slot is being freed.
        count: u32,
    },
    /// A folio has them too, or alone.
    Cached {
        /// Leaves.
        count: u32,
        /// The folio's frame.
        pfn: Pfn,
    },
    /// The device says that it cannot be used.
    Bad,
}

impl SlotWord {
    /// The bits.
    ///
    /// # Panics
    /// If a frame number has more than 40 bits or a count more than 22: a caller's bug.
    pub const fn encode(self) -> u64 {
        match self {
            Self::Free { next } => {
                let next = match next {
                    Some(next) => next as u64 + 1,
                    None => 0,
                };
                next << UPPER_SHIFT | FREE
            }
            Self::Used { count } => counted(count) | USED,
            Self::Cached { count, pfn } => {
                assert!(pfn.number() >> (64 - UPPER_SHIFT) == 0, "a frame number of RAM");
                pfn.number() << UPPER_SHIFT | counted(count) | CACHED
            }
            Self::Bad => BAD,
        }
    }

    /// What `bits` say. Bits that mean nothing in a state are ignored.
    pub const fn decode(bits: u64) -> Self {
        let upper = bits >> UPPER_SHIFT;
        #[expect(clippy::cast_possible_truncation, reason = "masked to 22 bits")]
        let count = (bits >> STATE_BITS) as u32 & MAX_COUNT;
        match bits & ((1 << STATE_BITS) - 1) {
            FREE => Self::Free { next: next_of(upper) },
            USED => Self::Used { count },
            CACHED => match Pfn::new(upper) {
                Some(pfn) => Self::Cached { count, pfn },
                None => Self::Bad,
            },
            _ => Self::Bad,
        }
    }

    /// The same state with another count.
    #[must_use]
    pub const fn with_count(self, count: u32) -> Self {
        match self {
            Self::Used { .. } => Self::Used { count },
            Self::Cached { pfn, .. } => Self::Cached { count, pfn },
            Self::Free { .. } | Self::Bad => self,
        }
    }

    /// Leaves that name the slot.
    pub const fn count(self) -> u32 {
        match self {
            Self::Used { count } | Self::Cached { count, .. } => count,
            Self::Free { .. } | Self::Bad => 0,
        }
    }

    /// Where the swap cache has the contents.
    pub const fn cached_at(self) -> Option<Pfn> {
        match self {
            Self::Cached { pfn, .. } => Some(pfn),
            Self::Free { .. } | Self::Used { .. } | Self::Bad => None,
        }
    }
}

const fn counted(count: u32) -> u64 {
    assert!(count <= MAX_COUNT, "more leaves than a slot counts");
    (count as u64) << STATE_BITS
}

#[expect(clippy::cast_possible_truncation, reason = "compared first")]
const fn next_of(upper: u64) -> Option<u32> {
    if upper == 0 || upper > u32::MAX as u64 { None } else { Some((upper - 1) as u32) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_word() -> impl Strategy<Value = SlotWord> {
        prop_oneof![
            prop::option::of(0..u32::MAX - 1).prop_map(|next| SlotWord::Free { next }),
            (0..=MAX_COUNT).prop_map(|count| SlotWord::Used { count }),
            (0..=MAX_COUNT, 0u64..1 << 40)
                .prop_map(|(count, pfn)| SlotWord::Cached { count, pfn: Pfn::new(pfn).unwrap() }),
            Just(SlotWord::Bad),
        ]
    }

    proptest! {
        #[test]
        fn every_word_survives_its_bits(word in any_word()) {
            prop_assert_eq!(SlotWord::decode(word.encode()), word);
        }

        #[test]
        fn a_count_changes_alone(word in any_word(), count in 0..=MAX_COUNT) {
            let changed = word.with_count(count);
            prop_assert_eq!(changed.cached_at(), word.cached_at());
            if changed != word {
                prop_assert_eq!(changed.count(), count);
            }
        }

        #[test]
        fn any_bits_mean_something(bits: u64) {
            let word = SlotWord::decode(bits);
            prop_assert_eq!(SlotWord::decode(word.encode()), word);
        }
    }

    #[test]
    fn zeroed_words_are_the_end_of_the_free_stack() {
        assert_eq!(SlotWord::decode(0), SlotWord::Free { next: None });
    }
}
