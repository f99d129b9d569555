//! mremap.

use super::*;
use crate::pgtable::{Entry, PteState};

const MAYMOVE: RemapFlags = RemapFlags::MAYMOVE;
const FIXED: RemapFlags = RemapFlags::MAYMOVE.union(RemapFlags::FIXED);
const DONTUNMAP: RemapFlags = RemapFlags::MAYMOVE.union(RemapFlags::DONTUNMAP);

fn args(old: u64, old_pages: u64, new_pages: u64, flags: RemapFlags, new: u64) -> RemapArgs {
    RemapArgs { old, old_bytes: old_pages * PAGE, new_bytes: new_pages * PAGE, flags, new }
}

/// Checks that `pages` pages at `address` hold what `filled` wrote from page `first` on.
#[track_caller]
fn expect<'m>(mm: &TestMm<'m>, space: &Space<'m>, address: u64, first: u64, pages: u64) {
    for page in 0..pages {
        assert_eq!(load(mm, space, address + page * PAGE), Ok(first + page + 1), "page {page}");
    }
}

#[test]
fn mremap_refuses_senseless_arguments_as_linux_does() {
    with_space(|mm, space| {
        filled(mm, space, 0, 4);
        filled(mm, space, 8, 1);
        let none = RemapFlags::empty();
        let to = at(100);
        let table = [
            (args(at(0) + 1, 1, 1, none, 0), Errno::EINVAL),
            (args(at(0), 1, 0, none, 0), Errno::EINVAL),
            (RemapArgs { new_bytes: u64::MAX, ..args(at(0), 1, 1, none, 0) }, Errno::EINVAL),
            (args(at(0), 1, 1, RemapFlags::from_bits_retain(8), 0), Errno::EINVAL),
            (args(at(0), 1, 1, RemapFlags::FIXED, to), Errno::EINVAL),
            (args(at(0), 1, 1, RemapFlags::DONTUNMAP, to), Errno::EINVAL),
            (args(at(0), 1, 2, DONTUNMAP, to), Errno::EINVAL),
            (args(at(0), 1, 1, FIXED, to + 1), Errno::EINVAL),
            (args(at(0), 1, 1, FIXED, USER_END), Errno::EINVAL),
            (args(at(0), 1, 1, FIXED, 1 << 63), Errno::EINVAL),
            (args(at(0), 4, 4, FIXED, at(3)), Errno::EINVAL),
            (args(at(1), 3, 3, FIXED, at(0)), Errno::EINVAL),
            (args(at(0), 1, 1, FIXED, USER_START - PAGE), Errno::EPERM),
            (args(at(5), 1, 2, MAYMOVE, 0), Errno::EFAULT),
            (args(1 << 62, 1, 2, MAYMOVE, 0), Errno::EFAULT),
            (args(at(3), 6, 7, MAYMOVE, 0), Errno::EFAULT),
            (args(at(3), 6, 6, FIXED, to), Errno::EFAULT),
            (args(at(0), 0, 1, MAYMOVE, 0), Errno::EINVAL),
            (args(at(0), 4, 9, none, 0), Errno::ENOMEM),
            (args(at(1), 2, 3, none, 0), Errno::ENOMEM),
            (RemapArgs { new_bytes: USER_END, ..args(at(0), 4, 1, MAYMOVE, 0) }, Errno::ENOMEM),
        ];
        for (call, errno) in table {
            assert_eq!(mm.mremap(space, call), Err(errno), "{call:x?}");
        }
        assert_eq!(layout(space), [(0, 4), (8, 1)]);
        expect(mm, space, at(0), 0, 4);
    });
}

#[test]
fn a_mapping_grows_in_place_up_to_its_neighbour_and_merges_with_it() {
    with_space(|mm, space| {
        filled(mm, space, 0, 2);
        filled(mm, space, 4, 1);
        assert_eq!(mm.mremap(space, args(at(0), 2, 3, RemapFlags::empty(), 0)), Ok(va(at(0))));
        assert_eq!(layout(space), [(0, 3), (4, 1)]);
        assert_eq!(mm.mremap(space, args(at(1), 2, 3, RemapFlags::empty(), 0)), Ok(va(at(1))));
        assert_eq!(space.total_pages().get(), 5);
        expect(mm, space, at(0), 0, 2);
        assert_eq!((load(mm, space, at(3)), load(mm, space, at(4))), (Ok(0), Ok(5)));
    });
}

#[test]
fn a_mapping_shrinks_in_place() {
    with_space(|mm, space| {
        filled(mm, space, 0, 5);
        assert_eq!(mm.mremap(space, args(at(0), 5, 2, RemapFlags::empty(), 0)), Ok(va(at(0))));
        assert_eq!((layout(space), space.resident()[0]), (vec![(0, 2)], 2));
        expect(mm, space, at(0), 0, 2);
        assert_eq!(load(mm, space, at(2)), Err(Signal::SegvMapErr));
    });
}

#[test]
fn a_mapping_that_cannot_grow_moves_with_its_pages() {
    with_space(|mm, space| {
        filled(mm, space, 0, 5);
        let frames = space.resident();
        let there = mm.mremap(space, args(at(1), 3, 6, MAYMOVE, 0)).unwrap().get();
        assert_eq!(space.resident(), frames, "pages move, they are not copied");
        expect(mm, space, there, 1, 3);
        assert_eq!(load(mm, space, there + 5 * PAGE), Ok(0));
        assert_eq!(load(mm, space, at(1)), Err(Signal::SegvMapErr));
        expect(mm, space, at(4), 4, 1);
        let guard = space.read();
        let vma = guard.lookup(va(there)).unwrap();
        assert_eq!(vma.linear_index(va(there)), at(1) / PAGE, "folios keep their index");
    });
}

#[test]
fn fixed_replaces_what_is_at_the_target() {
    with_space(|mm, space| {
        filled(mm, space, 0, 4);
        filled(mm, space, 10, 4);
        assert_eq!(mm.mremap(space, args(at(0), 4, 2, FIXED, at(11))), Ok(va(at(11))));
        assert_eq!(layout(space), [(10, 1), (11, 2), (13, 1)]);
        expect(mm, space, at(11), 0, 2);
        expect(mm, space, at(10), 10, 1);
        expect(mm, space, at(13), 13, 1);
        // Back to where it came from, its offset fits the place again.
        assert_eq!(mm.mremap(space, args(at(11), 2, 2, FIXED, at(0))), Ok(va(at(0))));
        mm.mmap(space, Args::anonymous(PAGE).fixed(at(2))).unwrap();
        assert_eq!(layout(space), [(0, 3), (10, 1), (13, 1)]);
        expect(mm, space, at(0), 0, 2);
    });
}

/// Mappings that grow or merge went on being tracked as if nothing of them were new.
#[test]
fn new_moved_and_grown_mappings_count_as_soft_dirty() {
    let is_dirty = |space: &Space<'_>, page| {
        space.read().lookup(va(at(page))).unwrap().flags().contains(VmFlags::SOFTDIRTY)
    };
    let clear = |space: &Space<'_>, page| {
        let guard = space.write();
        let vma = guard.lookup(va(at(page))).unwrap();
        guard.lock_vma(vma);
        vma.set_flags(vma.flags() - VmFlags::SOFTDIRTY);
    };
    with_space(|mm, space| {
        filled(mm, space, 0, 4);
        assert!(is_dirty(space, 0), "new");
        clear(space, 0);
        mm.mprotect(space, at(1), PAGE, PageProt::READ).unwrap();
        assert!(!is_dirty(space, 0) && !is_dirty(space, 1) && !is_dirty(space, 2), "split");
        mm.mprotect(space, at(1), PAGE, RW).unwrap();
        assert!(!is_dirty(space, 0), "merged");
        mm.mremap(space, args(at(0), 4, 4, DONTUNMAP, at(100))).unwrap();
        assert!(is_dirty(space, 100) && !is_dirty(space, 0), "moved");
        mm.mremap(space, args(at(0), 4, 5, RemapFlags::empty(), 0)).unwrap();
        assert!(is_dirty(space, 0), "grown");
        clear(space, 0);
        filled(mm, space, 5, 1);
        assert_eq!(layout(space), [(0, 6), (100, 4)]);
        assert!(is_dirty(space, 0), "merged with a new one");
    });
}

/// The next write to such a page has to be noticed.
#[test]
fn a_clean_page_of_a_tracked_mapping_faults_at_its_first_write() {
    for tracked in [false, true] {
        with_space(|mm, space| {
            filled(mm, space, 0, 1);
            {
                let guard = space.write();
                let vma = guard.lookup(va(at(0))).unwrap();
                guard.lock_vma(vma);
                let rest = vma.flags() - VmFlags::SOFTDIRTY;
                vma.set_flags(if tracked { rest } else { rest | VmFlags::SOFTDIRTY });
            }
            let here = va(at(0));
            let leaf = |entry: Entry| {
                let PteState::Present(pte) = entry.pte() else { panic!("{entry:?}") };
                pte
            };
            let mut table = space.tables().lock_pte(here).unwrap();
            table.update(here, |entry| leaf(entry).clear_soft_dirty().entry());
            drop(table);
            mm.mprotect(space, at(0), PAGE, PageProt::READ).unwrap();
            mm.mprotect(space, at(0), PAGE, RW).unwrap();
            let pte = leaf(space.tables().lock_pte(here).unwrap().load(here));
            assert_eq!((pte.is_writable(), pte.is_soft_dirty()), (!tracked, false));
        });
    }
}

#[test]
fn dontunmap_leaves_an_empty_mapping_behind() {
    with_space(|mm, space| {
        filled(mm, space, 0, 3);
        let there = mm.mremap(space, args(at(0), 3, 3, DONTUNMAP, at(20))).unwrap();
        assert_eq!((there, layout(space)), (va(at(20)), vec![(0, 3), (20, 3)]));
        expect(mm, space, at(20), 0, 3);
        assert_eq!((load(mm, space, at(0)), load(mm, space, at(2))), (Ok(0), Ok(0)));
        store(mm, space, at(1), 44).unwrap();
        assert_eq!((load(mm, space, at(1)), load(mm, space, at(21))), (Ok(44), Ok(2)));
        check(mm);
        // The wish is taken already: somewhere else.
        let other = mm.mremap(space, args(at(0), 3, 3, DONTUNMAP, at(20))).unwrap().get();
        assert_eq!(load(mm, space, other + PAGE), Ok(44));
    });
}

#[test]
fn whole_tables_and_huge_leaves_move_as_such() {
    with_space(|mm, space| {
        mm.mmap(space, Args::anonymous(2 * PMD_SIZE).fixed(HERE)).unwrap();
        mm.madvise(space, HERE, PMD_SIZE, Advice::HugePage).unwrap();
        mm.madvise(space, HERE + PMD_SIZE, PMD_SIZE, Advice::NoHugePage).unwrap();
        for page in [0, 511, 512, 1023] {
            store(mm, space, at(page), page + 1).unwrap();
        }
        let resident = space.resident();
        for (from, to) in [(0u64, 8u64), (1, 9)] {
            let call = args(HERE + from * PMD_SIZE, 512, 512, FIXED, HERE + to * PMD_SIZE);
            mm.mremap(space, call).unwrap();
        }
        check(mm);
        assert_eq!(space.resident(), resident);
        for page in [0, 511, 512, 1023] {
            assert_eq!(load(mm, space, at(page) + 8 * PMD_SIZE), Ok(page + 1));
        }
        // To a place where 2 MiB cannot be mapped at once.
        mm.mremap(space, args(HERE + 8 * PMD_SIZE, 512, 512, FIXED, at(3))).unwrap();
        assert_eq!((load(mm, space, at(3)), load(mm, space, at(514))), (Ok(1), Ok(512)));
        assert_eq!(space.resident(), resident);
    });
}

#[test]
fn file_mappings_move_with_their_offset_and_shared_ones_can_be_doubled() {
    with_space(|mm, space| {
        let file = file(mm, 6);
        map_file(mm, space, &file, (0, 4, 1), MapFlags::SHARED);
        map_file(mm, space, &file, (10, 4, 1), MapFlags::PRIVATE);
        store(mm, space, at(1), 7).unwrap();
        store(mm, space, at(12), 8).unwrap();
        mm.mremap(space, args(at(0), 4, 5, MAYMOVE, 0)).unwrap();
        assert_eq!(load(mm, space, at(4)), Ok(1005));
        mm.mremap(space, args(at(1), 1, 1, FIXED, at(30))).unwrap();
        mm.mremap(space, args(at(11), 2, 2, FIXED, at(40))).unwrap();
        assert_eq!(load(mm, space, at(30)), Ok(7));
        assert_eq!((load(mm, space, at(40)), load(mm, space, at(41))), (Ok(7), Ok(8)));
        let twin = mm.mremap(space, args(at(30), 0, 1, MAYMOVE, 0)).unwrap().get();
        store(mm, space, twin, 9).unwrap();
        assert_eq!(load(mm, space, at(30)), Ok(9));
        check(mm);
        mm.munmap(space, 0, USER_END).unwrap();
        end_file(mm, file);
    });
}

#[test]
fn shared_anonymous_memory_moves_and_is_doubled() {
    with_space(|mm, space| {
        let flags = MapFlags::SHARED | MapFlags::ANONYMOUS;
        mm.mmap(space, MmapArgs { flags, ..Args::anonymous(2 * PAGE) }.fixed(at(0))).unwrap();
        store(mm, space, at(1), 3).unwrap();
        mm.mremap(space, args(at(0), 2, 2, FIXED, at(5))).unwrap();
        assert_eq!(mm.mremap(space, args(at(5), 0, 2, FIXED, at(50))), Ok(va(at(50))));
        store(mm, space, at(51), 4).unwrap();
        assert_eq!(load(mm, space, at(6)), Ok(4));
    });
}

#[test]
fn memory_that_is_locked_is_faulted_in_as_it_grows() {
    with_space(|mm, space| {
        mm.mmap(space, Args::anonymous(2 * PAGE).fixed(at(0))).unwrap();
        mm.mlock(space, at(0), 2 * PAGE).unwrap();
        mm.mremap(space, args(at(0), 2, 5, RemapFlags::empty(), 0)).unwrap();
        assert_eq!(space.resident()[0], 5);
        mm.mremap(space, args(at(0), 5, 6, FIXED, at(20))).unwrap();
        assert_eq!((space.resident()[0], layout(space)), (6, vec![(20, 6)]));
    });
}
