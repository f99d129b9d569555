//! Folios: naturally aligned blocks of memory with a descriptor, reference counts and mappings.
//!
//! A frame of a folio has the folio's address in its word (tag File or Anon),
//! tails included. The descriptor's memory is type-safe: a lockless reader may
//! follow the word under a read section, try to take a reference, and look at
//! the word again.

mod desc;

pub use desc::{Folio, FolioFlags};
