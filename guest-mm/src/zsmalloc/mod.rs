//! zsmalloc: objects of 1 to 4096 bytes packed closely into pages that can be migrated.
//!
//! A pool has size classes ([`SizeClass`]); a class has zspages, 1 to 4 pages that
//! hold its objects as if they were one piece, so objects may straddle pages.
//! Users know objects by handles ([`ZsHandle`]) and reach them by copying, so
//! objects may move: compaction moves them between zspages, migration moves
//! pages under them. Each page's word names its [`ZpDesc`], which names the zspage.
//!
//! Lock order: class, zspage. A zspage's lock guards which pages it has, their
//! contents, and the handles' entries that name it. Design, invariants, failure
//! cases: `docs/zsmalloc.md`.
//!
//! [`ZpDesc`]: crate::objects::ZpDesc

#[cfg(not(loom))]
mod census;
#[cfg_attr(loom, allow(dead_code, reason = "pools are not built for models"))]
mod class;
#[cfg(not(loom))]
mod compact;
#[cfg(not(loom))]
mod error;
#[cfg_attr(loom, allow(dead_code, reason = "the table is not built for models"))]
mod handle;
#[cfg(not(loom))]
mod lists;
#[cfg(not(loom))]
mod migrate;
#[cfg(not(loom))]
mod object;
#[cfg(not(loom))]
mod pool;
#[cfg(not(loom))]
mod registry;
#[cfg(not(loom))]
mod stats;
#[cfg(not(loom))]
mod table;
#[cfg(not(loom))]
mod zspage;

#[cfg(not(loom))]
pub use census::{ZsCensus, ZsDiscrepancy};
pub use class::{ALL as ALL_CLASSES, CLASSES, MAX_CHAIN, MAX_OBJECT_BYTES, SizeClass, class_of};
#[cfg(not(loom))]
pub use error::ZsError;
pub use handle::{Entry, Location, Recheck, ZsHandle, lock_named};
#[cfg(not(loom))]
pub use lists::Fullness;
#[cfg(not(loom))]
pub(crate) use registry::ZsRegistry;
#[cfg(not(loom))]
pub use registry::{MAX_POOLS, ZsPool};
#[cfg(not(loom))]
pub use stats::ZsStats;
#[cfg(not(loom))]
pub use zspage::Zspage;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
