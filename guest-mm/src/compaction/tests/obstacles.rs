//! What pages that stay cost: a whole compaction empties their pageblocks all the same.

use super::world::{Fate, World, with_world};
use crate::buddy::Gfp;
use crate::compaction::CompactResult;
use crate::memdesc::Order;
use crate::migrate::MigrateMode;

const HUGE: Order = Order::PAGEBLOCK;
const BLOCKS: u64 = 24;
/// Pageblocks with one page that stays, in the part that a compaction empties.
const OBSTRUCTED: core::ops::RangeInclusive<u64> = 2..=7;

/// Half of memory free, page by page, and one page in the way in each of some pageblocks.
fn obstruct(world: &mut World<'_, '_>) {
    world.checker();
    world.sort(|pfn| {
        if pfn % 512 == 101 && OBSTRUCTED.contains(&(pfn / 512)) {
            Fate::Pinned
        } else {
            Fate::Stays
        }
    });
    assert_eq!(world.pinned.len() as u64, OBSTRUCTED.end() - OBSTRUCTED.start() + 1);
}

/// Blocks that one compaction of everything makes.
fn made_at_once() -> usize {
    let mut made = 0;
    with_world(BLOCKS * 512, |world| {
        obstruct(world);
        let before = world.by_pageblock();
        assert!(before.iter().all(|block| block.0 < 512));
        assert_eq!(world.mm.compact_memory(MigrateMode::SyncLight), CompactResult::Complete);
        let after = world.by_pageblock();
        // Everything below is emptied, obstructed or not ...
        let met = after.iter().position(|block| block.1 > 0).unwrap();
        let may_be_whole = |n: &usize| before[*n].0 + before[*n].1 == 512;
        made = after.iter().filter(|block| block.0 == 512).count();
        // ... so that each page that stays there costs a block, and nothing else does.
        assert_eq!(made, (0..met).filter(may_be_whole).count(), "met in {met}: {after:?}");
        // The scanners met where what was free fills what is above: the obstacles cost nothing there.
        let free: u64 = before.iter().map(|block| block.0).sum();
        assert!(met as u64 + 2 >= free / 512, "met in {met}, {free} pages free");
    });
    made
}

/// Blocks that allocations make which do not wait, one after the other.
fn made_one_by_one() -> usize {
    let mut made = 0;
    with_world(BLOCKS * 512, |world| {
        obstruct(world);
        for _ in 0..BLOCKS {
            let found = world.mm.alloc_by_compaction(HUGE, Gfp::USER, MigrateMode::Async);
            if let Ok(frames) = found {
                made += 1;
                world.pinned.push(frames);
            }
        }
    });
    made
}

#[test]
fn a_page_that_stays_costs_a_whole_compaction_its_pageblock_where_asynchronous_attempts_make_more()
{
    let (at_once, one_by_one) = (made_at_once(), made_one_by_one());
    assert!(at_once > 0);
    assert!(one_by_one > at_once, "{one_by_one} one by one, {at_once} at once");
}
