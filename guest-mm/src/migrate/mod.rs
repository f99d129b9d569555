//! Migration: pages that change frames while their owners keep them.
//!
//! A page that is no folio has no reference count, list or lock that migration
//! knows of: its word says who owns it, and one compare-and-swap from *movable*
//! to *isolated*, which keeps the owner's pointer, takes it away. The core then
//! asks the owner, by the [`MovableOps`] of the word's kind, to go over to a
//! destination that nobody can find yet ([`TransitFrames`]), and frees the
//! frozen source itself. Design: `docs/migration.md`.
//!
//! | | |
//! |---|---|
//! | [`Mm::isolate_for_migration`] | takes a page by its frame number into a [`MigrateBatch`] |
//! | [`Mm::migrate_pages`] | moves the batch to [`Destinations`]; puts back what stays |
//! | [`MigrateBatch::putback`] | gives up: also what dropping a batch does |
//!
//! Lock order: none of its own. The registry's lock is a leaf; owners' locks are tried.
//!
//! [`TransitFrames`]: crate::memory::TransitFrames
//! [`Mm::isolate_for_migration`]: crate::mm::Mm::isolate_for_migration
//! [`Mm::migrate_pages`]: crate::mm::Mm::migrate_pages

mod batch;
mod destination;
mod folio;
mod folios;
mod isolate;
mod ops;
mod registry;
mod settle;
mod state;
mod stats;
pub mod test_driver;
mod transaction;

pub use batch::{BATCH, MigrateBatch};
pub use destination::{Allocated, Destinations};
pub use folios::{
    FailedTransfer, FolioIsolateError, IsolatedFolio, MigrateRangeError, RangeMigrated,
    TransferStage, Transferred,
};
pub use isolate::IsolateError;
pub use ops::{MigrateError, MigrateMode, Migrated, MovableKind, MovableOps, Move, SourceMemory};
pub(crate) use registry::Registry;
pub use registry::{OpsGuard, RegisterError, UnregisterError};
pub use state::MigrateCounters;
pub(crate) use state::Migration;
pub use stats::MigrateStats;

// What migration needs per page: nothing but its 8-byte word. Descriptors have the
// fields of their owners and of no one else, and an entry of a batch, which exists
// while the page is isolated, is its frame number.
const _: () = {
    assert!(size_of::<crate::memdesc::WordCell>() == 8);
    assert!(size_of::<crate::objects::ZpDesc>() == 16);
    assert!(size_of::<crate::objects::MovableDesc>() == 16);
    assert!(size_of::<abi::Pfn>() == 8);
};

#[cfg(test)]
mod tests;
