//! A driver that breaks every rule: all is answered, and nothing half applied.

use super::*;
use crate::testing::request_bytes;

/// Everything that a refused request must not change.
fn state_of(machine: &mut MemMachine) -> (Vec<abi::PfnRange>, [u64; 3], usize, usize) {
    let (plugs, discards) = (machine.ram.plugs().len(), machine.ram.discards().len());
    (machine.device().plugged_ranges(), machine.sizes(), plugs, discards)
}

#[test]
fn wrong_ranges_are_errors_with_a_reason_and_change_nothing() {
    let mut machine = machine(10);
    machine.request(PLUG, block(3), 1);
    let before = state_of(&mut machine);
    for kind in [PLUG, UNPLUG, STATE] {
        for (addr, count) in [
            (block(0), 0),
            (block(0) + 1, 1),
            (block(0) + 4096, 1),
            (block(0) - BLOCK, 1),
            (0, 1),
            (block(BLOCKS), 1),
            (block(BLOCKS - 1), 2),
            (block(0), u16::MAX),
            (u64::MAX, 1),
            (u64::MAX - BLOCK + 1, u16::MAX),
        ] {
            assert_eq!(machine.request(kind, addr, count).0, ERROR, "{kind} {addr:#x} {count}");
            assert_eq!(state_of(&mut machine), before);
        }
    }
    let counters = *machine.device().counters();
    assert_eq!((counters.no_blocks, counters.unaligned, counters.outside_region), (3, 9, 18));
    assert_eq!(counters.errors, 30);
}

#[test]
fn blocks_beyond_the_usable_part_are_errors() {
    let region = MemRegion::new(BASE, 1 << 30, 1 << 29).unwrap();
    // No memory is touched: nothing is plugged.
    let claimed = |blocks, usable| region.claimed(BASE, blocks, usable);
    assert_eq!(claimed(1, 1 << 29), Ok(0..1));
    assert_eq!(claimed(2, 1 << 29), Err(region::ClaimFault::OutsideUsable));
    assert_eq!(claimed(1, 0), Err(region::ClaimFault::OutsideUsable));
    let mut machine = MemMachine::new(super::region());
    assert_eq!(
        machine.request(PLUG, block(0), 1).0,
        ERROR,
        "nothing is requested, so nothing is usable"
    );
    assert_eq!(machine.device().counters().outside_usable, 1);
}

#[test]
fn blocks_in_the_wrong_state_are_errors() {
    let mut machine = machine(10);
    machine.request(PLUG, block(3), 2);
    let before = state_of(&mut machine);
    for (kind, first, count) in
        [(PLUG, 3, 1), (PLUG, 2, 2), (PLUG, 4, 2), (UNPLUG, 2, 1), (UNPLUG, 2, 2), (UNPLUG, 4, 2)]
    {
        assert_eq!(machine.request(kind, block(first), count).0, ERROR, "{kind} {first} {count}");
        assert_eq!(state_of(&mut machine), before);
    }
    let counters = machine.device().counters();
    assert_eq!((counters.already_plugged, counters.not_plugged), (3, 3));
}

#[test]
fn unknown_types_are_errors() {
    let mut machine = machine(10);
    let before = state_of(&mut machine);
    for kind in [4, 0x100, u16::MAX] {
        assert_eq!(machine.request(kind, block(0), 1).0, ERROR);
    }
    assert_eq!(state_of(&mut machine), before);
    assert_eq!(machine.device().counters().unknown_type, 3);
}

#[test]
fn a_request_is_not_carried_out_when_its_answer_has_no_room() {
    let mut machine = machine(10);
    let (request, answer) = MemMachine::places(0);
    let bytes = request_bytes(PLUG, block(0), 1);
    machine.ram.everything().write_slice(&bytes, GuestAddress(request)).unwrap();
    let before = state_of(&mut machine);
    for chain in [
        vec![(request, 24, false)],
        vec![(request, 24, false), (answer, 9, true)],
        vec![(request, 24, true)],
    ] {
        machine.queue.offer_chain(0, &chain);
        machine.kick();
        let used = machine.queue.take_all_used();
        assert_eq!(used.len(), 1, "the chain comes back");
        assert!(used[0].written == 0 || chain.len() == 1, "{used:?}");
    }
    assert_eq!(state_of(&mut machine), before);
    assert_eq!(machine.device().counters().response_short, 2);
    // 24 writable bytes and nothing to read: there is room to say so.
    assert_eq!(machine.device().counters().request_short, 1);
}

#[test]
fn short_scattered_and_looping_chains_are_answered() {
    let mut machine = machine(10);
    let (request, answer) = MemMachine::places(0);
    let bytes = request_bytes(PLUG, block(0), 1);
    machine.ram.everything().write_slice(&bytes, GuestAddress(request)).unwrap();
    machine.queue.offer_chain(0, &[(request, 23, false), (answer, 10, true)]);
    machine.kick();
    assert_eq!(machine.queue.take_all_used().len(), 1);
    assert_eq!(machine.answer(0).0, ERROR);
    // In pieces of a byte it is the same request.
    let mut pieces: Vec<_> = (0..24).map(|at| (request + at, 1, false)).collect();
    pieces.extend((0..10).map(|at| (answer + at, 1, true)));
    machine.queue.offer_chain(0, &pieces);
    machine.kick();
    assert_eq!(machine.queue.take_all_used().len(), 1);
    assert_eq!(machine.answer(0).0, ACK);
    let looping = crate::ring::RawDesc { addr: request, len: 1, flags: 1, next: 5 };
    machine.queue.set_desc(5, looping);
    machine.queue.offer(5);
    machine.kick();
    assert_eq!(machine.queue.take_all_used().len(), 1);
    assert_eq!(machine.device().counters().chain_bad, 1);
}

#[test]
fn buffers_in_unplugged_blocks_are_refused_and_in_plugged_ones_used() {
    let mut machine = machine(10);
    let (request, answer) = MemMachine::places(0);
    let bytes = request_bytes(STATE, block(0), 1);
    machine.ram.everything().write_slice(&bytes, GuestAddress(request)).unwrap();
    let in_block = block(7) + 100;
    machine.queue.offer_chain(0, &[(request, 24, false), (in_block, 10, true)]);
    machine.kick();
    assert_eq!(machine.queue.take_used().map(|used| used.written), Some(0));
    let untouched: u64 = machine.ram.everything().read_obj(GuestAddress(in_block)).unwrap();
    assert_eq!(untouched, 0);
    assert_eq!(machine.device().counters().chain_bad, 1);
    machine.request(PLUG, block(7), 1);
    machine.queue.offer_chain(0, &[(request, 24, false), (in_block, 10, true)]);
    machine.kick();
    assert_eq!(machine.queue.take_used().map(|used| used.written), Some(10));
    // The room of the answer goes away by the request that it answers.
    let bytes = request_bytes(UNPLUG, block(7), 1);
    machine.ram.everything().write_slice(&bytes, GuestAddress(request)).unwrap();
    machine.queue.offer_chain(0, &[(request, 24, false), (in_block, 10, true)]);
    machine.kick();
    assert_eq!(machine.queue.take_used().map(|used| used.written), Some(0));
    assert_eq!(machine.device().plugged_ranges(), []);
    let _ = answer;
}

#[test]
fn a_host_that_refuses_is_busy_and_nothing_changes() {
    let mut machine = machine(10);
    machine.ram.refuse(true);
    let before = state_of(&mut machine);
    assert_eq!(machine.request(PLUG, block(0), 4).0, BUSY);
    assert_eq!(state_of(&mut machine), before);
    assert_eq!(machine.device().counters().busies, 1);
    machine.ram.refuse(false);
    assert_eq!(machine.request(PLUG, block(0), 4).0, ACK);
}

#[test]
fn a_flood_of_requests_is_answered_one_by_one_in_bounded_turns() {
    let mut machine = machine(BLOCKS);
    for slot in 0..32 {
        machine.offer(slot, (PLUG, block(slot.into()), 1));
    }
    // Memory that comes costs the host calls: one request a turn.
    let mut turns = 1;
    let mut progress = machine.transport.queue_notified(0);
    while progress == crate::virtio::QueueProgress::Pending {
        turns += 1;
        progress = machine.transport.serve_pending();
    }
    assert_eq!(turns, 33);
    assert_eq!(machine.queue.take_all_used().len(), 32);
    assert!((0..32).all(|slot| machine.answer(slot).0 == ACK));
    assert_eq!(machine.sizes()[1], 32 * BLOCK);
}

#[test]
fn a_driver_without_unplugged_inaccessible_does_not_come_up() {
    let mut machine = machine(1);
    let status = machine.transport.negotiate(VIRTIO_F_VERSION_1);
    assert_eq!(status & abi::virtio::status::FEATURES_OK, 0);
    assert_eq!(machine.transport.counters().features_refused, 1);
    let all = VIRTIO_F_VERSION_1 | feature::VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;
    let foreign = all | feature::VIRTIO_MEM_F_ACPI_PXM;
    assert_eq!(machine.transport.negotiate(foreign) & abi::virtio::status::FEATURES_OK, 0);
    machine.bring_up();
}

#[test]
fn configuration_space_belongs_to_the_device() {
    let mut machine = machine(3);
    let before = machine.sizes();
    for at in (0..64).step_by(4) {
        machine.transport.store(abi::mmio::CONFIG + at, u32::MAX);
    }
    assert_eq!(machine.sizes(), before);
    assert_eq!(machine.device().counters().refused_config_writes, 16);
}
