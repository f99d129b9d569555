//! Folios: naturally aligned blocks of memory with a descriptor, reference counts and mappings.
//!
//! A frame of a folio has the folio's address in its word (tag File, Anon or
//! DevFolio), tails included. The descriptor's memory is type-safe: a lockless
//! reader may follow the word under a read section, try to take a reference,
//! and look at the word again ([`speculative`]); likewise from a slot of the page
//! cache ([`cache_glance`]).
//!
//! `docs/folios.md` has the invariants and the order of events.

#[cfg(not(loom))]
mod alloc;
mod cache_lookup;
#[cfg(not(loom))]
mod contents;
#[cfg(not(loom))]
mod deferred;
mod desc;
#[cfg(not(loom))]
mod device;
mod handle;
mod kind;
mod lock;
mod locked;
#[cfg(loom)]
pub mod mutant;
mod relocate;
pub mod speculative;
#[cfg(not(loom))]
mod split;

pub use cache_lookup::{CacheGlance, cache_glance};
#[cfg(not(loom))]
pub use deferred::DeferredSplit;
pub use desc::{Folio, FolioFlags};
pub use handle::{FolioPin, FolioRef, FrozenFolio};
pub use kind::FolioKind;
pub use lock::FolioLockGuard;
pub use locked::LockedFolio;
pub use speculative::NoFolio;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
