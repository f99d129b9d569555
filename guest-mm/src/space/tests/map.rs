//! mmap and munmap.

use super::*;

#[test]
fn anonymous_memory_goes_to_the_top_and_its_room_is_used_again() {
    with_space(|mm, space| {
        let first = mm.mmap(space, Args::anonymous(PAGE)).unwrap();
        assert_eq!(first.get(), USER_END - PAGE);
        let second = mm.mmap(space, Args::anonymous(2 * PAGE)).unwrap();
        assert_eq!(second.get(), USER_END - 3 * PAGE);
        assert_eq!((space.map_count(), space.total_pages().get()), (1, 3), "neighbours merge");
        mm.munmap(space, first.get(), PAGE).unwrap();
        assert_eq!(mm.mmap(space, Args::anonymous(1)).unwrap(), first);
        let huge = mm.mmap(space, Args::anonymous(PMD_SIZE)).unwrap();
        assert!(huge.is_aligned(21));
    });
}

#[test]
fn a_hole_in_the_middle_splits_and_fixed_fills_it() {
    with_space(|mm, space| {
        mm.mmap(space, Args::anonymous(9 * PAGE).fixed(HERE)).unwrap();
        mm.munmap(space, HERE + 3 * PAGE, 2 * PAGE).unwrap();
        assert_eq!(layout(space), [(0, 3), (5, 4)]);
        let read_only = Args::anonymous(4 * PAGE).prot(PageProt::READ);
        mm.mmap(space, read_only.fixed(HERE + 2 * PAGE)).unwrap();
        assert_eq!(layout(space), [(0, 2), (2, 4), (6, 3)]);
        let guard = space.read();
        assert_eq!(
            guard.lookup(va(HERE + 8 * PAGE)).unwrap().linear_index(va(HERE + 8 * PAGE)),
            HERE / PAGE + 8
        );
        assert!(guard.lookup(va(HERE + 9 * PAGE)).is_none());
        assert_eq!(guard.before(va(HERE + 6 * PAGE)).unwrap().start(), va(HERE + 2 * PAGE));
    });
}

#[test]
fn a_wish_is_granted_where_there_is_room() {
    with_space(|mm, space| {
        let at = |addr| MmapArgs { addr, ..Args::anonymous(2 * PAGE) };
        assert_eq!(mm.mmap(space, at(HERE + 5)).unwrap(), va(HERE));
        assert!(mm.mmap(space, at(HERE + PAGE)).unwrap() > va(HERE + PAGE));
        assert_eq!(mm.mmap(space, at(1)).unwrap().get(), USER_END - 4 * PAGE);
        assert_eq!(mm.mmap(space, at(PAGE)).unwrap().get(), USER_START);
    });
}

#[test]
fn a_million_megabytes_of_room_are_found_from_the_top_whatever_was_freed() {
    with_space(|mm, space| {
        let mapped: Vec<_> =
            (0..40).map(|_| mm.mmap(space, Args::anonymous(PAGE)).unwrap().get()).collect();
        for address in mapped.iter().step_by(2) {
            mm.munmap(space, *address, PAGE).unwrap();
        }
        // Two pages fit nowhere above; one page fits the highest hole.
        let two = mm.mmap(space, Args::anonymous(2 * PAGE)).unwrap().get();
        assert_eq!(two, mapped[39] - 2 * PAGE);
        for address in mapped.iter().step_by(2) {
            assert_eq!(mm.mmap(space, Args::anonymous(PAGE)).unwrap().get(), *address);
        }
        mm.munmap(space, mapped[10], PAGE).unwrap();
        mm.munmap(space, mapped[11], PAGE).unwrap();
        assert_eq!(mm.mmap(space, Args::anonymous(2 * PAGE)).unwrap().get(), mapped[11]);
    });
}

#[test]
fn mmap_refuses_senseless_arguments_as_linux_does() {
    with_space(|mm, space| {
        let good = Args::anonymous(PAGE);
        let flags = |flags| MmapArgs { flags, ..good };
        mm.mmap(space, good.fixed(HERE)).unwrap();
        let noreplace = MapFlags::FIXED_NOREPLACE | good.flags;
        let table = [
            (MmapArgs { bytes: 0, ..good }, Errno::EINVAL),
            (MmapArgs { bytes: u64::MAX, ..good }, Errno::ENOMEM),
            (MmapArgs { bytes: USER_END + 1, ..good }, Errno::ENOMEM),
            (MmapArgs { bytes: USER_END, ..good }, Errno::ENOMEM),
            (good.fixed(HERE + 1), Errno::EINVAL),
            (good.fixed(USER_END), Errno::ENOMEM),
            (good.fixed(1 << 63), Errno::ENOMEM),
            (good.fixed(0), Errno::EPERM),
            (good.fixed(USER_START - PAGE), Errno::EPERM),
            (MmapArgs { addr: HERE, ..flags(noreplace) }, Errno::EEXIST),
            (flags(MapFlags::ANONYMOUS), Errno::EINVAL),
            (flags(MapFlags::SHARED | good.flags), Errno::EINVAL),
            (flags(MapFlags::PRIVATE), Errno::EBADF),
            (flags(MapFlags::from_bits_retain(1 << 30) | good.flags), Errno::EINVAL),
            (good.prot(PageProt::from_bits_retain(0x80)), Errno::EINVAL),
        ];
        for (args, errno) in table {
            assert_eq!(mm.mmap(space, args), Err(errno), "{args:?}");
        }
        assert_eq!((layout(space), space.total_pages().get()), (vec![(0, 1)], 1));
        space.limit_pages(abi::PageCount::new(2));
        assert_eq!(mm.mmap(space, Args::anonymous(2 * PAGE)), Err(Errno::ENOMEM));
        mm.mmap(space, Args::anonymous(2 * PAGE).fixed(HERE)).unwrap();
    });
}

#[test]
fn munmap_refuses_senseless_arguments_and_takes_holes() {
    with_space(|mm, space| {
        mm.mmap(space, Args::anonymous(PAGE).fixed(HERE)).unwrap();
        for (start, bytes) in [
            (HERE + 1, PAGE),
            (HERE, 0),
            (HERE, u64::MAX),
            (USER_END, PAGE),
            (1 << 63, PAGE),
            (USER_END - PAGE, 2 * PAGE),
        ] {
            assert_eq!(mm.munmap(space, start, bytes), Err(Errno::EINVAL), "{start:#x} {bytes:#x}");
        }
        mm.munmap(space, 0, PAGE).unwrap();
        mm.munmap(space, HERE - PAGE, PAGE).unwrap();
        assert_eq!(layout(space), [(0, 1)]);
        mm.munmap(space, HERE - 7 * PAGE, 100 * PAGE).unwrap();
        assert_eq!((space.map_count(), space.total_pages().get()), (0, 0));
    });
}
