//! Swap: where anonymous pages go when memory is short.
//!
//! A device of page-sized slots ([`SwapDevice`]), a word per slot
//! ([`SwapWord`](SlotWord)) that counts the leaves which name it and says which
//! folio has its contents: the swap cache is in the same words. Design,
//! invariants and failure cases: `docs/swap.md`.
//!
//! Lock order: folio, PTE, then the free slots of [`SwapTable`].

#[cfg(not(loom))]
mod area;
#[cfg(not(loom))]
mod cache;
#[cfg(not(loom))]
mod census;
mod device;
mod error;
#[cfg(not(loom))]
mod io;
#[cfg(not(loom))]
mod ram;
#[cfg(not(loom))]
mod stats;
mod table;
mod word;
#[cfg(not(loom))]
mod zram;

#[cfg(not(loom))]
pub(crate) use area::Swap;
#[cfg(not(loom))]
pub use census::{SlotClaims, SwapCensus, SwapDiscrepancy};
pub use device::{SLOT_BYTES, SlotBytes, SwapDevice, SwapIoError};
pub use error::SwapError;
#[cfg(not(loom))]
pub use io::SwappedIn;
#[cfg(not(loom))]
pub use ram::RamSwap;
#[cfg(not(loom))]
pub use stats::SwapStats;
pub use table::{AttachError, Put, SwapTable};
pub use word::{MAX_COUNT, SlotWord};
#[cfg(not(loom))]
pub use zram::ZramStats;

#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod tests;
