//! What a driver that keeps the rules gets.

use abi::PageCount;

use super::*;

#[test]
fn configuration_space_has_the_region_and_its_sizes() {
    let mut machine = machine(10);
    let fields = [0, 8, 16, 24, 32, 40, 48].map(|at| machine.config(at));
    assert_eq!(fields, [BLOCK, 0, BASE, BLOCKS * BLOCK, BLOCKS * BLOCK, 0, 10 * BLOCK]);
}

#[test]
fn plugged_blocks_are_memory_and_unplugged_ones_are_not() {
    let mut machine = machine(4);
    assert!(machine.ram.present().write_obj(1u8, GuestAddress(block(3))).is_err());
    assert_eq!(machine.request(PLUG, block(2), 2).0, ACK);
    assert_eq!(machine.sizes()[1], 2 * BLOCK);
    machine.ram.present().write_obj(7u8, GuestAddress(block(3))).unwrap();
    assert!(machine.ram.present().write_obj(1u8, GuestAddress(block(4))).is_err());
    assert_eq!(machine.request(UNPLUG, block(3), 1).0, ACK);
    assert!(machine.ram.present().write_obj(1u8, GuestAddress(block(3))).is_err());
    assert_eq!(machine.sizes()[1], BLOCK);
    assert_eq!(machine.device().plugged_ranges(), [region().frames(&(2..3)).unwrap()]);
}

#[test]
fn unplugged_memory_is_given_back_and_reads_zero_when_it_comes_again() {
    let mut machine = machine(1);
    machine.request(PLUG, block(0), 1);
    machine.ram.present().write_obj(7u8, GuestAddress(block(0) + 99)).unwrap();
    machine.request(UNPLUG, block(0), 1);
    assert_eq!(machine.ram.discards(), [region().frames(&(0..1)).unwrap()]);
    machine.request(PLUG, block(0), 1);
    let byte: u8 = machine.ram.present().read_obj(GuestAddress(block(0) + 99)).unwrap();
    assert_eq!(byte, 0);
}

#[test]
fn states_of_ranges_are_told_apart() {
    let mut machine = machine(2);
    machine.request(PLUG, block(1), 2);
    for (first, count, expected) in [
        (0, 1, state::VIRTIO_MEM_STATE_UNPLUGGED),
        (1, 2, state::VIRTIO_MEM_STATE_PLUGGED),
        (0, 2, state::VIRTIO_MEM_STATE_MIXED),
        (0, 100, state::VIRTIO_MEM_STATE_MIXED),
        (3, 97, state::VIRTIO_MEM_STATE_UNPLUGGED),
    ] {
        assert_eq!(machine.request(STATE, block(first), count), (ACK, expected));
    }
}

#[test]
fn plugging_more_than_is_requested_is_refused_without_a_fault() {
    let mut machine = machine(3);
    assert_eq!(machine.request(PLUG, block(0), 4).0, NACK);
    assert_eq!(machine.request(PLUG, block(0), 3).0, ACK);
    assert_eq!(machine.request(PLUG, block(3), 1).0, NACK);
    assert_eq!((machine.device().counters().nacks, machine.device().counters().errors), (2, 0));
    // Unplugging below what is requested is the driver's choice.
    assert_eq!(machine.request(UNPLUG, block(1), 1).0, ACK);
    assert_eq!(machine.request(PLUG, block(50), 1).0, ACK);
}

#[test]
fn a_new_size_is_announced_once_and_grows_the_usable_part() {
    let region = MemRegion::new(BASE, 1 << 30, 128 << 20).unwrap();
    let mut machine = MemMachine::new(MemRegion::new(BASE, 32 * BLOCK, BLOCK).unwrap());
    let edges = machine.irq.edges();
    machine.ask_for(BLOCK);
    machine.ask_for(BLOCK);
    assert_eq!(machine.irq.edges(), edges + 1);
    // Usable parts, by a device without a driver.
    struct NoMemory;
    impl BlockMemory for NoMemory {
        fn plug(&mut self, _: abi::PfnRange) -> std::io::Result<()> {
            Ok(())
        }
        fn unplug(&mut self, _: &[abi::PfnRange]) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut device = MemoryDevice::new(region, Box::new(NoMemory));
    let mib = |n: u64| PageCount::new(n << 8);
    for (requested, usable) in [(0, 0), (128, 384), (256, 512), (128, 512), (1024, 1024), (0, 1024)]
    {
        device.request(mib(requested)).unwrap();
        assert_eq!(device.usable_bytes(), usable << 20, "{requested} MiB requested");
    }
    device.system_reset();
    assert_eq!(device.usable_bytes(), 0);
}

#[test]
fn sizes_that_cannot_be_are_refused_and_change_nothing() {
    let mut machine = machine(3);
    let device = machine.transport.device_mut();
    let above = device.request(PageCount::new((BLOCKS + 1) * BLOCK / 4096)).unwrap_err();
    assert_eq!(
        above,
        RequestedSizeError::AboveRegion {
            bytes: (BLOCKS + 1) * BLOCK,
            region_bytes: BLOCKS * BLOCK
        }
    );
    let unaligned = device.request(PageCount::new(1)).unwrap_err();
    assert_eq!(unaligned, RequestedSizeError::Unaligned { bytes: 4096, block_bytes: BLOCK });
    assert!(device.request(PageCount::new(u64::MAX)).is_err());
    assert_eq!(machine.sizes()[2], 3 * BLOCK);
}

#[test]
fn unplugging_everything_leaves_nothing() {
    let mut machine = machine(50);
    for first in [0, 10, 99] {
        assert_eq!(machine.request(PLUG, block(first), 1).0, ACK);
    }
    assert_eq!(machine.request(UNPLUG_ALL, u64::MAX, 0).0, ACK);
    assert_eq!(machine.sizes()[1], 0);
    assert_eq!(machine.ram.discards().len(), 3);
    assert_eq!(machine.request(UNPLUG_ALL, 0, 0).0, ACK, "nothing is left, which is no fault");
}

#[test]
fn a_device_reset_keeps_blocks_and_contents() {
    let mut machine = machine(2);
    machine.request(PLUG, block(5), 2);
    machine.ram.present().write_obj(7u8, GuestAddress(block(6))).unwrap();
    machine.bring_up();
    assert_eq!(machine.sizes(), [BLOCKS * BLOCK, 2 * BLOCK, 2 * BLOCK]);
    let byte: u8 = machine.ram.present().read_obj(GuestAddress(block(6))).unwrap();
    assert_eq!(byte, 7);
    assert_eq!(machine.request(STATE, block(5), 2), (ACK, state::VIRTIO_MEM_STATE_PLUGGED));
}

#[test]
fn a_reset_of_the_machine_unplugs_everything_and_keeps_what_is_requested() {
    let mut machine = machine(2);
    machine.request(PLUG, block(5), 2);
    machine.transport.device_mut().system_reset();
    machine.bring_up();
    assert_eq!(machine.sizes(), [BLOCKS * BLOCK, 0, 2 * BLOCK]);
    assert_eq!(machine.ram.discards(), [region().frames(&(5..7)).unwrap()]);
}

#[test]
fn regions_that_cannot_be_are_refused_with_their_values() {
    for (addr, bytes, block_bytes) in [
        (BASE, BLOCK, 0),
        (BASE, BLOCK, 2048),
        (BASE, 3 * 4096, 3 * 4096),
        (BASE + 4096, BLOCK, BLOCK),
        (BASE, BLOCK + 4096, BLOCK),
        (BASE, 0, BLOCK),
        (u64::MAX - BLOCK + 1, BLOCK, BLOCK),
    ] {
        let error = MemRegion::new(addr, bytes, block_bytes).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&bytes.to_string()) || text.contains(&block_bytes.to_string()),
            "{text}"
        );
    }
}
