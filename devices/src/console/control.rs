//! Control messages: how driver and device agree on ports. Spec: VirtIO 1.2 §5.3.6.2.

use abi::console::{CONTROL_BYTES, event};
use bitflags::bitflags;
use vm_memory::GuestMemoryMmap;

use super::counters::ConsoleCounters;
use super::port::{ConsoleSize, Port};
use crate::ring::{PoppedChain, Virtqueue};
use crate::virtio::{GuestFault, Interrupt, QueueProgress};

bitflags! {
    /// Messages that the device owes the driver about one port.
    ///
    /// A set rather than a queue: a driver that asks again and again without
    /// providing buffers makes the device remember nothing more. They are sent
    /// from the lowest bit up, the order in which a driver expects them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct Due: u8 {
        /// PORT_ADD.
        const ADD = 1 << 0;
        /// CONSOLE_PORT.
        const CONSOLE = 1 << 1;
        /// PORT_NAME with the name.
        const NAME = 1 << 2;
        /// PORT_OPEN: the host's side is open.
        const OPEN = 1 << 3;
        /// RESIZE with the size.
        const SIZE = 1 << 4;
    }
}

impl Due {
    /// The message to send first.
    fn first(self) -> Option<Self> {
        self.iter().next()
    }

    fn event(self) -> u16 {
        if self.contains(Self::ADD) {
            event::PORT_ADD
        } else if self.contains(Self::CONSOLE) {
            event::CONSOLE_PORT
        } else if self.contains(Self::NAME) {
            event::PORT_NAME
        } else if self.contains(Self::OPEN) {
            event::PORT_OPEN
        } else {
            event::RESIZE
        }
    }
}

/// The fixed part of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ControlMessage {
    id: u32,
    event: u16,
    value: u16,
}

impl ControlMessage {
    const fn from_le_bytes(bytes: [u8; CONTROL_BYTES]) -> Self {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = bytes;
        Self {
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            event: u16::from_le_bytes([e0, e1]),
            value: u16::from_le_bytes([v0, v1]),
        }
    }

    const fn to_le_bytes(self) -> [u8; CONTROL_BYTES] {
        let [i0, i1, i2, i3] = self.id.to_le_bytes();
        let [e0, e1] = self.event.to_le_bytes();
        let [v0, v1] = self.value.to_le_bytes();
        [i0, i1, i2, i3, e0, e1, v0, v1]
    }
}

/// Handles what the driver has sent on the control transmit queue; `sized`: it wants to know the console's size.
pub(super) fn receive(
    queue: &mut Virtqueue,
    mem: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
    (ports, sized): (&mut [Port], bool),
    counters: &mut ConsoleCounters,
) -> Result<QueueProgress, GuestFault> {
    let mut progress = QueueProgress::Pending;
    let mut returned = false;
    for _ in 0..queue.size() {
        let Some(chain) = queue.pop(mem)? else {
            progress = QueueProgress::Idle;
            break;
        };
        if let Some(message) = decode(&chain, mem, counters) {
            handle(message, ports, sized, counters);
        }
        queue.complete(mem, chain, 0)?;
        returned = true;
    }
    if returned {
        queue.signal_used(mem, interrupt)?;
    }
    Ok(progress)
}

fn decode(
    chain: &PoppedChain,
    mem: &GuestMemoryMmap,
    counters: &mut ConsoleCounters,
) -> Option<ControlMessage> {
    let buffers = match chain.buffers() {
        Ok(buffers) => buffers,
        Err(fault) => {
            counters.bad_chain(fault);
            return None;
        }
    };
    let mut bytes = [0; CONTROL_BYTES];
    match buffers.read(mem, 0, &mut bytes) {
        Ok(CONTROL_BYTES) => Some(ControlMessage::from_le_bytes(bytes)),
        Ok(_) => {
            counters.control_short += 1;
            None
        }
        Err(fault) => {
            counters.bad_chain(fault);
            None
        }
    }
}

fn handle(
    message: ControlMessage,
    ports: &mut [Port],
    sized: bool,
    counters: &mut ConsoleCounters,
) {
    if message.event == event::DEVICE_READY {
        match message.value {
            1 => ports.iter_mut().for_each(Port::announce),
            _ => counters.driver_refused += 1,
        }
        return;
    }
    let port = usize::try_from(message.id).ok().and_then(|id| ports.get_mut(id));
    let Some(port) = port else {
        counters.control_unknown_port += 1;
        return;
    };
    match (message.event, message.value) {
        (event::PORT_READY, 1) => port.introduce(sized),
        (event::PORT_READY, _) => counters.driver_refused += 1,
        (event::PORT_OPEN, 0) => port.close(counters),
        (event::PORT_OPEN, _) => port.open(),
        _ => counters.control_unknown_event += 1,
    }
}

/// Sends what the device owes, as far as the driver has provided buffers; `size`: the console's.
pub(super) fn send(
    queue: &mut Virtqueue,
    mem: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
    (ports, size): (&mut [Port], ConsoleSize),
    counters: &mut ConsoleCounters,
) -> Result<QueueProgress, GuestFault> {
    let mut progress = QueueProgress::Pending;
    let mut returned = false;
    for _ in 0..queue.size() {
        let owing = (0..).zip(ports.iter_mut()).find_map(|(id, port)| {
            let due = port.due.first()?;
            Some((id, port, due))
        });
        let Some((id, port, due)) = owing else {
            progress = QueueProgress::Idle;
            break;
        };
        let Some(chain) = queue.pop(mem)? else {
            progress = QueueProgress::Idle;
            break;
        };
        let mut bytes = ControlMessage { id, event: due.event(), value: 1 }.to_le_bytes().to_vec();
        if due == Due::NAME {
            bytes.extend_from_slice(port.name().as_bytes());
        } else if due == Due::SIZE {
            // The specification's order. Linux had the fields the other way round until 6.15 and its
            // stable series took the correction.
            bytes.extend([size.columns, size.rows].iter().flat_map(|field| field.to_le_bytes()));
        }
        let written = write_whole(&chain, mem, &bytes, counters);
        if written > 0 {
            port.due.remove(due);
        }
        queue.complete(mem, chain, written)?;
        returned = true;
    }
    if returned {
        queue.signal_used(mem, interrupt)?;
    }
    Ok(progress)
}

/// Writes a message into one chain, or nothing if it does not fit.
fn write_whole(
    chain: &PoppedChain,
    mem: &GuestMemoryMmap,
    bytes: &[u8],
    counters: &mut ConsoleCounters,
) -> u32 {
    let written = chain.buffers().and_then(|buffers| {
        if usize::try_from(buffers.writable_bytes()).is_ok_and(|room| room < bytes.len()) {
            return Ok(0);
        }
        buffers.write(mem, 0, bytes)
    });
    match written {
        Ok(0) => {
            counters.control_buffer_small += 1;
            0
        }
        // A message is far below 4 GiB.
        Ok(written) => u32::try_from(written).unwrap_or(0),
        Err(fault) => {
            counters.bad_chain(fault);
            0
        }
    }
}
