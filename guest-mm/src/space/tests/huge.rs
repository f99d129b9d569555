//! Calls on parts of mappings that have huge pages.

use super::*;
use crate::gup::{Contents, GupFlags};

/// Maps `count` huge pages from `HERE` on, each of which has its number plus 1 in its 4th page.
fn huge<'m>(mm: &TestMm<'m>, space: &Space<'m>, count: u64) {
    mm.mmap(space, Args::anonymous(count * PMD_SIZE).fixed(HERE)).unwrap();
    mm.madvise(space, HERE, count * PMD_SIZE, Advice::HugePage).unwrap();
    for n in 0..count {
        store(mm, space, at(3) + n * PMD_SIZE, n + 1).unwrap();
    }
}

/// The huge pages that are mapped as such, by number from `HERE` on.
fn whole(space: &Space<'_>) -> Vec<u64> {
    let mut found = Vec::new();
    space.tables().for_each_leaf(&mut |at, leaf| {
        if leaf.order != 0 {
            found.push((at.get() - HERE) / PMD_SIZE);
        }
    });
    found
}

/// Ends of VMAs used to split the huge page that begins there, though it lies on one side.
#[test]
fn huge_pages_beside_a_range_that_ends_between_them_stay_whole() {
    with_space(|mm, space| {
        huge(mm, space, 5);
        mm.mprotect(space, HERE + PMD_SIZE, PMD_SIZE, PageProt::READ).unwrap();
        assert_eq!(whole(space), [0, 1, 2, 3, 4]);
        mm.munmap(space, HERE + 3 * PMD_SIZE, PMD_SIZE).unwrap();
        assert_eq!(whole(space), [0, 1, 2, 4]);
        mm.munmap(space, at(512 * 5 - 1), PAGE).unwrap();
        assert_eq!(whole(space), [0, 1, 2]);
        assert_eq!(load(mm, space, at(3) + 4 * PMD_SIZE), Ok(5));
    });
}

#[test]
fn a_child_of_a_pinned_huge_page_gets_copies_or_there_is_no_child() {
    for site in [FaultSite::SlabAlloc, FaultSite::BuddyAlloc] {
        let mut forked = false;
        // Each of the 512 pages is a copy to be allocated: not every one is tried.
        for nth in (1..8).chain([100, 500, 1_000_000]) {
            with_mm(|mm| {
                let space = mm.new_space().unwrap();
                huge(mm, &space, 1);
                let mut pins = [const { None }; 1];
                mm.pin_user_pages(&space, at(3), GupFlags::WRITE, &mut pins).unwrap();
                mm.platform().faults().fail_nth(site, nth);
                let child = mm.fork(&space);
                mm.platform().faults().fail_nth(site, 0);
                check(mm);
                // Written in place, as far as the pin is concerned.
                store(mm, &space, at(3), 50).unwrap();
                let pin = pins[0].take().unwrap();
                assert_eq!(mm.read_user_page(&pin, 0), 50);
                mm.unpin_user_page(pin, Contents::Unchanged);
                match child {
                    Ok(child) => {
                        assert_eq!(load(mm, &child, at(3)), Ok(1));
                        forked = true;
                        exit(mm, child);
                    }
                    Err(error) => assert_eq!(error, Errno::ENOMEM),
                }
                exit(mm, space);
            });
            if forked {
                break;
            }
        }
        assert!(forked);
    }
}
