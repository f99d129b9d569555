//! The virtio-rng driver: random bytes from the host, on demand.
//!
//! Nothing is asked for that nobody reads: [`EntropyDriver::read`] copies what
//! has arrived and posts buffers for the rest, as many as there are; the caller
//! comes back after the device's interrupt. Bytes are erased from the shared
//! page as they are handed out, so that none is handed out twice and none stays
//! behind in memory that somebody else gets later.
//!
//! The device is believed in nothing but the bytes themselves: how many it
//! wrote is bounded by the buffer, an answer without a byte (§5.4.6.1 forbids
//! it) is counted, and a row of them ends the driver instead of keeping it busy
//! for ever.
//!
//! Deliberately absent: judging the quality of the bytes. A device can always
//! send what looks random; the scenario `entropy` looks for what cannot be.
//!
//! Source: virtio 1.2 §5.4.

mod driver;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use driver::{EntropyCounters, EntropyDriver, EntropyError};
