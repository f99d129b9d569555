//! Reclaim: who gives memory back when there is too little, in which order, and
//! who dies if nothing else helps.
//!
//! * LRU lists ([`LruList`]) hold folios in the order in which they are looked at.
//! * `Mm::alloc_frames` reclaims for an allocation; [`Mm::kswapd_poll`] before it is needed.
//! * [`Mm::make_room`] goes on where that ends: the [`OomNotifier`], then the OOM killer.
//!
//! Design, order of events and failure cases: `docs/reclaim.md`.
//!
//! Lock order: a folio's lock (tried only), rmap, PTE, LRU. Nothing here
//! allocates, so nothing here waits for itself.
//!
//! [`Mm::kswapd_poll`]: crate::mm::Mm::kswapd_poll
//! [`Mm::make_room`]: crate::mm::Mm::make_room

mod direct;
mod kswapd;
mod lru;
mod oom;
mod pageout;
mod scan;
mod shrink;
mod shrinker;
mod state;
mod stats;

pub(crate) use lru::Lru;
pub use lru::{LruCounts, LruList};
pub use oom::{Attempts, OomNotifier, OutOfMemory};
pub use shrinker::{Shrinker, TooManyShrinkers};
pub(crate) use state::Reclaim;
pub use stats::ReclaimStats;

#[cfg(test)]
mod tests;
