//! What an entropy device counts.

use crate::counters::counters;

counters! {
    /// Events of one entropy device since the VM started; a reset does not clear them.
    pub struct EntropyCounters {
        /// Requests that got random bytes.
        requests,
        /// Random bytes given to the guest.
        bytes,
        /// Times that a request had to wait for the rate limit.
        throttled,
        /// Times that the host's source failed; the request is tried again.
        source_failed,
        /// A chain whose buffers cannot be used.
        chain_bad,
        /// A chain with a buffer that the device may not write.
        chain_wrong_direction,
    }
}
