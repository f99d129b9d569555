//! Compaction: large free blocks out of scattered free pages, and runs of frames at a given place.
//!
//! The migrate scanner goes up the zone and isolates what can move, the free
//! scanner comes down and provides destinations; where they meet, a run is
//! complete. All that it knows of a page is its word. Design, invariants and
//! failure cases: `docs/compaction.md`.
//!
//! * [`Mm::alloc_by_compaction`] for whoever needs a block; allocations that may wait come here by themselves.
//! * [`Mm::kcompactd_poll`] before it is needed.
//! * [`Mm::alloc_contig_range`], [`Mm::alloc_contig_pages`]: a run of any length.
//!
//! Locks: none is held over a migration. The scanners' positions are behind a
//! lock of their own, inside which nothing is locked; free pages are taken under
//! the zone lock, one pageblock at a time. Nothing here allocates but
//! destinations outside of a range, which neither reclaim nor compact.
//!
//! [`Mm::alloc_by_compaction`]: crate::mm::Mm::alloc_by_compaction
//! [`Mm::kcompactd_poll`]: crate::mm::Mm::kcompactd_poll
//! [`Mm::alloc_contig_range`]: crate::mm::Mm::alloc_contig_range
//! [`Mm::alloc_contig_pages`]: crate::mm::Mm::alloc_contig_pages

mod contig;
mod direct;
mod fragmentation;
mod free_scanner;
mod kcompactd;
mod look;
mod migrate_scanner;
mod run;
mod state;
mod stats;

pub use contig::{ContigError, ContigOptions};
pub use fragmentation::{Fragmentation, Suitability};
pub(crate) use migrate_scanner::ScanRules;
pub use run::CompactResult;
pub(crate) use state::Compaction;
pub use stats::CompactStats;

#[cfg(test)]
mod tests;
