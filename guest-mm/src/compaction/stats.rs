//! What compaction has done.

use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::{AtomicU64, Ordering};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum CompactEvent {
    Stall,
    Success,
    Fail,
    Deferred,
    Captured,
    MigrateScanned,
    FreeScanned,
    Isolated,
    Migrated,
    NotMigrated,
    DaemonRun,
    DaemonMigrateScanned,
    DaemonFreeScanned,
    Proactive,
    ContigSuccess,
    ContigFail,
}

impl CompactEvent {
    const COUNT: usize = 16;
}

/// Counters, by any CPU.
#[derive(Debug)]
pub(super) struct CompactCounters([AtomicU64; CompactEvent::COUNT]);

impl CompactCounters {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; CompactEvent::COUNT])
    }

    /// Statistics: nobody orders anything by them.
    pub(super) fn add(&self, event: CompactEvent, count: u64) {
        self.0[event as usize].fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self, event: CompactEvent) -> u64 {
        self.0[event as usize].load(Ordering::Relaxed)
    }
}

/// What compaction has done since start. In brackets Linux's names in `/proc/vmstat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompactStats {
    /// Allocations that compacted for themselves (`compact_stall`).
    pub stalls: u64,
    /// Those that got their block by it (`compact_success`).
    pub successes: u64,
    /// Those that did not (`compact_fail`).
    pub failures: u64,
    /// Requests that were put off because the last ones had failed.
    pub deferred: u64,
    /// Blocks taken where they were made, before anybody else could.
    pub captured: u64,
    /// Words that migrate scanners looked at (`compact_migrate_scanned`).
    pub migrate_scanned: u64,
    /// Words that free scanners looked at (`compact_free_scanned`).
    pub free_scanned: u64,
    /// Pages taken by either scanner, to move or to be moved to (`compact_isolated`).
    pub isolated: u64,
    /// Pages that left their frames.
    pub migrated: u64,
    /// Pages isolated that did not.
    pub not_migrated: u64,
    /// Pieces of the compaction thread's work that had something to do (`compact_daemon_wake`).
    pub daemon_runs: u64,
    /// Its part of [`Self::migrate_scanned`] (`compact_daemon_migrate_scanned`).
    pub daemon_migrate_scanned: u64,
    /// Its part of [`Self::free_scanned`] (`compact_daemon_free_scanned`).
    pub daemon_free_scanned: u64,
    /// Times that it began because memory was scattered, without anybody asking.
    pub proactive: u64,
    /// Runs of frames handed out (`cma_alloc_success`).
    pub contig_successes: u64,
    /// Those refused (`cma_alloc_fail`).
    pub contig_failures: u64,
}

impl<P: Platform> Mm<'_, P> {
    /// What compaction has done since start.
    pub fn compact_stats(&self) -> CompactStats {
        let counters = &self.compaction.counters;
        CompactStats {
            stalls: counters.get(CompactEvent::Stall),
            successes: counters.get(CompactEvent::Success),
            failures: counters.get(CompactEvent::Fail),
            deferred: counters.get(CompactEvent::Deferred),
            captured: counters.get(CompactEvent::Captured),
            migrate_scanned: counters.get(CompactEvent::MigrateScanned),
            free_scanned: counters.get(CompactEvent::FreeScanned),
            isolated: counters.get(CompactEvent::Isolated),
            migrated: counters.get(CompactEvent::Migrated),
            not_migrated: counters.get(CompactEvent::NotMigrated),
            daemon_runs: counters.get(CompactEvent::DaemonRun),
            daemon_migrate_scanned: counters.get(CompactEvent::DaemonMigrateScanned),
            daemon_free_scanned: counters.get(CompactEvent::DaemonFreeScanned),
            proactive: counters.get(CompactEvent::Proactive),
            contig_successes: counters.get(CompactEvent::ContigSuccess),
            contig_failures: counters.get(CompactEvent::ContigFail),
        }
    }

    pub(super) fn count_compact(&self, event: CompactEvent, count: u64) {
        self.compaction.counters.add(event, count);
    }
}
