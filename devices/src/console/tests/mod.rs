//! The console with a well-behaved driver, a slow host and hostile drivers.
#![expect(clippy::cast_possible_truncation, reason = "test values are small")]

mod hvc;
mod stream;

use abi::console::{AGENT_PORT_NAME, event};
use abi::mmio;
use abi::virtio::status::DEVICE_NEEDS_RESET;
use abi::virtio::{VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::ring::RawDesc;
use crate::testing::{CountingIrq, DriverQueue, DriverRegisters, TestRam, UsedElement};
use crate::transport::MmioTransport;

const RAM_BYTES: usize = 0x100_0000;
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;
const AGENT_RX: usize = 4;
const AGENT_TX: usize = 5;
const CONSOLE_RX: usize = 0;
const CONSOLE_TX: usize = 1;
/// Each queue has a window of guest memory for its buffers.
const WINDOW: u64 = 0x10_0000;

struct Bench {
    transport: MmioTransport<Console>,
    ram: Arc<TestRam>,
    queues: Vec<DriverQueue>,
    next_head: [u16; QUEUES],
}

impl Bench {
    fn new(features: u64) -> Self {
        Self::with(Console::new(AGENT_PORT_NAME, None), features)
    }

    fn with(console: Console, features: u64) -> Self {
        let ram = Arc::new(TestRam::new(&[(0, RAM_BYTES)]));
        let irq = Arc::new(CountingIrq::default());
        let transport = MmioTransport::new(console, ram.clone(), irq);
        let mut bench = Self { transport, ram, queues: Vec::new(), next_head: [0; QUEUES] };
        bench.start(features);
        bench
    }

    /// Resets, negotiates, enables all queues and sets DRIVER_OK, as after a reboot.
    fn start(&mut self, features: u64) {
        self.transport.negotiate(VIRTIO_F_VERSION_1 | features);
        let ring = |index| DriverQueue::new(self.ram.memory(), 0x1000 * (index + 1), QUEUE_SIZE);
        self.queues = (0..QUEUES as u64).map(ring).collect();
        self.next_head = [0; QUEUES];
        for (index, queue) in (0..).zip(&self.queues) {
            assert!(self.transport.enable_queue(index, queue.layout()));
        }
        assert_eq!(self.transport.start(), 15);
    }

    /// A driver that has done the whole introduction and opened the agent port.
    fn opened() -> Self {
        let mut bench = Self::new(VIRTIO_CONSOLE_F_MULTIPORT);
        bench.open();
        bench
    }

    fn open(&mut self) {
        for _ in 0..8 {
            self.offer(CONTROL_RX, 64, true);
        }
        self.send_control(u32::MAX, event::DEVICE_READY, 1);
        self.send_control(0, event::PORT_READY, 1);
        self.send_control(1, event::PORT_READY, 1);
        self.send_control(1, event::PORT_OPEN, 1);
        self.queues[CONTROL_RX].take_all_used();
    }

    fn buffer(&self, queue: usize, head: u16) -> u64 {
        WINDOW * (queue as u64 + 1) + 0x4000 * u64::from(head)
    }

    /// Offers one buffer of `len` bytes on `queue`; returns its address.
    fn offer(&mut self, queue: usize, len: u32, writable: bool) -> u64 {
        let head = self.next_head[queue];
        self.next_head[queue] = (head + 1) % QUEUE_SIZE;
        let at = self.buffer(queue, head);
        self.queues[queue].offer_chain(head, &[(at, len, writable)]);
        at
    }

    fn kick(&mut self, queue: usize) {
        self.transport.store(mmio::QUEUE_NOTIFY, queue as u32);
        while self.transport.serve_pending() == QueueProgress::Pending {}
    }

    /// Sends `data` on a transmit queue without looking whether it was taken.
    fn transmit(&mut self, queue: usize, data: &[u8]) {
        let head = self.next_head[queue];
        let at = self.buffer(queue, head);
        self.ram.memory().write_slice(data, GuestAddress(at)).unwrap();
        self.offer(queue, data.len() as u32, false);
        self.kick(queue);
    }

    fn send_control(&mut self, id: u32, event: u16, value: u16) {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        self.transmit(CONTROL_TX, &bytes);
        assert!(self.queues[CONTROL_TX].take_used().is_some(), "control messages come back");
    }

    /// What the device wrote into the used buffers of `queue`.
    fn received(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let used = self.queues[queue].take_all_used();
        used.iter().map(|used| self.contents(queue, *used)).collect()
    }

    fn contents(&self, queue: usize, used: UsedElement) -> Vec<u8> {
        let mut data = vec![0; used.written as usize];
        let at = self.buffer(queue, used.head as u16);
        self.ram.memory().read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    fn console(&mut self) -> &mut Console {
        self.transport.device_mut()
    }

    fn read_agent(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.console().port_read(&mut out) > 0 {}
        out
    }
}

fn control(id: u32, event: u16, tail: &[u8]) -> Vec<u8> {
    let fixed = [&id.to_le_bytes()[..], &event.to_le_bytes(), &1u16.to_le_bytes()].concat();
    [&fixed, tail].concat()
}

#[test]
fn ports_are_announced_named_and_opened_in_the_specified_order() {
    let mut bench = Bench::new(VIRTIO_CONSOLE_F_MULTIPORT);
    for _ in 0..8 {
        bench.offer(CONTROL_RX, 64, true);
    }
    bench.send_control(u32::MAX, event::DEVICE_READY, 1);
    let added = [control(0, event::PORT_ADD, b""), control(1, event::PORT_ADD, b"")];
    assert_eq!(bench.received(CONTROL_RX), added);

    bench.send_control(0, event::PORT_READY, 1);
    let console = [control(0, event::CONSOLE_PORT, b""), control(0, event::PORT_OPEN, b"")];
    assert_eq!(bench.received(CONTROL_RX), console);

    bench.send_control(1, event::PORT_READY, 1);
    let name = control(1, event::PORT_NAME, b"org.aerostat.agent");
    assert_eq!(bench.received(CONTROL_RX), [name, control(1, event::PORT_OPEN, b"")]);

    assert!(!bench.console().guest_open());
    bench.send_control(1, event::PORT_OPEN, 1);
    assert!(bench.console().guest_open());
}

#[test]
fn announcements_wait_for_buffers() {
    let mut bench = Bench::new(VIRTIO_CONSOLE_F_MULTIPORT);
    bench.send_control(u32::MAX, event::DEVICE_READY, 1);
    bench.offer(CONTROL_RX, 64, true);
    bench.kick(CONTROL_RX);
    assert_eq!(bench.received(CONTROL_RX), [control(0, event::PORT_ADD, b"")]);
    bench.offer(CONTROL_RX, 64, true);
    bench.kick(CONTROL_RX);
    assert_eq!(bench.received(CONTROL_RX), [control(1, event::PORT_ADD, b"")]);
}

#[test]
fn configuration_space_says_how_many_ports_there_are() {
    let mut bench = Bench::opened();
    assert_eq!(bench.transport.load(mmio::CONFIG + CONFIG_MAX_NR_PORTS), 2);
    assert_eq!(bench.transport.load(mmio::CONFIG), 0);
    bench.transport.store(mmio::CONFIG + 8, u32::from(b'x'));
    assert_eq!(bench.transport.counters().config_refused, 1);
}

#[test]
fn bytes_of_the_guest_reach_the_host() {
    let mut bench = Bench::opened();
    bench.transmit(AGENT_TX, b"{\"event\":");
    bench.transmit(AGENT_TX, b"\"ready\"}\n");
    assert_eq!(bench.read_agent(), b"{\"event\":\"ready\"}\n");
    assert_eq!(bench.queues[AGENT_TX].take_all_used().len(), 2);
}

#[test]
fn bytes_of_the_host_fill_the_guests_buffers() {
    let mut bench = Bench::opened();
    bench.offer(AGENT_RX, 4, true);
    bench.offer(AGENT_RX, 16, true);
    bench.kick(AGENT_RX);
    assert_eq!(bench.console().port_write(b"hello\n"), 6);
    assert_eq!(bench.received(AGENT_RX), [b"hell".to_vec(), b"o\n".to_vec()]);
}

#[test]
fn bytes_of_the_host_wait_for_the_guests_buffers() {
    let mut bench = Bench::opened();
    assert_eq!(bench.console().port_write(b"hello\n"), 6);
    bench.offer(AGENT_RX, 16, true);
    bench.kick(AGENT_RX);
    assert_eq!(bench.received(AGENT_RX), [b"hello\n".to_vec()]);
}

#[test]
fn the_host_can_queue_a_bounded_amount() {
    let mut bench = Bench::opened();
    let data = vec![7; PORT_BUFFER_BYTES + 1];
    assert_eq!(bench.console().port_write(&data), PORT_BUFFER_BYTES);
    assert_eq!(bench.console().port_write(&data), 0);
    bench.offer(AGENT_RX, 100, true);
    bench.kick(AGENT_RX);
    assert_eq!(bench.console().port_write(&data), 100);
}

#[test]
fn nothing_is_queued_for_a_port_that_the_guest_has_not_opened() {
    let mut bench = Bench::new(VIRTIO_CONSOLE_F_MULTIPORT);
    assert_eq!(bench.console().port_write(b"early"), 0);
    bench.open();
    assert_eq!(bench.console().port_write(b"x"), 1);
    bench.send_control(1, event::PORT_OPEN, 0);
    assert!(!bench.console().guest_open());
    assert_eq!(bench.console().port_write(b"late"), 0);
    bench.send_control(1, event::PORT_OPEN, 1);
    bench.offer(AGENT_RX, 16, true);
    bench.kick(AGENT_RX);
    assert!(bench.received(AGENT_RX).is_empty(), "closing discarded the byte");
    assert_eq!(bench.console().counters().bytes_discarded, 1);
    assert_eq!(bench.console().guest_sessions(), 2);
}

#[test]
fn a_guest_waits_while_the_host_does_not_read() {
    let mut bench = Bench::opened();
    let block = vec![1; 0x4000];
    for _ in 0..4 {
        bench.transmit(AGENT_TX, &block);
    }
    assert_eq!(bench.queues[AGENT_TX].take_all_used().len(), 4);
    bench.transmit(AGENT_TX, b"waits");
    assert_eq!(bench.queues[AGENT_TX].take_used(), None);
    let mut out = Vec::new();
    assert_eq!(bench.console().port_read(&mut out), PORT_BUFFER_BYTES);
    assert!(bench.queues[AGENT_TX].take_used().is_some(), "reading resumed the ring");
    assert_eq!(bench.read_agent(), b"waits");
}

#[test]
fn a_chain_larger_than_the_buffer_comes_through_in_parts_and_is_returned_once() {
    let mut bench = Bench::opened();
    let data: Vec<u8> = (0..3 * PORT_BUFFER_BYTES + 5).map(|n| (n % 251) as u8).collect();
    let at = bench.buffer(AGENT_TX, 0);
    bench.ram.memory().write_slice(&data, GuestAddress(at)).unwrap();
    bench.offer(AGENT_TX, data.len() as u32, false);
    bench.kick(AGENT_TX);
    assert_eq!(bench.queues[AGENT_TX].take_used(), None);
    assert_eq!(bench.read_agent(), data);
    assert_eq!(bench.queues[AGENT_TX].take_all_used(), [UsedElement { head: 0, written: 0 }]);
}

/// Found by fuzzing: the half-taken chain was dropped with the device, as if it had been forgotten.
#[test]
fn a_vm_may_end_while_a_chain_is_half_taken() {
    let mut bench = Bench::opened();
    bench.transmit(AGENT_TX, &vec![1; PORT_BUFFER_BYTES + 1]);
    assert_eq!(bench.queues[AGENT_TX].take_used(), None);
    drop(bench);
}

#[test]
fn console_output_keeps_the_newest_bytes_and_never_blocks_the_guest() {
    let mut bench = Bench::opened();
    for fill in 0..6 {
        bench.transmit(CONSOLE_TX, &vec![fill; 0x4000]);
    }
    bench.transmit(CONSOLE_TX, b"end");
    assert_eq!(bench.queues[CONSOLE_TX].take_all_used().len(), 7);
    let mut out = Vec::new();
    assert_eq!(bench.console().console_read(&mut out, usize::MAX), PORT_BUFFER_BYTES);
    assert!(out.ends_with(b"\x05end") && out.starts_with(&[2]));
    assert_eq!(bench.console().counters().bytes_overwritten, 2 * 0x4000 + 3);
}

#[test]
fn of_a_huge_console_buffer_only_the_end_is_read() {
    let mut bench = Bench::opened();
    let at = bench.buffer(CONSOLE_TX, 0);
    let len = 4 * PORT_BUFFER_BYTES as u32;
    bench.ram.memory().write_slice(b"tail", GuestAddress(at + u64::from(len) - 4)).unwrap();
    bench.offer(CONSOLE_TX, len, false);
    bench.kick(CONSOLE_TX);
    let mut out = Vec::new();
    assert_eq!(bench.console().console_read(&mut out, usize::MAX), PORT_BUFFER_BYTES);
    assert!(out.ends_with(b"\0tail"));
    assert_eq!(bench.console().counters().bytes_from_guest, u64::from(len));
}

#[test]
fn without_multiport_port_0_works_alone() {
    let mut bench = Bench::new(0);
    bench.transmit(CONSOLE_TX, b"hello");
    let mut out = Vec::new();
    assert_eq!(bench.console().console_read(&mut out, usize::MAX), 5);
    bench.transmit(CONTROL_TX, &[0; 8]);
    assert_eq!(bench.queues[CONTROL_TX].take_used(), None, "no control queues then");
}

#[test]
fn a_missing_queue_prevents_the_start() {
    let mut bench = Bench::new(0);
    bench.transport.negotiate(VIRTIO_F_VERSION_1 | VIRTIO_CONSOLE_F_MULTIPORT);
    for (index, queue) in (0..5).zip(&bench.queues.clone()) {
        assert!(bench.transport.enable_queue(index, queue.layout()));
    }
    assert_eq!(bench.transport.start(), 15 | DEVICE_NEEDS_RESET);
}

#[test]
fn a_reset_closes_the_port_and_ends_the_conversation() {
    let mut bench = Bench::opened();
    bench.transmit(CONSOLE_TX, b"panic: ");
    bench.transmit(AGENT_TX, &vec![1; 2 * PORT_BUFFER_BYTES]);
    assert_eq!(bench.console().port_write(b"question"), 8);
    let sessions = bench.console().guest_sessions();

    bench.start(VIRTIO_CONSOLE_F_MULTIPORT);
    assert!(!bench.console().guest_open());
    assert_eq!(bench.read_agent(), b"");
    assert_eq!(bench.console().counters().bytes_discarded, PORT_BUFFER_BYTES as u64 + 8);
    let mut out = Vec::new();
    assert_eq!(
        bench.console().console_read(&mut out, usize::MAX),
        7,
        "the console's last words stay"
    );

    bench.open();
    assert_eq!(bench.console().guest_sessions(), sessions + 1);
    bench.transmit(AGENT_TX, b"new");
    assert_eq!(bench.read_agent(), b"new");
}

#[test]
fn a_driver_that_asks_for_ever_is_owed_no_more_than_once() {
    let mut bench = Bench::new(VIRTIO_CONSOLE_F_MULTIPORT);
    for _ in 0..1000 {
        bench.send_control(u32::MAX, event::DEVICE_READY, 1);
        bench.send_control(1, event::PORT_READY, 1);
    }
    for _ in 0..40 {
        bench.offer(CONTROL_RX, 64, true);
    }
    bench.kick(CONTROL_RX);
    // PORT_ADD twice, and the introduction of port 1: name and open.
    assert_eq!(bench.received(CONTROL_RX).len(), 4);
}

#[test]
fn control_messages_that_make_no_sense_are_returned_and_counted() {
    let mut bench = Bench::opened();
    bench.send_control(2, event::PORT_OPEN, 1);
    bench.send_control(u32::MAX, event::PORT_READY, 1);
    bench.send_control(1, event::PORT_NAME, 1);
    bench.send_control(0, 0xffff, 1);
    bench.send_control(0, event::DEVICE_READY, 0);
    bench.transmit(CONTROL_TX, &[1; 7]);
    assert!(bench.queues[CONTROL_TX].take_used().is_some());
    let counters = bench.console().counters();
    assert_eq!(counters.control_unknown_port, 2);
    assert_eq!(counters.control_unknown_event, 2);
    assert_eq!(counters.driver_refused, 1);
    assert_eq!(counters.control_short, 1);
}

#[test]
fn a_control_buffer_that_is_too_small_is_returned_and_the_message_waits() {
    let mut bench = Bench::new(VIRTIO_CONSOLE_F_MULTIPORT);
    bench.offer(CONTROL_RX, 7, true);
    bench.offer(CONTROL_RX, 8, true);
    bench.send_control(u32::MAX, event::DEVICE_READY, 1);
    assert_eq!(bench.received(CONTROL_RX), [vec![], control(0, event::PORT_ADD, b"")]);
    assert_eq!(bench.console().counters().control_buffer_small, 1);
}

#[test]
fn buffers_of_the_wrong_direction_are_returned_unused() {
    let mut bench = Bench::opened();
    bench.offer(AGENT_TX, 16, true);
    bench.kick(AGENT_TX);
    bench.offer(AGENT_RX, 16, false);
    bench.offer(AGENT_RX, 16, true);
    assert_eq!(bench.console().port_write(b"x"), 1);
    // Part of a chain for the wrong direction spoils it as well.
    for (queue, head) in [(AGENT_TX, 40), (AGENT_RX, 40)] {
        let at = bench.buffer(queue, head);
        bench.queues[queue].offer_chain(head, &[(at, 8, false), (at + 8, 8, true)]);
        bench.kick(queue);
    }
    assert_eq!(bench.console().port_write(b"y"), 1);
    let heads: Vec<u32> = bench.queues[AGENT_TX].take_all_used().iter().map(|u| u.head).collect();
    assert_eq!(heads, [0, 40]);
    assert_eq!(bench.received(AGENT_RX), [vec![], b"x".to_vec(), vec![]]);
    assert_eq!(bench.console().counters().chain_wrong_direction, 4);
    assert!(bench.read_agent().is_empty());
}

#[test]
fn bad_chains_on_every_queue_are_returned_and_counted() {
    let bad = [
        RawDesc { addr: u64::MAX, len: 4, flags: 0, next: 0 },
        RawDesc { addr: 0x8000, len: 0, flags: 2, next: 0 },
        RawDesc { addr: 0x8000, len: 4, flags: 1, next: 0 },
        RawDesc { addr: 0x8000, len: 4, flags: 1, next: 0xffff },
        RawDesc { addr: 0x8000, len: 24, flags: 4, next: 0 },
    ];
    for queue in [CONSOLE_TX, CONTROL_RX, CONTROL_TX, AGENT_RX, AGENT_TX] {
        let mut bench = Bench::opened();
        bench.start(VIRTIO_CONSOLE_F_MULTIPORT | VIRTIO_F_INDIRECT_DESC);
        if queue == CONTROL_RX {
            bench.send_control(u32::MAX, event::DEVICE_READY, 1);
        } else if queue == AGENT_RX {
            bench.send_control(1, event::PORT_OPEN, 1);
            assert_eq!(bench.console().port_write(b"x"), 1);
        }
        for (head, desc) in (QUEUE_SIZE / 2..).zip(bad) {
            // A chain that continues does so at itself, or nowhere.
            let next = if desc.next == 0 { head } else { desc.next };
            bench.queues[queue].set_desc(head, RawDesc { next, ..desc });
            bench.queues[queue].offer(head);
        }
        bench.kick(queue);
        let used = bench.queues[queue].take_all_used();
        let heads: Vec<u32> = used.iter().map(|used| used.head).collect();
        assert_eq!(heads, [32, 33, 34, 35, 36], "queue {queue}");
        assert_eq!(bench.console().counters().chain_bad, 5, "queue {queue}");
        assert_eq!(bench.transport.status(), 15);
    }
}

#[test]
fn a_ring_that_breaks_while_the_host_writes_needs_a_reset() {
    let mut bench = Bench::opened();
    bench.queues[AGENT_RX].set_avail_index(1000);
    assert_eq!(bench.console().port_write(b"x"), 1);
    assert_eq!(bench.transport.status(), 15 | DEVICE_NEEDS_RESET);
    // Counted, so that a guest that does it again and again cannot flood the log.
    assert_eq!(bench.console().counters().ring_unusable, 1);
}

#[test]
fn a_full_ring_of_useless_buffers_does_not_hold_the_host() {
    let mut bench = Bench::opened();
    for _ in 0..QUEUE_SIZE {
        bench.offer(AGENT_RX, 16, false);
    }
    assert_eq!(bench.console().port_write(b"x"), 1);
    assert_eq!(bench.queues[AGENT_RX].take_all_used().len(), usize::from(QUEUE_SIZE));
    bench.offer(AGENT_RX, 16, true);
    bench.kick(AGENT_RX);
    assert_eq!(bench.received(AGENT_RX), [b"x".to_vec()]);
}
