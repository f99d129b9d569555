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
        for (word, bit) in range.iter().filter_map(|pfn| self.at(pfn)) {
            // Relaxed: as above.
            if is_offline {
                word.fetch_or(bit, Ordering::Relaxed);
            } else {
                word.fetch_and(!bit, Ordering::Relaxed);
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
