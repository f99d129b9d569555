//! Threads on one file.

use std::sync::atomic::{AtomicBool, Ordering};

use abi::PAGE_SIZE;

use crate::buddy::Gfp;
use crate::fault::FaultError;
use crate::folio::{FolioFlags, FolioKind};
use crate::gup::{Contents, GupFlags};
use crate::memdesc::Order;
use crate::pagecache::FileMapping;
use crate::platform::Platform;
use crate::rmap::tests::world::World;
use crate::space::MapFlags;
use crate::testing::{self, TestPlatform};
use crate::xarray::Entry;

const PAGES: u64 = 16;

/// Readers look up, read and touch pages while the file is cut and written anew:
/// page n holds n + 1 in every word, or zeros.
#[test]
fn truncation_races_with_lookups_faults_and_splits() {
    let world = World::new(4096);
    let file = world.mm.shmem_file(0).unwrap();
    file.set_folio_order(Order::new(2).unwrap());
    let spaces = [world.space(), world.space()];
    let places: Vec<u64> = spaces
        .iter()
        .map(|space| world.map_file(space, &file, (0, PAGES), MapFlags::SHARED))
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (world, file, stop) = (&world, &file, &stop);
        for (cpu, (space, at)) in spaces.iter().zip(&places).enumerate() {
            scope.spawn(move || {
                testing::set_cpu(cpu + 1);
                let mut page = cpu as u64;
                while !stop.load(Ordering::Relaxed) {
                    page = (page + 5) % PAGES;
                    match world.load(space, at + page * PAGE_SIZE) {
                        Ok(value) => {
                            assert!(value == 0 || value == page + 1, "page {page}: {value}")
                        }
                        Err(error) => assert_eq!(error, FaultError::Bus),
                    }
                    if let Some(folio) = world.mm.find_get_folio(file, page) {
                        // While the reference is held, the folio stays this page's or nobody's.
                        assert!(folio.range().len().get() <= 4);
                        let mut word = [0; 8];
                        if folio.is_at(file.token(), page) {
                            let offset = (page - folio.index()) * PAGE_SIZE;
                            world.mm.read_folio(&folio, offset, &mut word);
                        }
                        world.mm.put(folio);
                        let value = u64::from_ne_bytes(word);
                        assert!(value == 0 || value == page + 1, "page {page}: {value}");
                    }
                    world.platform().relax();
                }
            });
        }
        for round in 0..150u64 {
            for page in 0..PAGES {
                let words = (page + 1).to_ne_bytes().repeat(512);
                world.mm.write_file(file, page * PAGE_SIZE, &words).unwrap();
            }
            if let Some(folio) = world.mm.find_get_folio(file, round % PAGES) {
                let folio = folio.into_locked(world.platform());
                // Readers may hold it: then it stays whole.
                let split = world.mm.split_folio(folio.reference(), Order::ZERO);
                assert!(split.is_ok() || folio.order() <= Order::new(2).unwrap());
                world.mm.put(folio.unlock());
            }
            world.mm.truncate_file(file, (round % PAGES) * PAGE_SIZE).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    world.assert_consistent();
    world.mm.file_put(file);
    world.end(spaces);
}

/// A pin keeps a folio, but not in its file's cache: the file may end meanwhile, so
/// who marks the entry dirty holds the folio's lock.
#[test]
fn a_written_pin_is_noted_below_the_folios_lock() {
    let world = World::new(4096);
    let space = world.space();
    let file = world.mm.shmem_file(PAGE_SIZE).unwrap();
    let at = world.map_file(&space, &file, (0, 1), MapFlags::SHARED);
    let mut pins = [None];
    let pinned = world.mm.pin_user_pages(&space, at, GupFlags::empty(), &mut pins);
    assert_eq!(pinned, Ok(1));
    let pin = pins[0].take().unwrap();
    let folio = world.folio(&space, at).into_locked(world.platform());
    folio.clear_flags(FolioFlags::DIRTY);
    let waited = std::thread::scope(|scope| {
        let mm = &world.mm;
        let unpin = scope.spawn(move || {
            testing::set_cpu(1);
            mm.unpin_user_page(pin, Contents::Written);
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        let waited = !unpin.is_finished() && !folio.has(FolioFlags::DIRTY);
        let folio = folio.unlock();
        unpin.join().unwrap();
        assert!(folio.has(FolioFlags::DIRTY) && !folio.is_pinned());
        world.mm.put(folio);
        waited
    });
    assert!(waited, "made dirty under somebody else's lock");
    world.mm.file_put(file);
    world.end([space]);
}

/// A new folio of one page, in the cache at `index`, as a split leaves it.
fn put_part(world: &World, file: &FileMapping<'static, TestPlatform>, index: u64) {
    let part = world.mm.alloc_folio(Order::ZERO, Gfp::KERNEL, FolioKind::File).unwrap();
    part.add_refs(1);
    part.place(file.token(), index);
    file.pages.store(index, Entry::Pointer(part.as_ptr())).unwrap();
    world.mm.put(part);
}

/// A folio that is split between being found and being locked is only part of what
/// was found: reclaim may do that.
#[test]
fn truncation_takes_all_parts_of_a_folio_that_is_split_meanwhile() {
    let world = World::new(4096);
    let file = world.mm.shmem_file(0).unwrap();
    file.set_folio_order(Order::new(1).unwrap());
    world.mm.write_file(&file, PAGE_SIZE, &[1]).unwrap();
    let whole = world.mm.find_get_folio(&file, 0).unwrap();
    assert_eq!(whole.pages().get(), 2);
    let frozen = whole.freeze(3).unwrap();
    std::thread::scope(|scope| {
        let (world, file) = (&world, &file);
        let truncation = scope.spawn(move || {
            testing::set_cpu(1);
            world.mm.truncate_file(file, 0).unwrap();
        });
        // It finds the entry of two pages, and waits for the frozen folio.
        std::thread::sleep(std::time::Duration::from_millis(50));
        file.pages.split(0, 0).unwrap();
        put_part(world, file, 1);
        put_part(world, file, 0);
        truncation.join().unwrap();
    });
    frozen.unplace();
    world.mm.free_folio(frozen);
    assert_eq!(file.cached_pages(), 0, "a page is left beyond the end");
    world.assert_consistent();
    world.mm.file_put(file);
    world.end([]);
}
