//! Rings with drivers of every kind: each test names what must come out.

mod concurrent;
mod model;

use abi::virtio::ring::{
    VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
};
use abi::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::ram::GuestRam;
use crate::testing::{CountingInterrupt, DriverQueue, TestRam, UsedElement};
use crate::virtio::GuestFault;

const SIZE: u16 = 8;
const RING: u64 = 0x1000;
const TABLE: u64 = 0x4000;
const DATA: u64 = 0x8000;
const RAM_BYTES: usize = 0x10000;

struct Bench {
    ram: TestRam,
    driver: DriverQueue,
    queue: Virtqueue,
}

impl Bench {
    fn new(features: u64) -> Self {
        let ram = TestRam::new(&[(0, RAM_BYTES)]);
        let driver = DriverQueue::new(ram.memory(), RING, SIZE);
        let queue = Virtqueue::new(3, SIZE, driver.layout(), features, ram.memory()).unwrap();
        Self { ram, driver, queue }
    }

    fn mem(&self) -> &GuestMemoryMmap {
        self.ram.memory()
    }

    fn pop(&mut self) -> Result<Option<PoppedChain>, GuestFault> {
        self.queue.pop(self.ram.memory())
    }

    fn complete(&mut self, chain: PoppedChain, written: u32) {
        self.queue.complete(self.ram.memory(), chain, written).unwrap();
    }

    /// Offers descriptor 0, expects a chain with a fault, and that it is returned all the same.
    fn fault_of_chain_at_0(&mut self) -> ChainFault {
        self.driver.offer(0);
        let chain = self.pop().unwrap().unwrap();
        let fault = chain.buffers().unwrap_err();
        self.complete(chain, 0);
        assert_eq!(self.driver.take_all_used(), [UsedElement { head: 0, written: 0 }]);
        assert!(self.pop().unwrap().is_none());
        fault
    }
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> RawDesc {
    RawDesc { addr, len, flags, next }
}

#[test]
fn a_chain_comes_out_whole_and_goes_back_with_what_was_written() {
    let mut bench = Bench::new(0);
    bench.driver.offer_chain(2, &[(DATA, 16, false), (DATA + 16, 8, false), (DATA + 64, 4, true)]);
    let chain = bench.pop().unwrap().unwrap();
    let buffers = chain.buffers().unwrap();
    assert_eq!((chain.head(), buffers.readable_bytes(), buffers.writable_bytes()), (2, 24, 4));
    bench.complete(chain, 4);
    assert_eq!(bench.driver.take_all_used(), [UsedElement { head: 2, written: 4 }]);
}

#[test]
fn reads_and_writes_cross_buffer_boundaries_at_any_offset() {
    let mut bench = Bench::new(0);
    bench.mem().write_slice(b"abcdefgh", GuestAddress(DATA)).unwrap();
    bench.driver.offer_chain(
        0,
        &[(DATA, 3, false), (DATA + 3, 5, false), (DATA + 32, 2, true), (DATA + 48, 2, true)],
    );
    let chain = bench.pop().unwrap().unwrap();
    let buffers = chain.buffers().unwrap();
    let mut out = [0; 16];
    assert_eq!(buffers.read(bench.mem(), 2, &mut out), Ok(6));
    assert_eq!(&out[..6], b"cdefgh");
    assert_eq!(buffers.read(bench.mem(), 8, &mut out), Ok(0));
    assert_eq!(buffers.read(bench.mem(), u32::MAX, &mut out), Ok(0));
    assert_eq!(buffers.write(bench.mem(), 1, b"xyz!"), Ok(3));
    let mut written = [0; 2];
    bench.mem().read_slice(&mut written, GuestAddress(DATA + 48)).unwrap();
    assert_eq!(&written, b"yz");
    bench.complete(chain, 3);
}

#[test]
fn a_loop_is_a_fault_and_is_returned() {
    let mut bench = Bench::new(0);
    bench.driver.set_desc(0, desc(DATA, 4, VIRTQ_DESC_F_NEXT, 1));
    bench.driver.set_desc(1, desc(DATA, 4, VIRTQ_DESC_F_NEXT, 0));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::TooManyDescriptors);
}

#[test]
fn a_descriptor_that_follows_itself_is_a_fault() {
    let mut bench = Bench::new(0);
    bench.driver.set_desc(0, desc(DATA, 4, VIRTQ_DESC_F_NEXT, 0));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::TooManyDescriptors);
}

#[test]
fn a_chain_of_the_whole_table_is_accepted() {
    let mut bench = Bench::new(0);
    bench.driver.offer_chain(0, &[(DATA, 4, false); SIZE as usize]);
    let chain = bench.pop().unwrap().unwrap();
    assert_eq!(chain.buffers().unwrap().readable().len(), usize::from(SIZE));
    bench.complete(chain, 0);
}

#[test]
fn a_next_beyond_the_table_is_a_fault() {
    let mut bench = Bench::new(0);
    bench.driver.set_desc(0, desc(DATA, 4, VIRTQ_DESC_F_NEXT, SIZE));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::NextOutOfRange { next: SIZE });
}

#[test]
fn an_empty_buffer_is_a_fault() {
    let mut bench = Bench::new(0);
    bench.driver.set_desc(0, desc(DATA, 0, 0, 0));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::ZeroLength);
}

#[test]
fn buffers_outside_ram_are_faults() {
    let end = RAM_BYTES as u64;
    for (addr, len) in [
        (end, 1),
        (end - 1, 2),
        (end - 4, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX - 3, 8),
        (0x1_0000_0000, 4),
    ] {
        let mut bench = Bench::new(0);
        bench.driver.set_desc(0, desc(addr, len, 0, 0));
        assert_eq!(bench.fault_of_chain_at_0(), ChainFault::BufferOutsideRam { addr, len });
    }
}

#[test]
fn a_buffer_that_straddles_a_hole_is_a_fault() {
    let ram = TestRam::new(&[(0, 0x8000), (0x9000, 0x1000)]);
    let mem = ram.memory();
    for (addr, len, inside) in [(0x7fff, 1, true), (0x7fff, 2, false), (0x7000, 0x3000, false)] {
        assert_eq!(CheckedDesc::new(mem, desc(addr, len, 0, 0)).is_ok(), inside, "{addr:#x} {len}");
    }
}

#[test]
fn a_buffer_across_adjacent_regions_is_accepted() {
    let ram = TestRam::new(&[(0, 0x8000), (0x8000, 0x8000)]);
    assert!(CheckedDesc::new(ram.memory(), desc(0x7ffe, 4, 0, 0)).is_ok());
}

#[test]
fn buffers_of_more_than_4_gib_together_are_a_fault() {
    // Address space only: the pages are never touched.
    let ram = TestRam::new(&[(0, 5 << 30)]);
    let mut driver = DriverQueue::new(ram.memory(), RING, SIZE);
    let mut queue = Virtqueue::new(0, SIZE, driver.layout(), 0, ram.memory()).unwrap();
    for (second, fault) in [(1, None), (2, Some(ChainFault::TotalTooLong))] {
        driver.offer_chain(0, &[(DATA, u32::MAX - 1, false), (DATA, second, false)]);
        let chain = queue.pop(ram.memory()).unwrap().unwrap();
        assert_eq!(chain.buffers().err(), fault);
        queue.complete(ram.memory(), chain, 0).unwrap();
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_a_fault() {
    let mut bench = Bench::new(0);
    bench.driver.set_desc(0, desc(DATA, 4, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE, 1));
    bench.driver.set_desc(1, desc(DATA, 4, 0, 0));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::ReadableAfterWritable);
}

#[test]
fn an_indirect_table_is_followed_after_direct_descriptors() {
    let mut bench = Bench::new(VIRTIO_F_INDIRECT_DESC);
    bench.driver.set_desc(0, desc(DATA, 4, VIRTQ_DESC_F_NEXT, 1));
    // WRITE on the referring descriptor means nothing.
    bench.driver.set_desc(1, desc(TABLE, 32, VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE, 0));
    bench.driver.set_desc_at(TABLE, 0, desc(DATA + 4, 4, VIRTQ_DESC_F_NEXT, 1));
    bench.driver.set_desc_at(TABLE, 1, desc(DATA + 8, 4, VIRTQ_DESC_F_WRITE, 0));
    bench.driver.offer(0);
    let chain = bench.pop().unwrap().unwrap();
    let buffers = chain.buffers().unwrap();
    assert_eq!((buffers.readable_bytes(), buffers.writable_bytes()), (8, 4));
    bench.complete(chain, 4);
}

#[test]
fn indirect_tables_need_negotiation() {
    let mut bench = Bench::new(0);
    bench.driver.set_desc(0, desc(TABLE, 16, VIRTQ_DESC_F_INDIRECT, 0));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::IndirectNotNegotiated);
}

#[test]
fn an_indirect_table_inside_another_is_a_fault() {
    let mut bench = Bench::new(VIRTIO_F_INDIRECT_DESC);
    bench.driver.set_desc(0, desc(TABLE, 16, VIRTQ_DESC_F_INDIRECT, 0));
    bench.driver.set_desc_at(TABLE, 0, desc(TABLE, 16, VIRTQ_DESC_F_INDIRECT, 0));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::NestedIndirect);
}

#[test]
fn a_descriptor_both_indirect_and_continued_is_a_fault() {
    let mut bench = Bench::new(VIRTIO_F_INDIRECT_DESC);
    bench.driver.set_desc(0, desc(TABLE, 16, VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_NEXT, 1));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::IndirectWithNext);
}

#[test]
fn indirect_tables_of_bad_length_are_faults() {
    for len in [0, 1, 15, 17, 16 * (u32::from(SIZE) + 1), 16 << 16, !15, u32::MAX] {
        let mut bench = Bench::new(VIRTIO_F_INDIRECT_DESC);
        bench.driver.set_desc(0, desc(TABLE, len, VIRTQ_DESC_F_INDIRECT, 0));
        assert_eq!(bench.fault_of_chain_at_0(), ChainFault::IndirectLength { len });
    }
}

#[test]
fn an_indirect_table_outside_ram_is_a_fault() {
    for addr in [RAM_BYTES as u64 - 8, u64::MAX - 7] {
        let mut bench = Bench::new(VIRTIO_F_INDIRECT_DESC);
        bench.driver.set_desc(0, desc(addr, 16, VIRTQ_DESC_F_INDIRECT, 0));
        assert_eq!(bench.fault_of_chain_at_0(), ChainFault::TableOutsideRam);
    }
}

#[test]
fn a_next_beyond_an_indirect_table_is_a_fault_though_the_ring_has_more() {
    let mut bench = Bench::new(VIRTIO_F_INDIRECT_DESC);
    bench.driver.set_desc(0, desc(TABLE, 32, VIRTQ_DESC_F_INDIRECT, 0));
    bench.driver.set_desc_at(TABLE, 0, desc(DATA, 4, VIRTQ_DESC_F_NEXT, 2));
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::NextOutOfRange { next: 2 });
}

#[test]
fn direct_and_indirect_descriptors_together_cannot_exceed_the_ring() {
    let mut bench = Bench::new(VIRTIO_F_INDIRECT_DESC);
    bench.driver.set_desc(0, desc(DATA, 4, VIRTQ_DESC_F_NEXT, 1));
    let bytes = 16 * u32::from(SIZE);
    bench.driver.set_desc(1, desc(TABLE, bytes, VIRTQ_DESC_F_INDIRECT, 0));
    for index in 0..SIZE {
        let next = if index + 1 < SIZE { VIRTQ_DESC_F_NEXT } else { 0 };
        bench.driver.set_desc_at(TABLE, index, desc(DATA, 4, next, index + 1));
    }
    assert_eq!(bench.fault_of_chain_at_0(), ChainFault::TooManyDescriptors);
}

#[test]
fn a_head_beyond_the_table_is_a_bad_ring() {
    let mut bench = Bench::new(0);
    bench.driver.offer(SIZE);
    let fault = RingFault::HeadOutOfRange { head: SIZE, size: SIZE };
    assert_eq!(bench.pop().unwrap_err(), GuestFault::BadRing { queue: 3, fault });
}

#[test]
fn an_available_index_too_far_ahead_is_a_bad_ring() {
    let mut bench = Bench::new(0);
    bench.driver.set_avail_index(SIZE + 1);
    let fault = RingFault::AvailableIndex { avail: SIZE + 1, used: 0, size: SIZE };
    assert_eq!(bench.pop().unwrap_err(), GuestFault::BadRing { queue: 3, fault });
}

#[test]
fn an_available_index_that_goes_back_is_a_bad_ring() {
    let mut bench = Bench::new(0);
    bench.driver.offer_chain(0, &[(DATA, 4, false)]);
    let chain = bench.pop().unwrap().unwrap();
    bench.complete(chain, 0);
    bench.driver.set_avail_index(0);
    assert!(matches!(bench.pop(), Err(GuestFault::BadRing { .. })));
}

#[test]
fn an_available_index_behind_chains_that_are_held_is_a_bad_ring() {
    let mut bench = Bench::new(0);
    let mut held = Vec::new();
    for head in 0..3 {
        bench.driver.offer_chain(head, &[(DATA, 4, false)]);
        held.push(bench.pop().unwrap().unwrap());
    }
    bench.driver.set_avail_index(1);
    let fault = RingFault::AvailableIndex { avail: 1, used: 0, size: SIZE };
    assert_eq!(bench.pop().unwrap_err(), GuestFault::BadRing { queue: 3, fault });
    held.into_iter().for_each(PoppedChain::abandon_at_reset);
}

/// A head handed over again before it came back would let a driver make the
/// device hold more chains than the ring has descriptors.
#[test]
fn more_chains_held_than_the_ring_has_entries_is_a_bad_ring() {
    let mut bench = Bench::new(0);
    bench.driver.set_desc(0, desc(DATA, 4, 0, 0));
    let mut held = Vec::new();
    for _ in 0..SIZE {
        bench.driver.offer(0);
        held.push(bench.pop().unwrap().unwrap());
    }
    bench.driver.offer(0);
    assert!(matches!(bench.pop(), Err(GuestFault::BadRing { .. })));
    held.into_iter().for_each(PoppedChain::abandon_at_reset);
}

#[test]
fn indices_wrap_after_65536_chains() {
    let mut bench = Bench::new(0);
    for round in 0..(1 << 16) + 5u32 {
        let head = u16::try_from(round % u32::from(SIZE)).unwrap();
        bench.driver.offer_chain(head, &[(DATA, 4, true)]);
        let chain = bench.pop().unwrap().unwrap();
        bench.complete(chain, round);
        let expected = UsedElement { head: head.into(), written: round };
        assert_eq!(bench.driver.take_used(), Some(expected));
    }
}

#[test]
fn kicks_are_suppressed_while_chains_come_out_and_armed_again_at_the_end() {
    let mut bench = Bench::new(0);
    bench.driver.offer_chain(0, &[(DATA, 4, false)]);
    assert_eq!(bench.driver.used_flags(), 0);
    let chain = bench.pop().unwrap().unwrap();
    assert_eq!(bench.driver.used_flags(), VIRTQ_USED_F_NO_NOTIFY);
    bench.complete(chain, 0);
    assert!(bench.pop().unwrap().is_none());
    assert_eq!(bench.driver.used_flags(), 0);
}

#[test]
fn with_event_idx_the_ring_asks_for_a_kick_at_the_next_chain() {
    let mut bench = Bench::new(VIRTIO_F_EVENT_IDX);
    for round in 1..=3 {
        bench.driver.offer_chain(0, &[(DATA, 4, false)]);
        let chain = bench.pop().unwrap().unwrap();
        bench.complete(chain, 0);
        assert!(bench.pop().unwrap().is_none());
        assert_eq!((bench.driver.avail_event(), bench.driver.used_flags()), (round, 0));
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut bench = Bench::new(0);
    let interrupt = CountingInterrupt::default();
    for (flags, calls) in [(VIRTQ_AVAIL_F_NO_INTERRUPT, 0), (0, 1)] {
        bench.driver.set_avail_flags(flags);
        bench.driver.offer_chain(0, &[(DATA, 4, false)]);
        let chain = bench.pop().unwrap().unwrap();
        bench.complete(chain, 0);
        bench.queue.signal_used(bench.ram.memory(), &interrupt).unwrap();
        assert_eq!(interrupt.used_calls(), calls);
    }
}

#[test]
fn with_event_idx_the_interrupt_comes_when_the_named_index_is_passed() {
    let mut bench = Bench::new(VIRTIO_F_EVENT_IDX);
    let interrupt = CountingInterrupt::default();
    bench.driver.set_used_event(1);
    for calls in [0, 1, 1] {
        bench.driver.offer_chain(0, &[(DATA, 4, false)]);
        let chain = bench.pop().unwrap().unwrap();
        bench.complete(chain, 0);
        bench.queue.signal_used(bench.ram.memory(), &interrupt).unwrap();
        assert_eq!(interrupt.used_calls(), calls);
    }
}

#[test]
fn rings_that_cannot_be_used_are_refused() {
    let ram = TestRam::new(&[(0, RAM_BYTES)]);
    let good = RingLayout { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 };
    let end = RAM_BYTES as u64;
    assert_eq!(good.check(8, ram.memory()), Ok(()));
    let misaligned = |area, addr| Err(LayoutFault::Misaligned { area, addr });
    let outside = |area, addr| Err(LayoutFault::OutsideRam { area, addr });
    for (layout, verdict) in [
        (RingLayout { size: 0, ..good }, Err(LayoutFault::Size { size: 0 })),
        (RingLayout { size: 7, ..good }, Err(LayoutFault::Size { size: 7 })),
        (RingLayout { size: 16, ..good }, Err(LayoutFault::Size { size: 16 })),
        (RingLayout { desc: 0x1008, ..good }, misaligned(RingArea::Desc, 0x1008)),
        (RingLayout { avail: 0x2001, ..good }, misaligned(RingArea::Avail, 0x2001)),
        (RingLayout { used: 0x3002, ..good }, misaligned(RingArea::Used, 0x3002)),
        (RingLayout { desc: end, ..good }, outside(RingArea::Desc, end)),
        (RingLayout { avail: end - 20, ..good }, outside(RingArea::Avail, end - 20)),
        (RingLayout { used: u64::MAX - 3, ..good }, outside(RingArea::Used, u64::MAX - 3)),
        // The last byte of `used_event`/`avail_event` counts.
        (RingLayout { avail: end - 22, ..good }, Ok(())),
        (RingLayout { used: end - 72, ..good }, Ok(())),
        (RingLayout { used: end - 68, ..good }, outside(RingArea::Used, end - 68)),
    ] {
        assert_eq!(layout.check(8, ram.memory()), verdict, "{layout:?}");
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "never returned")]
fn a_chain_that_is_forgotten_is_caught_in_debug_builds() {
    let mut bench = Bench::new(0);
    bench.driver.offer_chain(0, &[(DATA, 4, false)]);
    drop(bench.pop().unwrap());
}
