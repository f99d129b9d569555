//! Threads on one file.

use std::sync::atomic::{AtomicBool, Ordering};

use abi::PAGE_SIZE;

use crate::fault::FaultError;
use crate::memdesc::Order;
use crate::platform::Platform;
use crate::rmap::tests::world::World;
use crate::space::MapFlags;
use crate::testing;

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
