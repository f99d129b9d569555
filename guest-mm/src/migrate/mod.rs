//! Migration: pages that change frames while their owners keep them.
//!
//! A page that is no folio has no reference count, list or lock that migration
//! knows of: its word says who owns it, and one compare-and-swap from *movable*
//! to *isolated*, which keeps the owner's pointer, takes it away. The core then
//! asks the owner, by the [`MovableOps`] of the word's kind, to go over to a
//! destination that nobody can find yet ([`TransitFrames`]), and frees the
//! frozen source itself. Design: `docs/migration.md`.
//!
//! [`TransitFrames`]: crate::memory::TransitFrames

mod folios;
mod ops;
mod registry;

pub use folios::{FailedTransfer, FolioIsolateError, IsolatedFolio, Transferred};
pub use ops::{MigrateError, MigrateMode, Migrated, MovableKind, MovableOps, Move, SourceMemory};
pub(crate) use registry::Registry;
pub use registry::{OpsGuard, RegisterError, UnregisterError};

#[cfg(test)]
mod tests;
