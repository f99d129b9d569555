//! Which frames of a block are not alive: a bitmap in the block itself.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PageCount, Pfn, PfnRange};

/// Frames that a word of the bitmap covers.
const BITS: u64 = u64::BITS as u64;

/// The driver's PFN store of one block: a bit per frame, set while the frame is offline.
///
/// 4 KiB for 128 MiB, there from the start, so no step on it can fail. Only the driver changes it; others
/// (the census) read it.
#[derive(Debug, Clone, Copy)]
pub struct OfflineBits<'b> {
    range: PfnRange,
    bits: &'b [AtomicU64],
}

impl<'b> OfflineBits<'b> {
    /// The bitmap at `bits` for the frames of `range`.
    ///
    /// # Safety
    /// `bits` points to a word for every 64 frames, alive for `'b` and reached as atomics only.
    pub(super) unsafe fn new(range: PfnRange, bits: NonNull<AtomicU64>) -> Self {
        let words = usize::try_from(range.len().get() / BITS).unwrap_or(0);
        // SAFETY: the caller's promise.
        let bits = unsafe { core::slice::from_raw_parts(bits.as_ptr(), words) };
        Self { range, bits }
    }

    /// The frames that it covers.
    pub const fn range(self) -> PfnRange {
        self.range
    }

    fn at(self, pfn: Pfn) -> Option<(&'b AtomicU64, u64)> {
        let bit = self.range.contains(pfn).then(|| pfn.offset_from(self.range.start()))??.get();
        let word = self.bits.get(usize::try_from(bit / BITS).ok()?)?;
        Some((word, 1 << (bit % BITS)))
    }

    /// Whether `pfn` is offline; `false` outside the block.
    pub fn contains(self, pfn: Pfn) -> bool {
        // Relaxed: the words of the frames order what happens to them.
        self.at(pfn).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Notes that the frames of `range` are offline, or that they are alive.
    pub(super) fn set(self, range: PfnRange, is_offline: bool) {
        let Some(range) = self.range.intersection(range) else { return };
        let base = self.range.start().number();
        let (first, end) = (range.start().number() - base, range.end().number() - base);
        let words = (0..).map(|word: u64| word * BITS).zip(self.bits);
        for (start, word) in words.skip_while(|(start, _)| start + BITS <= first) {
            if start >= end {
                break;
            }
            let below = |bit: u64| if bit < BITS { (1 << bit) - 1 } else { u64::MAX };
            let mask = below(end - start) & !below(first.saturating_sub(start));
            // Relaxed: as above.
            if is_offline {
                word.fetch_or(mask, Ordering::Relaxed);
            } else {
                word.fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }

    /// Frames that are offline.
    pub fn pages(self) -> PageCount {
        let ones =
            self.bits.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()));
        PageCount::new(ones.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::range;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_are_those_of_a_naive_set(
            changes in prop::collection::vec((0u64..1024, 0u64..300, any::<bool>()), 0..40)
        ) {
            let words: Vec<_> = (0..16).map(|_| AtomicU64::new(0)).collect();
            // SAFETY: 16 words for 1024 frames, alive to the end of the test.
            let bits = unsafe { OfflineBits::new(range(4096, 1024), NonNull::from(&words[0])) };
            let mut naive = [false; 1024];
            for (start, len, is_offline) in changes {
                let len = len.min(1024 - start);
                bits.set(range(4096 + start, len), is_offline);
                for frame in start..start + len {
                    naive[usize::try_from(frame).unwrap()] = is_offline;
                }
                for (frame, expected) in (4096..).zip(naive) {
                    prop_assert_eq!(bits.contains(Pfn::new(frame).unwrap()), expected);
                }
                let count = naive.iter().filter(|bit| **bit).count() as u64;
                prop_assert_eq!(bits.pages().get(), count);
            }
        }
    }
}
