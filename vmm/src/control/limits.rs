//! What one client may cost.

use std::time::Duration;

/// Bounds on clients of the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections. One more closes the connection that has been idle longest, waits when none
    /// is idle, and is refused when none becomes so within `room_time`.
    pub connections: usize,
    /// How long a client may wait for one of too many connections to end or become idle.
    pub room_time: Duration,
    /// Bytes of a request's head (request line and headers).
    pub head_bytes: usize,
    /// Bytes of a request's body; Firecracker's limit.
    pub body_bytes: u64,
    /// From a head's first byte to its last. A connection may idle between requests for ever.
    pub head_time: Duration,
    /// From a head's last byte to the body's last.
    pub body_time: Duration,
    /// How long a client may leave its answer unread with its socket buffer full.
    pub write_time: Duration,
    /// How long the event loop may take to answer, beyond what the request itself grants.
    pub reply_time: Duration,
    /// How long answers under way may take when the VM has ended.
    pub drain_time: Duration,
}

impl Limits {
    /// Headers of one request.
    pub(super) const HEADERS: usize = 64;
    /// Lines of a scenario's output that wait for a slow reader before further ones are dropped.
    pub(super) const EXEC_BACKLOG: usize = 256;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 32,
            room_time: Duration::from_secs(1),
            head_bytes: 8 << 10,
            body_bytes: 51_200,
            head_time: Duration::from_secs(5),
            body_time: Duration::from_secs(5),
            write_time: Duration::from_secs(30),
            reply_time: Duration::from_secs(5),
            drain_time: Duration::from_millis(500),
        }
    }
}
