//! Files in memory: which folio holds which pages of a file.
//!
//! A file is a [`FileMapping`]: its cache is all there is of it (Linux: ramfs,
//! and shmem without swap). `docs/page-cache.md` has the rules of lookup,
//! insertion and truncation.

mod cache;
mod io;
mod mapping;
mod ramfs;

pub use cache::{DIRTY, FileFault};
pub use io::SIZE_LIMIT;
pub use mapping::{FileMapping, FileRef, NAME_MAX};
pub use ramfs::Files;

#[cfg(test)]
mod tests;
