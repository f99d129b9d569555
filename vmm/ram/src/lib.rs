//! Host memory behind a guest: backings, their release calls and their sources of truth.
//!
//! [`HostRam`] maps guest RAM, split at the MMIO gap, on one [`Backing`]. A
//! backing says how its pages are released and where the host keeps the truth
//! about what it holds; both are proven at start on the mapping itself, so a
//! backing that cannot free what it is told to free never reaches a guest.
//!
//! Nothing here knows of KVM. A virtual address of the host leaves this crate
//! only through [`Region::hva`], for memory slots.
//!
//! Design: `docs/guest-ram.md`.

mod anon;
mod backing;
mod error;
mod host;
mod host_memory;
mod hotplug;
mod layout;
mod mapping;
mod memfd;
mod prefault;
mod probe;
mod release;
mod smaps;

pub use backing::{Backing, BackingKind, UnknownBacking};
pub use error::{HostRamError, TruthError};
pub use host::{HostRam, Prefault, Region};
pub use layout::{hotplug_range, ram_ranges};
pub use mapping::HostRange;
