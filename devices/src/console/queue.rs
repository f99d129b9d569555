//! Which queue is which: the only place that knows the numbers.

use abi::console::{CONTROL_RECEIVE_QUEUE, CONTROL_TRANSMIT_QUEUE, receive_queue, transmit_queue};

/// Number of ports.
pub(super) const PORTS: usize = 2;
/// The plain console.
pub(super) const CONSOLE_PORT: u16 = 0;
/// The named port.
pub(super) const AGENT_PORT: u16 = 1;

/// A queue of the console by purpose, named from the driver's side as in the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleQueue {
    /// Host to guest bytes of a port.
    Receive(u16),
    /// Guest to host bytes of a port.
    Transmit(u16),
    /// Control messages to the driver.
    ControlReceive,
    /// Control messages from the driver.
    ControlTransmit,
}

impl ConsoleQueue {
    /// The queue's index (§5.3.2).
    pub const fn index(self) -> u16 {
        match self {
            Self::Receive(port) => receive_queue(port),
            Self::Transmit(port) => transmit_queue(port),
            Self::ControlReceive => CONTROL_RECEIVE_QUEUE,
            Self::ControlTransmit => CONTROL_TRANSMIT_QUEUE,
        }
    }

    /// The queue with this index, if the console has it.
    pub fn from_index(index: u16) -> Option<Self> {
        let all = [
            Self::Receive(CONSOLE_PORT),
            Self::Transmit(CONSOLE_PORT),
            Self::ControlReceive,
            Self::ControlTransmit,
            Self::Receive(AGENT_PORT),
            Self::Transmit(AGENT_PORT),
        ];
        all.into_iter().find(|queue| queue.index() == index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_those_of_the_specification() {
        let purpose = [
            ConsoleQueue::Receive(0),
            ConsoleQueue::Transmit(0),
            ConsoleQueue::ControlReceive,
            ConsoleQueue::ControlTransmit,
            ConsoleQueue::Receive(1),
            ConsoleQueue::Transmit(1),
        ];
        for (index, queue) in (0..).zip(purpose) {
            assert_eq!(ConsoleQueue::from_index(index), Some(queue));
        }
        assert_eq!(ConsoleQueue::from_index(6), None);
    }
}
