//! The console device as a whole: start, control messages, the agent's port.

use core::fmt;

use abi::console::{
    AGENT_PORT_NAME, CONFIG_MAX_NR_PORTS, CONTROL_BYTES, CONTROL_RECEIVE_QUEUE,
    CONTROL_TRANSMIT_QUEUE, VIRTIO_CONSOLE_F_MULTIPORT, event, receive_queue, transmit_queue,
};
use abi::virtio::VIRTIO_ID_CONSOLE;

use super::control::{self, Event};
use super::port::{Receiver, Sender};
use crate::virtio::{
    Access, Buffer, DmaMemory, DmaPages, DmaSlice, MmioBus, MmioDevice, PAGE_BYTES, ProbeError,
    QueueError, RingMemory, SetupError, SplitQueue,
};

/// Entries of every queue.
pub(super) const RING_ENTRIES: u16 = 8;
/// Ports served at most; the device's figure is not trusted beyond it.
const MAX_PORTS: u16 = 32;
/// Bytes set aside for the rings of one queue.
const RING_STRIDE: usize = 256;
const _: () = assert!(RingMemory::bytes(RING_ENTRIES) <= RING_STRIDE);
const RINGS_PER_PAGE: usize = PAGE_BYTES / RING_STRIDE;
const MAX_QUEUES: usize = 2 * MAX_PORTS as usize + 2;
const RING_PAGES: usize = MAX_QUEUES.div_ceil(RINGS_PER_PAGE);
/// Pages after those of the rings.
const CONTROL_PAGE: usize = RING_PAGES;
const RECEIVE_PAGE: usize = RING_PAGES + 1;
const TRANSMIT_PAGE: usize = RING_PAGES + 2;
const PAGES: usize = RING_PAGES + 3;
/// Bytes of a control message's buffer, name included.
const MESSAGE_BYTES: usize = 256;
const _: () = assert!(2 * MESSAGE_BYTES * RING_ENTRIES as usize <= PAGE_BYTES);

type ControlQueue = SplitQueue<u16, { RING_ENTRIES as usize }>;

/// The console cannot be used (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleError {
    /// The window holds no console.
    Probe(ProbeError),
    /// The device could not be set up.
    Setup(SetupError),
    /// The device broke the rules of a queue.
    Queue(QueueError),
    /// The device asks for a reset.
    NeedsReset,
}

impl fmt::Display for ConsoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(_) => f.write_str("No console device"),
            Self::Setup(_) => f.write_str("The console could not be set up"),
            Self::Queue(_) => f.write_str("The console broke the rules of a virtqueue"),
            Self::NeedsReset => f.write_str("The console needs a reset"),
        }
    }
}

impl core::error::Error for ConsoleError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Probe(source) => Some(source),
            Self::Setup(source) => Some(source),
            Self::Queue(source) => Some(source),
            Self::NeedsReset => None,
        }
    }
}

/// Where the agent's port stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// The device has no named ports.
    Absent,
    /// The port has not been announced (or was removed).
    Waiting,
    /// The port exists, the host has not opened it.
    Closed,
    /// Bytes flow.
    Open,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsoleCounters {
    /// Control messages that made no sense or named a port out of range.
    pub bad_messages: u64,
    /// Bytes received from the host.
    pub received_bytes: u64,
    /// Bytes sent to the host.
    pub sent_bytes: u64,
}

/// The port that carries the agent, once its name was seen.
#[derive(Debug)]
struct Agent {
    port: u16,
    receiver: Receiver,
    sender: Sender,
    /// Announced and not removed since.
    is_present: bool,
    /// The host has opened its side.
    is_open: bool,
}

/// The control queues; absent without MULTIPORT.
#[derive(Debug)]
struct Control {
    receive: ControlQueue,
    transmit: ControlQueue,
    /// Bit `n`: control transmit buffer `n` is free.
    free: u16,
    /// Bit `p`: PORT_READY for port `p` is still to be sent.
    ready_due: u32,
    /// PORT_OPEN for the agent's port is still to be sent.
    open_due: bool,
    /// Ports that the host had opened before we knew which one is the agent's.
    host_open: u32,
}

/// The driver of one virtio-console device.
#[derive(Debug)]
pub struct ConsoleDriver<B> {
    device: MmioDevice<B>,
    pages: DmaPages<PAGES>,
    ports: u16,
    control: Option<Control>,
    agent: Option<Agent>,
    failed: Option<ConsoleError>,
    counters: ConsoleCounters,
}

impl<B: MmioBus> ConsoleDriver<B> {
    /// Starts the console behind `bus`.
    ///
    /// # Errors
    /// [`ConsoleError`]; no memory stays lent, except to a device that does not
    /// finish its reset.
    pub fn start<M: DmaMemory + ?Sized>(bus: B, memory: &M) -> Result<Self, ConsoleError> {
        let device = MmioDevice::probe(bus)
            .and_then(|device| device.expect_id(VIRTIO_ID_CONSOLE))
            .map_err(ConsoleError::Probe)?;
        device.reset().map_err(ConsoleError::Setup)?;
        let pages = DmaPages::lend(memory, PAGES);
        let pages = pages.ok_or(ConsoleError::Setup(SetupError::NoMemory))?;
        let mut console = Self {
            device,
            pages,
            ports: 1,
            control: None,
            agent: None,
            failed: None,
            counters: ConsoleCounters::default(),
        };
        match console.bring_up() {
            Ok(()) => Ok(console),
            Err(error) => {
                // A device stuck in reset may still write to the pages: they stay lent.
                let _stuck = console.shut_down(memory);
                Err(error)
            }
        }
    }

    fn bring_up(&mut self) -> Result<(), ConsoleError> {
        let features = self.device.negotiate(VIRTIO_CONSOLE_F_MULTIPORT);
        let features = features.map_err(ConsoleError::Setup)?;
        let has_ports = features & VIRTIO_CONSOLE_F_MULTIPORT != 0;
        if has_ports {
            let claimed = self.device.read_config32(CONFIG_MAX_NR_PORTS);
            self.ports = u16::try_from(claimed).unwrap_or(MAX_PORTS).clamp(1, MAX_PORTS);
        }
        // Queues can be enabled only before DRIVER_OK, names come after it: so all of them.
        self.enable(receive_queue(0))?;
        self.enable(transmit_queue(0))?;
        if !has_ports {
            return self.device.start().map_err(ConsoleError::Setup);
        }
        let receive = ControlQueue::new(self.enable(CONTROL_RECEIVE_QUEUE)?);
        let transmit = ControlQueue::new(self.enable(CONTROL_TRANSMIT_QUEUE)?);
        for port in 1..self.ports {
            self.enable(receive_queue(port))?;
            self.enable(transmit_queue(port))?;
        }
        self.device.start().map_err(ConsoleError::Setup)?;
        let no_ring = ConsoleError::Setup(SetupError::NoQueue { queue: CONTROL_RECEIVE_QUEUE });
        let transmit = transmit.ok_or(no_ring)?;
        let free = u16::try_from((1u32 << transmit.capacity()) - 1).unwrap_or(u16::MAX);
        self.control = Some(Control {
            receive: receive.ok_or(no_ring)?,
            transmit,
            free,
            ready_due: 0,
            open_due: false,
            host_open: 0,
        });
        self.open_control().map_err(ConsoleError::Queue)
    }

    /// Lays out, enables and returns the ring of `queue`.
    fn enable(&self, queue: u16) -> Result<RingMemory, ConsoleError> {
        let entries = self.device.queue_entries(queue, RING_ENTRIES);
        let entries = entries.map_err(ConsoleError::Setup)?;
        // One size for all queues, so that the agent's can be found again.
        if entries != RING_ENTRIES {
            return Err(ConsoleError::Setup(SetupError::NoQueue { queue }));
        }
        let ring = RingMemory::in_one_piece(entries, self.ring_memory(queue));
        let ring = ring.ok_or(ConsoleError::Setup(SetupError::NoQueue { queue }))?;
        self.device.enable_queue(queue, &ring).map_err(ConsoleError::Setup)?;
        Ok(ring)
    }

    fn ring_memory(&self, queue: u16) -> DmaSlice {
        let queue = usize::from(queue);
        let offset = queue % RINGS_PER_PAGE * RING_STRIDE;
        self.page(queue / RINGS_PER_PAGE, offset, RING_STRIDE)
    }

    /// # Panics
    /// Outside the pages lent at start: a bug here, the numbers are constants.
    fn page(&self, page: usize, offset: usize, len: usize) -> DmaSlice {
        self.pages.slice(page, offset, len).expect("the page was lent at start")
    }

    /// Posts the control receive buffers and says DEVICE_READY.
    fn open_control(&mut self) -> Result<(), QueueError> {
        let messages = self.page(CONTROL_PAGE, 0, PAGE_BYTES);
        let Some(control) = &mut self.control else { return Ok(()) };
        for slot in 0..control.receive.capacity() {
            control.receive.add(message_buffer(&messages, slot), slot)?;
        }
        control.send(&messages, 0, event::DEVICE_READY, 1)?;
        if control.receive.publish() {
            self.device.notify(CONTROL_RECEIVE_QUEUE);
        }
        if control.transmit.publish() {
            self.device.notify(CONTROL_TRANSMIT_QUEUE);
        }
        Ok(())
    }

    /// Acknowledges an interrupt; to be called when the device's line fired, before [`Self::poll`].
    pub fn interrupt(&mut self) {
        if self.device.acknowledge_interrupt().config && self.device.needs_reset() {
            self.failed.get_or_insert(ConsoleError::NeedsReset);
        }
    }

    /// Handles control messages; bounded work, no waiting.
    ///
    /// # Errors
    /// What ended the console; nothing flows any more until it is started anew.
    pub fn poll(&mut self) -> Result<(), ConsoleError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.poll_control().map_err(|error| self.fail(error))
    }

    fn fail(&mut self, error: QueueError) -> ConsoleError {
        *self.failed.get_or_insert(ConsoleError::Queue(error))
    }

    fn poll_control(&mut self) -> Result<(), QueueError> {
        let messages = self.page(CONTROL_PAGE, 0, PAGE_BYTES);
        // At most one ring of messages a call, however fast the device sends.
        for _ in 0..RING_ENTRIES {
            let Some(control) = &mut self.control else { return Ok(()) };
            let Some(done) = control.receive.pop()? else { break };
            let mut message = [0; MESSAGE_BYTES];
            let len = (done.written as usize).min(MESSAGE_BYTES);
            received(&messages, done.cookie).read(0, &mut message[..len]);
            control.receive.add(message_buffer(&messages, done.cookie), done.cookie)?;
            self.control_message(&message[..len])?;
        }
        let port = self.agent.as_ref().map(|agent| agent.port);
        let Some(control) = &mut self.control else { return Ok(()) };
        control.send_due(&messages, port)?;
        if control.receive.publish() {
            self.device.notify(CONTROL_RECEIVE_QUEUE);
        }
        if control.transmit.publish() {
            self.device.notify(CONTROL_TRANSMIT_QUEUE);
        }
        Ok(())
    }

    fn control_message(&mut self, message: &[u8]) -> Result<(), QueueError> {
        let known = control::parse(message).and_then(|(port, event)| {
            let port = u16::try_from(port).ok().filter(|&port| port < self.ports)?;
            Some((port, event))
        });
        let (Some((port, event)), Some(control)) = (known, &mut self.control) else {
            self.counters.bad_messages += 1;
            return Ok(());
        };
        let bit = 1u32 << port;
        match event {
            Event::Add => control.ready_due |= bit,
            Event::Name(name) if name == AGENT_PORT_NAME.as_bytes() => {
                return self.bind_agent(port);
            }
            Event::Open(true) => control.host_open |= bit,
            Event::Open(false) => control.host_open &= !bit,
            Event::Remove => {
                control.host_open &= !bit;
                control.ready_due &= !bit;
            }
            Event::Name(_) | Event::Other => {}
        }
        let is_open = control.host_open & bit != 0;
        if let Some(agent) = self.agent.as_mut().filter(|agent| agent.port == port) {
            agent.is_open = is_open;
            agent.is_present &= event != Event::Remove;
        }
        Ok(())
    }

    /// Makes `port` the agent's. Another port that takes the name later is
    /// ignored: the buffers of the first stay with the device until a reset.
    fn bind_agent(&mut self, port: u16) -> Result<(), QueueError> {
        let Some(control) = &mut self.control else { return Ok(()) };
        let is_open = control.host_open & (1 << port) != 0;
        if let Some(agent) = &mut self.agent {
            if agent.port == port {
                (agent.is_present, agent.is_open) = (true, is_open);
                control.open_due = true;
            } else {
                self.counters.bad_messages += 1;
            }
            return Ok(());
        }
        control.open_due = true;
        let queue = |index| {
            let ring = RingMemory::enabled_in_one_piece(RING_ENTRIES, self.ring_memory(index));
            // `enable` has laid out the same ring.
            SplitQueue::new(ring.expect("laid out before")).expect("sized for it")
        };
        let receive_page = self.page(RECEIVE_PAGE, 0, PAGE_BYTES);
        let transmit_page = self.page(TRANSMIT_PAGE, 0, PAGE_BYTES);
        let mut receiver = Receiver::start(queue(receive_queue(port)), receive_page)?;
        let sender = Sender::new(queue(transmit_queue(port)), transmit_page);
        if receiver.publish() {
            self.device.notify(receive_queue(port));
        }
        self.agent = Some(Agent { port, receiver, sender, is_present: true, is_open });
        Ok(())
    }

    /// Where the agent's port stands.
    pub fn agent(&self) -> AgentState {
        match (&self.control, &self.agent) {
            (None, _) => AgentState::Absent,
            (Some(_), Some(agent)) if agent.is_present && agent.is_open => AgentState::Open,
            (Some(_), Some(agent)) if agent.is_present => AgentState::Closed,
            (Some(_), _) => AgentState::Waiting,
        }
    }

    /// Sends as much of `bytes` as fits and returns how much that was; 0 unless the port is open.
    ///
    /// # Errors
    /// What ended the console.
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize, ConsoleError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.agent() != AgentState::Open {
            return Ok(0);
        }
        let Some(agent) = &mut self.agent else { return Ok(0) };
        let sent = agent.sender.send(bytes);
        if agent.sender.publish() {
            self.device.notify(transmit_queue(agent.port));
        }
        let sent = sent.map_err(|error| self.fail(error))?;
        self.counters.sent_bytes += sent as u64;
        Ok(sent)
    }

    /// Copies received bytes into `out` and returns how many there were.
    ///
    /// # Errors
    /// What ended the console.
    pub fn receive(&mut self, out: &mut [u8]) -> Result<usize, ConsoleError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let Some(agent) = &mut self.agent else { return Ok(0) };
        let received = agent.receiver.receive(out);
        if agent.receiver.publish() {
            self.device.notify(receive_queue(agent.port));
        }
        let received = received.map_err(|error| self.fail(error))?;
        self.counters.received_bytes += received as u64;
        Ok(received)
    }

    /// What happened so far.
    pub const fn counters(&self) -> ConsoleCounters {
        self.counters
    }

    /// Resets the device and gives the memory back.
    ///
    /// # Errors
    /// [`SetupError::ResetStuck`]: the device may still use the memory, which stays lent.
    pub fn shut_down<M: DmaMemory + ?Sized>(self, memory: &M) -> Result<(), SetupError> {
        self.device.reset()?;
        // SAFETY: the reset is complete, so the device uses no queue any more; the
        // slices die with `self`, which is consumed here.
        unsafe { self.pages.take_back(memory) };
        Ok(())
    }
}

impl Control {
    /// Queues a message if a buffer is free; returns whether it was.
    fn send(
        &mut self,
        messages: &DmaSlice,
        port: u32,
        event: u16,
        value: u16,
    ) -> Result<bool, QueueError> {
        while let Some(done) = self.transmit.pop()? {
            self.free |= 1 << done.cookie;
        }
        if self.free == 0 {
            return Ok(false);
        }
        // Below 16: `free` has a bit set.
        let slot = u16::try_from(self.free.trailing_zeros()).unwrap_or(0);
        let memory = message_memory(messages, RING_ENTRIES + slot);
        memory.write(&control::encode(port, event, value));
        let len = u32::try_from(CONTROL_BYTES).unwrap_or(u32::MAX);
        let buffer = Buffer { gpa: memory.gpa(), len, access: Access::DeviceReads };
        self.transmit.add(buffer, slot)?;
        self.free &= !(1 << slot);
        Ok(true)
    }

    /// Sends what is due, as far as buffers are free; the rest waits for the next poll.
    fn send_due(&mut self, messages: &DmaSlice, agent: Option<u16>) -> Result<(), QueueError> {
        while self.ready_due != 0 {
            let port = self.ready_due.trailing_zeros();
            if !self.send(messages, port, event::PORT_READY, 1)? {
                return Ok(());
            }
            self.ready_due &= self.ready_due - 1;
        }
        let Some(port) = agent.filter(|_| self.open_due) else { return Ok(()) };
        self.open_due = !self.send(messages, u32::from(port), event::PORT_OPEN, 1)?;
        Ok(())
    }
}

/// Message buffer number `slot` of the control page: received ones first.
///
/// # Panics
/// If there is no such buffer: a bug here, since numbers come from cookies.
fn message_memory(messages: &DmaSlice, slot: u16) -> DmaSlice {
    let memory = messages.part(usize::from(slot) * MESSAGE_BYTES, MESSAGE_BYTES);
    memory.expect("a message lies in its page")
}

fn received(messages: &DmaSlice, slot: u16) -> DmaSlice {
    message_memory(messages, slot)
}

fn message_buffer(messages: &DmaSlice, slot: u16) -> Buffer {
    let len = u32::try_from(MESSAGE_BYTES).unwrap_or(u32::MAX);
    Buffer { gpa: message_memory(messages, slot).gpa(), len, access: Access::DeviceWrites }
}
