//! Reverse maps: from a folio to the leaves that map it.
//!
//! Anonymous folios know their [`AnonVma`], whose interval tree holds the VMAs
//! that may map them; file folios know their file mapping, which has such a
//! tree too. `docs/rmap.md` has the scheme and the lock rules.

mod account;
mod adjust;
mod age;
mod anon_vma;
mod census;
mod chain;
mod interval;
mod unmap;
mod walk;

pub use account::MappedBy;
pub use anon_vma::AnonVma;
pub use census::RmapDiscrepancy;
pub use chain::{AnonVmaChain, VmaRmap};
pub use interval::{BrokenTree, IntervalNode, IntervalTree};
pub use unmap::Unmap;
pub use walk::{FolioSpan, RmapAnchor};

#[cfg(test)]
pub(crate) mod tests;
