//! The compaction thread.

use super::world::{Fate, with_world};
use crate::buddy::Gfp;
use crate::memdesc::Order;

const HUGE: Order = Order::PAGEBLOCK;
const PAGES: u64 = 8 * 512;

#[test]
fn scattered_memory_is_compacted_before_somebody_asks() {
    with_world(PAGES, |world| {
        assert!(!world.mm.kcompactd_poll(), "nothing to do");
        world.checker();
        assert!(!world.mm.kcompactd_poll(), "it was looked at a moment ago");
        world.mm.platform().advance_ns(500_000_000);
        let mut polls = 0;
        while world.mm.kcompactd_poll() {
            polls += 1;
            assert!(polls < 200, "it does not end");
        }
        let stats = world.mm.compact_stats();
        assert_eq!(stats.proactive, 1);
        assert!(stats.daemon_runs >= 1 && stats.daemon_migrate_scanned > 0, "{stats:?}");
        assert!(world.mm.fragmentation(HUGE).score() <= 80);
        let frames = world.mm.memory().alloc_frozen(HUGE, Gfp::USER).unwrap();
        world.pinned.push(frames);
    });
}

#[test]
fn memory_that_cannot_be_compacted_is_left_alone_for_a_while() {
    with_world(PAGES, |world| {
        world.fill(64);
        world.sort(|pfn| if pfn % 2 == 0 { Fate::Freed } else { Fate::Pinned });
        let poll = || {
            while world.mm.kcompactd_poll() {}
            world.mm.compact_stats().proactive
        };
        assert_eq!(poll(), 1);
        world.mm.platform().advance_ns(31_000_000_000);
        assert_eq!(poll(), 1);
        world.mm.platform().advance_ns(2_000_000_000);
        assert_eq!(poll(), 2);
    });
}

/// The words that the free scanner looks at once counted for nothing: one piece of work went
/// from the top of memory to wherever something was free.
#[test]
fn a_piece_of_work_is_as_long_as_another_wherever_free_pages_are() {
    with_world(40 * 512, |world| {
        world.fill(64);
        // What is free is far below the top, where the free scanner begins.
        world.sort(|pfn| match pfn {
            _ if (4 * 512..12 * 512).contains(&pfn) && pfn % 2 == 0 => Fate::Freed,
            _ => Fate::Stays,
        });
        world.mm.wake_kcompactd(HUGE);
        let looked_at = || {
            let stats = world.mm.compact_stats();
            stats.daemon_migrate_scanned + stats.daemon_free_scanned
        };
        let (mut before, mut polls) = (0, 1);
        while world.mm.kcompactd_poll() {
            polls += 1;
            assert!(polls < 200, "it does not end");
            assert!(looked_at() - before <= 8192 + 1024, "{} words", looked_at() - before);
            before = looked_at();
        }
        assert!(polls > 1 && before > 8192, "{polls} pieces of work, {before} words");
        world.check();
        let frames = world.mm.memory().alloc_frozen(HUGE, Gfp::USER).unwrap();
        world.pinned.push(frames);
    });
}

#[test]
fn an_order_that_somebody_could_not_get_is_made_in_pieces() {
    with_world(PAGES, |world| {
        world.fill(64);
        // Nothing can be had below the last pageblocks: several pieces of work.
        world.sort(|pfn| match pfn {
            _ if pfn % 2 == 0 => Fate::Freed,
            _ if pfn / 512 < 5 && pfn % 512 == 511 => Fate::Pinned,
            _ => Fate::Stays,
        });
        world.mm.wake_kcompactd(HUGE);
        let mut polls = 1;
        while world.mm.kcompactd_poll() {
            polls += 1;
            assert!(polls < 200, "it does not end");
        }
        assert!(polls > 2, "{polls}");
        world.check();
        let daemon = world.mm.with_compaction(|state| state.daemon);
        assert_eq!(daemon.wanted, None);
    });
}
