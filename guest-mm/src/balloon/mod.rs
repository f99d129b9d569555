//! The balloon driver: pages to the host and back, in an order that never lets
//! the host discard a page that the guest uses.
//!
//! **Inflate.** Store room is reserved, a frozen block taken, its word made
//! Offline (not movable), the store told, the PFNs published; only when the
//! device has returned *every* buffer that names the block does it become
//! movable. Were it movable earlier, a migration could free a page of it and
//! the inflate still in flight would discard the next owner's data.
//!
//! **Deflate** mirrors it: the right to be moved is taken away first (it fails
//! if somebody has isolated the block), the host is told and waited for, the
//! store cleared, the block freed.
//!
//! [`BalloonDriver::poll`] does a bounded piece of work and says when it wants
//! to run again; nothing here blocks, sleeps or spins. Design, failure cases
//! and the reasons for each: `docs/balloon-driver.md`.
//!
//! Out of memory, a guest that may takes pages back by itself:
//! [`BalloonDriver::deflate_on_oom`].
//!
//! Pages of the balloon move to other frames on behalf of the migration core:
//! [`BalloonDriver::migrate`]. [`SharedBalloon`] is the driver behind its lock,
//! for whoever serves it, is out of memory, or migrates.
//!
//! Deliberately absent for now: statistics, hinting and reporting.

mod buffers;
mod deflate;
mod driver;
mod frames;
mod inflate;
mod migrate;
mod mutant;
mod oom;
mod options;
mod reset;
mod shared;
pub(crate) mod timers;

#[cfg(test)]
pub(crate) mod tests;

pub use driver::{BalloonDriver, BalloonError};
pub use migrate::MIGRATE_BATCH;
pub use mutant::Mutant;
pub use oom::OOM_PAGES;
pub use options::{BalloonCounters, BalloonPhase, BalloonStatus, Options, Wake};
pub use shared::{Patience, SharedBalloon};
