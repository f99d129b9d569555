//! virtio-console with two ports: 0, a plain console, and 1, a named byte channel.
//!
//! Port 0 is Linux's `hvc0`; port 1 (`org.aerostat.agent`) carries the agent's
//! conversation. Both are flow-controlled both ways. With MULTIPORT the ports
//! are announced over the control queues; a driver without it sees port 0 alone.
//!
//! All buffers are bounded: [`PORT_BUFFER_BYTES`] a port and direction, and a
//! set of flags for control messages. When the host does not read a port, the
//! guest's chains stay in the ring; when the guest provides no buffers, the
//! host's bytes wait, then [`Console::port_write`] takes no more.
//!
//! The driver of a console spins until its buffer comes back. So port 0
//! overwrites its oldest bytes unless the host promises to read
//! ([`Console::set_console_reader`]), and a host that cannot keep the promise
//! takes it back.
//!
//! Deliberately absent: emergency write (no driver known to us uses it), ports
//! that come and go.
//!
//! Spec: VirtIO 1.2 §5.3. Design: docs/virtio.md.

mod control;
mod counters;
mod port;
mod queue;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use abi::console::{
    CONFIG_BYTES, CONFIG_MAX_NR_PORTS, VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO_CONSOLE_F_SIZE,
};
use abi::virtio::VIRTIO_ID_CONSOLE;

pub use counters::ConsoleCounters;
pub use port::{ConsoleSize, PORT_BUFFER_BYTES};
pub use queue::ConsoleQueue;

use crate::counters::count;
use crate::ram::GuestRam;
use crate::ring::Virtqueue;
use crate::virtio::{
    ActivateError, Activation, GuestFault, Interrupt, QueueProgress, VirtioDevice,
    read_config_bytes,
};
use port::{Port, WhenFull};
use queue::{AGENT_PORT, CONSOLE_PORT, PORTS};

/// Largest size of every queue: a page of descriptors and rings at most.
const QUEUE_SIZE: u16 = 64;
/// Queues: two a port and two for control.
const QUEUES: usize = 2 * PORTS + 2;

/// What the device has while a driver runs it.
struct Active {
    ram: Arc<dyn GuestRam>,
    queues: Vec<Option<Virtqueue>>,
    interrupt: Arc<dyn Interrupt>,
    multiport: bool,
    /// The driver wants to know the console's size.
    sized: bool,
}

/// The device. The host's side of the named port is [`Self::port_write`],
/// [`Self::port_read`] and [`Self::guest_open`]; that of the console port is
/// [`Self::console_write`], [`Self::console_read`] and [`Self::set_size`].
pub struct Console {
    ports: [Port; PORTS],
    /// `None`: the driver is not told that the console has a size.
    size: Option<ConsoleSize>,
    active: Option<Active>,
    counters: ConsoleCounters,
}

impl Console {
    /// A console whose port 1 has the name `port_name`.
    ///
    /// `size` is that of the terminal behind port 0; a console without one has
    /// none for ever.
    pub fn new(port_name: &str, size: Option<ConsoleSize>) -> Self {
        Self {
            ports: [Port::new("", WhenFull::Overwrite), Port::new(port_name, WhenFull::Wait)],
            size,
            active: None,
            counters: ConsoleCounters::default(),
        }
    }

    /// Queues `data` for the guest on the named port; returns how many bytes
    /// were taken: 0 while the guest's side is closed, fewer than all when
    /// [`PORT_BUFFER_BYTES`] wait for the guest already.
    pub fn port_write(&mut self, data: &[u8]) -> usize {
        let taken = self.agent().push(data);
        self.resume(ConsoleQueue::Receive(AGENT_PORT));
        taken
    }

    /// Appends what the guest has sent on the named port to `out`; returns how
    /// many bytes, at most [`PORT_BUFFER_BYTES`]. Call it until it returns 0:
    /// each call makes room for bytes that wait in the ring.
    pub fn port_read(&mut self, out: &mut Vec<u8>) -> usize {
        let read = self.agent().pull(out, usize::MAX);
        self.resume(ConsoleQueue::Transmit(AGENT_PORT));
        read
    }

    /// Bytes that [`Self::port_read`] would return now.
    pub fn port_readable(&self) -> usize {
        let [_, agent] = &self.ports;
        agent.readable()
    }

    /// Whether the guest has the named port open.
    pub fn guest_open(&self) -> bool {
        let [_, agent] = &self.ports;
        agent.is_open()
    }

    /// How often the guest has opened the named port. A change means that a new
    /// conversation begins: half a message from before will not be completed.
    pub fn guest_sessions(&self) -> u64 {
        let [_, agent] = &self.ports;
        agent.sessions()
    }

    /// Queues `data` for the guest on the console port; returns how many bytes
    /// were taken, at most [`Self::console_room`].
    pub fn console_write(&mut self, data: &[u8]) -> usize {
        let taken = self.console_port().push(data);
        self.resume(ConsoleQueue::Receive(CONSOLE_PORT));
        taken
    }

    /// Bytes that [`Self::console_write`] would take: none while the guest has no console there.
    pub fn console_room(&self) -> usize {
        let [console, _] = &self.ports;
        console.room_to_guest()
    }

    /// Appends at most `max` bytes that the guest has written to the console
    /// port to `out`; returns how many, which is at most [`PORT_BUFFER_BYTES`].
    pub fn console_read(&mut self, out: &mut Vec<u8>, max: usize) -> usize {
        let port = self.console_port();
        let was_full = port.is_full();
        let read = port.pull(out, max);
        if was_full {
            self.resume(ConsoleQueue::Transmit(CONSOLE_PORT));
        }
        read
    }

    /// Bytes that [`Self::console_read`] could return now.
    pub fn console_readable(&self) -> usize {
        let [console, _] = &self.ports;
        console.readable()
    }

    /// Whether the guest's output waits for the host to read, and how many of
    /// its buffers have been returned so far: the same number again says that
    /// one and the same buffer waits.
    pub fn console_waits(&self) -> (bool, u64) {
        let [console, _] = &self.ports;
        (console.is_full(), console.returned())
    }

    /// Whether the host reads the console port: then its output waits when the
    /// host is slow, else the newest [`PORT_BUFFER_BYTES`] are kept.
    ///
    /// Have [`ConsoleQueue::Transmit`] of port 0 served afterwards.
    pub fn set_console_reader(&mut self, is_reading: bool) {
        let when_full = if is_reading { WhenFull::Wait } else { WhenFull::Overwrite };
        self.console_port().set_when_full(when_full);
    }

    /// The terminal has this size now; returns whether configuration space has
    /// changed: then call [`crate::transport::MmioTransport::config_changed`].
    ///
    /// A console that was made without a size keeps to that.
    pub fn set_size(&mut self, size: ConsoleSize) -> bool {
        match &mut self.size {
            Some(known) if *known != size => *known = size,
            Some(_) | None => return false,
        }
        if self.active.as_ref().is_some_and(|active| active.sized && active.multiport) {
            self.console_port().resized();
            self.resume(ConsoleQueue::ControlReceive);
        }
        true
    }

    /// What happened so far.
    pub fn counters(&self) -> &ConsoleCounters {
        &self.counters
    }

    fn console_port(&mut self) -> &mut Port {
        let [console, _] = &mut self.ports;
        console
    }

    fn agent(&mut self) -> &mut Port {
        let [_, agent] = &mut self.ports;
        agent
    }

    /// Serves a queue because of a host event.
    fn resume(&mut self, queue: ConsoleQueue) {
        match self.serve(queue) {
            // Pending only after a ring's worth of chains in one go. Then bytes
            // have moved and the host comes again, or every chain was useless,
            // and such a driver has to kick again itself.
            Ok(QueueProgress::Idle | QueueProgress::Pending) => {}
            Err(fault) => {
                if count(&mut self.counters.ring_unusable) {
                    log::warn!("device=console {fault}");
                }
                if let Some(active) = &self.active {
                    active.interrupt.needs_reset();
                }
            }
        }
    }

    fn serve(&mut self, which: ConsoleQueue) -> Result<QueueProgress, GuestFault> {
        let Some(active) = &mut self.active else { return Ok(QueueProgress::Idle) };
        let Active { ram, queues, interrupt, sized, .. } = active;
        let (mem, interrupt, sized) = (&*ram.present(), interrupt.as_ref(), *sized);
        let slot = queues.get_mut(usize::from(which.index()));
        let Some(queue) = slot.and_then(Option::as_mut) else { return Ok(QueueProgress::Idle) };
        let (ports, counters) = (&mut self.ports, &mut self.counters);
        match which {
            ConsoleQueue::Receive(id) => match ports.get_mut(usize::from(id)) {
                Some(port) => port.fill_receive(queue, mem, interrupt, counters),
                None => Ok(QueueProgress::Idle),
            },
            ConsoleQueue::Transmit(id) => match ports.get_mut(usize::from(id)) {
                Some(port) => port.drain_transmit(queue, mem, interrupt, counters),
                None => Ok(QueueProgress::Idle),
            },
            ConsoleQueue::ControlReceive => {
                let size = self.size.unwrap_or_default();
                control::send(queue, mem, interrupt, (ports, size), counters)
            }
            ConsoleQueue::ControlTransmit => {
                control::receive(queue, mem, interrupt, (ports, sized), counters)
            }
        }
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn device_features(&self) -> u64 {
        let size = if self.size.is_some() { VIRTIO_CONSOLE_F_SIZE } else { 0 };
        VIRTIO_CONSOLE_F_MULTIPORT | size
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; QUEUES]
    }

    fn read_config(&self, offset: u64, out: &mut [u8]) {
        const { assert!(CONFIG_MAX_NR_PORTS == 4 && CONFIG_BYTES == 12) };
        // le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr.
        let [p0, p1, p2, p3] = u32::try_from(PORTS).unwrap_or(u32::MAX).to_le_bytes();
        let ConsoleSize { columns, rows } = self.size.unwrap_or_default();
        let ([c0, c1], [r0, r1]) = (columns.to_le_bytes(), rows.to_le_bytes());
        let config = [c0, c1, r0, r1, p0, p1, p2, p3, 0, 0, 0, 0];
        read_config_bytes(&config, offset, out);
    }

    /// # Errors
    /// Always: only the emergency register may be written, and it is not offered.
    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        Err(GuestFault::ReadOnlyConfig { offset, len: data.len() })
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, queues, interrupt, features } = activation;
        let multiport = features & VIRTIO_CONSOLE_F_MULTIPORT != 0;
        let sized = features & VIRTIO_CONSOLE_F_SIZE != 0;
        let needed = if multiport { QUEUES } else { 2 };
        for (index, queue) in (0..).zip(queues.iter().take(needed)) {
            if queue.is_none() {
                return Err(ActivateError::MissingQueue { queue: index });
            }
        }
        if !multiport {
            // There are no control messages to open it with.
            self.console_port().open();
        }
        self.active = Some(Active { ram, queues, interrupt, multiport, sized });
        Ok(())
    }

    fn queue_notified(&mut self, index: u16) -> Result<QueueProgress, GuestFault> {
        let multiport = self.active.as_ref().is_some_and(|active| active.multiport);
        let Some(queue) = ConsoleQueue::from_index(index) else { return Ok(QueueProgress::Idle) };
        if !multiport && !matches!(queue, ConsoleQueue::Receive(0) | ConsoleQueue::Transmit(0)) {
            return Ok(QueueProgress::Idle);
        }
        let progress = self.serve(queue)?;
        if queue != ConsoleQueue::ControlTransmit {
            return Ok(progress);
        }
        // The messages may call for answers.
        match self.serve(ConsoleQueue::ControlReceive)? {
            QueueProgress::Pending => Ok(QueueProgress::Pending),
            QueueProgress::Idle => Ok(progress),
        }
    }

    fn reset(&mut self) {
        self.active = None;
        for port in &mut self.ports {
            port.reset(&mut self.counters);
        }
    }
}
