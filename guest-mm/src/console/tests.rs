use super::*;
use crate::virtio::testing::{FakeDevice, TestRam};
use crate::virtio::{MmioBus, ProbeError, QueueError, SetupError};
use abi::console::*;
use abi::virtio::{VIRTIO_F_VERSION_1, VIRTIO_ID_BALLOON, VIRTIO_ID_CONSOLE, status};
use std::vec::Vec;

const PORTS: u16 = 4;
const AGENT: u16 = 2;
const PAGES: usize = 16;

/// A console device with named ports, played by the test.
struct Host<'m> {
    fake: FakeDevice<'m>,
}

impl<'m> Host<'m> {
    fn new(ram: &'m TestRam) -> Self {
        let queues = [64; 2 * PORTS as usize + 2];
        let fake = FakeDevice::new(ram, VIRTIO_ID_CONSOLE, VIRTIO_CONSOLE_F_MULTIPORT, &queues);
        fake.set_config32(4, u32::from(PORTS));
        Self { fake }
    }

    fn control(&self, port: u32, event: u16, value: u16, name: &[u8]) {
        let chain = self.fake.take(CONTROL_RECEIVE_QUEUE).expect("a control buffer is posted");
        let mut message = Vec::from(control::encode(port, event, value));
        message.extend(name);
        self.fake.write_guest(chain.gpa, &message);
        let len = u32::try_from(message.len()).unwrap();
        self.fake.give_back(CONTROL_RECEIVE_QUEUE, u32::from(chain.head), len);
    }

    /// What the driver has said on the control queue: (port, event, value).
    fn said(&self) -> Vec<[u8; CONTROL_BYTES]> {
        core::iter::from_fn(|| self.fake.take(CONTROL_TRANSMIT_QUEUE))
            .map(|chain| {
                self.fake.give_back(CONTROL_TRANSMIT_QUEUE, u32::from(chain.head), 0);
                self.fake.guest_bytes(chain.gpa, chain.len).try_into().unwrap()
            })
            .collect()
    }

    fn announce(&self, port: u16, name: &str) {
        self.control(u32::from(port), event::PORT_ADD, 0, b"");
        self.control(u32::from(port), event::PORT_NAME, 1, name.as_bytes());
        self.control(u32::from(port), event::PORT_OPEN, 1, b"");
    }

    /// What the driver has sent on the agent's port.
    fn sent(&self) -> Vec<u8> {
        let mut sent = Vec::new();
        while let Some(chain) = self.fake.take(transmit_queue(AGENT)) {
            sent.extend(self.fake.guest_bytes(chain.gpa, chain.len));
            self.fake.give_back(transmit_queue(AGENT), u32::from(chain.head), 0);
        }
        sent
    }

    /// Sends `bytes` in as many buffers as are posted; returns how much went.
    fn push(&self, bytes: &[u8]) -> usize {
        let mut pushed = 0;
        while pushed < bytes.len() {
            let Some(chain) = self.fake.take(receive_queue(AGENT)) else { break };
            let len = (chain.len as usize).min(bytes.len() - pushed);
            self.fake.write_guest(chain.gpa, &bytes[pushed..pushed + len]);
            let queue = receive_queue(AGENT);
            self.fake.give_back(queue, u32::from(chain.head), u32::try_from(len).unwrap());
            pushed += len;
        }
        pushed
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

fn open_agent<'d>(host: &'d Host<'_>, ram: &TestRam) -> ConsoleDriver<&'d dyn MmioBus> {
    let bus: &dyn MmioBus = &host.fake;
    let mut console = ConsoleDriver::start(bus, ram).unwrap();
    host.announce(AGENT, AGENT_PORT_NAME);
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Open);
    console
}

#[test]
fn the_agent_port_is_found_by_name_among_others() {
    let ram = TestRam::new(PAGES);
    let host = Host::new(&ram);
    let mut console = ConsoleDriver::start(&host.fake, &ram).unwrap();
    let kicks: Vec<u16> = core::iter::from_fn(|| host.fake.kick()).collect();
    assert_eq!(kicks, [CONTROL_RECEIVE_QUEUE, CONTROL_TRANSMIT_QUEUE]);
    assert_eq!(host.said(), [control::encode(0, event::DEVICE_READY, 1)]);
    assert_eq!(console.agent(), AgentState::Waiting);
    host.announce(1, "org.example.other");
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Waiting);
    assert_eq!(host.said(), [control::encode(1, event::PORT_READY, 1)]);
    host.announce(AGENT, AGENT_PORT_NAME);
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Open);
    let port = u32::from(AGENT);
    let ready = control::encode(port, event::PORT_READY, 1);
    assert_eq!(host.said(), [ready, control::encode(port, event::PORT_OPEN, 1)]);
}

#[test]
fn without_multiport_there_is_no_agent_and_no_failure() {
    let ram = TestRam::new(PAGES);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_CONSOLE, 0, &[64, 64]);
    let mut console = ConsoleDriver::start(&fake, &ram).unwrap();
    assert_ne!(fake.status() & status::DRIVER_OK, 0);
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Absent);
    assert_eq!(console.send(b"x"), Ok(0));
    assert_eq!(console.receive(&mut [0; 8]), Ok(0));
}

#[test]
fn of_every_bit_that_is_offered_only_named_ports_are_accepted() {
    let ram = TestRam::new(PAGES);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_CONSOLE, u64::MAX, &[64; 4]);
    fake.set_config32(4, 1);
    let _console = ConsoleDriver::start(&fake, &ram).unwrap();
    assert_eq!(fake.accepted(), VIRTIO_CONSOLE_F_MULTIPORT | VIRTIO_F_VERSION_1);
}

#[test]
fn sent_bytes_arrive_in_order_and_a_slow_host_bounds_them() {
    let ram = TestRam::new(PAGES);
    let host = Host::new(&ram);
    let mut console = open_agent(&host, &ram);
    let bytes = pattern(20_000);
    let (mut sent, mut arrived) = (0, Vec::new());
    while sent < bytes.len() {
        let taken = console.send(&bytes[sent..]).unwrap();
        assert_eq!(taken, (bytes.len() - sent).min(4096), "eight buffers of 512 bytes, no more");
        sent += taken;
        if taken == 4096 {
            assert_eq!(console.send(b"more"), Ok(0));
        }
        arrived.extend(host.sent());
    }
    assert_eq!(arrived, bytes);
    assert_eq!(console.counters().sent_bytes, 20_000);
}

#[test]
fn received_bytes_arrive_in_order_and_a_slow_reader_stops_the_host() {
    let ram = TestRam::new(PAGES);
    let host = Host::new(&ram);
    let mut console = open_agent(&host, &ram);
    let bytes = pattern(20_000);
    let (mut pushed, mut arrived) = (0, Vec::<u8>::new());
    let mut out = [0; 300];
    while arrived.len() < bytes.len() {
        pushed += host.push(&bytes[pushed..]);
        assert!(pushed - arrived.len() <= 4096, "the host outran the buffers");
        let received = console.receive(&mut out).unwrap();
        arrived.extend(&out[..received]);
    }
    assert_eq!(arrived, bytes);
    assert_eq!(console.receive(&mut out), Ok(0));
}

#[test]
fn closing_and_removing_the_port_is_seen_and_undone_by_its_return() {
    let ram = TestRam::new(PAGES);
    let host = Host::new(&ram);
    let mut console = open_agent(&host, &ram);
    let port = u32::from(AGENT);
    host.control(port, event::PORT_OPEN, 0, b"");
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Closed);
    assert_eq!(console.send(b"x"), Ok(0));
    host.control(port, event::PORT_REMOVE, 0, b"");
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Waiting);
    host.announce(AGENT, AGENT_PORT_NAME);
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Open);
    assert_eq!(console.send(b"back"), Ok(4));
    assert_eq!(host.sent(), b"back");
}

#[test]
fn nonsense_on_the_control_queue_is_counted_and_the_agent_still_found() {
    let ram = TestRam::new(PAGES);
    let host = Host::new(&ram);
    let mut console = ConsoleDriver::start(&host.fake, &ram).unwrap();
    host.control(u32::from(PORTS), event::PORT_ADD, 0, b"");
    host.control(u32::MAX, event::PORT_NAME, 0, AGENT_PORT_NAME.as_bytes());
    host.control(1, 999, 0, b"");
    let chain = host.fake.take(CONTROL_RECEIVE_QUEUE).unwrap();
    host.fake.give_back(CONTROL_RECEIVE_QUEUE, u32::from(chain.head), 3);
    console.poll().unwrap();
    assert_eq!(console.counters().bad_messages, 4);
    host.announce(AGENT, AGENT_PORT_NAME);
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Open);
}

#[test]
fn a_second_port_of_the_agents_name_is_ignored() {
    let ram = TestRam::new(PAGES);
    let host = Host::new(&ram);
    let mut console = open_agent(&host, &ram);
    host.announce(1, AGENT_PORT_NAME);
    console.poll().unwrap();
    assert_eq!(console.counters().bad_messages, 1);
    assert_eq!(console.send(b"x"), Ok(1));
    assert_eq!(host.sent(), b"x");
}

#[test]
fn more_announcements_than_buffers_are_all_answered() {
    let ram = TestRam::new(PAGES);
    let host = Host::new(&ram);
    let mut console = ConsoleDriver::start(&host.fake, &ram).unwrap();
    let _device_ready = host.said();
    let mut answered = 0;
    for _ in 0..40 {
        host.control(1, event::PORT_ADD, 0, b"");
        console.poll().unwrap();
        answered += host.said().len();
    }
    assert_eq!(answered, 40);
}

#[test]
fn a_lying_device_ends_the_console_and_not_the_kernel() {
    let ram = TestRam::new(PAGES);
    let host = Host::new(&ram);
    let mut console = open_agent(&host, &ram);
    host.fake.give_back(receive_queue(AGENT), 77, 4);
    let error = ConsoleError::Queue(QueueError::UnknownHead { head: 77 });
    assert_eq!(console.receive(&mut [0; 8]), Err(error));
    assert_eq!(console.poll(), Err(error));
    assert_eq!(console.send(b"x"), Err(error));
}

#[test]
fn a_device_that_needs_a_reset_ends_the_console_and_a_new_start_mends_it() {
    let ram = TestRam::new(2 * PAGES);
    let host = Host::new(&ram);
    let mut console = open_agent(&host, &ram);
    host.fake.set_needs_reset();
    console.interrupt();
    assert_eq!(console.poll(), Err(ConsoleError::NeedsReset));
    console.shut_down(&ram).unwrap();
    assert_eq!(ram.lent(), 0);
    let console = open_agent(&host, &ram);
    assert_eq!(console.counters(), ConsoleCounters::default());
}

#[test]
fn each_failure_to_start_is_named_and_leaves_no_memory_lent() {
    let probe = ConsoleError::Probe(ProbeError::WrongDevice { wanted: 3, found: 5 });
    let no_queue = |queue| ConsoleError::Setup(SetupError::NoQueue { queue });
    let multiport = VIRTIO_CONSOLE_F_MULTIPORT;
    for (id, features, queues, pages, error) in [
        (VIRTIO_ID_BALLOON, 0, &[64, 64][..], PAGES, probe),
        (VIRTIO_ID_CONSOLE, 0, &[64], PAGES, no_queue(1)),
        (VIRTIO_ID_CONSOLE, 0, &[64, 4], PAGES, no_queue(1)),
        (VIRTIO_ID_CONSOLE, multiport, &[64, 64], PAGES, no_queue(2)),
        (VIRTIO_ID_CONSOLE, 0, &[64, 64], 4, ConsoleError::Setup(SetupError::NoMemory)),
    ] {
        let ram = TestRam::new(pages);
        let fake = FakeDevice::new(&ram, id, features, queues);
        assert_eq!(ConsoleDriver::start(&fake, &ram).err(), Some(error));
        assert_eq!(ram.lent(), 0, "{error}");
    }
}

#[test]
fn an_absurd_number_of_ports_is_cut_to_what_we_serve() {
    let ram = TestRam::new(PAGES);
    let fake = FakeDevice::new(&ram, VIRTIO_ID_CONSOLE, VIRTIO_CONSOLE_F_MULTIPORT, &[8; 66]);
    fake.set_config32(4, u32::MAX);
    let mut console = ConsoleDriver::start(&fake, &ram).unwrap();
    console.poll().unwrap();
    assert_eq!(console.agent(), AgentState::Waiting);
}
