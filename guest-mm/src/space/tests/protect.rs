//! mprotect.

use super::*;

#[test]
fn permissions_change_in_part_of_a_mapping_and_merge_again() {
    with_space(|mm, space| {
        filled(mm, space, 0, 6);
        mm.mprotect(space, at(2), 2 * PAGE, PageProt::READ).unwrap();
        assert_eq!(layout(space), [(0, 2), (2, 2), (4, 2)]);
        assert_eq!(load(mm, space, at(3)), Ok(4));
        assert_eq!(store(mm, space, at(3), 1), Err(Signal::SegvAccErr));
        assert_eq!(store(mm, space, at(4), 77), Ok(()));
        mm.mprotect(space, at(3), PAGE, PageProt::empty()).unwrap();
        assert_eq!(load(mm, space, at(3)), Err(Signal::SegvAccErr));
        check(mm);
        mm.mprotect(space, at(0), 6 * PAGE, RW).unwrap();
        assert_eq!(layout(space), [(0, 6)]);
        assert_eq!((load(mm, space, at(3)), load(mm, space, at(4))), (Ok(4), Ok(77)));
        store(mm, space, at(3), 9).unwrap();
    });
}

#[test]
fn mprotect_refuses_senseless_arguments_as_linux_does() {
    with_space(|mm, space| {
        filled(mm, space, 0, 4);
        for (start, bytes, prot, errno) in [
            (at(0) + 1, PAGE, RW, Errno::EINVAL),
            (at(0), PAGE, PageProt::from_bits_retain(0x40), Errno::EINVAL),
            (at(0), u64::MAX, RW, Errno::ENOMEM),
            (at(4), PAGE, RW, Errno::ENOMEM),
            (at(0) - PAGE, 2 * PAGE, RW, Errno::ENOMEM),
            (USER_END, PAGE, RW, Errno::ENOMEM),
            (USER_END - PAGE, 2 * PAGE, RW, Errno::ENOMEM),
            (1 << 63, PAGE, RW, Errno::ENOMEM),
        ] {
            assert_eq!(mm.mprotect(space, start, bytes, prot), Err(errno), "{start:#x} {bytes:#x}");
        }
        mm.mprotect(space, 1 << 62, 0, RW).unwrap();
        assert_eq!(layout(space), [(0, 4)]);
    });
}

#[test]
fn a_hole_ends_mprotect_with_what_lies_before_it_changed() {
    with_space(|mm, space| {
        filled(mm, space, 0, 2);
        filled(mm, space, 3, 2);
        assert_eq!(mm.mprotect(space, at(1), 4 * PAGE, PageProt::READ), Err(Errno::ENOMEM));
        assert_eq!(layout(space), [(0, 1), (1, 1), (3, 2)]);
        assert_eq!(store(mm, space, at(1), 0), Err(Signal::SegvAccErr));
        assert_eq!(store(mm, space, at(3), 0), Ok(()));
    });
}

#[test]
fn shared_mappings_of_a_read_only_file_never_become_writable() {
    with_space(|mm, space| {
        let file = file(mm, 2);
        let source = MapSource { file: &file, offset: 0, readable: true, writable: false };
        let args = |flags, prot| MmapArgs {
            addr: at(0),
            bytes: PAGE,
            prot,
            flags: flags | MapFlags::FIXED,
            source: Some(source),
        };
        let shared = args(MapFlags::SHARED, RW);
        assert_eq!(mm.mmap(space, shared), Err(Errno::EACCES));
        mm.mmap(space, args(MapFlags::SHARED, PageProt::READ)).unwrap();
        assert_eq!(load(mm, space, at(0)), Ok(1000));
        assert_eq!(mm.mprotect(space, at(0), PAGE, RW), Err(Errno::EACCES));
        assert_eq!(mm.mprotect(space, at(0), PAGE, PageProt::EXEC), Ok(()));
        let blind = MapSource { readable: false, ..source };
        let unread = MmapArgs { source: Some(blind), ..args(MapFlags::PRIVATE, PageProt::READ) };
        assert_eq!(mm.mmap(space, unread), Err(Errno::EACCES));
        // A private mapping may be written: the file is not.
        mm.mmap(space, args(MapFlags::PRIVATE, PageProt::READ)).unwrap();
        mm.mprotect(space, at(0), PAGE, RW).unwrap();
        store(mm, space, at(0), 5).unwrap();
        let mut word = [0; 8];
        mm.read_file(&file, 0, &mut word);
        assert_eq!((u64::from_ne_bytes(word), load(mm, space, at(0))), (1000, Ok(5)));
        mm.munmap(space, at(0), PAGE).unwrap();
        end_file(mm, file);
    });
}

#[test]
fn offsets_of_files_are_checked() {
    with_space(|mm, space| {
        let file = file(mm, 1);
        let source = MapSource { file: &file, offset: 0, readable: true, writable: true };
        let args = |offset, bytes| MmapArgs {
            addr: 0,
            bytes,
            prot: RW,
            flags: MapFlags::SHARED,
            source: Some(MapSource { offset, ..source }),
        };
        assert_eq!(mm.mmap(space, args(1, PAGE)), Err(Errno::EINVAL));
        assert_eq!(mm.mmap(space, args(0u64.wrapping_sub(PAGE), 2 * PAGE)), Err(Errno::EOVERFLOW));
        // Beyond the file is a matter for the fault.
        let beyond = mm.mmap(space, args(PAGE, PAGE)).unwrap().get();
        assert_eq!(load(mm, space, beyond), Err(Signal::Bus));
        mm.munmap(space, beyond, PAGE).unwrap();
        end_file(mm, file);
    });
}

/// Nothing was changed, though what lies before the place in question is to be.
#[test]
fn ranges_into_the_kernels_half_are_changed_up_to_it() {
    with_space(|mm, space| {
        let last = USER_END - PAGE;
        mm.mmap(space, Args::anonymous(PAGE).fixed(last)).unwrap();
        let flags = || space.read().lookup(va(last)).unwrap().flags();
        for bytes in [2 * PAGE, 1 << 60] {
            mm.mprotect(space, last, PAGE, RW).unwrap();
            assert_eq!(mm.mprotect(space, last, bytes, PageProt::READ), Err(Errno::ENOMEM));
            assert!(!flags().contains(VmFlags::WRITE));
            mm.munlock(space, last, PAGE).unwrap();
            assert_eq!(mm.mlock(space, last, bytes), Err(Errno::ENOMEM));
            assert!(flags().contains(VmFlags::LOCKED));
        }
        assert_eq!(mm.mprotect(space, USER_END, PAGE, RW), Err(Errno::ENOMEM));
        assert_eq!(mm.mlock(space, 1 << 62, PAGE), Err(Errno::ENOMEM));
    });
}

#[test]
fn a_part_of_a_huge_page_is_protected_by_splitting_its_leaf() {
    with_space(|mm, space| {
        let huge = MmapArgs { addr: at(0), ..Args::anonymous(PMD_SIZE) };
        assert_eq!(mm.mmap(space, huge).unwrap().get(), at(0));
        mm.madvise(space, at(0), PMD_SIZE, Advice::HugePage).unwrap();
        store(mm, space, at(7), 7).unwrap();
        mm.mprotect(space, at(7), PAGE, PageProt::READ).unwrap();
        assert_eq!(layout(space), [(0, 7), (7, 1), (8, 504)]);
        assert_eq!(store(mm, space, at(7), 1), Err(Signal::SegvAccErr));
        store(mm, space, at(8), 8).unwrap();
        assert_eq!((load(mm, space, at(7)), load(mm, space, at(6))), (Ok(7), Ok(0)));
    });
}
