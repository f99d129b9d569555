//! A driver that keeps the rules.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::*;

#[test]
fn inflated_pages_are_released_and_neighbours_kept() {
    let mut rig = Rig::new();
    (600..604).for_each(|pfn| rig.fill(pfn, 0xaa));
    let used = rig.inflate(&[601, 602]);
    assert_eq!(used, [UsedElement { head: 0, written: 0 }]);
    assert_eq!([600, 601, 602, 603].map(|pfn| rig.byte(pfn)), [0xaa, 0, 0, 0xaa]);
    assert_eq!(rig.balloon().ballooned(), PageCount::new(2));
    assert_eq!((rig.counters().released_pages, rig.counters().discard_calls), (2, 1));
}

#[test]
fn any_order_gives_the_same_holes_with_one_release_per_run() {
    let ascending: Vec<u32> = (FREE_PFN..3072).chain(HIGH_START..HIGH_START + 512).collect();
    let mut descending = ascending.clone();
    descending.reverse();
    let mut shuffled = ascending.clone();
    shuffled.shuffle(&mut StdRng::seed_from_u64(7));
    let mut duplicated = [ascending.clone(), shuffled.clone()].concat();
    duplicated.truncate(4096);
    for pfns in [&ascending, &descending, &shuffled, &duplicated] {
        let mut rig = Rig::new();
        rig.inflate(pfns);
        assert_eq!(rig.ram.holes(), set(ascending.iter().copied()));
        // One window, one run on either side of the gap.
        assert_eq!(rig.counters().discard_calls, 2);
        assert_eq!(rig.counters().inflated_pages, ascending.len() as u64);
        let repeated = pfns.len() - ascending.len();
        assert_eq!(rig.counters().repeated_pages, repeated as u64);
        assert_eq!(rig.counters().window_pages.count(), 1);
        assert_eq!(rig.counters().run_pages.max(), 2560);
    }
}

#[test]
fn all_buffers_of_a_notification_are_one_window_and_one_interrupt() {
    let mut rig = Rig::new();
    // Interleaved: no buffer holds two neighbours.
    let pfns: Vec<u32> =
        (0..8).flat_map(|lane| (0..256).map(move |n| FREE_PFN + 8 * n + lane)).collect();
    let edges = rig.irq.edges();
    assert_eq!(rig.inflate(&pfns).len(), 8);
    assert_eq!(rig.irq.edges() - edges, 1);
    assert_eq!(rig.counters().discard_calls, 1);
    assert_eq!(rig.ram.batches.load(Ordering::Relaxed), 1);
}

#[test]
fn deflate_makes_no_release_call_and_gives_the_pages_back() {
    let mut rig = Rig::new();
    rig.inflate(&[600, 601, 602]);
    let calls = rig.ram.batches.load(Ordering::Relaxed);
    let edges = rig.irq.edges();
    assert_eq!(rig.deflate(&[602, 600, 700]), [UsedElement { head: 0, written: 0 }]);
    assert_eq!(rig.irq.edges() - edges, 1);
    assert_eq!(rig.ram.batches.load(Ordering::Relaxed), calls);
    assert_eq!(rig.balloon().ballooned(), PageCount::ONE);
    assert_eq!((rig.counters().returned_pages, rig.counters().not_inflated_pages), (2, 1));
}

#[test]
fn buffer_of_more_than_a_window_is_read_to_its_end_in_bounded_steps() {
    let mut rig = Rig::new();
    // 100,000 frame numbers in one buffer of contiguous pages; every frame is named many times.
    let pfns: Vec<u32> = (0..100_000).map(|n| 2048 + n % 2048).collect();
    let buffer = rig.buffer(0, &pfns);
    rig.inflate.offer_chain(3, &[buffer]);
    assert_eq!(rig.transport.queue_notified(queues::INFLATE), QueueProgress::Pending);
    assert_eq!(rig.counters().inflate.pfns, 65_536);
    assert_eq!(rig.inflate.take_used(), None, "it has not been read to its end");
    assert_eq!(rig.transport.serve_pending(), QueueProgress::Idle);
    assert_eq!(rig.inflate.take_all_used(), [UsedElement { head: 3, written: 0 }]);
    assert_eq!(rig.counters().inflate.pfns, 100_000);
    assert_eq!(rig.ram.holes(), set(2048..4096));
}

#[test]
fn chain_of_several_buffers_is_one_stream_of_frame_numbers() {
    let mut rig = Rig::new();
    let first = rig.buffer(0, &[600, 601]);
    let second = rig.buffer(1, &[602, 603]);
    // The second frame number straddles two descriptors.
    let split = [(first.0, 6, false), (first.0 + 6, 2, false), second];
    rig.inflate.offer_chain(0, &split);
    rig.kick(queues::INFLATE);
    assert_eq!(rig.ram.holes(), set(600..604));
}

#[test]
fn more_buffers_than_the_ring_come_back_over_several_kicks() {
    let mut rig = Rig::new();
    for round in 0..20 {
        let pfns: Vec<u32> = (0..100).map(|n| FREE_PFN + 100 * round + n).collect();
        rig.inflate(&pfns);
    }
    assert_eq!(rig.balloon().ballooned(), PageCount::new(2000));
    assert_eq!(rig.counters().inflate.buffers, 20);
}

#[test]
fn page_inflated_twice_is_counted_and_released_again() {
    let mut rig = Rig::new();
    rig.inflate(&[600]);
    rig.fill(600, 1);
    rig.inflate(&[600, 601]);
    assert_eq!(rig.byte(600), 0);
    assert_eq!(rig.counters().already_inflated_pages, 1);
    assert_eq!(rig.balloon().ballooned(), PageCount::new(2));
}

#[test]
fn huge_units_are_released_when_their_last_page_comes_in_any_order() {
    let mut rig = Rig::with(BalloonOptions::default(), ReleaseUnit::Block2M);
    let mut pfns: Vec<u32> = (1024..2048).collect();
    pfns.shuffle(&mut StdRng::seed_from_u64(3));
    let last = pfns.pop().unwrap();
    for part in pfns.chunks(100) {
        rig.inflate(part);
    }
    let other = if last < 1536 { 1536..2048 } else { 1024..1536 };
    assert_eq!(rig.ram.holes(), set(other));
    rig.inflate(&[last]);
    assert_eq!(rig.ram.holes(), set(1024..2048));
}

#[test]
fn huge_unit_with_a_deflated_page_is_not_released() {
    let mut rig = Rig::with(BalloonOptions::default(), ReleaseUnit::Block2M);
    rig.inflate(&(1024..1535).collect::<Vec<_>>());
    rig.deflate(&[1030]);
    rig.inflate(&[1535]);
    assert!(rig.ram.holes().is_empty());
    rig.inflate(&[1030]);
    assert_eq!(rig.ram.holes(), set(1024..1536));
}

#[test]
fn huge_unit_is_not_released_late_when_the_guest_need_not_tell() {
    let mut rig = Rig::with(BalloonOptions::default(), ReleaseUnit::Block2M);
    rig.start(VERSION_1);
    rig.inflate(&(1024..1535).collect::<Vec<_>>());
    rig.inflate(&[1535]);
    // The guest may use the 511 pages again without our knowing.
    assert!(rig.ram.holes().is_empty());
    rig.inflate(&(1536..2048).collect::<Vec<_>>());
    assert_eq!(rig.ram.holes(), set(1536..2048));
}
