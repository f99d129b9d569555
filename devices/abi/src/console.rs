//! The console with named ports. Source: virtio 1.2 §5.3.
//!
//! Queues: 0 receiveq(port 0), 1 transmitq(port 0), 2 control receiveq,
//! 3 control transmitq, then a receive/transmit pair for each further port:
//! port `n > 0` has receiveq `2 * n + 2` and transmitq `2 * n + 3`.

/// `cols` and `rows` are valid.
pub const VIRTIO_CONSOLE_F_SIZE: u64 = 1 << 0;
/// Several ports and the control queues.
pub const VIRTIO_CONSOLE_F_MULTIPORT: u64 = 1 << 1;
/// Emergency write register.
pub const VIRTIO_CONSOLE_F_EMERG_WRITE: u64 = 1 << 2;

/// Offset in configuration space of `max_nr_ports`: le32 (after le16 cols, le16 rows).
pub const CONFIG_MAX_NR_PORTS: u64 = 4;
/// Bytes of configuration space: le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr.
pub const CONFIG_BYTES: u64 = 12;

/// Bytes of a control message: le32 id, le16 event, le16 value; a port name follows PORT_NAME.
pub const CONTROL_BYTES: usize = 8;

/// Control message events (§5.3.6.2).
pub mod event {
    /// Driver: ready to handle ports (value 1).
    pub const DEVICE_READY: u16 = 0;
    /// Device: a port exists.
    pub const PORT_ADD: u16 = 1;
    /// Device: a port is gone.
    pub const PORT_REMOVE: u16 = 2;
    /// Driver: the port is set up (value 1).
    pub const PORT_READY: u16 = 3;
    /// Device: the port is a console port.
    pub const CONSOLE_PORT: u16 = 4;
    /// Device: the console's size changed.
    pub const RESIZE: u16 = 5;
    /// Either: the port is open (1) or closed (0) on the sender's side.
    pub const PORT_OPEN: u16 = 6;
    /// Device: the port's name follows.
    pub const PORT_NAME: u16 = 7;
}

/// Receive queue index of port `port` (§5.3.2).
///
/// A port above 32,766, which has no queues, gives 65,535, which no console has.
pub const fn receive_queue(port: u16) -> u16 {
    if port == 0 { 0 } else { port.saturating_mul(2).saturating_add(2) }
}

/// Transmit queue index of port `port` (§5.3.2), with the same end as [`receive_queue`].
pub const fn transmit_queue(port: u16) -> u16 {
    receive_queue(port).saturating_add(1)
}

/// Index of the control receive queue (device to driver).
pub const CONTROL_RECEIVE_QUEUE: u16 = 2;
/// Index of the control transmit queue (driver to device).
pub const CONTROL_TRANSMIT_QUEUE: u16 = 3;

/// Name of the agent port: line-delimited JSON, see `docs/agent-protocol.md`.
pub const AGENT_PORT_NAME: &str = "org.aerostat.agent";

#[cfg(test)]
mod tests {
    use super::*;

    /// §5.3.2: 0 and 1, two for control, then a pair for each further port.
    #[test]
    fn ports_have_the_specified_queues() {
        for (port, receive, transmit) in [(0, 0, 1), (1, 4, 5), (2, 6, 7), (32_766, 65_534, 65_535)]
        {
            assert_eq!((receive_queue(port), transmit_queue(port)), (receive, transmit));
        }
    }

    #[test]
    fn a_port_that_cannot_be_has_no_queue_of_another() {
        assert_eq!((receive_queue(32_767), transmit_queue(u16::MAX)), (u16::MAX, u16::MAX));
    }
}
