//! What a fault maps besides the page it was about.

use abi::PAGE_SIZE;

use crate::addr::{PMD_SHIFT, PMD_SIZE, VaRange, VirtAddr};
use crate::space::VmFlags;

/// Pages that a read fault on a file maps at most, the one that faulted
/// included (`fault_around_bytes`, 64 KiB).
pub const FAULT_AROUND_PAGES: u64 = 16;

/// The aligned 2 MiB around `address` that a fault may map by one leaf, or
/// `None`: the policy *madvise* of Linux, so the VMA must be private anonymous
/// memory for which the program asked for huge pages, and span all of it.
pub(super) fn huge_range(
    vma: VaRange,
    flags: VmFlags,
    is_anonymous: bool,
    address: VirtAddr,
) -> Option<VaRange> {
    let asked = flags.contains(VmFlags::HUGEPAGE) && !flags.contains(VmFlags::NOHUGEPAGE);
    let fits = is_anonymous && !flags.intersects(VmFlags::SHARED | VmFlags::PFNMAP);
    let start = address.align_down(PMD_SHIFT);
    let range = VaRange::new(start, start.checked_add(PMD_SIZE)?)?;
    (asked && fits && vma.contains_range(range)).then_some(range)
}

/// The pages around `address` that a read fault may map along with it: an
/// aligned window, within the VMA and within one PTE table.
pub(super) fn fault_around(vma: VaRange, address: VirtAddr) -> Option<VaRange> {
    const WINDOW: u64 = FAULT_AROUND_PAGES * PAGE_SIZE;
    const { assert!(WINDOW.is_power_of_two() && WINDOW <= PMD_SIZE, "never crosses a table") };
    let start = address.align_down(WINDOW.trailing_zeros());
    // The last window of the user half is short.
    let end = start.checked_add(WINDOW).unwrap_or(VirtAddr::END);
    VaRange::new(start, end)?.intersection(vma)
}

/// Whether an anonymous folio's counts leave room for nobody but the leaf that
/// faulted and the swap cache: what can be said without the folio's lock.
///
/// `references` includes the leaf's one, `cached` those of the swap cache.
pub(super) const fn may_be_ours(references: u32, cached: u32) -> bool {
    references <= 1 + cached
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, pages: u64) -> VaRange {
        VaRange::from_call(start, pages * PAGE_SIZE).unwrap()
    }

    fn va(address: u64) -> VirtAddr {
        VirtAddr::new(address).unwrap()
    }

    #[test]
    fn huge_pages_need_advice_private_memory_and_room() {
        let asked = VmFlags::READ | VmFlags::HUGEPAGE;
        let vma = range(3 * PMD_SIZE - PAGE_SIZE, 514);
        let middle = va(3 * PMD_SIZE + 5 * PAGE_SIZE + 7);
        let whole = range(3 * PMD_SIZE, 512);
        assert_eq!(huge_range(vma, asked, true, middle), Some(whole));
        assert_eq!(huge_range(vma, VmFlags::READ, true, middle), None);
        assert_eq!(huge_range(vma, asked | VmFlags::NOHUGEPAGE, true, middle), None);
        assert_eq!(huge_range(vma, asked | VmFlags::SHARED, true, middle), None);
        assert_eq!(huge_range(vma, asked, false, middle), None);
        assert_eq!(huge_range(vma, asked, true, vma.start()), None, "sticks out below");
        assert_eq!(huge_range(vma, asked, true, va(4 * PMD_SIZE)), None, "sticks out above");
        let last = VaRange::new(va(crate::addr::USER_END - PMD_SIZE), VirtAddr::END).unwrap();
        assert_eq!(huge_range(last, asked, true, va(crate::addr::USER_END - 1)), None);
    }

    #[test]
    fn one_reference_too_many_makes_a_folio_somebody_elses() {
        assert!(may_be_ours(1, 0) && may_be_ours(2, 1) && may_be_ours(1, 1));
        assert!(!may_be_ours(2, 0) && !may_be_ours(3, 1));
    }

    proptest! {
        #[test]
        fn the_window_holds_the_page_and_stays_inside(
            start in 16u64..(1 << 35) - 2000,
            pages in 1u64..1000,
            at in 0u64..1000,
        ) {
            let vma = range(start * PAGE_SIZE, pages);
            let address = va((start + at % pages) * PAGE_SIZE + 9);
            let window = fault_around(vma, address).unwrap();
            prop_assert!(window.contains(address) && vma.contains_range(window));
            prop_assert!(window.pages().get() <= FAULT_AROUND_PAGES);
            let (first, last) = (window.start().get(), window.end().get() - 1);
            prop_assert_eq!(first / PMD_SIZE, last / PMD_SIZE);
        }
    }
}
