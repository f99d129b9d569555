//! fork.

use super::*;
use crate::gup::{Contents, GupFlags};

#[test]
fn parent_and_child_share_until_one_writes() {
    with_mm(|mm| {
        let parent = mm.new_space().unwrap();
        filled(mm, &parent, 0, 4);
        let child = mm.fork(&parent).unwrap();
        check(mm);
        assert_eq!((parent.resident(), child.resident()), ([4, 0, 0], [4, 0, 0]));
        store(mm, &parent, at(0), 100).unwrap();
        store(mm, &child, at(1), 200).unwrap();
        for (space, words) in [(&parent, [100, 2, 3, 4]), (&child, [1, 200, 3, 4])] {
            for (page, word) in (0..).zip(words) {
                assert_eq!(load(mm, space, at(page)), Ok(word));
            }
        }
        let grandchild = mm.fork(&child).unwrap();
        assert_eq!(load(mm, &grandchild, at(1)), Ok(200));
        exit(mm, child);
        store(mm, &grandchild, at(2), 5).unwrap();
        assert_eq!(load(mm, &parent, at(2)), Ok(3));
        exit(mm, parent);
        assert_eq!(load(mm, &grandchild, at(3)), Ok(4));
        exit(mm, grandchild);
    });
}

#[test]
fn advice_about_forks_is_followed() {
    with_mm(|mm| {
        let parent = mm.new_space().unwrap();
        filled(mm, &parent, 0, 8);
        mm.madvise(&parent, at(1), PAGE, Advice::DontFork).unwrap();
        mm.madvise(&parent, at(3), PAGE, Advice::WipeOnFork).unwrap();
        mm.madvise(&parent, at(5), PAGE, Advice::DontFork).unwrap();
        mm.madvise(&parent, at(5), PAGE, Advice::DoFork).unwrap();
        mm.madvise(&parent, at(6), PAGE, Advice::WipeOnFork).unwrap();
        mm.madvise(&parent, at(6), PAGE, Advice::KeepOnFork).unwrap();
        mm.mlock(&parent, at(7), PAGE).unwrap();
        let child = mm.fork(&parent).unwrap();
        assert_eq!(load(mm, &child, at(0)), Ok(1));
        assert_eq!(load(mm, &child, at(1)), Err(Signal::SegvMapErr));
        assert_eq!(load(mm, &child, at(3)), Ok(0));
        assert_eq!((load(mm, &child, at(5)), load(mm, &child, at(6))), (Ok(6), Ok(7)));
        assert_eq!(child.total_pages().get(), 7);
        assert!(!child.read().lookup(va(at(7))).unwrap().flags().contains(VmFlags::LOCKED));
        exit(mm, parent);
        exit(mm, child);
    });
}

#[test]
fn files_and_shared_memory_are_the_same_to_both() {
    with_mm(|mm| {
        let parent = mm.new_space().unwrap();
        let file = file(mm, 4);
        map_file(mm, &parent, &file, (0, 2, 0), MapFlags::SHARED);
        map_file(mm, &parent, &file, (4, 2, 0), MapFlags::PRIVATE);
        let flags = MapFlags::SHARED | MapFlags::ANONYMOUS;
        mm.mmap(&parent, MmapArgs { flags, ..Args::anonymous(PAGE) }.fixed(at(8))).unwrap();
        store(mm, &parent, at(4), 1).unwrap();
        store(mm, &parent, at(8), 2).unwrap();
        let child = mm.fork(&parent).unwrap();
        store(mm, &parent, at(0), 3).unwrap();
        store(mm, &child, at(8), 4).unwrap();
        store(mm, &child, at(4), 5).unwrap();
        assert_eq!((load(mm, &child, at(0)), load(mm, &parent, at(8))), (Ok(3), Ok(4)));
        assert_eq!((load(mm, &parent, at(4)), load(mm, &child, at(5))), (Ok(1), Ok(1001)));
        exit(mm, child);
        exit(mm, parent);
        end_file(mm, file);
    });
}

#[test]
fn a_child_of_a_huge_page_shares_it_whole() {
    with_mm(|mm| {
        let parent = mm.new_space().unwrap();
        mm.mmap(&parent, Args::anonymous(PMD_SIZE).fixed(HERE)).unwrap();
        mm.madvise(&parent, HERE, PMD_SIZE, Advice::HugePage).unwrap();
        store(mm, &parent, at(9), 9).unwrap();
        let child = mm.fork(&parent).unwrap();
        store(mm, &child, at(9), 10).unwrap();
        assert_eq!((load(mm, &parent, at(9)), load(mm, &child, at(9))), (Ok(9), Ok(10)));
        assert_eq!(load(mm, &child, at(10)), Ok(0));
        exit(mm, parent);
        exit(mm, child);
    });
}

#[test]
fn a_pinned_page_stays_the_parents_and_the_child_gets_a_copy() {
    with_mm(|mm| {
        let parent = mm.new_space().unwrap();
        filled(mm, &parent, 0, 2);
        let mut pins = [const { None }; 1];
        mm.pin_user_pages(&parent, at(1), GupFlags::WRITE, &mut pins).unwrap();
        let child = mm.fork(&parent).unwrap();
        check(mm);
        // The parent goes on writing the page that is pinned, without a fault.
        store(mm, &parent, at(1), 50).unwrap();
        assert_eq!((load(mm, &parent, at(1)), load(mm, &child, at(1))), (Ok(50), Ok(2)));
        let pin = pins[0].take().unwrap();
        assert_eq!(mm.read_user_page(&pin, 0), 50);
        mm.unpin_user_page(pin, Contents::Unchanged);
        exit(mm, parent);
        exit(mm, child);
    });
}
