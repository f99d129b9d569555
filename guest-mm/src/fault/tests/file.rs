//! Pages of files.

use super::*;
use crate::folio::FolioFlags;
use crate::pagecache::FileRef;
use crate::platform::FaultSite;
use crate::space::{MapFlags, MapSource};

type File = FileRef<'static, TestPlatform>;

/// A file of `pages` pages, of which each says its number in its first word.
fn file_of(world: &World, pages: u64) -> File {
    let file = world.mm.shmem_file(0).unwrap();
    for page in 0..pages {
        world.mm.write_file(&file, page * PAGE_SIZE, &(page + 1).to_ne_bytes()).unwrap();
    }
    world.mm.truncate_file(&file, pages * PAGE_SIZE).unwrap();
    file
}

fn map(world: &World, file: &File, pages: u64, flags: MapFlags) -> u64 {
    let source = MapSource { file, offset: 0, readable: true, writable: true };
    let args = MmapArgs { flags, source: Some(source), ..MmapArgs::anonymous(pages * PAGE_SIZE) };
    // Windows of fault-around are aligned.
    let args = MmapArgs { addr: 0x2_0000_0000, ..args };
    world.mm.mmap(world.space(), args).unwrap().get()
}

fn read(world: &World, file: &File, page: u64) -> u64 {
    let mut word = [0; 8];
    assert_eq!(world.mm.read_file(file, page * PAGE_SIZE, &mut word), 8);
    u64::from_ne_bytes(word)
}

fn file_rss(world: &World) -> u64 {
    world.space().rss.file.load(Ordering::Relaxed)
}

fn end(world: World, file: File) {
    world.end_with(|mm| mm.file_put(file));
}

#[test]
fn private_reads_see_the_file_and_writes_stay_private() {
    let world = World::new();
    let file = file_of(&world, 4);
    let at = map(&world, &file, 4, MapFlags::PRIVATE);
    assert_eq!(world.load(at + 2 * PAGE_SIZE), Ok(3));
    let pte = world.pte(at + 2 * PAGE_SIZE);
    assert!(!pte.is_writable() && !pte.is_anon_exclusive());
    // Once over the mapped page, once over none.
    world.store(at + 2 * PAGE_SIZE, 33).unwrap();
    world.store(at + 3 * PAGE_SIZE + 8, 44).unwrap();
    assert_eq!(world.load(at + 2 * PAGE_SIZE), Ok(33));
    assert_eq!(
        (world.load(at + 3 * PAGE_SIZE), world.load(at + 3 * PAGE_SIZE + 8)),
        (Ok(4), Ok(44))
    );
    assert_eq!((read(&world, &file, 2), read(&world, &file, 3)), (3, 4));
    assert_eq!(world.anon_rss(), 2);
    assert_eq!(world.count(FaultOutcome::Copied), 2);
    assert!(world.pte(at + 2 * PAGE_SIZE).is_anon_exclusive());
    end(world, file);
}

#[test]
fn shared_writes_reach_the_file_and_mark_it_dirty() {
    let world = World::new();
    let file = world.mm.shmem_file(4 * PAGE_SIZE).unwrap();
    let at = map(&world, &file, 4, MapFlags::SHARED);
    assert_eq!(world.load(at), Ok(0));
    assert!(!world.pte(at).is_writable(), "the first write has to be seen");
    let folio = world.mm.folio_of(world.pte(at).pfn()).unwrap();
    assert!(!folio.has(FolioFlags::DIRTY));
    world.store(at, 9).unwrap();
    assert!(folio.has(FolioFlags::DIRTY) && world.pte(at).is_writable());
    world.mm.put(folio);
    world.store(at + PAGE_SIZE, 10).unwrap();
    assert_eq!((read(&world, &file, 0), read(&world, &file, 1)), (9, 10));
    assert_eq!((file_rss(&world), world.anon_rss()), (2, 0));
    assert_eq!(world.count(FaultOutcome::Reused), 1);
    end(world, file);
}

#[test]
fn two_mappings_of_a_file_share_its_pages() {
    let world = World::new();
    let file = file_of(&world, 2);
    let shared = map(&world, &file, 2, MapFlags::SHARED);
    let private = map(&world, &file, 2, MapFlags::PRIVATE);
    assert_eq!(world.load(private), Ok(1));
    world.store(shared, 77).unwrap();
    assert_eq!(world.load(private), Ok(77), "not copied yet, so seen");
    world.store(private, 78).unwrap();
    world.store(shared, 79).unwrap();
    assert_eq!((world.load(private), world.load(shared)), (Ok(78), Ok(79)));
    end(world, file);
}

#[test]
fn pages_beyond_the_end_are_bus_errors() {
    let world = World::new();
    let file = file_of(&world, 2);
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let at = map(&world, &file, 4, flags);
        assert_eq!(world.load(at + PAGE_SIZE), Ok(2));
        for page in [2, 3] {
            assert_eq!(world.load(at + page * PAGE_SIZE), Err(FaultError::Bus), "{flags:?}");
            assert_eq!(world.store(at + page * PAGE_SIZE, 1), Err(FaultError::Bus));
        }
    }
    world.mm.truncate_file(&file, 2 * PAGE_SIZE + 1).unwrap();
    let at = map(&world, &file, 3, MapFlags::SHARED);
    assert_eq!(world.load(at + 2 * PAGE_SIZE), Ok(0), "the last page counts as a whole");
    end(world, file);
}

/// Regression: fault-around looked again and again at a frozen neighbour, below the lock
/// of its table: masked, so that whoever had it frozen could not get on if he was a
/// thread of the same CPU.
#[test]
fn a_read_passes_over_a_neighbour_that_is_frozen() {
    let world = World::new();
    let file = file_of(&world, 2);
    let at = map(&world, &file, 2, MapFlags::PRIVATE);
    let neighbour = world.mm.find_get_folio(&file, 1).unwrap();
    let frozen = neighbour.freeze(2).unwrap();
    let mut patience = 2000;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            testing::set_cpu(1);
            world.load(at)
        });
        while !reader.is_finished() && patience > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
            patience -= 1;
        }
        // The reader comes to an end either way.
        world.mm.put(frozen.unfreeze(2));
        assert_eq!(reader.join().unwrap(), Ok(1));
    });
    assert!(patience > 0, "the reader waited for the frozen folio");
    assert_eq!(world.load(at + PAGE_SIZE), Ok(2));
    end(world, file);
}

#[test]
fn a_read_maps_what_is_cached_around_it() {
    let world = World::new();
    let file = file_of(&world, 40);
    // Page 5 is locked by somebody; page 6 is not in the cache.
    let at = map(&world, &file, 40, MapFlags::SHARED);
    world.mm.punch_hole(&file, 6 * PAGE_SIZE, PAGE_SIZE).unwrap();
    let busy = world.mm.find_get_folio(&file, 5).unwrap();
    let locked = busy.try_lock(world.platform()).unwrap();
    assert_eq!(world.load(at + 3 * PAGE_SIZE), Ok(4));
    drop(locked);
    world.mm.put(busy);
    assert_eq!(world.event(FaultEvent::FaultAround), 13);
    assert_eq!(file_rss(&world), 14);
    for page in 0..40 {
        let mapped = page < 16 && page != 5 && page != 6;
        let entry = world.entry(at + page * PAGE_SIZE);
        assert_eq!(!entry.is_none(), mapped, "page {page}");
        if mapped {
            assert_eq!(present(entry).is_young(), page == 3, "page {page}");
            assert!(!present(entry).is_writable());
        }
    }
    assert_eq!((world.load(at + 5 * PAGE_SIZE), world.load(at + 6 * PAGE_SIZE)), (Ok(6), Ok(0)));
    end(world, file);
}

#[test]
fn unsharing_a_private_file_page_copies_it_read_only() {
    let world = World::new();
    let file = file_of(&world, 1);
    let at = map(&world, &file, 1, MapFlags::PRIVATE);
    assert_eq!(world.load(at), Ok(1));
    assert_eq!(world.fault(at, FaultAccess::Unshare), Ok(FaultOutcome::Copied));
    let pte = world.pte(at);
    assert!(pte.is_anon_exclusive() && !pte.is_writable());
    world.mm.write_file(&file, 0, &[9; 8]).unwrap();
    assert_eq!(world.load(at), Ok(1));
    let shared = map(&world, &file, 1, MapFlags::SHARED);
    world.load(shared).unwrap();
    assert_eq!(world.fault(shared, FaultAccess::Unshare), Ok(FaultOutcome::Spurious));
    end(world, file);
}

#[test]
fn a_poisoned_file_page_is_not_mapped() {
    let world = World::new();
    let file = file_of(&world, 1);
    let folio = world.mm.find_get_folio(&file, 0).unwrap();
    folio.set_flags(FolioFlags::HWPOISON);
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let at = map(&world, &file, 1, flags);
        assert_eq!(world.load(at), Err(FaultError::HwPoison));
        assert_eq!(world.store(at, 1), Err(FaultError::HwPoison));
    }
    folio.clear_flags(FolioFlags::HWPOISON);
    world.mm.put(folio);
    end(world, file);
}

#[test]
fn each_failing_allocation_of_a_file_fault_leaves_nothing() {
    for (flags, write) in
        [(MapFlags::SHARED, true), (MapFlags::PRIVATE, true), (MapFlags::SHARED, false)]
    {
        for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
            for nth in 1.. {
                let world = World::new();
                let file = world.mm.shmem_file(PAGE_SIZE).unwrap();
                let at = map(&world, &file, 1, flags);
                let touch = || if write { world.store(at, 1) } else { world.load(at).map(drop) };
                world.platform().faults().fail_nth(site, nth);
                let result = touch();
                let struck = world.platform().faults().struck(site) > 0;
                world.platform().faults().fail_nth(site, 0);
                assert!(result.is_ok(), "{site:?} {nth}: {result:?}");
                assert_eq!(touch(), Ok(()));
                end(world, file);
                if !struck {
                    break;
                }
            }
        }
    }
}
