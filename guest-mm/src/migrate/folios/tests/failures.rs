//! Transfers that fail leave every leaf as it was, with all its bits.

use abi::{PAGE_SHIFT, PAGE_SIZE};

use super::{destination, isolated};
use crate::folio::FolioRef;
use crate::migrate::{Allocated, MigrateError, MigrateMode, TransferStage};
use crate::pgtable::{Entry, Pte, PteState};
use crate::platform::FaultSite;
use crate::rmap::tests::world::{Space, World, va};

/// What a leaf can say of its page beside its rights.
const STATES: [fn(Pte) -> Pte; 5] = [
    |pte| pte.mk_old(),
    |pte| pte.mk_young().mk_dirty(),
    |pte| pte.mk_soft_dirty(),
    |pte| pte.wrprotect().mk_uffd_wp(),
    |pte| pte.wrprotect().clear_anon_exclusive().mk_old(),
];

fn change(world: &World, space: &Space, at: u64, change: impl Fn(Pte) -> Pte) -> Entry {
    let page = va(at).align_down(PAGE_SHIFT);
    let mut guard = space.tables().lock_pte(page).unwrap();
    let PteState::Present(pte) = guard.load(page).pte() else { panic!("no page") };
    guard.update(page, |_| change(pte).entry());
    drop(guard);
    world.entry(space, at)
}

/// Tries to move a page whose leaf is in each state, with `disturb` at each stage.
fn fails_with(
    expected: MigrateError,
    before: impl Fn(&World) -> Vec<FolioRef<'static>>,
    disturb: impl Fn(&World, TransferStage) -> Vec<FolioRef<'static>>,
) {
    for state in STATES {
        let world = World::new(4096);
        let space = world.space();
        let at = world.map(&space, 1);
        world.store(&space, at, 77).unwrap();
        let entry = change(&world, &space, at, state);
        let isolated = isolated(&world, &space, at);
        let mut held = before(&world);
        let failed = world.mm.transfer_folio_delayed(
            isolated,
            destination(&world, 0),
            MigrateMode::Sync,
            |stage| held.extend(disturb(&world, stage)),
        );
        let failed = failed.unwrap_err();
        assert_eq!(failed.error, expected);
        assert_eq!(world.entry(&space, at), entry, "the leaf is what it was");
        assert!(!failed.folio.folio().is_locked());
        held.into_iter().for_each(|folio| world.mm.put(folio));
        // Now it goes, and takes all of it along.
        let moved =
            world.mm.transfer_folio(failed.folio, failed.destination.unwrap(), MigrateMode::Async);
        world.mm.memory().free_frozen(moved.unwrap().source);
        let (PteState::Present(was), PteState::Present(is)) =
            (entry.pte(), world.entry(&space, at).pte())
        else {
            panic!("no page")
        };
        assert_eq!(Some(is), was.with_pfn(is.pfn()));
        assert_eq!(world.load(&space, at), Ok(77));
        world.end([space]);
    }
}

/// A reference to the one anonymous folio of the world.
fn the_folio(world: &World) -> Vec<FolioRef<'static>> {
    let all = world.mm.memory().words().regions().flat_map(|region| region.range().iter());
    all.filter_map(|pfn| world.mm.folio_of(pfn).ok()).take(1).collect()
}

#[test]
fn another_reference_is_seen_before_anything_is_touched() {
    fails_with(MigrateError::Again, the_folio, |_, _| panic!("it got that far"));
}

#[test]
fn a_reference_that_comes_after_the_leaves_are_gone_makes_the_freeze_fail() {
    fails_with(
        MigrateError::Again,
        |_| Vec::new(),
        |world, stage| {
            assert_eq!(stage, TransferStage::Unmapped, "it was frozen all the same");
            the_folio(world)
        },
    );
}

#[test]
fn a_range_whose_allocations_fail_one_by_one_is_whole_each_time() {
    for nth in 1..10 {
        let world = World::new(4096);
        let space = world.space();
        let at = world.map(&space, 6);
        for page in 0..6 {
            world.store(&space, at + page * PAGE_SIZE, page).unwrap();
        }
        let child = world.mm.fork(&space).unwrap();
        let mut to = Allocated::new(world.mm.memory());
        world.platform().faults().fail_nth(FaultSite::BuddyAlloc, nth);
        let done =
            world.mm.migrate_range(&child, at, 6 * PAGE_SIZE, &mut to, MigrateMode::SyncLight);
        world.platform().faults().fail_nth(FaultSite::BuddyAlloc, 0);
        let done = done.unwrap();
        assert_eq!(done.pages.migrated + done.pages.failed(), 6, "{nth}: {done:?}");
        for page in 0..6 {
            assert_eq!(world.load(&space, at + page * PAGE_SIZE), Ok(page));
            assert_eq!(world.load(&child, at + page * PAGE_SIZE), Ok(page));
        }
        world.assert_consistent();
        world.end([space, child]);
    }
}

/// Regression: a mover locked the folio in each of his attempts, though somebody had a
/// reference: that was who slept until it was unlocked, and mostly found it locked again.
#[test]
fn a_folio_with_another_reference_is_not_even_waited_for() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 1).unwrap();
    let isolated = isolated(&world, &space, at);
    let folio = world.folio(&space, at);
    let lock = folio.lock(world.platform());
    // Would wait for this very thread.
    let failed = world.mm.transfer_folio(isolated, destination(&world, 0), MigrateMode::Sync);
    let failed = failed.unwrap_err();
    assert_eq!(failed.error, MigrateError::Again);
    drop(lock);
    world.mm.put(folio);
    world.mm.putback_lru_folio(failed.folio);
    world.mm.memory().free_frozen(failed.destination.unwrap());
    world.end([space]);
}
