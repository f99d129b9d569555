//! Time as devices see it.

use std::time::Duration;

/// A clock that never goes back.
///
/// The VMM implements it over the host's monotonic clock; the simulator and
/// tests advance one by hand, so that runs repeat exactly.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
}
