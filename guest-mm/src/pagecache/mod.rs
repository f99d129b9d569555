//! Files in memory: which folio holds which pages of a file.

mod mapping;

pub use mapping::FileMapping;
