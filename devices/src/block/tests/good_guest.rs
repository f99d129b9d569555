//! A driver that keeps the rules.

use abi::block::feature::{CONFIG_WCE, FLUSH, RO};
use abi::block::request::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use abi::block::status::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use abi::block::{CONFIG_WRITEBACK, WRITE_ZEROES_FLAG_UNMAP};
use abi::mmio;
use abi::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};

use super::*;
use crate::block::{BackendError, BackendProperties, BackendRefused, BlockBackend};
use crate::ring::RawDesc;
use crate::testing::{BlockAnswer, DiskFault};

const OK: u8 = VIRTIO_BLK_S_OK;
const IOERR: u8 = VIRTIO_BLK_S_IOERR;

fn answer(status: u8, written: u32) -> BlockAnswer {
    BlockAnswer { status, written }
}

#[test]
fn what_is_written_is_on_the_disk_and_is_read_back() {
    let (mut machine, disk) = machine(64);
    let data = pattern(1, 4096);
    put(&machine, DATA, &data);
    assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 3, &[(DATA, 4096, false)]), answer(OK, 1));
    assert_eq!(disk.contents()[3 * 512..3 * 512 + 4096], data);
    let to = DATA + 0x10000;
    assert_eq!(machine.request(VIRTIO_BLK_T_IN, 3, &[(to, 4096, true)]), answer(OK, 4097));
    assert_eq!(get(&machine, to, 4096), data);
    let counters = *machine.device().counters();
    assert_eq!((counters.writes, counters.written_bytes), (1, 4096));
    assert_eq!((counters.reads, counters.read_bytes), (1, 4096));
}

#[test]
fn the_last_sector_can_be_read_and_nothing_beyond_it() {
    let (mut machine, disk) = machine(8);
    disk.fill(7 * 512, &[0x77; 512]);
    assert_eq!(machine.request(VIRTIO_BLK_T_IN, 7, &[(DATA, 512, true)]), answer(OK, 513));
    assert_eq!(get(&machine, DATA, 512), [0x77; 512]);
    assert_eq!(machine.request(VIRTIO_BLK_T_IN, 7, &[(DATA, 1024, true)]).status, IOERR);
}

#[test]
fn a_request_may_be_cut_into_descriptors_anywhere() {
    let (mut machine, disk) = machine(64);
    disk.fill(512, &pattern(9, 1024));
    // Header in three pieces; data and status share the last writable one.
    let header = [&VIRTIO_BLK_T_IN.to_le_bytes()[..], &[0; 4], &1u64.to_le_bytes()].concat();
    put(&machine, 0x9000, &header[..3]);
    put(&machine, 0x9100, &header[3..9]);
    put(&machine, 0x9200, &header[9..]);
    let chain = [
        (0x9000, 3, false),
        (0x9100, 6, false),
        (0x9200, 7, false),
        (DATA, 1, true),
        (DATA + 0x1000, 1024, true),
    ];
    machine.queue().offer_chain(0, &chain);
    machine.kick();
    let used = machine.queue().take_all_used();
    assert_eq!(used.iter().map(|used| used.written).collect::<Vec<_>>(), [1025]);
    let mut read = get(&machine, DATA, 1);
    read.extend(get(&machine, DATA + 0x1000, 1024));
    assert_eq!(read[..1024], pattern(9, 1024));
    assert_eq!(read[1024], OK, "the status is the last writable byte");
}

#[test]
fn indirect_tables_and_event_indices_are_understood() {
    let disk = Arc::new(MemoryDisk::new(64));
    let ram = Arc::new(TestRam::new(&REGIONS));
    let features = VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | FLUSH;
    let mut machine = BlockMachine::new(ram, disk.clone(), features);
    disk.fill(0, &pattern(2, 512));
    put(&machine, 0x9000, &[0; 16]);
    let desc = |addr, len, flags, next| RawDesc { addr, len, flags, next };
    machine.queue().set_desc_at(0xb000, 0, desc(0x9000, 16, 1, 1));
    machine.queue().set_desc_at(0xb000, 1, desc(DATA, 512, 3, 2));
    machine.queue().set_desc_at(0xb000, 2, desc(0x9100, 1, 2, 0));
    machine.queue().set_desc(0, desc(0xb000, 48, 4, 0));
    machine.queue().offer(0);
    machine.kick();
    assert_eq!(machine.queue().take_all_used().len(), 1);
    assert_eq!(get(&machine, DATA, 512), pattern(2, 512));
}

#[test]
fn the_device_says_its_name() {
    let (mut machine, _) = machine(8);
    put(&machine, DATA, &[0xee; 32]);
    let got = machine.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, true)]);
    assert_eq!(got, answer(OK, 21));
    assert_eq!(get(&machine, DATA, 21), *b"drive0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xee");
    let got = machine.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 32, true)]);
    assert_eq!(got, answer(OK, 20), "what is behind the identification stays the driver's");
    assert_eq!(get(&machine, DATA + 20, 12), [0xee; 12]);
    assert_eq!(machine.device().counters().identifications, 2);
}

#[test]
fn zeroes_and_discards_reach_all_their_segments() {
    let (mut machine, disk) = machine(64);
    disk.fill(0, &[0xaa; 64 * 512]);
    let segments = [segment(1, 2, WRITE_ZEROES_FLAG_UNMAP), segment(10, 1, 0)].concat();
    put(&machine, DATA, &segments);
    // In two pieces that cut a segment.
    let data = [(DATA, 20, false), (DATA + 20, 12, false)];
    assert_eq!(machine.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &data), answer(OK, 1));
    put(&machine, DATA, &segment(60, 4, 0));
    let data = [(DATA, 16, false)];
    assert_eq!(machine.request(VIRTIO_BLK_T_DISCARD, 0, &data), answer(OK, 1));
    let contents = disk.contents();
    for sector in 0..64 {
        let zero = matches!(sector, 1 | 2 | 10 | 60..);
        let expected = if zero { 0 } else { 0xaa };
        assert!(contents[sector * 512..][..512].iter().all(|&b| b == expected), "{sector}");
    }
    let counters = *machine.device().counters();
    assert_eq!((counters.zeroings, counters.zeroed_bytes), (1, 3 * 512));
    assert_eq!((counters.discards, counters.discarded_bytes), (1, 4 * 512));
}

#[test]
fn flushes_of_a_batch_share_one_and_follow_its_writes() {
    let (mut machine, disk) = machine(64);
    let first = machine.offer(VIRTIO_BLK_T_FLUSH, 0, &[]);
    machine.offer(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]);
    machine.offer(VIRTIO_BLK_T_FLUSH, 0, &[]);
    machine.kick();
    let answers = machine.answers();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0], (first, answer(OK, 1)));
    assert!(answers.iter().all(|(_, got)| got.status == OK));
    assert_eq!((disk.flushes(), disk.is_dirty()), (1, false));
    assert_eq!(machine.device().counters().flushes, 2);
}

#[test]
fn a_flush_that_fails_fails_every_flush_of_its_batch_and_no_write() {
    let (mut machine, disk) = machine(64);
    disk.set_fault(Some(DiskFault::Flush(BackendError::Host(5))));
    machine.offer(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]);
    machine.offer(VIRTIO_BLK_T_FLUSH, 0, &[]);
    machine.offer(VIRTIO_BLK_T_FLUSH, 0, &[]);
    machine.kick();
    let statuses: Vec<u8> = machine.answers().iter().map(|(_, got)| got.status).collect();
    assert_eq!(statuses, [OK, IOERR, IOERR]);
    assert_eq!(machine.device().counters().failed_flushes, 2);
}

/// §5.2.6.2: a driver without FLUSH, or with `writeback` 0, gets every write on the disk.
#[test]
fn write_through_flushes_before_it_answers() {
    let disk = Arc::new(MemoryDisk::new(64));
    let ram = Arc::new(TestRam::new(&REGIONS));
    let mut machine = BlockMachine::new(ram, disk.clone(), 0);
    let write = |machine: &mut BlockMachine| {
        machine.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, false)]).status
    };
    assert!(!machine.device().is_writeback(), "FLUSH was not negotiated");
    assert_eq!(write(&mut machine), OK);
    assert!(!disk.is_dirty());
    machine.start(FLUSH);
    assert_eq!(write(&mut machine), OK);
    assert!(disk.is_dirty(), "the driver will flush");
    machine.start(FLUSH | CONFIG_WCE);
    assert!(machine.device().is_writeback(), "as after power-on");
    machine.transport().write(mmio::CONFIG + CONFIG_WRITEBACK as u64, &[0]);
    assert_eq!(write(&mut machine), OK);
    assert!(!disk.is_dirty());
    disk.set_fault(Some(DiskFault::Flush(BackendError::Host(5))));
    assert_eq!(write(&mut machine), IOERR, "a write that may be lost is no success");
    disk.set_fault(None);
    machine.transport().write(mmio::CONFIG + CONFIG_WRITEBACK as u64, &[1]);
    assert_eq!(write(&mut machine), OK);
    assert!(disk.is_dirty());
}

#[test]
fn a_read_only_disk_can_be_read_and_flushed() {
    let properties = BackendProperties { is_read_only: true, ..MemoryDisk::new(8).properties() };
    let disk = Arc::new(MemoryDisk::with(properties));
    let mut machine = machine_over(&disk);
    assert_ne!(machine.transport().acked_features().expect("negotiated") & RO, 0);
    assert_eq!(machine.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]).status, OK);
    assert_eq!(machine.request(VIRTIO_BLK_T_FLUSH, 0, &[]).status, OK);
}

#[test]
fn neighbours_share_a_call_and_strangers_do_not() {
    let (mut machine, disk) = machine(64);
    put(&machine, DATA, &pattern(3, 4 * 512));
    for sector in [4u64, 5, 6, 10] {
        let at = DATA + (sector % 4) * 512;
        machine.offer(VIRTIO_BLK_T_OUT, sector, &[(at, 512, false)]);
    }
    machine.offer(VIRTIO_BLK_T_IN, 11, &[(DATA + 0x8000, 512, true)]);
    machine.kick();
    assert!(machine.answers().iter().all(|(_, got)| got.status == OK));
    assert_eq!(disk.calls(), 3, "4 to 6 as one, 10, and a read of 11");
    assert_eq!(machine.device().counters().merged_requests, 2);
    assert_eq!(disk.contents()[4 * 512..7 * 512], pattern(3, 4 * 512)[..3 * 512]);
}

#[test]
fn reads_that_need_no_waiting_come_first_and_each_once() {
    let (mut machine, disk) = machine(64);
    disk.fill(0, &pattern(8, 64 * 512));
    disk.set_cached_sectors(30);
    disk.set_fault(Some(DiskFault::Sector(12, BackendError::Host(5))));
    let sectors = [40u64, 41, 2, 3, 50, 12, 20];
    for sector in sectors {
        machine.offer(VIRTIO_BLK_T_IN, sector, &[(DATA + sector * 512, 512, true)]);
    }
    machine.kick();
    let statuses: Vec<u8> = machine.answers().iter().map(|(_, got)| got.status).collect();
    assert_eq!(statuses, [OK, OK, OK, OK, OK, IOERR, OK]);
    for sector in sectors.into_iter().filter(|&sector| sector != 12) {
        let (at, from) = (DATA + sector * 512, usize::try_from(sector).unwrap() * 512);
        assert_eq!(get(&machine, at, 512), pattern(8, 64 * 512)[from..][..512], "{sector}");
    }
    // 40+41, 2+3, 50, 12 twice, 20.
    assert_eq!(disk.calls(), 6);
    assert_eq!(machine.device().counters().merged_requests, 2);
    assert_eq!(machine.device().counters().failed_reads, 1);
}

#[test]
fn a_bad_sector_costs_its_neighbours_nothing() {
    let (mut machine, disk) = machine(64);
    disk.set_fault(Some(DiskFault::Sector(5, BackendError::Host(5))));
    disk.fill(4 * 512, &[4; 512]);
    disk.fill(6 * 512, &[6; 512]);
    for sector in 4..7u64 {
        machine.offer(VIRTIO_BLK_T_IN, sector, &[(DATA + sector * 512, 512, true)]);
    }
    machine.kick();
    let got: Vec<_> = machine.answers().iter().map(|(_, got)| *got).collect();
    assert_eq!(got, [answer(OK, 513), answer(IOERR, 0), answer(OK, 513)]);
    assert_eq!(get(&machine, DATA + 4 * 512, 512), [4; 512]);
    assert_eq!(get(&machine, DATA + 6 * 512, 512), [6; 512]);
    assert_eq!(machine.device().counters().failed_reads, 1);
}

#[test]
fn a_full_host_fails_the_write_and_the_device_lives() {
    let (mut machine, disk) = machine(64);
    disk.set_fault(Some(DiskFault::Sector(5, BackendError::NoSpace(28))));
    let write = |machine: &mut BlockMachine, sector| {
        machine.request(VIRTIO_BLK_T_OUT, sector, &[(DATA, 512, false)]).status
    };
    assert_eq!((write(&mut machine, 5), write(&mut machine, 6)), (IOERR, OK));
    disk.set_fault(None);
    assert_eq!(write(&mut machine, 5), OK, "space has been found");
    let counters = *machine.device().counters();
    assert_eq!((counters.no_space, counters.failed_writes, counters.writes), (1, 1, 2));
}

#[test]
fn a_long_transfer_goes_in_steps_and_arrives_whole() {
    let (mut machine, disk) = machine(8192);
    let data = pattern(7, 3 << 20);
    put(&machine, 0x10_0000, &data);
    // Buffers that no step's end falls between.
    let parts = [
        (0x10_0000, 512, false),
        (0x10_0200, 0x18_0000, false),
        (0x10_0200 + 0x18_0000, (3 << 20) - 512 - 0x18_0000, false),
    ];
    assert_eq!(machine.request(VIRTIO_BLK_T_OUT, 8, &parts).status, OK);
    assert!(disk.contents()[8 * 512..][..3 << 20] == data);
    assert_eq!(disk.calls(), 3, "of 1 MiB each");
    let to = [(0x10_0000, 3 << 20, true)];
    put(&machine, 0x10_0000, &vec![0; 3 << 20]);
    let written = (3 << 20) + 1;
    assert_eq!(machine.request(VIRTIO_BLK_T_IN, 8, &to), answer(OK, written));
    assert!(get(&machine, 0x10_0000, 3 << 20) == data);
}

#[test]
fn another_disk_takes_the_place_of_the_first_between_batches() {
    let (mut machine, _) = machine(64);
    let larger = Arc::new(MemoryDisk::new(128));
    larger.fill(100 * 512, &[1; 512]);
    machine.offer(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, true)]);
    let pending = machine.transport().queue_notified(0);
    assert_eq!(pending, crate::virtio::QueueProgress::Pending);
    let replace = |machine: &mut BlockMachine, disk: &Arc<MemoryDisk>| {
        machine.transport().device_mut().replace_backend(disk.clone())
    };
    assert_eq!(replace(&mut machine, &larger), Err(BackendRefused::Busy));
    let job = machine.transport().device_mut().take_io().expect("a batch");
    assert_eq!(replace(&mut machine, &larger), Err(BackendRefused::Busy));
    machine.transport().device_mut().io_done(job.run());
    // Before the driver is answered: an owner that waited for that waited for ever, because it alone makes it happen.
    assert_eq!(replace(&mut machine, &larger), Ok(()));
    machine.kick();
    assert_eq!(machine.answers().len(), 1);
    machine.transport().config_changed();
    let mut capacity = [0; 8];
    machine.transport().read(mmio::CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 128);
    assert_eq!(machine.request(VIRTIO_BLK_T_IN, 100, &[(DATA, 512, true)]).status, OK);
    assert_eq!(get(&machine, DATA, 512), [1; 512]);
    let read_only = BackendProperties { is_read_only: true, ..larger.properties() };
    let refused = replace(&mut machine, &Arc::new(MemoryDisk::with(read_only)));
    assert_eq!(refused, Err(BackendRefused::ReadOnly));
}
