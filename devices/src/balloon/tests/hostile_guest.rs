//! A driver that breaks rules: it is contained, counted by reason, and every buffer comes back.

use abi::balloon::{CONFIG_ACTUAL, CONFIG_NUM_PAGES};
use abi::virtio::VIRTIO_F_INDIRECT_DESC;
use abi::virtio::ring::VIRTQ_DESC_F_INDIRECT;
use proptest::prelude::*;

use super::*;
use crate::ring::RawDesc;

#[test]
fn bad_frames_are_counted_by_reason_and_the_rest_of_the_batch_is_released() {
    let mut rig = Rig::new();
    let used = rig.inflate(&[
        600,
        LOW_END - 1,
        LOW_END,  // just past low RAM
        0xd_0000, // a device window
        HIGH_START - 1,
        HIGH_START,
        HIGH_END - 1,
        HIGH_END,
        0xffff_ffff,
        601,
    ]);
    assert_eq!(used, [UsedElement { head: 0, written: 0 }]);
    let good = [600, 601, LOW_END - 1, HIGH_START, HIGH_END - 1];
    assert_eq!(rig.ram.holes(), set(good));
    let inflate = &rig.counters().inflate;
    assert_eq!((inflate.fault("pfn_in_hole"), inflate.fault("pfn_above_ram")), (3, 2));
    assert_eq!(rig.counters().inflated_pages, 5);
}

#[test]
fn frames_on_both_sides_of_the_gap_are_never_one_run() {
    let mut rig = Rig::new();
    rig.inflate(&[LOW_END - 1, HIGH_START]);
    assert_eq!(rig.ram.inner.discards().len(), 2);
}

#[test]
fn batch_of_nothing_but_bad_frames_comes_back_without_a_release() {
    let mut rig = Rig::new();
    let edges = rig.irq.edges();
    rig.inflate(&[u32::MAX; 256]);
    assert_eq!(rig.ram.batches.load(Ordering::Relaxed), 0);
    assert_eq!(rig.counters().inflate.fault("pfn_above_ram"), 256);
    assert_eq!(rig.irq.edges() - edges, 1);
}

#[test]
fn odd_lengths_come_back_and_are_counted() {
    let mut rig = Rig::new();
    let (addr, ..) = rig.buffer(0, &[600, 601]);
    rig.offer_one(&[(addr, 0, false)]);
    rig.offer_one(&[(addr, 6, false)]);
    rig.offer_one(&[(addr, 3, false)]);
    rig.offer_one(&[(addr, u32::MAX, false)]);
    rig.offer_one(&[(u64::MAX - 3, 8, false)]);
    rig.offer_one(&[(0xd000_0000, 4, false)]);
    let inflate = &rig.counters().inflate;
    assert_eq!(inflate.fault("zero_length"), 1);
    assert_eq!(inflate.fault("ragged_length"), 2);
    assert_eq!(inflate.fault("buffer_outside_ram"), 3);
    assert_eq!(inflate.buffers, 6);
    // The whole frame number before the ragged end counts.
    assert_eq!(rig.ram.holes(), set([600]));
}

#[test]
fn writable_buffer_is_not_written_and_not_read() {
    let mut rig = Rig::new();
    let (addr, len, _) = rig.buffer(0, &[600]);
    rig.offer_one(&[(addr, len, true)]);
    let (other, ..) = rig.buffer(1, &[601]);
    rig.offer_one(&[(other, 4, false), (addr, len, true)]);
    assert_eq!(rig.counters().inflate.fault("writable_buffer"), 2);
    assert_eq!(rig.ram.holes(), set([601]));
    let kept: u32 = rig.ram.memory().read_obj(GuestAddress(addr)).unwrap();
    assert_eq!(kept, 600);
}

#[test]
fn looped_chain_comes_back_once() {
    let mut rig = Rig::new();
    let (addr, len, _) = rig.buffer(0, &[600]);
    let flags = abi::virtio::ring::VIRTQ_DESC_F_NEXT;
    rig.inflate.set_desc(5, RawDesc { addr, len, flags, next: 6 });
    rig.inflate.set_desc(6, RawDesc { addr, len, flags, next: 5 });
    rig.inflate.offer(5);
    rig.kick(queues::INFLATE);
    assert_eq!(rig.inflate.take_all_used(), [UsedElement { head: 5, written: 0 }]);
    assert_eq!(rig.counters().inflate.fault("too_many_descriptors"), 1);
    assert!(rig.ram.holes().is_empty());
}

#[test]
fn indirect_chain_is_read_if_negotiated_and_returned_if_not() {
    for (features, holes) in
        [(VERSION_1 | VIRTIO_F_INDIRECT_DESC, set([600])), (VERSION_1, set([]))]
    {
        let mut rig = Rig::new();
        rig.start(features);
        let (addr, len, _) = rig.buffer(0, &[600]);
        let table = BUFFERS + 0x8000;
        rig.inflate.set_desc_at(table, 0, RawDesc { addr, len, flags: 0, next: 0 });
        let indirect = RawDesc { addr: table, len: 16, flags: VIRTQ_DESC_F_INDIRECT, next: 0 };
        rig.inflate.set_desc(9, indirect);
        rig.inflate.offer(9);
        rig.kick(queues::INFLATE);
        assert_eq!(rig.inflate.take_all_used(), [UsedElement { head: 9, written: 0 }]);
        assert_eq!(rig.ram.holes(), holes);
    }
}

#[test]
fn same_head_offered_twice_comes_back_twice() {
    let mut rig = Rig::new();
    let buffer = rig.buffer(0, &[600]);
    rig.inflate.offer_chain(4, &[buffer]);
    rig.inflate.offer(4);
    rig.kick(queues::INFLATE);
    assert_eq!(
        rig.inflate.take_all_used().iter().map(|used| used.head).collect::<Vec<_>>(),
        [4, 4]
    );
}

#[test]
fn buffers_taken_before_the_ring_broke_are_released_and_returned() {
    let mut rig = Rig::new();
    let buffer = rig.buffer(0, &[600]);
    rig.inflate.offer_chain(0, &[buffer]);
    rig.inflate.offer(999); // no such descriptor
    rig.kick(queues::INFLATE);
    assert_eq!(rig.inflate.take_all_used(), [UsedElement { head: 0, written: 0 }]);
    assert_eq!(rig.ram.holes(), set([600]));
    assert!(!rig.transport.is_running(), "only a reset mends the ring");
    rig.start(VERSION_1);
    rig.inflate(&[601]);
    assert_eq!(rig.ram.holes(), set([600, 601]));
}

#[test]
fn available_index_beyond_the_ring_needs_a_reset() {
    let mut rig = Rig::new();
    rig.inflate.set_avail_index(300);
    rig.kick(queues::INFLATE);
    assert!(!rig.transport.is_running());
    assert_eq!(rig.counters().inflate.buffers, 0);
}

#[test]
fn guest_may_write_actual_and_nothing_else() {
    let mut rig = Rig::new();
    rig.transport.device_mut().set_target(PageCount::new(77)).unwrap();
    rig.write_config(CONFIG_NUM_PAGES, 5);
    rig.write_config(CONFIG_ACTUAL, 33);
    rig.write_config(8, 1);
    rig.write_config(12, 1);
    assert_eq!((rig.read_config(CONFIG_NUM_PAGES), rig.read_config(CONFIG_ACTUAL)), (77, 33));
    assert_eq!((rig.balloon().target().get(), rig.balloon().actual().get()), (77, 33));
    assert_eq!(rig.counters().refused_config_writes, 3);
}

#[test]
fn absurd_actual_is_bounded_by_ram_and_counted() {
    let mut rig = Rig::new();
    rig.write_config(CONFIG_ACTUAL, u32::MAX);
    assert_eq!(rig.balloon().actual(), PageCount::new(RAM_PAGES));
    assert_eq!(rig.read_config(CONFIG_ACTUAL), u32::MAX);
    assert_eq!(rig.counters().implausible_actual, 1);
    rig.inflate(&[600]);
    assert_eq!(rig.ram.holes(), set([600]));
}

#[test]
fn guest_that_inflates_its_own_rings_harms_only_itself() {
    let mut rig = Rig::new();
    let buffer = rig.buffer(0, &(0..512).collect::<Vec<_>>());
    rig.inflate.offer_chain(0, &[buffer]);
    // The rings read as zeros now; whatever that means to the ring, the device must live.
    rig.kick(queues::INFLATE);
    assert_eq!(rig.ram.holes(), set(0..512));
    rig.start(VERSION_1);
    rig.inflate(&[600]);
}

#[test]
fn deflate_of_bad_frames_comes_back_and_is_counted() {
    let mut rig = Rig::new();
    rig.inflate(&[600]);
    rig.deflate(&[u32::MAX, 0xd_0000, 600, 600]);
    let deflate = &rig.counters().deflate;
    assert_eq!((deflate.fault("pfn_above_ram"), deflate.fault("pfn_in_hole")), (1, 1));
    assert_eq!((rig.counters().returned_pages, rig.counters().not_inflated_pages), (1, 1));
    assert_eq!(rig.balloon().ballooned(), PageCount::ZERO);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in the buffers: each comes back once, and the holes are the good frames of the readable bytes.
    #[test]
    fn holes_are_exactly_the_valid_frames(
        buffers in prop::collection::vec(
            (prop::collection::vec(prop_oneof![
                8 => FREE_PFN..4100u32,
                2 => HIGH_START - 3..HIGH_END + 3,
                1 => any::<u32>(),
            ], 1..40), 0u32..4, 0u8..12),
            1..20,
        ),
    ) {
        let mut rig = Rig::new();
        let mut expected = BTreeSet::new();
        for (head, (pfns, cut, kind)) in (0u16..).zip(&buffers) {
            let (addr, len, _) = rig.buffer(head.into(), pfns);
            let len = len - cut;
            rig.inflate.offer_chain(head, &[(addr, len, *kind == 0)]);
            if *kind != 0 {
                let whole = usize::try_from(len / 4).unwrap();
                expected.extend(pfns.iter().take(whole).map(|&pfn| u64::from(pfn)));
            }
        }
        let in_ram = |pfn: u32| pfn < LOW_END || (HIGH_START..HIGH_END).contains(&pfn);
        expected.retain(|&pfn| u32::try_from(pfn).is_ok_and(in_ram));
        rig.kick(queues::INFLATE);
        let heads: Vec<u32> = rig.inflate.take_all_used().iter().map(|used| used.head).collect();
        prop_assert_eq!(heads, (0..u32::try_from(buffers.len()).unwrap()).collect::<Vec<_>>());
        prop_assert_eq!(rig.balloon().ballooned().get(), expected.len() as u64);
        prop_assert_eq!(rig.ram.holes(), expected);
        prop_assert!(rig.transport.is_running());
    }
}

#[test]
fn frames_of_unplugged_blocks_are_refused_by_name_and_plugged_ones_released() {
    use crate::mem::{BlockMemory, MemRegion};
    use crate::testing::{BalloonMachine, HotplugRam, TestBlocks};

    const BLOCK: u64 = 64 << 10;
    let region = MemRegion::new(1 << 32, 4 * BLOCK, BLOCK).unwrap();
    let ram = Arc::new(HotplugRam::new(4 << 20, region));
    let first = Pfn::containing(1 << 32);
    let block = PfnRange::from_start(first, PageCount::new(16)).unwrap();
    TestBlocks(ram.clone()).plug(block).unwrap();
    let mut machine = BalloonMachine::new(ram.clone(), BalloonOptions::default());
    // In RAM, in the plugged block, in the next one, above the region.
    machine.inflate(&[600, (1 << 20) + 15, (1 << 20) + 16, (1 << 20) + 64]);
    let counters = machine.balloon().counters();
    assert_eq!(counters.inflate.fault("pfn_unplugged"), 1);
    assert_eq!(counters.inflate.fault("pfn_above_ram"), 1);
    assert_eq!((counters.inflated_pages, counters.released_pages), (2, 2));
    let released: Vec<u64> = ram.discards().iter().map(|run| run.start().number()).collect();
    assert_eq!(released, [600, (1 << 20) + 15]);
    // Gone between: a frame that was inflated is not known any more, and harms nobody.
    TestBlocks(ram.clone()).unplug(&[block]).unwrap();
    machine.deflate(&[(1 << 20) + 15]);
    assert_eq!(machine.balloon().counters().deflate.fault("pfn_unplugged"), 1);
}
