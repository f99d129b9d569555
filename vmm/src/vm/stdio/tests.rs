//! `hvc0` between a driver and files, with the poller but without a machine.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use abi::virtio::VIRTIO_F_VERSION_1;
use devices::ram::GuestRam;
use devices::testing::{DriverQueue, DriverRegisters, TestRam};
use devices::virtio::QueueProgress;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;
use crate::line::Line;

const RING: u16 = 64;
/// Bytes of each of the guest's buffers.
const BLOCK: u32 = 4096;
const TX_BUFFER: u64 = 0x10_0000;
const RX_BUFFERS: u64 = 0x20_0000;

/// A driver without MULTIPORT, and the part of the event loop that serves it.
struct Bench {
    stdio: Stdio,
    poller: Poller<Token>,
    ram: Arc<TestRam>,
    receive: DriverQueue,
    transmit: DriverQueue,
    sent: u16,
    received: Vec<u8>,
    quit: bool,
}

impl Bench {
    fn new(input: Option<File>, output: File) -> Self {
        let ram = Arc::new(TestRam::new(&[(0, 0x40_0000)]));
        let console = Window::new(Console::new("agent", None), 0, ram.clone()).expect("eventfds");
        let drained = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd"));
        let line = Arc::new(Line::new(4).expect("line"));
        let com1 = Com1::new(line, drained.clone(), Instant::now()).expect("com1");
        let port = SerialPort::Files { input, output };
        let com1 = (Arc::new(com1), drained);
        let stdio = Stdio::open(port, GuestConsole::Virtio, com1, Arc::new(console));
        let mut stdio = stdio.expect("files can be opened");
        let mut poller = Poller::new().expect("epoll");
        stdio.register(&mut poller).expect("files can be watched");
        let receive = DriverQueue::new(ram.memory(), 0x1000, RING);
        let transmit = DriverQueue::new(ram.memory(), 0x4000, RING);
        let (received, quit) = (Vec::new(), false);
        Self { stdio, poller, ram, receive, transmit, sent: 0, received, quit }
    }

    /// The driver comes up and provides all its receive buffers.
    fn start(&mut self) {
        let console = self.stdio.console.clone();
        let mut transport = console.lock();
        transport.negotiate(VIRTIO_F_VERSION_1);
        for (index, queue) in [(0, &self.receive), (1, &self.transmit)] {
            assert!(transport.enable_queue(index, queue.layout()));
        }
        for head in 0..RING {
            self.receive.offer_chain(head, &[(rx_buffer(head), BLOCK, true)]);
        }
        transport.start();
    }

    /// One pass of the event loop, and the guest taking what it got.
    fn turn(&mut self) {
        let (stdio, poller) = (&mut self.stdio, &mut self.poller);
        for token in poller.wait(Some(Instant::now())).expect("epoll") {
            let turn = match token {
                Token::SerialOutput | Token::SerialWritable => {
                    stdio.pump_output(poller).map(|()| Turn::default())
                }
                Token::SerialInput => stdio.pump_input(poller),
                Token::SerialDrained => stdio.drained(poller),
                Token::Requests
                | Token::Vcpus
                | Token::Signal
                | Token::Resized
                | Token::ConsoleQueue(_)
                | Token::ConsoleTouched
                | Token::EntropyQueue
                | Token::EntropyTouched => panic!("{token:?} is nothing of the consoles"),
            };
            self.quit |= turn.expect("files work").quit;
        }
        let turn = stdio.serve_hvc(poller).expect("files work");
        self.quit |= turn.quit;
        for used in self.receive.take_all_used() {
            let head = u16::try_from(used.head).expect("small");
            let mut data = vec![0; usize::try_from(used.written).expect("small")];
            self.ram.memory().read_slice(&mut data, GuestAddress(rx_buffer(head))).expect("in RAM");
            self.received.extend(data);
            self.receive.offer_chain(head, &[(rx_buffer(head), BLOCK, true)]);
            kick(&self.stdio, 0);
        }
    }

    /// Writes a block if the one before has been taken, as Linux's driver does.
    fn send(&mut self, block: &[u8]) -> bool {
        if self.transmit.used_index() != self.sent {
            return false;
        }
        let len = u32::try_from(block.len()).expect("a block");
        self.ram.memory().write_slice(block, GuestAddress(TX_BUFFER)).expect("in RAM");
        self.transmit.offer_chain(self.sent % RING, &[(TX_BUFFER, len, false)]);
        self.sent += 1;
        kick(&self.stdio, 1);
        true
    }
}

fn kick(stdio: &Stdio, queue: u16) {
    assert_eq!(stdio.console.lock().queue_notified(queue), QueueProgress::Idle);
}

fn rx_buffer(head: u16) -> u64 {
    RX_BUFFERS + u64::from(head) * u64::from(BLOCK)
}

/// Bytes that show any loss, repetition or reordering.
fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).expect("small")).collect()
}

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().expect("pipe");
    (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
}

fn file(contents: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("tempfile");
    file.write_all(contents).expect("write");
    std::io::Seek::rewind(&mut file).expect("rewind");
    file
}

#[test]
fn a_long_regular_file_reaches_a_console_that_comes_late() {
    let expected = text(300_000);
    let mut bench = Bench::new(Some(file(&expected)), tempfile::tempfile().expect("tempfile"));
    bench.turn();
    assert!(bench.received.is_empty());
    bench.start();
    while bench.received.len() < expected.len() {
        let before = bench.received.len();
        bench.turn();
        assert!(bench.received.len() > before, "stuck at {before}");
    }
    assert!(bench.received == expected);
}

#[test]
fn a_pipe_is_read_only_as_fast_as_the_guest_takes_it() {
    let (reader, mut writer) = pipe();
    let mut bench = Bench::new(Some(reader), tempfile::tempfile().expect("tempfile"));
    writer.write_all(b"typed early, ").expect("write");
    (0..4).for_each(|_| bench.turn());
    bench.start();
    (0..4).for_each(|_| bench.turn());
    writer.write_all(b"typed late").expect("write");
    drop(writer);
    (0..4).for_each(|_| bench.turn());
    assert_eq!(bench.received, b"typed early, typed late");
    assert!(!bench.quit, "the end of the input is not the end of the VM");
}

/// Reads what is there now.
fn read_available(reader: &mut File, got: &mut Vec<u8>) {
    let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one `pollfd`, valid for the call.
    if unsafe { libc::poll(&mut poll, 1, 0) } > 0 {
        let mut bytes = [0; 8192];
        let read = reader.read(&mut bytes).expect("read");
        got.extend(&bytes[..read]);
    }
}

#[test]
fn a_mebibyte_of_output_goes_through_a_pipe_whole() {
    let (mut reader, writer) = pipe();
    let mut bench = Bench::new(None, writer);
    bench.start();
    let expected = text(1 << 20);
    let mut got = Vec::new();
    for block in expected.chunks(4096) {
        while !bench.send(block) {
            bench.turn();
            read_available(&mut reader, &mut got);
        }
    }
    while got.len() < expected.len() {
        bench.turn();
        read_available(&mut reader, &mut got);
    }
    assert!(got == expected);
}

#[test]
fn output_to_nobody_is_never_waited_for() {
    let (reader, writer) = pipe();
    drop(reader);
    let mut bench = Bench::new(None, writer);
    bench.start();
    for _ in 0..100 {
        assert!(bench.send(&[b'x'; 4096]));
        bench.turn();
        bench.turn();
    }
}

#[test]
fn what_the_guest_wrote_last_is_written_at_the_end() {
    let (mut reader, writer) = pipe();
    let mut bench = Bench::new(None, writer);
    bench.start();
    bench.stdio.com1.output().push(b"serial, ");
    // More than the queue and the device hold: the last block is still in the ring.
    let expected = text(2 * 65_536 + 4096);
    let mut blocks = expected.chunks(4096).peekable();
    while blocks.peek().is_some_and(|block| bench.send(block)) {
        blocks.next();
        bench.stdio.serve_hvc(&mut bench.poller).expect("files work");
    }
    assert_eq!(blocks.count(), 0);
    let reading = std::thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).expect("read");
        got
    });
    bench.stdio.finish();
    drop(bench);
    let got = reading.join().expect("the reader does not panic");
    assert!(got == [&b"serial, "[..], &expected].concat());
}

#[test]
fn a_terminal_that_is_none_gives_no_size() {
    let nothing = tempfile::tempfile().expect("tempfile");
    let mut bench = Bench::new(None, nothing);
    bench.start();
    // Whatever this test's own streams are: a console that was made without a size keeps to that.
    bench.stdio.resized();
    assert_eq!(bench.stdio.console.lock().load(abi::mmio::CONFIG), 0);
}
