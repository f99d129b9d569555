//! 4 KiB guest pages: [`Pfn`], [`PageCount`] and half-open [`PfnRange`].
//!
//! All alignment arithmetic of the project lives in this file; the tests
//! compare it with `%` and `/` on `u128`.

use core::fmt;

/// log2 of the page size that frame numbers and the balloon count in.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes of a page that frame numbers and the balloon count in.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// One past the largest frame number: its page would start at 2^64.
const PFN_LIMIT: u64 = 1 << (64 - PAGE_SHIFT);

/// Index of a 4 KiB guest-physical page: `gpa >> 12`.
///
/// Holding one proves that the page's first byte has a 64-bit address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// Frame 0.
    pub const ZERO: Self = Self(0);

    /// The frame with this number, or `None` at 2^52 and above.
    pub const fn new(number: u64) -> Option<Self> {
        if number < PFN_LIMIT { Some(Self(number)) } else { None }
    }

    /// The frame of a 32-bit wire value (virtio-balloon PFN arrays).
    pub const fn from_u32(number: u32) -> Self {
        Self(number as u64)
    }

    /// The frame that starts at `gpa`, or `None` if `gpa` is not page-aligned.
    pub const fn from_aligned(gpa: u64) -> Option<Self> {
        if gpa & (PAGE_SIZE - 1) == 0 { Some(Self(gpa >> PAGE_SHIFT)) } else { None }
    }

    /// The frame that contains the byte at `gpa`.
    pub const fn containing(gpa: u64) -> Self {
        Self(gpa >> PAGE_SHIFT)
    }

    /// The frame number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Guest-physical address of the frame's first byte.
    pub const fn gpa(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The frame `n` pages up, or `None` past the last one.
    pub const fn checked_add(self, n: PageCount) -> Option<Self> {
        match self.0.checked_add(n.0) {
            Some(number) => Self::new(number),
            None => None,
        }
    }

    /// Pages from `base` up to `self`, or `None` if `base` is above `self`.
    pub const fn offset_from(self, base: Pfn) -> Option<PageCount> {
        match self.0.checked_sub(base.0) {
            Some(n) => Some(PageCount(n)),
            None => None,
        }
    }

    /// Whether the frame number is a multiple of `2^order`.
    pub const fn is_aligned(self, order: u32) -> bool {
        order < 64 && self.0 & ((1 << order) - 1) == 0
    }

    /// The frame number rounded down to a multiple of `2^order` (`order < 64`).
    ///
    /// # Panics
    /// In debug builds if `order` is 64 or more: a caller's bug.
    pub const fn align_down(self, order: u32) -> Self {
        Self(self.0 & !((1u64 << order) - 1))
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn:{:x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A number of 4 KiB pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct PageCount(u64);

impl PageCount {
    /// No pages.
    pub const ZERO: Self = Self(0);
    /// One page.
    pub const ONE: Self = Self(1);

    /// `n` pages.
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// `2^order` pages.
    ///
    /// # Panics
    /// In debug builds if `order` is 64 or more: a caller's bug.
    pub const fn of_order(order: u32) -> Self {
        Self(1 << order)
    }

    /// The pages of exactly `bytes`, or `None` if not a multiple of 4 KiB.
    pub const fn from_bytes_exact(bytes: u64) -> Option<Self> {
        if bytes & (PAGE_SIZE - 1) == 0 { Some(Self(bytes >> PAGE_SHIFT)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes, or `None` on overflow.
    pub const fn checked_bytes(self) -> Option<u64> {
        self.0.checked_mul(PAGE_SIZE)
    }

    /// Bytes, saturating at `u64::MAX`.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE)
    }

    /// Sum, or `None` on overflow.
    pub const fn checked_add(self, n: Self) -> Option<Self> {
        match self.0.checked_add(n.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Sum, saturating.
    pub const fn saturating_add(self, n: Self) -> Self {
        Self(self.0.saturating_add(n.0))
    }

    /// Difference, saturating at zero.
    pub const fn saturating_sub(self, n: Self) -> Self {
        Self(self.0.saturating_sub(n.0))
    }

    /// Whether the count is zero.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// A half-open range of frames, `[start, end)`; never inverted, maybe empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PfnRange {
    start: Pfn,
    end: Pfn,
}

impl PfnRange {
    /// `[start, end)`, or `None` if `end` is below `start`.
    pub const fn new(start: Pfn, end: Pfn) -> Option<Self> {
        if start.0 <= end.0 { Some(Self { start, end }) } else { None }
    }

    /// `n` pages from `start`, or `None` past the last frame.
    pub const fn from_start(start: Pfn, n: PageCount) -> Option<Self> {
        match start.checked_add(n) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The first frame (of a non-empty range).
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// One past the last frame.
    pub const fn end(self) -> Pfn {
        self.end
    }

    /// Number of frames.
    pub const fn len(self) -> PageCount {
        PageCount(self.end.0 - self.start.0)
    }

    /// Whether the range has no frame.
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether `pfn` lies in the range.
    pub const fn contains(self, pfn: Pfn) -> bool {
        self.start.0 <= pfn.0 && pfn.0 < self.end.0
    }

    /// Whether every frame of `other` lies in `self` (an empty range always does).
    pub const fn contains_range(self, other: Self) -> bool {
        other.is_empty() || (self.start.0 <= other.start.0 && other.end.0 <= self.end.0)
    }

    /// The frames in both, or `None` if there are none.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// The frames in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Pfn> + Clone {
        (self.start.0..self.end.0).map(Pfn)
    }
}

impl fmt::Debug for PfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn:{:x}..{:x}", self.start.0, self.end.0)
    }
}

#[cfg(test)]
#[expect(clippy::manual_is_multiple_of, reason = "the tests compare with plain division")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn alignment_agrees_with_division(gpa: u64, order in 0u32..52) {
            prop_assert_eq!(Pfn::from_aligned(gpa).is_some(), gpa % 4096 == 0);
            let pfn = Pfn::containing(gpa);
            prop_assert_eq!(pfn.number(), gpa / 4096);
            prop_assert_eq!(u128::from(pfn.gpa()), u128::from(gpa) / 4096 * 4096);
            prop_assert_eq!(pfn.is_aligned(order), pfn.number() % (1 << order) == 0);
            prop_assert_eq!(pfn.align_down(order).number(), pfn.number() / (1 << order) * (1 << order));
        }

        #[test]
        fn addition_never_leaves_the_address_space(gpa: u64, n: u64) {
            let pfn = Pfn::containing(gpa);
            let exact = u128::from(pfn.number()) + u128::from(n);
            let sum = pfn.checked_add(PageCount::new(n));
            prop_assert_eq!(sum.map(|p| u128::from(p.number())), (exact < 1 << 52).then_some(exact));
        }

        #[test]
        fn byte_counts_are_exact_or_refused(bytes: u64) {
            let pages = PageCount::from_bytes_exact(bytes);
            prop_assert_eq!(pages.map(|p| p.bytes()), (bytes % 4096 == 0).then_some(bytes));
        }

        #[test]
        fn intersection_holds_exactly_the_common_frames(a in 0u64..64, b in 0u64..64, c in 0u64..64, d in 0u64..64) {
            let make = |x: u64, y: u64| PfnRange::new(Pfn(x.min(y)), Pfn(x.max(y))).unwrap();
            let (r, s) = (make(a, b), make(c, d));
            let common = r.intersection(s);
            for n in 0..64 {
                let pfn = Pfn(n);
                prop_assert_eq!(common.is_some_and(|i| i.contains(pfn)), r.contains(pfn) && s.contains(pfn));
            }
            prop_assert!(common.is_none_or(|i| r.contains_range(i) && s.contains_range(i)));
        }
    }
}
