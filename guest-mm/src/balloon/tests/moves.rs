//! Inflation and deflation as they should go.

use super::*;

/// 64 MiB: eight groups of the largest order fit easily.
const PAGES: u64 = 16_384;

#[test]
fn the_target_is_reached_exactly_with_the_largest_blocks_first() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(3 * 1024 + 512 + 64 + 3);
        let mut orders: Vec<u32> = rig.blocks().iter().map(|found| found.block.order()).collect();
        orders.sort_unstable();
        assert_eq!(orders, [0, 1, 6, 9, 10, 10, 10]);
    });
}

#[test]
fn order_zero_inflates_page_by_page() {
    with_rig(PAGES, order_zero(), |rig| {
        rig.inflate_to(5000);
        assert!(rig.blocks().iter().all(|found| found.block.order() == 0));
        rig.inflate_to(1);
        rig.inflate_to(0);
    });
}

#[test]
fn a_batch_costs_one_kick_and_as_few_buffers_as_possible() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.set_target(8 * 1024 + 255);
        rig.poll();
        assert_eq!(rig.kicks(), [INFLATE]);
        assert_eq!(rig.buffers(INFLATE).len(), 8 * 4 + 1);
        rig.fake.set_config32(0, 0);
    });
    with_rig(PAGES, order_zero(), |rig| {
        rig.set_target(5000);
        rig.poll();
        assert_eq!(rig.kicks(), [INFLATE]);
        assert_eq!(rig.buffers(INFLATE).len(), 5000usize.div_ceil(256));
    });
}

#[test]
fn nothing_is_movable_before_its_buffer_is_used() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.set_target(1024 + 3);
        rig.poll();
        assert!(rig.blocks().iter().all(|found| found.state == BlockState::InFlight));
        assert!(
            rig.blocks().iter().all(|found| {
                rig.memory.isolate(found.block.head(), DriverId::BALLOON).is_err()
            })
        );
        assert_eq!(rig.told_actual(), 0);
        assert_eq!(rig.status().inflating.get(), 1027);
        rig.quiesce();
        assert!(rig.blocks().iter().all(|found| found.state == BlockState::Settled));
    });
}

#[test]
fn a_large_block_is_movable_only_after_all_its_buffers_in_any_order() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        with_rig(PAGES, Options::default(), |rig| {
            rig.set_target(1024);
            rig.poll();
            let chains = rig.buffers(INFLATE);
            assert_eq!(chains.len(), 4);
            for (returned, index) in order.into_iter().enumerate() {
                assert_eq!(rig.status().actual.get(), 0, "after {returned} of 4 buffers");
                rig.serve_one(INFLATE, chains[index]);
                rig.poll();
            }
            assert_eq!(rig.status().actual.get(), 1024);
            assert_eq!(rig.told_actual(), 1024);
        });
    }
}

#[test]
fn a_target_beyond_the_ring_is_reached_in_several_batches() {
    with_rings(PAGES, order_zero(), 4, |rig| {
        rig.inflate_to(5_000);
        rig.inflate_to(2_000);
        rig.inflate_to(0);
    });
}

#[test]
fn deflation_tells_the_host_before_a_page_is_free() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(2048);
        let free = rig.memory.free_pages();
        rig.set_target(1000);
        rig.poll();
        assert_eq!(rig.memory.free_pages(), free, "freed before the host answered");
        assert_eq!(rig.status().deflating.get(), 1048);
        rig.serve(DEFLATE);
        rig.poll();
        assert_eq!(rig.memory.free_pages().get(), free.get() + 1048);
        assert_eq!(rig.told_actual(), 1000);
    });
}

#[test]
fn deflation_cuts_blocks_to_reach_its_target_exactly() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(4096);
        for target in [4095, 3000, 2999, 1, 0] {
            rig.inflate_to(target);
        }
        assert!(rig.status().counters.splits > 0);
    });
}

#[test]
fn deflated_pages_are_free_as_reported_and_read_zero() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(4096);
        rig.inflate_to(0);
        let mut reported = 0;
        rig.memory.for_each_free(&mut |_, order, is_reported| {
            reported += u64::from(is_reported) * order.pages().get();
        });
        assert!(reported > 0, "nothing is known to be zero");
        assert!(reported <= 4096);
    });
}

#[test]
fn a_target_that_changes_in_mid_flight_converges_on_the_last() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.set_target(6000);
        rig.poll();
        rig.set_target(100);
        rig.poll();
        assert_eq!(rig.status().deflating.get(), 0, "nothing in flight may be deflated");
        rig.set_target(2000);
        rig.poll();
        rig.set_target(4000);
        rig.quiesce();
        assert_eq!(rig.told_actual(), 4000);
        rig.set_target(0);
        rig.poll();
        rig.set_target(5000);
        rig.poll();
        rig.inflate_to(5000);
    });
}

#[test]
fn isolated_blocks_are_passed_over_and_deflated_after_their_return() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.inflate_to(3 * 1024);
        let isolated = rig.isolate(rig.blocks()[1].block.head());
        rig.set_target(0);
        let wake = rig.quiesce();
        assert_eq!(rig.told_actual(), 1024);
        assert!(rig.status().counters.isolated_skips > 0);
        let Wake::At(at) = wake else { panic!("the driver forgot the rest: {wake:?}") };
        rig.memory.putback(isolated).unwrap();
        let now = rig.memory.platform().now_ns();
        rig.advance(at - now);
        rig.quiesce();
        assert_eq!(rig.told_actual(), 0);
    });
}

#[test]
fn a_target_above_what_there_is_leaves_reserves_and_retries_without_spinning() {
    with_rig(PAGES, Options::default(), |rig| {
        rig.set_target(u32::MAX);
        let wake = rig.quiesce();
        assert_eq!(rig.status().target, rig.memory.managed_pages());
        let low = rig.memory.watermarks().low;
        let free = rig.memory.free_pages().get();
        assert!((low..low + 64).contains(&free), "{free} pages left, {low} to be kept");
        let Wake::At(_) = wake else { panic!("no retry: {wake:?}") };
        let tries = rig.status().counters.out_of_pages;
        for _ in 0..20 {
            rig.poll();
        }
        assert_eq!(rig.status().counters.out_of_pages, tries, "retried without a pause");
        let mut wakes = 0;
        let end = rig.memory.platform().now_ns() + 10_000_000_000;
        while rig.memory.platform().now_ns() < end {
            let Wake::At(at) = rig.quiesce() else { panic!("no retry") };
            let now = rig.memory.platform().now_ns();
            assert!(at > now);
            rig.advance(at - now);
            wakes += 1;
        }
        assert!(wakes < 40, "{wakes} wakes in ten seconds");
    });
}

#[test]
fn pages_that_become_free_are_taken_at_the_next_retry() {
    with_rig(PAGES, Options::default(), |rig| {
        let order = crate::memdesc::Order::MAX;
        let kept = rig.memory.alloc_frozen(order, crate::buddy::Gfp::KERNEL).unwrap();
        rig.set_target(u32::MAX);
        rig.quiesce();
        let before = rig.status().actual.get();
        rig.memory.free_frozen(kept);
        let Wake::At(at) = rig.quiesce() else { panic!("no retry") };
        let now = rig.memory.platform().now_ns();
        rig.advance(at - now);
        rig.quiesce();
        assert_eq!(rig.status().actual.get(), before + 1024);
        let large = rig.blocks().iter().filter(|found| found.block.order() == 10).count();
        assert!(large > 0);
    });
}

#[test]
fn the_same_target_set_again_is_an_attempt_at_once() {
    with_rig(PAGES, Options::default(), |rig| {
        let order = crate::memdesc::Order::MAX;
        let kept = rig.memory.alloc_frozen(order, crate::buddy::Gfp::KERNEL).unwrap();
        rig.set_target(u32::MAX);
        rig.quiesce();
        let before = rig.status().actual.get();
        rig.memory.free_frozen(kept);
        rig.quiesce();
        assert_eq!(rig.status().actual.get(), before, "did not wait for its pause");
        rig.set_target(u32::MAX);
        rig.quiesce();
        assert_eq!(rig.status().actual.get(), before + 1024);
    });
}
