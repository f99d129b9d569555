//! Virtual addresses of processes, and ranges of them.

use core::fmt;

use abi::{PAGE_SHIFT, PAGE_SIZE, PageCount};

use crate::errno::Errno;

/// One past the last address of a process: the lower half less its last page, as on Linux, so that no instruction can
/// end exactly at the non-canonical hole (`arch/x86/include/asm/page_64_types.h`, `TASK_SIZE_MAX`).
pub const USER_END: u64 = (1 << 47) - PAGE_SIZE;
/// Lowest address that may be mapped: null pointers with an offset fault (`vm.mmap_min_addr`).
pub const USER_START: u64 = 64 << 10;
/// log2 of the bytes that one page-directory entry maps.
pub const PMD_SHIFT: u32 = 21;
/// Bytes that one page-directory entry maps.
pub const PMD_SIZE: u64 = 1 << PMD_SHIFT;
/// log2 of the pages that one page-directory entry maps.
pub const PMD_ORDER: u32 = PMD_SHIFT - PAGE_SHIFT;

/// An address in the user half: at most [`USER_END`], any alignment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct VirtAddr(u64);

impl VirtAddr {
    /// Address 0.
    pub const ZERO: Self = Self(0);
    /// [`USER_END`].
    pub const END: Self = Self(USER_END);

    /// The address, or `None` beyond the user half.
    pub const fn new(address: u64) -> Option<Self> {
        if address <= USER_END { Some(Self(address)) } else { None }
    }

    /// The first address of page `number`, or `None` beyond the user half.
    pub const fn of_page(number: u64) -> Option<Self> {
        if number <= USER_END >> PAGE_SHIFT { Some(Self(number << PAGE_SHIFT)) } else { None }
    }

    /// The address as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The page that holds the address: `address >> 12`.
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    /// Offset within its page.
    pub const fn page_offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }

    /// Whether the address is a multiple of `2^shift`.
    pub const fn is_aligned(self, shift: u32) -> bool {
        self.0.trailing_zeros() >= shift
    }

    /// The largest multiple of `2^shift` that is not above the address.
    pub const fn align_down(self, shift: u32) -> Self {
        Self(self.0 >> shift << shift)
    }

    /// The smallest multiple of `2^shift` that is not below the address; `None` beyond the user half.
    pub const fn align_up(self, shift: u32) -> Option<Self> {
        let down = self.align_down(shift);
        if down.0 == self.0 { Some(self) } else { down.checked_add(1 << shift) }
    }

    /// The address `bytes` further, or `None` beyond the user half.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Self::new(sum),
            None => None,
        }
    }

    /// The address `bytes` lower, or `None` below 0.
    pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
        match self.0.checked_sub(bytes) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// Index in a table of level `level`: 0 for a PTE table, 3 for the root.
    ///
    /// # Panics
    /// In debug builds if there is no such level.
    pub const fn table_index(self, level: u32) -> usize {
        debug_assert!(level < 4, "four levels");
        #[expect(clippy::cast_possible_truncation, reason = "nine bits")]
        let index = (self.0 >> (PAGE_SHIFT + 9 * level)) as usize & 511;
        index
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "va:{:x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A half-open range of whole pages in the user half.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaRange {
    start: VirtAddr,
    end: VirtAddr,
}

impl VaRange {
    /// The range, or `None` if an end is not page-aligned or `start` lies beyond `end`.
    pub const fn new(start: VirtAddr, end: VirtAddr) -> Option<Self> {
        let aligned = start.is_aligned(PAGE_SHIFT) && end.is_aligned(PAGE_SHIFT);
        if aligned && start.0 <= end.0 { Some(Self { start, end }) } else { None }
    }

    /// The range that a system call names: `start` page-aligned, `bytes` rounded up to pages.
    ///
    /// # Errors
    /// EINVAL if `start` is not page-aligned, `bytes` is 0, or the range overflows or leaves the user half.
    pub const fn from_call(start: u64, bytes: u64) -> Result<Self, Errno> {
        if bytes == 0 || !start.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let (Some(start), Some(bytes)) =
            (VirtAddr::new(start), bytes.checked_next_multiple_of(PAGE_SIZE))
        else {
            return Err(Errno::EINVAL);
        };
        match start.checked_add(bytes) {
            Some(end) => Ok(Self { start, end }),
            None => Err(Errno::EINVAL),
        }
    }

    /// The page that holds `address`; `None` for the page past the last.
    pub const fn page_of(address: VirtAddr) -> Option<Self> {
        let start = address.align_down(PAGE_SHIFT);
        match start.checked_add(PAGE_SIZE) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The first address.
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// One past the last address.
    pub const fn end(self) -> VirtAddr {
        self.end
    }

    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Length in pages.
    pub const fn pages(self) -> PageCount {
        PageCount::new(self.bytes() >> PAGE_SHIFT)
    }

    /// Whether the range has no page.
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether `address` lies in it.
    pub const fn contains(self, address: VirtAddr) -> bool {
        self.start.0 <= address.0 && address.0 < self.end.0
    }

    /// Whether all of `other` lies in it.
    pub const fn contains_range(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// What both have; `None` if that is nothing.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }

    /// The first address of each page, ascending.
    pub fn iter_pages(self) -> impl DoubleEndedIterator<Item = VirtAddr> + Clone {
        (self.start.page()..self.end.page()).map(|page| VirtAddr(page << PAGE_SHIFT))
    }
}

impl fmt::Debug for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "va:{:x}..{:x}", self.start.0, self.end.0)
    }
}

impl fmt::Display for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn calls_with_senseless_ranges_get_einval() {
        for (start, bytes) in [
            (0x1001, 4096),
            (0x1000, 0),
            (0x1000, u64::MAX),
            (USER_END, 1),
            (USER_END - PAGE_SIZE, PAGE_SIZE + 1),
            (1 << 63, PAGE_SIZE),
            (u64::MAX - 4095, PAGE_SIZE),
        ] {
            assert_eq!(VaRange::from_call(start, bytes), Err(Errno::EINVAL), "{start:#x} {bytes}");
        }
        let last = VaRange::from_call(USER_END - PAGE_SIZE, 1).unwrap();
        assert_eq!((last.end().get(), last.pages()), (USER_END, PageCount::ONE));
    }

    proptest! {
        #[test]
        fn alignment_agrees_with_division(address in 0..=USER_END, shift in 12u32..39) {
            let va = VirtAddr::new(address).unwrap();
            let size = 1 << shift;
            prop_assert_eq!(va.align_down(shift).get(), address / size * size);
            prop_assert_eq!(va.is_aligned(shift), address % size == 0);
            let up = address.div_ceil(size) * size;
            prop_assert_eq!(va.align_up(shift).map(VirtAddr::get), (up <= USER_END).then_some(up));
        }

        #[test]
        fn table_indices_put_together_are_the_page(address in 0..USER_END) {
            let va = VirtAddr::new(address).unwrap();
            let page = (0..4).rev().fold(0, |page, level| page << 9 | va.table_index(level) as u64);
            prop_assert_eq!(page, va.page());
        }
    }
}
