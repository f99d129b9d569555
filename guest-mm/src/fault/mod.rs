//! Page faults: what happens when a program touches a page that its tables do
//! not let it touch.
//!
//! The entry is `Mm::handle_fault`. A round takes the VMA's lock, looks at the
//! leaf ([`leaf`]), prepares what it needs without the leaf's lock, and looks
//! again under it. Whatever is busy is waited for with no lock held; then the
//! next round starts from the top. See `docs/faults.md`.
//!
//! Lock order: VMA or mmap for reading, folio, PMD, PTE.

#![allow(dead_code, reason = "until what it stands on has landed")]

mod access;
mod leaf;
mod outcome;
mod policy;
mod stats;

pub use access::{FaultAccess, read_only_prot};
pub use outcome::{FaultError, FaultOutcome};
pub use policy::FAULT_AROUND_PAGES;
pub use stats::{FaultCounters, FaultEvent, FaultStats};
