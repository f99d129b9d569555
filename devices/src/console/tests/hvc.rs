//! Port 0 as a console that the host reads, writes and resizes.

use super::*;

const SIZE: ConsoleSize = ConsoleSize { columns: 132, rows: 43 };
const SIZED: u64 = VIRTIO_CONSOLE_F_MULTIPORT | VIRTIO_CONSOLE_F_SIZE;

fn sized(features: u64) -> Bench {
    Bench::with(Console::new(AGENT_PORT_NAME, Some(SIZE)), features)
}

/// A driver that has opened its console, which the host reads.
fn opened() -> Bench {
    let mut bench = Bench::opened();
    bench.console().set_console_reader(true);
    bench.send_control(0, event::PORT_OPEN, 1);
    bench
}

fn read(bench: &mut Bench, max: usize) -> Vec<u8> {
    let mut out = Vec::new();
    bench.console().console_read(&mut out, max);
    out
}

#[test]
fn output_waits_for_a_host_that_reads_and_arrives_whole() {
    let mut bench = opened();
    let data: Vec<u8> = (0..6 * 0x4000usize).map(|n| (n % 251) as u8).collect();
    for block in data.chunks(0x4000) {
        bench.transmit(CONSOLE_TX, block);
    }
    assert_eq!(bench.queues[CONSOLE_TX].take_all_used().len(), 4, "two wait");
    assert_eq!(bench.console().console_waits(), (true, 4));
    let mut out = Vec::new();
    while bench.console().console_readable() > 0 {
        out.extend(read(&mut bench, 1000));
    }
    assert!(out == data);
    assert_eq!(bench.console().console_waits(), (false, 6));
    assert_eq!(bench.console().counters().bytes_overwritten, 0);
}

#[test]
fn a_host_that_gives_up_reading_frees_the_guest_and_keeps_the_newest_output() {
    let mut bench = opened();
    let at = bench.buffer(CONSOLE_TX, 0);
    let data: Vec<u8> = (0..2 * PORT_BUFFER_BYTES + 100).map(|n| (n % 251) as u8).collect();
    bench.ram.memory().write_slice(&data, GuestAddress(at)).unwrap();
    bench.offer(CONSOLE_TX, data.len() as u32, false);
    bench.kick(CONSOLE_TX);
    assert_eq!(bench.queues[CONSOLE_TX].take_used(), None, "half taken, it waits");
    assert_eq!(read(&mut bench, 10), data[..10]);

    bench.console().set_console_reader(false);
    let queue = ConsoleQueue::Transmit(0).index();
    assert_eq!(bench.transport.resume_queue(queue), QueueProgress::Idle);
    assert_eq!(bench.queues[CONSOLE_TX].take_all_used().len(), 1);
    assert!(read(&mut bench, usize::MAX) == data[data.len() - PORT_BUFFER_BYTES..]);
    let counters = *bench.console().counters();
    assert_eq!(counters.bytes_from_guest, data.len() as u64, "each byte is counted once");
    assert_eq!(counters.bytes_overwritten, data.len() as u64 - PORT_BUFFER_BYTES as u64 - 10);
}

#[test]
fn input_waits_for_a_console_and_for_its_buffers() {
    let mut bench = Bench::opened();
    assert_eq!(bench.console().console_room(), 0);
    assert_eq!(bench.console().console_write(b"early"), 0);
    bench.send_control(0, event::PORT_OPEN, 1);
    assert_eq!(bench.console().console_room(), PORT_BUFFER_BYTES);
    assert_eq!(bench.console().console_write(b"ls\n"), 3);
    assert_eq!(bench.console().console_room(), PORT_BUFFER_BYTES - 3);
    bench.offer(CONSOLE_RX, 16, true);
    bench.kick(CONSOLE_RX);
    assert_eq!(bench.received(CONSOLE_RX), [b"ls\n".to_vec()]);
    assert_eq!(bench.console().console_room(), PORT_BUFFER_BYTES);
}

#[test]
fn without_multiport_the_console_works_both_ways() {
    let mut bench = sized(VIRTIO_CONSOLE_F_SIZE);
    bench.console().set_console_reader(true);
    bench.offer(CONSOLE_RX, 16, true);
    bench.kick(CONSOLE_RX);
    assert_eq!(bench.console().console_write(b"hi"), 2);
    assert_eq!(bench.received(CONSOLE_RX), [b"hi".to_vec()]);
    bench.transmit(CONSOLE_TX, b"ho");
    assert_eq!(read(&mut bench, usize::MAX), b"ho");
}

#[test]
fn the_last_words_of_a_console_survive_a_reset_though_the_host_reads() {
    let mut bench = opened();
    bench.transmit(CONSOLE_TX, b"panic: ");
    bench.start(VIRTIO_CONSOLE_F_MULTIPORT);
    assert_eq!(read(&mut bench, usize::MAX), b"panic: ");
}

fn size_message(size: ConsoleSize) -> Vec<u8> {
    let fields = [size.columns.to_le_bytes(), size.rows.to_le_bytes()].concat();
    control(0, event::RESIZE, &fields)
}

#[test]
fn a_console_is_introduced_with_its_size_columns_first() {
    let mut bench = sized(SIZED);
    bench.offer(CONTROL_RX, 64, true);
    bench.offer(CONTROL_RX, 64, true);
    bench.send_control(u32::MAX, event::DEVICE_READY, 1);
    bench.received(CONTROL_RX);
    for _ in 0..4 {
        bench.offer(CONTROL_RX, 64, true);
    }
    bench.send_control(0, event::PORT_READY, 1);
    let expected = [
        control(0, event::CONSOLE_PORT, b""),
        control(0, event::PORT_OPEN, b""),
        size_message(SIZE),
    ];
    assert_eq!(bench.received(CONTROL_RX), expected);
    assert_eq!(bench.transport.load(mmio::CONFIG), 43 << 16 | 132);
}

#[test]
fn of_several_new_sizes_the_driver_hears_the_last() {
    let mut bench = sized(SIZED);
    bench.open();
    let used = bench.queues[CONTROL_RX].take_all_used().len();
    assert_eq!(used, 0, "all introductions were taken");
    let generation = bench.transport.load(mmio::CONFIG_GENERATION);
    // Eight buffers were offered and seven messages sent; one more uses the last up.
    for columns in [100, 101, 102] {
        assert!(bench.console().set_size(ConsoleSize { columns, rows: 50 }));
        bench.transport.config_changed();
    }
    assert_eq!(bench.received(CONTROL_RX), [size_message(ConsoleSize { columns: 100, rows: 50 })]);
    bench.offer(CONTROL_RX, 64, true);
    bench.kick(CONTROL_RX);
    assert_eq!(bench.received(CONTROL_RX), [size_message(ConsoleSize { columns: 102, rows: 50 })]);
    assert_ne!(bench.transport.load(mmio::CONFIG_GENERATION), generation);
    assert_eq!(bench.transport.load(mmio::CONFIG), 50 << 16 | 102);
    assert!(!bench.console().set_size(ConsoleSize { columns: 102, rows: 50 }), "nothing new");
}

#[test]
fn a_driver_that_does_not_want_the_size_is_not_told() {
    let mut bench = sized(VIRTIO_CONSOLE_F_MULTIPORT);
    bench.open();
    assert!(bench.console().set_size(ConsoleSize { columns: 1, rows: 1 }));
    bench.offer(CONTROL_RX, 64, true);
    bench.kick(CONTROL_RX);
    assert!(bench.received(CONTROL_RX).is_empty());
}

#[test]
fn a_console_without_a_size_offers_none_and_never_gets_one() {
    let mut bench = Bench::opened();
    assert_eq!(bench.console().device_features() & VIRTIO_CONSOLE_F_SIZE, 0);
    assert!(!bench.console().set_size(SIZE));
    assert_eq!(bench.transport.load(mmio::CONFIG), 0);
}
