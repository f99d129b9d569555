//! Drivers that break rules: each is counted by its reason, answered, and harms nobody.

use abi::block::request::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use abi::block::status::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use abi::mmio;

use super::*;
use crate::block::{BackendProperties, BlockBackend};
use crate::ring::RawDesc;

const IOERR: u8 = VIRTIO_BLK_S_IOERR;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP;

/// A full disk, a request that must be refused for `reason`, and a good neighbour on either side.
#[track_caller]
fn refused(kind: u32, sector: u64, data: &[(u64, u32, bool)], reason: &str, status: u8) {
    let (mut machine, disk) = machine(64);
    refused_by(&mut machine, &disk, (kind, sector, data), reason, status);
}

#[track_caller]
fn refused_by(
    machine: &mut BlockMachine,
    disk: &MemoryDisk,
    (kind, sector, data): (u32, u64, &[(u64, u32, bool)]),
    reason: &str,
    status: u8,
) {
    disk.fill(0, &[0xaa; 64 * 512]);
    let room = 0x4_0000;
    put(machine, room, &[0; 1024]);
    machine.offer(VIRTIO_BLK_T_IN, 0, &[(room, 512, true)]);
    let bad = machine.offer(kind, sector, data);
    machine.offer(VIRTIO_BLK_T_IN, 1, &[(room + 512, 512, true)]);
    machine.kick();
    let answers = machine.answers();
    assert_eq!(answers.len(), 3, "every chain comes back");
    for (head, answer) in answers {
        let expected = if head == bad { status } else { VIRTIO_BLK_S_OK };
        assert_eq!(answer.status, expected, "head {head} of {reason}");
    }
    assert_eq!(get(machine, room, 1024), [0xaa; 1024], "neighbours");
    assert_eq!(disk.contents(), [0xaa; 64 * 512], "the disk");
    let faults: Vec<_> = machine.device().faults().iter().collect();
    assert_eq!(faults, [(reason, 1)]);
    assert_eq!(machine.device().faults().get(reason), 1);
}

#[test]
fn sectors_beyond_the_disk_are_refused() {
    for (sector, bytes) in [(64, 512), (63, 1024), (0, 65 * 512), (u64::MAX / 512 - 1, 512)] {
        refused(VIRTIO_BLK_T_IN, sector, &[(DATA, bytes, true)], "out_of_range", IOERR);
        refused(VIRTIO_BLK_T_OUT, sector, &[(DATA, bytes, false)], "out_of_range", IOERR);
    }
}

#[test]
fn sectors_that_overflow_are_refused() {
    for sector in [u64::MAX, u64::MAX / 512 + 1, 1 << 63] {
        refused(VIRTIO_BLK_T_IN, sector, &[(DATA, 512, true)], "sector_overflow", IOERR);
        refused(VIRTIO_BLK_T_OUT, sector, &[(DATA, 512, false)], "sector_overflow", IOERR);
    }
    // The offset fits, the end does not.
    let last = u64::MAX / 512;
    refused(VIRTIO_BLK_T_OUT, last, &[(DATA, 1024, false)], "sector_overflow", IOERR);
}

#[test]
fn data_that_is_no_whole_number_of_sectors_is_refused() {
    for bytes in [1, 511, 513, 1023] {
        refused(VIRTIO_BLK_T_IN, 0, &[(DATA, bytes, true)], "data_unaligned", IOERR);
        refused(VIRTIO_BLK_T_OUT, 0, &[(DATA, bytes, false)], "data_unaligned", IOERR);
    }
}

#[test]
fn data_of_the_wrong_direction_is_refused() {
    let (readable, writable) = ((DATA, 512, false), (DATA + 512, 512, true));
    refused(VIRTIO_BLK_T_IN, 0, &[readable], "data_wrong_direction", IOERR);
    refused(VIRTIO_BLK_T_IN, 0, &[readable, writable], "data_wrong_direction", IOERR);
    refused(VIRTIO_BLK_T_OUT, 0, &[writable], "data_wrong_direction", IOERR);
    refused(VIRTIO_BLK_T_OUT, 0, &[readable, writable], "data_wrong_direction", IOERR);
    refused(VIRTIO_BLK_T_GET_ID, 0, &[readable], "data_wrong_direction", IOERR);
    refused(VIRTIO_BLK_T_DISCARD, 0, &[writable], "data_wrong_direction", IOERR);
    refused(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[writable], "data_wrong_direction", IOERR);
}

#[test]
fn requests_without_data_are_refused() {
    for kind in [
        VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_GET_ID,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ] {
        refused(kind, 0, &[], "data_missing", IOERR);
    }
}

#[test]
fn an_identification_without_room_is_refused() {
    refused(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 19, true)], "id_buffer_short", IOERR);
}

#[test]
fn unknown_types_are_unsupported() {
    // SCSI commands, lifetime, secure erase, zones, a legacy barrier, and nonsense.
    for kind in [2, 3, 5, 10, 14, 15, 0x8000_0000, 0x8000_0001, u32::MAX] {
        refused(kind, 0, &[(DATA, 512, true)], "unknown_type", UNSUPP);
        refused(kind, 0, &[], "unknown_type", UNSUPP);
    }
}

/// Each segment is checked before the first is carried out.
#[test]
fn one_bad_segment_refuses_all_of_its_request() {
    let bad = [
        (segment(64, 1, 0), "out_of_range", IOERR),
        (segment(63, 2, 0), "out_of_range", IOERR),
        (segment(u64::MAX, 1, 0), "sector_overflow", IOERR),
        (segment(0, u32::MAX, 0), "segment_too_long", IOERR),
        (segment(0, 1, 2), "flags_unknown", UNSUPP),
        (segment(0, 1, u32::MAX), "flags_unknown", UNSUPP),
    ];
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        for (second, reason, status) in &bad {
            let (mut machine, disk) = machine(64);
            put(&machine, DATA, &[segment(0, 8, 0), second.clone()].concat());
            let request = (kind, 0, &[(DATA, 32, false)][..]);
            refused_by(&mut machine, &disk, request, reason, *status);
        }
    }
}

/// §5.2.6.2: a discard cannot be told to unmap.
#[test]
fn a_discard_with_the_unmap_flag_is_unsupported() {
    let (mut machine, disk) = machine(64);
    put(&machine, DATA, &segment(0, 1, 1));
    let request = (VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 16, false)][..]);
    refused_by(&mut machine, &disk, request, "flags_unknown", UNSUPP);
}

#[test]
fn segments_of_odd_length_or_number_are_refused() {
    for bytes in [1, 15, 17, 33 * 16, 1 << 20] {
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            refused(kind, 0, &[(DATA, bytes, false)], "segments_bad", IOERR);
        }
    }
}

#[test]
fn what_was_not_negotiated_is_unsupported() {
    let disk = Arc::new(MemoryDisk::new(64));
    let mut machine = BlockMachine::new(Arc::new(TestRam::new(&REGIONS)), disk.clone(), 0);
    put(&machine, DATA, &segment(0, 1, 0));
    for (times, kind) in [(1, VIRTIO_BLK_T_DISCARD), (2, VIRTIO_BLK_T_WRITE_ZEROES)] {
        assert_eq!(machine.request(kind, 0, &[(DATA, 16, false)]).status, UNSUPP);
        assert_eq!(machine.device().faults().get("unknown_type"), times);
    }
    assert_eq!(machine.request(VIRTIO_BLK_T_FLUSH, 0, &[]).status, VIRTIO_BLK_S_OK);
}

#[test]
fn nothing_is_written_to_a_read_only_disk() {
    let properties = BackendProperties { is_read_only: true, ..MemoryDisk::new(64).properties() };
    let disk = Arc::new(MemoryDisk::with(properties));
    let requests = [
        (VIRTIO_BLK_T_OUT, 512),
        (VIRTIO_BLK_T_OUT, 1),
        (VIRTIO_BLK_T_DISCARD, 16),
        (VIRTIO_BLK_T_WRITE_ZEROES, 16),
    ];
    for (kind, bytes) in requests {
        // The disk panics if it is written.
        let mut machine = machine_over(&disk);
        refused_by(&mut machine, &disk, (kind, 0, &[(DATA, bytes, false)]), "read_only", IOERR);
    }
    // §5.2.6.2 says nothing of sectors: out of range is a read-only error too.
    let mut machine = machine_over(&disk);
    let request = (VIRTIO_BLK_T_OUT, u64::MAX, &[(DATA, 512, false)][..]);
    refused_by(&mut machine, &disk, request, "read_only", IOERR);
}

/// Chains that hold no whole header, or no place for a status, or cannot be walked.
#[test]
fn chains_that_are_no_requests_come_back() {
    let at = 0x9000;
    type Case<'a> = (&'a [(u64, u32, bool)], &'a str, u32, Option<u8>);
    let cases: [Case<'_>; 8] = [
        (&[(at, 16, false)], "status_missing", 0, None),
        (&[(at, 16, false), (DATA, 512, false)], "status_missing", 0, None),
        (&[(at, 15, false), (DATA, 1, true)], "header_short", 1, Some(IOERR)),
        (&[(DATA, 1, true)], "header_short", 1, Some(IOERR)),
        (&[(DATA - 512, 513, true)], "header_short", 0, Some(IOERR)),
        (&[(DATA, 1, true), (at, 16, false)], "readable_after_writable", 0, None),
        (
            &[(at, 16, false), (0x70_0000, 512, true), (DATA, 1, true)],
            "buffer_outside_ram",
            0,
            None,
        ),
        (&[(at, 16, false), (DATA, 0, true)], "zero_length", 0, None),
    ];
    for (chain, reason, written, status) in cases {
        let (mut machine, disk) = machine(64);
        put(&machine, DATA, &[0xff]);
        put(&machine, at, &[0; 16]);
        machine.queue().offer_chain(0, chain);
        machine.kick();
        let used = machine.queue().take_all_used();
        assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [written], "{reason}");
        assert_eq!(get(&machine, DATA, 1), [status.unwrap_or(0xff)], "{reason}");
        assert_eq!(machine.device().faults().iter().collect::<Vec<_>>(), [(reason, 1)]);
        assert_eq!(disk.calls(), 0);
    }
}

#[test]
fn a_looped_chain_comes_back_and_the_queue_lives() {
    let (mut machine, _) = machine(64);
    let desc = RawDesc { addr: 0x9000, len: 16, flags: 1, next: 3 };
    machine.queue().set_desc(3, desc);
    machine.queue().offer(3);
    machine.kick();
    assert_eq!(machine.queue().take_all_used().len(), 1);
    assert_eq!(machine.device().faults().get("too_many_descriptors"), 1);
    let answer = machine.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    assert_eq!(answer.status, VIRTIO_BLK_S_OK);
}

#[test]
fn a_broken_ring_answers_what_was_taken_and_then_needs_a_reset() {
    let (mut machine, disk) = machine(64);
    disk.fill(0, &[1; 512]);
    machine.offer(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    // A head that the table does not have.
    machine.queue().offer(0xffff);
    machine.kick();
    assert!(!machine.transport().is_running());
    assert_eq!(machine.queue().take_all_used().len(), 1);
    assert_eq!(get(&machine, DATA, 512), [1; 512]);
    machine.start(u64::MAX);
    assert_eq!(machine.request(VIRTIO_BLK_T_FLUSH, 0, &[]).status, VIRTIO_BLK_S_OK);
}

#[test]
fn a_flush_may_carry_anything() {
    let (mut machine, _) = machine(64);
    let answer = machine.request(VIRTIO_BLK_T_FLUSH, u64::MAX, &[(DATA, 100, false)]);
    assert_eq!((answer.status, answer.written), (VIRTIO_BLK_S_OK, 1));
    let answer = machine.request(VIRTIO_BLK_T_FLUSH, 1, &[(DATA, 100, true)]);
    assert_eq!((answer.status, answer.written), (VIRTIO_BLK_S_OK, 0));
}

#[test]
fn configuration_is_the_devices() {
    let (mut machine, _) = machine(64);
    for (offset, data) in [(0, &[0u8; 8][..]), (12, &[0; 4]), (32, &[7]), (32, &[0, 0])] {
        machine.transport().write(mmio::CONFIG + offset, data);
    }
    assert_eq!(machine.device().counters().refused_config_writes, 4);
    let mut capacity = [0; 8];
    machine.transport().read(mmio::CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 64);
    assert!(machine.device().is_writeback());
}

/// A driver that makes as much available as a ring holds gets it in bounded batches.
#[test]
fn a_batch_is_bounded_in_requests_and_bytes() {
    let (mut machine, disk) = machine(8192);
    for _ in 0..4 {
        machine.offer(VIRTIO_BLK_T_IN, 0, &[(0x10_0000, 512 << 10, true)]);
    }
    machine.kick();
    assert_eq!(machine.answers().len(), 4);
    assert_eq!(machine.device().counters().batches, 2, "1 MiB each");
    assert_eq!(disk.calls(), 4);
}
