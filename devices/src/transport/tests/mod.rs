//! The registers, with drivers of every kind.

mod model;

use abi::mmio;
use abi::virtio::status::{ACKNOWLEDGE, DRIVER, FAILED, FEATURES_OK};
use abi::virtio::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::ring::{RawDesc, RingLayout};
use crate::testing::{CountingIrq, DriverQueue, DriverRegisters, TestRam, ToyDevice, UsedElement};

const RAM_BYTES: usize = 0x10000;
const RING: u64 = 0x1000;
const DATA: u64 = 0x8000;
const RUNNING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

struct Bench {
    transport: MmioTransport<ToyDevice>,
    irq: Arc<CountingIrq>,
    ram: Arc<TestRam>,
}

impl Bench {
    fn new() -> Self {
        let ram = Arc::new(TestRam::new(&[(0, RAM_BYTES)]));
        let irq = Arc::new(CountingIrq::default());
        let transport = MmioTransport::new(ToyDevice::default(), ram.clone(), irq.clone());
        Self { transport, irq, ram }
    }

    fn ring(&self, base: u64, size: u16) -> DriverQueue {
        DriverQueue::new(self.ram.memory(), base, size)
    }

    /// A running device with queue 0.
    fn running() -> (Self, DriverQueue) {
        let mut bench = Self::new();
        bench.transport.negotiate(VIRTIO_F_VERSION_1);
        let ring = bench.ring(RING, 8);
        assert!(bench.transport.enable_queue(0, ring.layout()));
        assert_eq!(bench.transport.start(), RUNNING);
        (bench, ring)
    }

    fn load(&mut self, offset: u64) -> u32 {
        self.transport.load(offset)
    }

    fn store(&mut self, offset: u64, value: u32) {
        self.transport.store(offset, value);
    }
}

#[test]
fn a_driver_finds_a_modern_device() {
    let mut bench = Bench::new();
    assert_eq!(bench.load(mmio::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(bench.load(mmio::VERSION), 2);
    assert_eq!(bench.load(mmio::DEVICE_ID), ToyDevice::DEVICE_ID);
    assert_eq!(bench.load(mmio::STATUS), 0);
}

#[test]
fn offered_features_include_the_transports_and_never_packed_rings() {
    let mut bench = Bench::new();
    let mut features = 0;
    for half in 0..2 {
        bench.store(mmio::DEVICE_FEATURES_SEL, half);
        features |= u64::from(bench.load(mmio::DEVICE_FEATURES)) << (32 * half);
    }
    assert_eq!(features, ToyDevice::FEATURES | TRANSPORT_FEATURES);
    assert_eq!(features & VIRTIO_F_RING_PACKED, 0);
    for beyond in [2, 3, u32::MAX] {
        bench.store(mmio::DEVICE_FEATURES_SEL, beyond);
        assert_eq!(bench.load(mmio::DEVICE_FEATURES), 0);
    }
}

#[test]
fn features_ok_is_refused_without_version_1_or_with_what_was_not_offered() {
    for features in [
        0,
        ToyDevice::FEATURES,
        VIRTIO_F_VERSION_1 | 1 << 7,
        VIRTIO_F_VERSION_1 | VIRTIO_F_RING_PACKED,
    ] {
        let mut bench = Bench::new();
        assert_eq!(bench.transport.negotiate(features), ACKNOWLEDGE | DRIVER, "{features:#x}");
        assert_eq!(bench.transport.counters().features_refused, 1);
        assert_eq!(bench.transport.acked_features(), None);
    }
}

#[test]
fn a_driver_may_try_other_features_after_a_refusal() {
    let mut bench = Bench::new();
    bench.transport.negotiate(1 << 7);
    bench.store(mmio::DRIVER_FEATURES_SEL, 0);
    bench.store(mmio::DRIVER_FEATURES, 1);
    bench.store(mmio::DRIVER_FEATURES_SEL, 1);
    bench.store(mmio::DRIVER_FEATURES, 1);
    bench.store(mmio::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(bench.transport.acked_features(), Some(VIRTIO_F_VERSION_1 | 1));
}

#[test]
fn a_feature_bit_beyond_64_is_refused() {
    let mut bench = Bench::new();
    bench.store(mmio::STATUS, ACKNOWLEDGE);
    bench.store(mmio::STATUS, ACKNOWLEDGE | DRIVER);
    for (selector, half) in [(1, 1), (2, 1)] {
        bench.store(mmio::DRIVER_FEATURES_SEL, selector);
        bench.store(mmio::DRIVER_FEATURES, half);
    }
    bench.store(mmio::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(bench.load(mmio::STATUS), ACKNOWLEDGE | DRIVER);
}

#[test]
fn features_are_fixed_once_agreed() {
    let (mut bench, _ring) = Bench::running();
    bench.store(mmio::DRIVER_FEATURES_SEL, 0);
    bench.store(mmio::DRIVER_FEATURES, 1);
    assert_eq!(bench.transport.acked_features(), Some(VIRTIO_F_VERSION_1));
    assert_eq!(bench.transport.counters().features_untimely, 1);
}

#[test]
fn a_kick_serves_the_queue_and_raises_the_interrupt() {
    let (mut bench, mut ring) = Bench::running();
    ring.offer_chain(0, &[(DATA, 4, true)]);
    bench.store(mmio::QUEUE_NOTIFY, 0);
    assert_eq!(ring.take_all_used(), [UsedElement { head: 0, written: 4 }]);
    assert_eq!((bench.load(mmio::INTERRUPT_STATUS), bench.irq.edges()), (mmio::INT_VRING, 1));
    bench.store(mmio::INTERRUPT_ACK, mmio::INT_VRING);
    assert_eq!(bench.load(mmio::INTERRUPT_STATUS), 0);
}

/// Linux's balloon driver puts its statistics buffer into the ring, and kicks, before DRIVER_OK.
#[test]
fn buffers_from_before_driver_ok_are_served_at_driver_ok() {
    let mut bench = Bench::new();
    bench.transport.negotiate(VIRTIO_F_VERSION_1);
    let mut ring = bench.ring(RING, 8);
    assert!(bench.transport.enable_queue(0, ring.layout()));
    ring.offer_chain(0, &[(DATA, 4, true)]);
    bench.store(mmio::QUEUE_NOTIFY, 0);
    assert_eq!(ring.take_used(), None);
    assert_eq!(bench.transport.counters().kicks_early, 1);
    bench.transport.start();
    assert_eq!(ring.take_used(), Some(UsedElement { head: 0, written: 4 }));
}

#[test]
fn a_driver_that_keeps_adding_leaves_the_queue_pending() {
    let (mut bench, mut ring) = Bench::running();
    for head in 0..8 {
        ring.offer_chain(head, &[(DATA, 4, true)]);
    }
    // A full ring is one ring's worth: the device stops before it has seen the end.
    assert_eq!(bench.transport.queue_notified(0), QueueProgress::Pending);
    assert_eq!(bench.transport.device().served(), 8);
    assert_eq!(bench.transport.serve_pending(), QueueProgress::Idle);
    assert_eq!(bench.transport.counters().kicks, 1);
}

#[test]
fn a_bad_ring_needs_a_reset_and_says_so_by_interrupt() {
    let (mut bench, ring) = Bench::running();
    ring.set_avail_index(100);
    bench.store(mmio::QUEUE_NOTIFY, 0);
    assert_eq!(bench.load(mmio::STATUS), RUNNING | DEVICE_NEEDS_RESET);
    assert_eq!(bench.load(mmio::INTERRUPT_STATUS), mmio::INT_CONFIG);
    assert_eq!(bench.irq.edges(), 1);
    bench.store(mmio::QUEUE_NOTIFY, 0);
    let counters = bench.transport.counters();
    assert_eq!((counters.ring_unusable, counters.needs_reset, counters.kick_broken), (1, 1, 1));
    bench.store(mmio::STATUS, 0);
    assert_eq!((bench.load(mmio::STATUS), bench.load(mmio::INTERRUPT_STATUS)), (0, 0));
}

#[test]
fn a_bad_chain_is_returned_and_the_device_goes_on() {
    let (mut bench, mut ring) = Bench::running();
    ring.set_desc(1, RawDesc { addr: u64::MAX, len: 7, flags: 0, next: 0 });
    ring.offer(1);
    ring.offer_chain(2, &[(DATA, 4, true)]);
    bench.store(mmio::QUEUE_NOTIFY, 0);
    let heads: Vec<u32> = ring.take_all_used().iter().map(|used| used.head).collect();
    assert_eq!((heads, bench.load(mmio::STATUS)), (vec![1, 2], RUNNING));
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let mut bench = Bench::new();
    bench.transport.negotiate(VIRTIO_F_VERSION_1);
    let ring = bench.ring(RING, 4);
    assert!(bench.transport.enable_queue(1, ring.layout()));
    assert_eq!(bench.transport.start(), RUNNING | DEVICE_NEEDS_RESET);
    assert_eq!(bench.transport.counters().activation_refused, 1);
    assert_eq!(bench.load(mmio::INTERRUPT_STATUS), mmio::INT_CONFIG);
}

#[test]
fn kicks_for_queues_that_are_not_there_are_counted() {
    let (mut bench, _ring) = Bench::running();
    for index in [1, 2, 0xffff, 0x1_0000, u32::MAX] {
        bench.store(mmio::QUEUE_NOTIFY, index);
    }
    assert_eq!(bench.transport.counters().kick_bad_queue, 5);
    assert_eq!(bench.load(mmio::STATUS), RUNNING);
}

#[test]
fn queues_beyond_the_last_read_as_absent_and_take_no_writes() {
    let mut bench = Bench::new();
    bench.transport.negotiate(VIRTIO_F_VERSION_1);
    for (queue, max) in [(0, 8), (1, 4), (2, 0), (u32::MAX, 0)] {
        bench.store(mmio::QUEUE_SEL, queue);
        assert_eq!(bench.load(mmio::QUEUE_NUM_MAX), max);
    }
    bench.store(mmio::QUEUE_NUM, 4);
    bench.store(mmio::QUEUE_READY, 1);
    assert_eq!(bench.load(mmio::QUEUE_READY), 0);
    assert_eq!(bench.transport.counters().queue_unknown, 2);
}

#[test]
fn a_ring_that_cannot_be_used_is_not_enabled() {
    let good = RingLayout { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 };
    for layout in [
        RingLayout { desc: 0x1001, ..good },
        RingLayout { used: RAM_BYTES as u64, ..good },
        RingLayout { avail: u64::MAX - 1, ..good },
    ] {
        let mut bench = Bench::new();
        bench.transport.negotiate(VIRTIO_F_VERSION_1);
        assert!(!bench.transport.enable_queue(0, layout));
        assert_eq!(bench.transport.counters().queue_bad_layout, 1);
    }
}

#[test]
fn a_queue_without_a_size_is_not_enabled() {
    let mut bench = Bench::new();
    bench.transport.negotiate(VIRTIO_F_VERSION_1);
    for size in [0, 3, 16, 0x1_0000, u32::MAX] {
        bench.store(mmio::QUEUE_NUM, size);
    }
    bench.store(mmio::QUEUE_READY, 1);
    assert_eq!(bench.load(mmio::QUEUE_READY), 0);
    let counters = bench.transport.counters();
    assert_eq!((counters.queue_bad_value, counters.queue_bad_layout), (5, 1));
}

#[test]
fn an_enabled_queue_is_fixed_until_it_is_disabled() {
    let mut bench = Bench::new();
    bench.transport.negotiate(VIRTIO_F_VERSION_1);
    let ring = bench.ring(RING, 8);
    assert!(bench.transport.enable_queue(0, ring.layout()));
    bench.store(mmio::QUEUE_NUM, 4);
    bench.store(mmio::QUEUE_DESC_LOW, 0x7000);
    assert_eq!(bench.transport.counters().queue_already_ready, 2);
    bench.store(mmio::QUEUE_READY, 0);
    bench.store(mmio::QUEUE_NUM, 4);
    assert_eq!(bench.load(mmio::QUEUE_READY), 0);
    bench.store(mmio::QUEUE_READY, 1);
    assert_eq!(bench.transport.enabled_queue_size(0), Some(4));
}

#[test]
fn queues_can_be_set_up_only_between_features_ok_and_driver_ok() {
    let (mut bench, _ring) = Bench::running();
    bench.store(mmio::QUEUE_SEL, 1);
    bench.store(mmio::QUEUE_NUM, 4);
    bench.store(mmio::QUEUE_SEL, 0);
    bench.store(mmio::QUEUE_READY, 0);
    assert_eq!(bench.load(mmio::QUEUE_READY), 1);
    bench.store(mmio::STATUS, 0);
    bench.store(mmio::QUEUE_NUM, 4);
    bench.store(mmio::QUEUE_READY, 1);
    assert_eq!(bench.load(mmio::QUEUE_READY), 0);
    assert_eq!(bench.transport.counters().queue_untimely, 4);
}

/// Linux disables every queue again after it has reset the device.
#[test]
fn disabling_a_disabled_queue_is_no_fault() {
    let (mut bench, _ring) = Bench::running();
    bench.store(mmio::STATUS, 0);
    bench.store(mmio::QUEUE_READY, 0);
    assert_eq!(bench.transport.counters().queue_untimely, 0);
}

#[test]
fn a_reset_clears_what_the_driver_set_and_keeps_counters() {
    let (mut bench, mut ring) = Bench::running();
    ring.offer_chain(0, &[(DATA, 4, true)]);
    bench.store(mmio::QUEUE_NOTIFY, 0);
    bench.store(mmio::QUEUE_SEL, 1);
    bench.store(mmio::DEVICE_FEATURES_SEL, 1);
    bench.transport.reset();
    assert_eq!(bench.load(mmio::STATUS), 0);
    assert_eq!(bench.load(mmio::INTERRUPT_STATUS), 0);
    assert_eq!(bench.load(mmio::QUEUE_NUM_MAX), 8, "queue 0 is selected again");
    assert_eq!(bench.load(mmio::QUEUE_READY), 0);
    assert_eq!(bench.transport.acked_features(), None);
    assert!(bench.transport.device().activation().is_none());
    assert_eq!(bench.transport.counters().kicks, 1);
    // The register halves are gone as well.
    bench.transport.negotiate(VIRTIO_F_VERSION_1);
    bench.store(mmio::QUEUE_READY, 1);
    assert_eq!(bench.load(mmio::QUEUE_READY), 0);
}

#[test]
fn an_interrupt_handle_from_before_a_reset_is_inert() {
    let (mut bench, _ring) = Bench::running();
    let old = bench.transport.device().activation().unwrap().interrupt.clone();
    bench.store(mmio::STATUS, 0);
    old.needs_reset();
    old.used();
    assert_eq!((bench.load(mmio::STATUS), bench.load(mmio::INTERRUPT_STATUS)), (0, 0));
}

#[test]
fn a_changed_configuration_raises_generation_and_interrupt() {
    let (mut bench, _ring) = Bench::running();
    let before = bench.load(mmio::CONFIG_GENERATION);
    bench.transport.device_mut().set_config(7);
    bench.transport.config_changed();
    assert_ne!(bench.load(mmio::CONFIG_GENERATION), before);
    assert_eq!(bench.load(mmio::INTERRUPT_STATUS), mmio::INT_CONFIG);
    assert_eq!(bench.load(mmio::CONFIG), 7);
}

#[test]
fn without_a_driver_a_changed_configuration_raises_only_the_generation() {
    let mut bench = Bench::new();
    let before = bench.load(mmio::CONFIG_GENERATION);
    bench.transport.config_changed();
    assert_ne!(bench.load(mmio::CONFIG_GENERATION), before);
    assert_eq!((bench.load(mmio::INTERRUPT_STATUS), bench.irq.edges()), (0, 0));
}

#[test]
fn configuration_space_is_read_and_written_with_any_width() {
    let (mut bench, _ring) = Bench::running();
    bench.transport.device_mut().set_config(0x4433_2211);
    bench.transport.write(mmio::CONFIG + 4, &[0x55, 0x66]);
    bench.transport.write(mmio::CONFIG + 6, &[0x77]);
    bench.transport.write(mmio::CONFIG + 7, &[0x88]);
    let mut eight = [0; 8];
    bench.transport.read(mmio::CONFIG, &mut eight);
    assert_eq!(eight, [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    let mut three = [0xff; 3];
    bench.transport.read(mmio::CONFIG + 6, &mut three);
    assert_eq!(three, [0x77, 0x88, 0]);
}

#[test]
fn configuration_writes_to_the_devices_part_or_out_of_time_change_nothing() {
    let (mut bench, _ring) = Bench::running();
    for (offset, data) in [(0, &[1u8; 4][..]), (3, &[1; 2]), (6, &[1; 4]), (0xeff, &[1])] {
        bench.transport.write(mmio::CONFIG + offset, data);
    }
    assert_eq!(bench.transport.counters().config_refused, 4);
    bench.store(mmio::STATUS, 0);
    bench.transport.write(mmio::CONFIG + 4, &[9]);
    assert_eq!(bench.transport.counters().config_untimely, 1);
    let mut all = [0xff; 8];
    bench.transport.read(mmio::CONFIG, &mut all);
    assert_eq!(all, [0; 8]);
}

#[test]
fn odd_accesses_read_zero_change_nothing_and_are_counted() {
    let (mut bench, _ring) = Bench::running();
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (2, 4), (0x70, 0), (0x71, 4), (0x1000, 4)] {
        let mut out = vec![0xff; width];
        bench.transport.read(offset, &mut out);
        assert!(out.iter().all(|&byte| byte == 0));
        bench.transport.write(offset, &vec![0; width]);
    }
    for offset in [u64::MAX, u64::MAX - 3] {
        bench.transport.read(offset, &mut [0; 4]);
        bench.transport.write(offset, &[0; 4]);
    }
    assert_eq!(bench.transport.counters().access_odd, 18);
    assert_eq!(bench.load(mmio::STATUS), RUNNING);
}

#[test]
fn registers_have_one_direction() {
    let mut bench = Bench::new();
    for offset in [mmio::MAGIC_VALUE, mmio::INTERRUPT_STATUS, mmio::CONFIG_GENERATION, 0x0c0] {
        bench.store(offset, 1);
    }
    for offset in [mmio::QUEUE_NOTIFY, mmio::QUEUE_SEL, mmio::INTERRUPT_ACK, 0x0c0] {
        assert_eq!(bench.load(offset), 0);
    }
    assert_eq!(bench.transport.counters().access_unknown, 8);
}

#[test]
fn no_shared_memory_region_exists() {
    let mut bench = Bench::new();
    bench.store(mmio::SHM_SEL, 0);
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(bench.load(offset), u32::MAX);
    }
    assert_eq!(bench.transport.counters().access_unknown, 0);
}

#[test]
fn a_driver_that_gives_up_stops_the_device() {
    let (mut bench, mut ring) = Bench::running();
    bench.store(mmio::STATUS, RUNNING | FAILED);
    ring.offer_chain(0, &[(DATA, 4, true)]);
    bench.store(mmio::QUEUE_NOTIFY, 0);
    assert_eq!(ring.take_used(), None);
    assert!(!bench.transport.is_running());
    bench.store(mmio::STATUS, 0);
    assert_eq!(bench.load(mmio::STATUS), 0);
}

#[test]
fn neighbours_of_ring_and_buffer_stay_intact() {
    let (mut bench, mut ring) = Bench::running();
    let sentinel = [0xc3; 16];
    for at in [DATA - 16, DATA + 4] {
        bench.ram.memory().write_slice(&sentinel, GuestAddress(at)).unwrap();
    }
    ring.offer_chain(0, &[(DATA, 4, true)]);
    bench.store(mmio::QUEUE_NOTIFY, 0);
    for at in [DATA - 16, DATA + 4] {
        let mut found = [0; 16];
        bench.ram.memory().read_slice(&mut found, GuestAddress(at)).unwrap();
        assert_eq!(found, sentinel);
    }
}
