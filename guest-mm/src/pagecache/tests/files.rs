//! Files by name, their ends, and what fails.

use abi::{PAGE_SIZE, Pfn};

use super::super::{FileFault, SIZE_LIMIT};
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::fault::FaultError;
use crate::folio::FolioKind;
use crate::memdesc::Order;
use crate::platform::FaultSite;
use crate::rmap::tests::world::World;
use crate::space::MapFlags;

#[test]
fn names_are_unique_and_files_outlive_them() {
    let world = World::new(1024);
    let mm = &world.mm;
    let file = mm.create_file(b"a").unwrap();
    assert_eq!(mm.create_file(b"a").map(drop), Err(Errno::EEXIST));
    assert_eq!(mm.create_file(b"").map(drop), Err(Errno::EINVAL));
    assert_eq!(mm.create_file(&[b'x'; 32]).map(drop), Err(Errno::EINVAL));
    assert_eq!(mm.open_file(b"b").map(drop), Err(Errno::ENOENT));
    mm.write_file(&file, 10, b"hello").unwrap();
    let again = mm.open_file(b"a").unwrap();
    assert_eq!(again.id(), file.id());
    assert_eq!(mm.unlink_file(b"a"), Ok(()));
    assert_eq!(mm.unlink_file(b"a"), Err(Errno::ENOENT));
    let other = mm.create_file(b"a").unwrap();
    assert_ne!(other.id(), file.id());
    mm.file_put(file);
    let mut bytes = [1; 20];
    assert_eq!(mm.read_file(&again, 5, &mut bytes), 10);
    assert_eq!(bytes[..10], *b"\0\0\0\0\0hello");
    mm.file_put(again);
    mm.file_put(other);
    mm.unlink_file(b"a").unwrap();
    world.end([]);
}

#[test]
fn senseless_offsets_and_lengths_are_refused() {
    let world = World::new(1024);
    let file = world.mm.shmem_file(0).unwrap();
    for offset in [SIZE_LIMIT, u64::MAX, u64::MAX - 1] {
        assert_eq!(world.mm.write_file(&file, offset, b"ab"), Err(Errno::EINVAL));
        assert_eq!(world.mm.punch_hole(&file, offset, 2), Err(Errno::EINVAL));
        assert_eq!(world.mm.read_file(&file, offset, &mut [0; 2]), 0);
    }
    assert_eq!(world.mm.truncate_file(&file, SIZE_LIMIT + 1), Err(Errno::EINVAL));
    assert_eq!(world.mm.punch_hole(&file, 0, 0), Err(Errno::EINVAL));
    assert_eq!((file.size(), file.cached_pages()), (0, 0));
    // The largest file is empty all the same.
    assert_eq!(world.mm.truncate_file(&file, SIZE_LIMIT), Ok(()));
    assert_eq!(world.mm.write_file(&file, SIZE_LIMIT - 1, b"z"), Ok(1));
    assert_eq!(world.mm.truncate_file(&file, 0), Ok(()));
    assert_eq!(file.cached_pages(), 0);
    world.mm.file_put(file);
    world.end([]);
}

#[test]
fn pages_beyond_the_end_are_bus_errors_and_truncation_takes_private_copies_too() {
    let world = World::new(2048);
    let space = world.space();
    let file = world.mm.shmem_file(3 * PAGE_SIZE).unwrap();
    let shared = world.map_file(&space, &file, (0, 6), MapFlags::SHARED);
    let private = world.map_file(&space, &file, (0, 6), MapFlags::PRIVATE);
    for n in 0..3 {
        world.store(&space, shared + n * PAGE_SIZE, 10 + n).unwrap();
        world.store(&space, private + n * PAGE_SIZE, 20 + n).unwrap();
    }
    assert_eq!(world.load(&space, shared + 3 * PAGE_SIZE), Err(FaultError::Bus));
    assert_eq!(world.store(&space, private + 5 * PAGE_SIZE, 1), Err(FaultError::Bus));
    world.mm.truncate_file(&file, PAGE_SIZE + 8).unwrap();
    assert_eq!(file.cached_pages(), 2);
    for at in [shared, private] {
        assert_eq!(world.load(&space, at + 2 * PAGE_SIZE), Err(FaultError::Bus));
    }
    assert_eq!(world.load(&space, shared + PAGE_SIZE), Ok(11));
    assert_eq!(world.load(&space, private + PAGE_SIZE), Ok(21));
    world.mm.truncate_file(&file, 6 * PAGE_SIZE).unwrap();
    for at in [shared, private] {
        assert_eq!(world.load(&space, at + 2 * PAGE_SIZE), Ok(0));
    }
    world.assert_consistent();
    world.mm.file_put(file);
    world.end([space]);
}

#[test]
fn a_hole_is_zeros_for_mappings_and_leaves_private_copies() {
    let world = World::new(2048);
    let space = world.space();
    let file = world.mm.shmem_file(4 * PAGE_SIZE).unwrap();
    let shared = world.map_file(&space, &file, (0, 4), MapFlags::SHARED);
    let private = world.map_file(&space, &file, (0, 4), MapFlags::PRIVATE);
    for n in 0..4 {
        world.store(&space, shared + n * PAGE_SIZE, 10 + n).unwrap();
        world.store(&space, private + n * PAGE_SIZE, 20 + n).unwrap();
    }
    // From the middle of page 0, whose first word stays, to that of page 3, whose does not.
    world.mm.punch_hole(&file, 2048, 3 * PAGE_SIZE).unwrap();
    assert_eq!((file.size(), file.cached_pages()), (4 * PAGE_SIZE, 2));
    for (n, expected) in [10, 0, 0, 0].into_iter().enumerate() {
        let n = n as u64;
        assert_eq!(world.load(&space, shared + n * PAGE_SIZE), Ok(expected), "page {n}");
        assert_eq!(world.load(&space, private + n * PAGE_SIZE), Ok(20 + n), "page {n}");
    }
    world.assert_consistent();
    world.mm.file_put(file);
    world.end([space]);
}

#[test]
fn what_mappings_write_behind_the_end_is_gone_when_the_file_grows() {
    let world = World::new(1024);
    let space = world.space();
    let file = world.mm.shmem_file(100).unwrap();
    let at = world.map_file(&space, &file, (0, 1), MapFlags::SHARED);
    world.store(&space, at + 104, u64::MAX).unwrap();
    world.mm.truncate_file(&file, 200).unwrap();
    assert_eq!(world.load(&space, at + 104), Ok(0));
    world.store(&space, at + 208, u64::MAX).unwrap();
    world.mm.write_file(&file, 300, b"x").unwrap();
    assert_eq!(world.load(&space, at + 208), Ok(0));
    world.mm.file_put(file);
    world.end([space]);
}

#[test]
fn large_folios_are_cut_at_the_new_end() {
    let world = World::new(4096);
    let space = world.space();
    let file = world.mm.shmem_file(0).unwrap();
    file.set_folio_order(Order::new(4).unwrap());
    world.mm.write_file(&file, 0, &[9; 32 * 4096]).unwrap();
    let at = world.map_file(&space, &file, (0, 32), MapFlags::SHARED);
    for n in 0..32 {
        world.load(&space, at + n * PAGE_SIZE).unwrap();
    }
    world.mm.truncate_file(&file, 5 * PAGE_SIZE + 16).unwrap();
    assert_eq!(file.cached_pages(), 6);
    assert_eq!(world.load(&space, at + 5 * PAGE_SIZE + 8), Ok(u64::from_ne_bytes([9; 8])));
    assert_eq!(world.load(&space, at + 5 * PAGE_SIZE + 16), Ok(0));
    assert_eq!(world.load(&space, at + 6 * PAGE_SIZE), Err(FaultError::Bus));
    world.assert_consistent();
    // One that somebody holds cannot be split: its end reads as zeros all the same.
    world.mm.write_file(&file, 16 * PAGE_SIZE, &[8; 16 * 4096]).unwrap();
    let held = world.mm.find_get_folio(&file, 20).unwrap();
    assert_eq!(held.order(), Order::new(4).unwrap());
    world.load(&space, at + 31 * PAGE_SIZE).unwrap();
    world.mm.truncate_file(&file, 18 * PAGE_SIZE).unwrap();
    assert_eq!(world.load(&space, at + 20 * PAGE_SIZE), Err(FaultError::Bus));
    assert_eq!(held.mapcount(), 0);
    world.mm.truncate_file(&file, 32 * PAGE_SIZE).unwrap();
    assert_eq!(world.load(&space, at + 17 * PAGE_SIZE), Ok(u64::from_ne_bytes([8; 8])));
    assert_eq!(world.load(&space, at + 20 * PAGE_SIZE), Ok(0));
    world.mm.put(held);
    world.assert_consistent();
    world.mm.file_put(file);
    world.end([space]);
}

#[test]
fn only_clean_folios_that_nobody_has_are_dropped() {
    let world = World::new(1024);
    let file = world.mm.shmem_file(2 * PAGE_SIZE).unwrap();
    let clean = world.mm.file_fault_folio(&file, 0, Gfp::USER).unwrap();
    let other = clean.reference().get();
    assert!(!world.mm.drop_clean_folio(clean.reference()));
    world.mm.put(other);
    assert!(world.mm.drop_clean_folio(clean.reference()));
    world.mm.put(clean.unlock());
    world.mm.write_file(&file, PAGE_SIZE, b"x").unwrap();
    let dirty = world.mm.file_fault_folio(&file, 1, Gfp::USER).unwrap();
    assert!(!world.mm.drop_clean_folio(dirty.reference()));
    world.mm.put(dirty.unlock());
    assert_eq!(file.cached_pages(), 1);
    let beyond = world.mm.file_fault_folio(&file, 2, Gfp::USER);
    assert!(matches!(beyond, Err(FileFault::BeyondEnd)));
    world.mm.file_put(file);
    world.end([]);
}

#[test]
fn each_step_without_memory_leaves_the_file_as_it_was() {
    let world = World::new(1024);
    let faults = world.platform().faults();
    let mut failures = 0;
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        for nth in 1.. {
            let struck = faults.struck(site);
            faults.fail_nth(site, nth);
            let done = world.mm.create_file(b"f").and_then(|file| {
                let wrote = world.mm.write_file(&file, 70 * PAGE_SIZE, b"far away");
                let end = file.size();
                world.mm.file_put(file);
                wrote.map(|_| end)
            });
            faults.fail_nth(site, 0);
            match world.mm.open_file(b"f") {
                Ok(file) => {
                    let expected = if done.is_ok() { 70 * PAGE_SIZE + 8 } else { 0 };
                    assert_eq!(
                        (file.size(), file.cached_pages()),
                        (expected, u64::from(done.is_ok()))
                    );
                    world.mm.file_put(file);
                    world.mm.unlink_file(b"f").unwrap();
                }
                Err(error) => assert_eq!((error, done), (Errno::ENOENT, Err(Errno::ENOMEM))),
            }
            world.assert_consistent();
            if faults.struck(site) == struck {
                assert!(done.is_ok());
                break;
            }
            failures += 1;
        }
    }
    assert!(failures > 5, "{failures}");
    world.end([]);
}

#[test]
fn a_folio_at_a_page_that_is_taken_is_refused() {
    let world = World::new(1024);
    let file = world.mm.shmem_file(PAGE_SIZE).unwrap();
    world.mm.write_file(&file, 3 * PAGE_SIZE, b"x").unwrap();
    let folio = world.mm.alloc_folio(Order::new(2).unwrap(), Gfp::USER, FolioKind::File).unwrap();
    let folio = folio.into_locked(world.platform());
    assert_eq!(world.mm.add_to_page_cache(&file, folio.reference(), 0), Err(Errno::EEXIST));
    assert_eq!(world.mm.add_to_page_cache(&file, folio.reference(), 2), Err(Errno::EINVAL));
    assert_eq!((folio.refcount(), folio.is_at(file.token(), 0)), (1, false));
    assert_eq!(world.mm.add_to_page_cache(&file, folio.reference(), 4), Ok(()));
    let head: Pfn = folio.pfn();
    for n in 4..8 {
        let found = world.mm.find_get_folio(&file, n).unwrap();
        assert_eq!(found.pfn(), head);
        world.mm.put(found);
    }
    world.mm.remove_from_page_cache(folio.reference());
    world.mm.put(folio.unlock());
    assert!(world.mm.find_get_folio(&file, 5).is_none());
    world.mm.file_put(file);
    world.end([]);
}
