//! madvise and mlock.

use super::*;

#[test]
fn dontneed_gives_zeros_and_memory_back_and_skips_holes() {
    with_space(|mm, space| {
        filled(mm, space, 0, 3);
        filled(mm, space, 5, 2);
        let rest = mm.madvise(space, at(1), 5 * PAGE, Advice::DontNeed);
        assert_eq!((rest, space.resident()[0]), (Err(Errno::ENOMEM), 2));
        let words: Vec<_> = [0, 1, 2, 5, 6].map(|page| load(mm, space, at(page))).into();
        assert_eq!(words, [Ok(1), Ok(0), Ok(0), Ok(0), Ok(7)]);
    });
}

#[test]
fn dontneed_of_a_file_brings_its_contents_back() {
    with_space(|mm, space| {
        let file = file(mm, 2);
        map_file(mm, space, &file, (0, 2, 0), MapFlags::PRIVATE);
        store(mm, space, at(0), 1).unwrap();
        mm.madvise(space, at(0), 2 * PAGE, Advice::DontNeed).unwrap();
        assert_eq!(load(mm, space, at(0)), Ok(1000));
        mm.munmap(space, at(0), 2 * PAGE).unwrap();
        end_file(mm, file);
    });
}

#[test]
fn dontneed_takes_a_part_of_a_huge_page() {
    with_space(|mm, space| {
        mm.mmap(space, Args::anonymous(PMD_SIZE).fixed(HERE)).unwrap();
        mm.madvise(space, HERE, PMD_SIZE, Advice::HugePage).unwrap();
        store(mm, space, at(3), 3).unwrap();
        store(mm, space, at(4), 4).unwrap();
        mm.madvise(space, at(3), PAGE, Advice::DontNeed).unwrap();
        assert_eq!((load(mm, space, at(3)), load(mm, space, at(4))), (Ok(0), Ok(4)));
        assert_eq!(layout(space), [(0, 512)]);
    });
}

#[test]
fn freed_pages_keep_their_contents_until_memory_is_short() {
    with_space(|mm, space| {
        filled(mm, space, 0, 2);
        mm.madvise(space, at(0), 2 * PAGE, Advice::Free).unwrap();
        assert_eq!((load(mm, space, at(0)), space.resident()[0]), (Ok(1), 2));
        store(mm, space, at(1), 9).unwrap();
        assert_eq!(load(mm, space, at(1)), Ok(9));
        mm.madvise(space, at(0), 2 * PAGE, Advice::Cold).unwrap();
    });
}

#[test]
fn madvise_refuses_senseless_arguments_as_linux_does() {
    with_space(|mm, space| {
        let file = file(mm, 1);
        filled(mm, space, 0, 2);
        map_file(mm, space, &file, (4, 1, 0), MapFlags::PRIVATE);
        mm.mlock(space, at(1), PAGE).unwrap();
        mm.mprotect(space, at(4), PAGE, PageProt::READ).unwrap();
        for (start, bytes, advice, errno) in [
            (at(0) + 1, PAGE, Advice::DontNeed, Errno::EINVAL),
            (at(0), u64::MAX, Advice::DontNeed, Errno::EINVAL),
            (u64::MAX - PAGE + 1, 2 * PAGE, Advice::DontNeed, Errno::EINVAL),
            (at(9), PAGE, Advice::DontNeed, Errno::ENOMEM),
            (USER_END, PAGE, Advice::DontNeed, Errno::ENOMEM),
            (1 << 63, PAGE, Advice::NoHugePage, Errno::ENOMEM),
            (at(1), PAGE, Advice::DontNeed, Errno::EINVAL),
            (at(1), PAGE, Advice::Free, Errno::EINVAL),
            (at(4), PAGE, Advice::Free, Errno::EINVAL),
            (at(4), PAGE, Advice::WipeOnFork, Errno::EINVAL),
            (at(4), PAGE, Advice::PopulateWrite, Errno::EINVAL),
            (at(0), PAGE, Advice::Collapse, Errno::EINVAL),
            (at(2), PAGE, Advice::PopulateRead, Errno::ENOMEM),
        ] {
            assert_eq!(
                mm.madvise(space, start, bytes, advice),
                Err(errno),
                "{start:#x} {advice:?}"
            );
        }
        mm.madvise(space, 0, 0, Advice::DontNeed).unwrap();
        assert_eq!(Advice::from_number(4), Ok(Advice::DontNeed));
        assert_eq!(Advice::from_number(99), Err(Errno::EINVAL));
        assert_eq!(load(mm, space, at(1)), Ok(2));
        mm.munlock(space, at(1), PAGE).unwrap();
        assert_eq!(layout(space), [(0, 2), (4, 1)]);
        mm.munmap(space, at(4), PAGE).unwrap();
        end_file(mm, file);
    });
}

#[test]
fn populate_and_mlock_fault_everything_in() {
    with_space(|mm, space| {
        mm.mmap(space, Args::anonymous(8 * PAGE).fixed(at(0))).unwrap();
        mm.madvise(space, at(0), 2 * PAGE, Advice::PopulateWrite).unwrap();
        assert_eq!(space.resident()[0], 2);
        mm.madvise(space, at(2), 2 * PAGE, Advice::PopulateRead).unwrap();
        assert_eq!(space.resident()[0], 2, "the zero page is nobody's");
        mm.mlock(space, at(4) + 5, PAGE).unwrap();
        assert_eq!((layout(space), space.resident()[0]), (vec![(0, 4), (4, 2), (6, 2)], 4));
        assert_eq!(mm.mlock(space, at(7), 2 * PAGE), Err(Errno::ENOMEM));
        assert_eq!(mm.mlock(space, at(0), u64::MAX), Err(Errno::EINVAL));
        let args = Args::anonymous(3 * PAGE);
        let populated = MmapArgs { flags: args.flags | MapFlags::POPULATE, ..args };
        mm.mmap(space, populated).unwrap();
        assert_eq!(space.resident()[0], 7);
    });
}

#[test]
fn pages_in_swap_fork_move_and_go_like_others() {
    with_mm(|mm| {
        mm.swapon_ram(32).unwrap();
        let parent = mm.new_space().unwrap();
        filled(mm, &parent, 0, 8);
        mm.madvise(&parent, at(0), 6 * PAGE, Advice::PageOut).unwrap();
        assert_eq!(parent.resident(), [2, 0, 6]);
        let child = mm.fork(&parent).unwrap();
        assert_eq!(child.resident(), [2, 0, 6]);
        let call = RemapArgs {
            old: at(0),
            old_bytes: 3 * PAGE,
            new_bytes: 3 * PAGE,
            flags: RemapFlags::MAYMOVE | RemapFlags::FIXED,
            new: at(100),
        };
        mm.mremap(&parent, call).unwrap();
        mm.mprotect(&parent, at(100), PAGE, PageProt::READ).unwrap();
        assert_eq!((parent.resident(), load(mm, &parent, at(101))), ([2, 0, 6], Ok(2)));
        mm.madvise(&parent, at(3), PAGE, Advice::DontNeed).unwrap();
        mm.madvise(&parent, at(4), PAGE, Advice::Free).unwrap();
        mm.munmap(&parent, at(5), PAGE).unwrap();
        assert_eq!((load(mm, &parent, at(3)), load(mm, &parent, at(4))), (Ok(0), Ok(0)));
        assert_eq!(store(mm, &parent, at(100), 0), Err(Signal::SegvAccErr));
        check(mm);
        store(mm, &child, at(0), 70).unwrap();
        assert_eq!((load(mm, &child, at(5)), load(mm, &parent, at(100))), (Ok(6), Ok(1)));
        exit(mm, parent);
        assert_eq!((load(mm, &child, at(0)), load(mm, &child, at(2))), (Ok(70), Ok(3)));
        exit(mm, child);
        mm.swapoff().unwrap();
    });
}
