//! What a console counts.

use crate::counters::{count, counters};
use crate::ring::ChainFault;

counters! {
    /// Events of one console since the VM started; a reset does not clear them.
    ///
    /// Everything from `chain_bad` on names something that the driver did wrong.
    pub struct ConsoleCounters {
        /// Bytes that the guest has sent, over all ports.
        bytes_from_guest,
        /// Bytes that the guest has received, over all ports.
        bytes_to_guest,
        /// Bytes of the console port that were overwritten before the host read them.
        bytes_overwritten,
        /// Bytes in either direction that a reset or a closed port discarded.
        bytes_discarded,
        /// The driver could not set up the device or a port.
        driver_refused,
        /// A ring was found broken when the host read or wrote; the transport counts its own finds.
        ring_unusable,
        /// A chain whose buffers cannot be used.
        chain_bad,
        /// A chain with buffers of the wrong direction, or none, for its queue.
        chain_wrong_direction,
        /// A control message of less than 8 bytes.
        control_short,
        /// A control message for a port that does not exist.
        control_unknown_port,
        /// A control message with an event that drivers do not send.
        control_unknown_event,
        /// A control receive buffer that is too small for the message.
        control_buffer_small,
    }
}

impl ConsoleCounters {
    pub(super) fn bad_chain(&mut self, fault: ChainFault) {
        if count(&mut self.chain_bad) {
            log::warn!("device=console {fault}");
        }
    }
}
