//! Migration of folios: the descriptor stays, its frames change.
//!
//! | step | undone by |
//! |---|---|
//! | [`Mm::isolate_lru_folio`]: a reference by the frame's word, off the LRU | [`Mm::putback_lru_folio`] |
//! | locked; the destination's word says *transit* | unlocked; frozen again |
//! | migration leaves in place of all leaves | `restore_leaves` |
//! | frozen: nobody else has a reference | unfrozen |
//! | contents, words, swap slot, `pfn`; unfrozen | nothing can fail here |
//! | leaves restored, waiters woken; source frozen; on the LRU again | |
//!
//! Why every reader that takes no lock is right all along: `docs/folio-migration.md`.
//!
//! [`Mm::isolate_lru_folio`]: crate::mm::Mm::isolate_lru_folio
//! [`Mm::putback_lru_folio`]: crate::mm::Mm::putback_lru_folio

mod isolate;
mod parts;
mod range;
mod transfer;
mod waiting;

pub use isolate::{FolioIsolateError, IsolatedFolio};
pub(super) use parts::FolioPages;
pub use range::{MigrateRangeError, RangeMigrated};
pub use transfer::{FailedTransfer, TransferStage, Transferred};
pub(super) use waiting::WaitingParts;

#[cfg(test)]
mod tests;
