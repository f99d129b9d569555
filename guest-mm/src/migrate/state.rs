//! What the memory manager knows of migrations under way, and of those before.

use super::ops::MigrateError;
use super::stats::MigrateStats;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::{AtomicU64, Ordering};

/// Entries of all batches, and totals.
#[derive(Debug, Default)]
pub(crate) struct Migration {
    /// Isolated pages that are no folios: as many words say *isolated* or *doomed*.
    pub(super) owned: AtomicU64,
    /// Isolated folios.
    pub(super) folios: AtomicU64,
    /// Owners' answers that their words contradicted.
    pub(super) contradictions: AtomicU64,
    migrated: AtomicU64,
    released: AtomicU64,
    freed: AtomicU64,
    failed: [AtomicU64; MigrateError::ALL.len()],
}

/// What migration has done since start, in pages (Linux `pgmigrate_success`, `pgmigrate_fail`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MigrateCounters {
    /// What became of pages in all calls together.
    pub migrated: u64,
    /// Given up by their owners: deflated, for a balloon.
    pub released: u64,
    /// Freed by their owners while they were isolated.
    pub freed: u64,
    /// Not moved, by [`MigrateError`].
    pub failed: [u64; MigrateError::ALL.len()],
    /// Times that an owner's answer was not what the words say: defects of owners. Should stay 0.
    pub contradictions: u64,
}

impl Migration {
    pub(super) fn note(&self, stats: &MigrateStats) {
        // Statistics: nobody orders anything by them.
        self.migrated.fetch_add(stats.migrated, Ordering::Relaxed);
        self.released.fetch_add(stats.released, Ordering::Relaxed);
        self.freed.fetch_add(stats.freed, Ordering::Relaxed);
        for error in MigrateError::ALL {
            let failed = stats.failed_with(error);
            self.failed[error as usize].fetch_add(failed, Ordering::Relaxed);
        }
    }
}

impl<P: Platform> Mm<'_, P> {
    /// What migration has done since start.
    pub fn migrate_counters(&self) -> MigrateCounters {
        let Migration { contradictions, migrated, released, freed, failed, .. } = &self.migration;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MigrateCounters {
            migrated: read(migrated),
            released: read(released),
            freed: read(freed),
            failed: failed.each_ref().map(read),
            contradictions: read(contradictions),
        }
    }

    /// Blocks that are no folios and that migration has isolated now. Exact when no
    /// CPU is isolating or migrating.
    pub fn isolated_blocks(&self) -> u64 {
        self.migration.owned.load(Ordering::Relaxed)
    }

    /// Folios that migration has isolated now, likewise.
    pub fn isolated_folios(&self) -> u64 {
        self.migration.folios.load(Ordering::Relaxed)
    }
}
