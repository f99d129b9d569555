//! Folios that move.

mod failures;
mod large;
mod livelock;
mod meanwhile;
mod parts;
mod range;
mod small;

use abi::Pfn;

use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::FrozenFrames;
use crate::migrate::{IsolatedFolio, MigrateError, MigrateMode};
use crate::rmap::tests::world::{Space, World};

/// A destination.
fn destination(world: &World, order: u8) -> FrozenFrames {
    world.mm.memory().alloc_frozen(Order::new(order).unwrap(), Gfp::USER).unwrap()
}

/// The folio at an address, isolated.
fn isolated(world: &World, space: &Space, at: u64) -> IsolatedFolio<'static> {
    let folio = world.folio(space, at);
    let isolated = world.mm.isolate_lru_folio(folio.pfn()).unwrap();
    world.mm.put(folio);
    isolated
}

/// Moves the folio at an address; returns where it was and is.
fn migrate(world: &World, space: &Space, at: u64) -> Result<(Pfn, Pfn), MigrateError> {
    let isolated = isolated(world, space, at);
    let from = isolated.head();
    let destination = destination(world, isolated.order().get().try_into().unwrap());
    let to = destination.head();
    match world.mm.transfer_folio(isolated, destination, MigrateMode::Sync) {
        Ok(moved) => {
            assert_eq!(moved.source.head(), from);
            world.mm.memory().free_frozen(moved.source);
            assert_eq!(moved.spare, None);
            Ok((from, to))
        }
        Err(failed) => {
            assert_eq!(failed.folio.head(), from);
            world.mm.putback_lru_folio(failed.folio);
            world.mm.memory().free_frozen(failed.destination.unwrap());
            Err(failed.error)
        }
    }
}
