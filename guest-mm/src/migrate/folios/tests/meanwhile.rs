//! What processes do to a page while it is on its way: both before it is frozen and
//! when it is elsewhere, its leaves not yet back.

use std::sync::Mutex;

use abi::PAGE_SIZE;

use super::{destination, isolated};
use crate::addr::PMD_SIZE;
use crate::migrate::{MigrateMode, TransferStage};
use crate::pgtable::PageProt;
use crate::rmap::tests::world::{Space, World};
use crate::space::{MapFlags, RemapArgs, RemapFlags};
use crate::testing;

const STAGES: [TransferStage; 2] = [TransferStage::Unmapped, TransferStage::Relocated];

/// Moves the folio at `at`, of order `order`, with `act` at `when`.
fn transfer(
    world: &World,
    (space, at, order): (&Space, u64, u8),
    when: TransferStage,
    act: impl Fn() + Sync,
) {
    let isolated = isolated(world, space, at);
    let moved = world.mm.transfer_folio_delayed(
        isolated,
        destination(world, order),
        MigrateMode::Sync,
        |stage| {
            if stage == when {
                // Not the mover himself, who has the folio locked.
                std::thread::scope(|scope| {
                    let other = scope.spawn(|| {
                        testing::set_cpu(1);
                        act();
                    });
                    other.join().unwrap();
                });
            }
        },
    );
    world.mm.memory().free_frozen(moved.unwrap().source);
    world.mm.base().settle();
    world.assert_consistent();
}

#[test]
fn an_anonymous_page_that_is_unmapped_meanwhile_is_counted_right_and_freed() {
    for when in STAGES {
        let world = World::new(4096);
        let space = world.space();
        let at = world.map(&space, 2);
        world.store(&space, at, 1).unwrap();
        world.store(&space, at + PAGE_SIZE, 2).unwrap();
        transfer(&world, (&space, at, 0), when, || world.mm.munmap(&space, at, PAGE_SIZE).unwrap());
        assert_eq!(world.load(&space, at + PAGE_SIZE), Ok(2));
        world.end([space]);
    }
}

#[test]
fn a_file_page_that_is_unmapped_meanwhile_is_counted_right_and_stays_cached() {
    for when in STAGES {
        let world = World::new(4096);
        let space = world.space();
        let file = world.mm.shmem_file(PAGE_SIZE).unwrap();
        let at = world.map_file(&space, &file, (0, 1), MapFlags::SHARED);
        world.store(&space, at, 1).unwrap();
        transfer(&world, (&space, at, 0), when, || world.zap(&space, at, 1));
        assert_eq!(world.load(&space, at), Ok(1));
        world.assert_consistent();
        world.mm.file_put(file);
        world.end([space]);
    }
}

#[test]
fn a_child_that_is_born_meanwhile_gets_the_page() {
    for when in STAGES {
        let world = World::new(4096);
        let space = world.space();
        let at = world.map(&space, 1);
        world.store(&space, at, 1).unwrap();
        let child = Mutex::new(None);
        transfer(&world, (&space, at, 0), when, || {
            *child.lock().unwrap() = Some(world.mm.fork(&space).unwrap());
        });
        let child = child.into_inner().unwrap().unwrap();
        assert_eq!(world.pte(&space, at).pfn(), world.pte(&child, at).pfn());
        assert!(!world.pte(&space, at).is_anon_exclusive() && !world.pte(&space, at).is_writable());
        world.store(&child, at, 2).unwrap();
        assert_eq!((world.load(&space, at), world.load(&child, at)), (Ok(1), Ok(2)));
        world.end([space, child]);
    }
}

#[test]
fn rights_that_are_taken_away_meanwhile_do_not_come_back_with_the_leaf() {
    for when in STAGES {
        let world = World::new(4096);
        let space = world.space();
        let at = world.map(&space, 1);
        world.store(&space, at, 1).unwrap();
        transfer(&world, (&space, at, 0), when, || {
            world.mm.mprotect(&space, at, PAGE_SIZE, PageProt::READ).unwrap();
        });
        assert!(!world.pte(&space, at).is_writable() && world.pte(&space, at).is_anon_exclusive());
        assert!(world.store(&space, at, 2).is_err());
        assert_eq!(world.load(&space, at), Ok(1));
        world.end([space]);
    }
}

#[test]
fn a_mapping_that_moves_meanwhile_takes_its_page_along() {
    for when in STAGES {
        let world = World::new(4096);
        let space = world.space();
        let at = world.map(&space, 1);
        world.store(&space, at, 9).unwrap();
        let new = Mutex::new(0);
        transfer(&world, (&space, at, 0), when, || {
            let args = RemapArgs {
                old: at,
                old_bytes: PAGE_SIZE,
                new_bytes: PAGE_SIZE,
                flags: RemapFlags::MAYMOVE | RemapFlags::FIXED,
                new: 1 << 40,
            };
            *new.lock().unwrap() = world.mm.mremap(&space, args).unwrap().get();
        });
        let new = new.into_inner().unwrap();
        assert_eq!(new, 1 << 40);
        assert_eq!(world.load(&space, new), Ok(9));
        world.end([space]);
    }
}

#[test]
fn half_of_a_huge_page_that_is_unmapped_meanwhile_is_gone_and_the_other_is_there() {
    for when in STAGES {
        let world = World::new(8192);
        let space = world.space();
        let at = world.map_huge(&space);
        world.store(&space, at, 1).unwrap();
        world.store(&space, at + PMD_SIZE - PAGE_SIZE, 2).unwrap();
        transfer(&world, (&space, at, 9), when, || {
            world.mm.munmap(&space, at, PMD_SIZE / 2).unwrap();
        });
        assert!(world.load(&space, at).is_err());
        assert_eq!(world.load(&space, at + PMD_SIZE - PAGE_SIZE), Ok(2));
        // Its other half is free after a split.
        assert_eq!(world.mm.deferred_splits(), 1);
        assert_eq!(world.mm.run_deferred_split(1), 1);
        world.end([space]);
    }
}
