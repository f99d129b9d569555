//! Regression: faults that wait for a page on the move must not keep it from moving.
//!
//! In Linux, faults on a leaf whose page was about to migrate spun for the folio's
//! lock with a reference each: the mover, who wanted the folio alone, never got
//! on, and neither did they. Waiters sleep on the leaf since, and take nothing.

use std::time::Duration;

use super::{destination, isolated};
use crate::fault::FaultEvent;
use crate::fault::wait::mutant::{ACTIVE, Mutant};
use crate::migrate::{MigrateError, MigrateMode, TransferStage};
use crate::platform::MAX_CPUS;
use crate::rmap::tests::world::World;
use crate::testing;

/// Threads that fault on the page while it moves.
const FAULTERS: usize = MAX_CPUS - 1;
/// A waiter that does not sleep by then spins, in milliseconds.
const PATIENCE_MS: u64 = 500;

/// Moves a page while all others fault on it: how the one attempt ends.
fn move_under_faults(mutant: Option<Mutant>) -> Result<(), MigrateError> {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 1);
    world.store(&space, at, 6).unwrap();
    let retries = || world.mm.fault_stats().event(FaultEvent::Retry);
    let (waits, before) = (world.platform().waits(), retries());
    let result = std::thread::scope(|scope| {
        let isolated = isolated(&world, &space, at);
        let destination = destination(&world, 0);
        let mut faulters = Vec::new();
        let between = |stage| {
            if stage != TransferStage::Unmapped {
                return;
            }
            for cpu in 1..=FAULTERS {
                let (world, space) = (&world, &space);
                faulters.push(scope.spawn(move || {
                    testing::set_cpu(cpu);
                    ACTIVE.set(mutant);
                    world.load(space, at)
                }));
            }
            while retries() - before < FAULTERS as u64 {
                std::thread::yield_now();
            }
            for _ in 0..PATIENCE_MS {
                if waits.sleeping() == FAULTERS {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let slept = waits.sleeps();
        let moved =
            world.mm.transfer_folio_delayed(isolated, destination, MigrateMode::Sync, between);
        let result = match moved {
            Ok(moved) => {
                world.mm.memory().free_frozen(moved.source);
                Ok(())
            }
            Err(failed) => {
                world.mm.putback_lru_folio(failed.folio);
                world.mm.memory().free_frozen(failed.destination.unwrap());
                Err(failed.error)
            }
        };
        for faulter in faulters {
            assert_eq!(faulter.join().unwrap(), Ok(6));
        }
        if result.is_ok() {
            assert_eq!(waits.sleeps() - slept, FAULTERS as u64, "a waiter spins");
        }
        result
    });
    if mutant.is_none() {
        assert_eq!(retries() - before, FAULTERS as u64, "a waiter looked more than once");
    }
    world.end([space]);
    result
}

#[test]
fn a_page_moves_at_once_however_many_faults_wait_for_it() {
    assert_eq!(move_under_faults(None), Ok(()));
}

#[test]
fn mutant_that_holds_a_reference_while_it_waits_keeps_the_page_from_moving() {
    assert_eq!(move_under_faults(Some(Mutant::HoldsReference)), Err(MigrateError::Again));
}

#[test]
#[should_panic(expected = "a waiter spins")]
fn mutant_that_spins_while_it_waits_is_noticed() {
    assert_eq!(move_under_faults(Some(Mutant::Spins)), Ok(()));
}
