use super::*;
use crate::virtio::DmaPage;
use crate::virtio::testing::{FakeDevice, Misbehaviour, TestRam};
use abi::virtio::{
    VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED, VIRTIO_ID_BALLOON,
    VIRTIO_ID_CONSOLE,
};

const OFFERED: u64 = 1 | 2 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_RING_PACKED;

fn ring(page: &DmaPage) -> RingMemory {
    RingMemory::in_one_piece(128, page.slice(0, 4096).unwrap()).unwrap()
}

#[test]
fn what_is_not_a_modern_device_is_refused_by_name() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[256]);
    for (magic, version, id, error) in [
        (0, 2, 5, ProbeError::NotVirtio { magic: 0 }),
        (mmio::MAGIC, 1, 5, ProbeError::Legacy),
        (mmio::MAGIC, 3, 5, ProbeError::UnknownVersion { version: 3 }),
        (mmio::MAGIC, 2, 0, ProbeError::Empty),
    ] {
        fake.identify_as(magic, version, id);
        assert_eq!(MmioDevice::probe(&fake).err(), Some(error));
    }
    fake.identify_as(mmio::MAGIC, 2, VIRTIO_ID_CONSOLE);
    let found = MmioDevice::probe(&fake).unwrap().expect_id(VIRTIO_ID_BALLOON).err();
    assert_eq!(found, Some(ProbeError::WrongDevice { wanted: 5, found: 3 }));
}

#[test]
fn packed_rings_and_unsupported_features_are_declined() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, OFFERED, &[256]);
    let device = MmioDevice::probe(&fake).unwrap();
    device.reset().unwrap();
    assert_eq!(device.negotiate(1), Ok(1 | VIRTIO_F_VERSION_1));
    assert_eq!(fake.accepted(), 1 | VIRTIO_F_VERSION_1);
    device.start().unwrap();
    assert_eq!(fake.status(), 1 | 2 | 4 | 8);
}

#[test]
fn an_offer_of_every_bit_is_accepted_only_where_the_driver_supports_it() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, u64::MAX, &[256]);
    let device = MmioDevice::probe(&fake).unwrap();
    device.reset().unwrap();
    assert_eq!(device.negotiate(0), Ok(VIRTIO_F_VERSION_1));
    assert_eq!(fake.accepted(), VIRTIO_F_VERSION_1);
}

#[test]
fn a_device_without_version_1_is_failed() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 0, &[256]);
    fake.offer_exactly(1);
    let device = MmioDevice::probe(&fake).unwrap();
    assert_eq!(device.negotiate(1), Err(SetupError::NoVersion1));
    assert_ne!(fake.status() & status::FAILED, 0);
}

#[test]
fn a_device_that_refuses_features_is_failed() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 1, &[256]);
    fake.misbehave(Misbehaviour { refuses_features: true, ..Default::default() });
    let device = MmioDevice::probe(&fake).unwrap();
    let accepted = 1 | VIRTIO_F_VERSION_1;
    let refused = SetupError::FeaturesRefused { accepted, offered: accepted };
    assert_eq!(device.negotiate(1), Err(refused));
    assert_ne!(fake.status() & status::FAILED, 0);
}

#[test]
fn a_reset_that_never_ends_is_given_up() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 1, &[256]);
    let device = MmioDevice::probe(&fake).unwrap();
    device.negotiate(0).unwrap();
    fake.misbehave(Misbehaviour { never_finishes_reset: true, ..Default::default() });
    assert_eq!(device.reset(), Err(SetupError::ResetStuck));
}

#[test]
fn queue_sizes_are_powers_of_two_within_both_limits() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 1, &[256, 100, 0xffff_ffff, 1, 0]);
    let device = MmioDevice::probe(&fake).unwrap();
    assert_eq!(device.queue_entries(0, 256), Ok(256));
    assert_eq!(device.queue_entries(0, 128), Ok(128));
    assert_eq!(device.queue_entries(1, 256), Ok(64));
    assert_eq!(device.queue_entries(2, 1024), Ok(256));
    assert_eq!(device.queue_entries(3, 256), Ok(1));
    assert_eq!(device.queue_entries(4, 256), Err(SetupError::NoQueue { queue: 4 }));
    assert_eq!(device.queue_entries(5, 256), Err(SetupError::NoQueue { queue: 5 }));
}

#[test]
fn queues_are_enabled_once_and_freed_by_reset() {
    let ram = TestRam::new(4);
    let page = ram.page();
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 1, &[256]);
    let device = MmioDevice::probe(&fake).unwrap();
    device.enable_queue(0, &ring(&page)).unwrap();
    assert_eq!(device.queue_entries(0, 256), Err(SetupError::QueueBusy { queue: 0 }));
    device.reset().unwrap();
    fake.misbehave(Misbehaviour { refuses_queues: true, ..Default::default() });
    let refused = device.enable_queue(0, &ring(&page));
    assert_eq!(refused, Err(SetupError::QueueRefused { queue: 0 }));
}

#[test]
fn interrupt_reasons_are_acknowledged_once() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 1, &[256]);
    let device = MmioDevice::probe(&fake).unwrap();
    fake.set_config32(0, 7);
    assert_eq!(device.acknowledge_interrupt(), InterruptStatus { used: false, config: true });
    assert_eq!(device.acknowledge_interrupt(), InterruptStatus::default());
    assert_eq!(device.read_config32(0), 7);
}

/// QEMU's line is high while any reason is left: one that came between the read and the
/// acknowledgement kept it high, no edge came any more, and a target was never heard of.
#[test]
fn a_reason_that_comes_during_the_acknowledgement_does_not_keep_the_line_high() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 1, &[256]);
    let device = MmioDevice::probe(&fake).unwrap();
    fake.set_config32(0, 7);
    fake.misbehave(Misbehaviour {
        raises_at_acknowledgement: mmio::INT_VRING,
        ..Default::default()
    });
    let both = InterruptStatus { used: true, config: true };
    assert_eq!(device.acknowledge_interrupt(), both);
    assert_eq!(fake.interrupt_reasons(), 0);
}

#[test]
fn a_device_that_always_has_a_reason_does_not_hold_the_driver() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 1, &[256]);
    let device = MmioDevice::probe(&fake).unwrap();
    fake.set_config32(0, 7);
    fake.misbehave(Misbehaviour {
        raises_at_acknowledgement: mmio::INT_CONFIG,
        always: true,
        ..Default::default()
    });
    let config = InterruptStatus { used: false, config: true };
    assert_eq!(device.acknowledge_interrupt(), config);
}

#[test]
fn needs_reset_at_start_is_an_error() {
    let ram = TestRam::new(1);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_BALLOON, 1, &[256]);
    let device = MmioDevice::probe(&fake).unwrap();
    device.negotiate(0).unwrap();
    device.start().unwrap();
    assert!(!device.needs_reset());
    fake.set_needs_reset();
    assert!(device.needs_reset());
}
