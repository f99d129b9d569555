//! Reverse maps: from a folio to the leaves that map it.
//!
//! Anonymous folios know their [`AnonVma`], whose interval tree holds the VMAs
//! that may map them; file folios know their file mapping, which has such a
//! tree too.

mod anon_vma;

pub use anon_vma::AnonVma;
