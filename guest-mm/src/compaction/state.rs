//! What compaction remembers between runs: positions, failures, what is wanted.

use core::fmt;

use abi::{Pfn, PfnRange};

use super::stats::CompactCounters;
use crate::memdesc::Order;
use crate::migrate::MigrateMode;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::rcu::ReadGuard;
use crate::sync::{LockClass, SpinLock};

/// Requests put off at most: 2^6 (Linux `COMPACT_MAX_DEFER_SHIFT`).
pub(super) const MAX_DEFER_SHIFT: u32 = 6;

/// Compaction's part of a manager.
pub(crate) struct Compaction {
    pub(super) state: SpinLock<State>,
    pub(super) counters: CompactCounters,
}

/// Behind the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// Where the next run's scanners begin; `None`: at the ends of the zone.
    pub(super) cached: Cached,
    /// The scanners have met: before a new request scans, skip bits are forgotten.
    pub(super) flush_skips: bool,
    pub(super) deferral: Deferral,
    pub(super) daemon: Daemon,
}

/// Scanner positions from the last run. Asynchronous runs leave much behind,
/// which a synchronous one shall not miss: it has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) migrate_async: Option<Pfn>,
    pub(super) migrate_sync: Option<Pfn>,
    pub(super) free: Option<Pfn>,
}

impl Cached {
    pub(super) const NONE: Self = Self { migrate_async: None, migrate_sync: None, free: None };

    pub(super) const fn migrate(&self, mode: MigrateMode) -> Option<Pfn> {
        match mode {
            MigrateMode::Async => self.migrate_async,
            MigrateMode::SyncLight | MigrateMode::Sync => self.migrate_sync,
        }
    }

    /// What a synchronous run has left behind, an asynchronous one need not look at.
    pub(super) fn set_migrate(&mut self, mode: MigrateMode, at: Pfn) {
        self.migrate_async = self.migrate_async.max(Some(at));
        if mode != MigrateMode::Async {
            self.migrate_sync = self.migrate_sync.max(Some(at));
        }
    }
}

/// When compaction has failed, the next requests for the order are put off, twice as many
/// after each failure (Linux `defer_compaction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deferral {
    /// Requests put off since the last failure.
    considered: u32,
    /// log2 of how many are.
    shift: u32,
    /// The smallest order that failed; smaller ones are not put off.
    failed: Option<Order>,
}

impl Deferral {
    pub(super) const NONE: Self = Self { considered: 0, shift: 0, failed: None };

    /// Whether the request is put off; counts it.
    pub(super) fn defers(&mut self, order: Order) -> bool {
        if self.failed.is_none_or(|failed| order < failed) {
            return false;
        }
        let limit = 1 << self.shift;
        self.considered = (self.considered + 1).min(limit);
        self.considered < limit
    }

    /// A run over the whole zone has not made a block.
    pub(super) fn note_failure(&mut self, order: Order) {
        self.considered = 0;
        self.shift = (self.shift + 1).min(MAX_DEFER_SHIFT);
        self.failed = Some(self.failed.map_or(order, |failed| failed.min(order)));
    }

    /// A run has made a block; `allocated`: and whoever wanted it has it.
    pub(super) fn note_success(&mut self, order: Order, allocated: bool) {
        if allocated {
            self.considered = 0;
            self.shift = 0;
        }
        if self.failed.is_some_and(|failed| order >= failed) {
            self.failed = order.up();
        }
    }

    /// Whether requests have been put off for as long as they ever are: the zone is
    /// looked at afresh then (Linux `compaction_restarting`).
    pub(super) fn is_restarting(&self, order: Order) -> bool {
        self.failed.is_some_and(|failed| order >= failed)
            && self.shift == MAX_DEFER_SHIFT
            && self.considered >= 1 << self.shift
    }
}

/// The compaction thread's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Daemon {
    /// The largest order that somebody could not get.
    pub(super) wanted: Option<Order>,
    /// A proactive run is under way, and how scattered memory was when it began.
    pub(super) proactive: Option<u32>,
    /// When to look next whether one is needed.
    pub(super) look_at_ns: u64,
}

impl Compaction {
    pub(crate) const fn new() -> Self {
        let daemon = Daemon { wanted: None, proactive: None, look_at_ns: 0 };
        let state =
            State { cached: Cached::NONE, flush_skips: false, deferral: Deferral::NONE, daemon };
        // Nothing is locked below it.
        Self { state: SpinLock::new(LockClass::Zone, state), counters: CompactCounters::new() }
    }
}

impl fmt::Debug for Compaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compaction").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl<P: Platform> Mm<'_, P> {
    /// Changes what compaction remembers.
    pub(super) fn with_compaction<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.compaction.state.lock(self.platform()))
    }

    /// Forgets positions, skip bits, and what failed before: the next run is as the first one.
    pub(crate) fn forget_compaction(&self) {
        self.with_compaction(|state| {
            state.cached = Cached::NONE;
            state.flush_skips = false;
            state.deferral = Deferral::NONE;
        });
        self.forget_skips();
    }

    /// Forgets in which pageblocks scans found nothing.
    pub(super) fn forget_skips(&self) {
        let _section = self.read_pageblocks();
        self.memory().map().pageblocks.forget_skips();
    }

    /// A section in which regions and pageblocks may be looked at: what is kept of hot-plugged
    /// memory goes with it.
    pub(super) fn read_pageblocks(&self) -> ReadGuard<'_> {
        self.base().rcu.read(self.platform().cpu())
    }

    /// From the first frame of RAM to the last, gaps included.
    pub(crate) fn zone_span(&self) -> PfnRange {
        let _section = self.read_pageblocks();
        let words = self.memory().words();
        let first = words.regions().next().map_or(Pfn::ZERO, |region| region.range().start());
        // What was added need not lie above all that was there at the start.
        let last = words.regions().map(|region| region.range().end()).max().unwrap_or(first);
        PfnRange::new(first, last).unwrap_or_else(|| unreachable!("regions are in order"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUGE: Order = Order::PAGEBLOCK;

    #[test]
    fn each_failure_puts_off_twice_as_many_requests_up_to_64() {
        let mut deferral = Deferral::NONE;
        assert!(!deferral.defers(HUGE));
        for shift in [1, 2, 3, 4, 5, 6, 6] {
            deferral.note_failure(HUGE);
            let put_off = (0..).take_while(|_| deferral.defers(HUGE)).count();
            assert_eq!(put_off, (1 << shift) - 1);
            assert_eq!(deferral.is_restarting(HUGE), shift == 6);
        }
    }

    #[test]
    fn only_orders_that_failed_and_larger_ones_are_put_off() {
        let mut deferral = Deferral::NONE;
        deferral.note_failure(HUGE);
        assert!(!deferral.defers(Order::saturating(8)));
        assert!(deferral.defers(Order::MAX));
        deferral.note_failure(Order::saturating(4));
        assert!(deferral.defers(Order::saturating(4)));
    }

    #[test]
    fn a_success_ends_it_and_raises_the_order_that_is_put_off() {
        let mut deferral = Deferral::NONE;
        deferral.note_failure(Order::saturating(4));
        deferral.note_success(Order::saturating(4), true);
        assert!(!deferral.defers(Order::saturating(4)));
        deferral.note_failure(HUGE);
        deferral.note_success(HUGE, false);
        assert!(!deferral.defers(HUGE), "only larger ones now");
        assert!(deferral.defers(Order::MAX));
        deferral.note_success(Order::MAX, true);
        assert_eq!(deferral.failed, None);
    }

    #[test]
    fn an_asynchronous_run_does_not_move_the_synchronous_position() {
        let pfn = |number| Pfn::new(number).unwrap();
        let mut cached = Cached::NONE;
        cached.set_migrate(MigrateMode::Async, pfn(512));
        assert_eq!(cached.migrate(MigrateMode::Async), Some(pfn(512)));
        assert_eq!(cached.migrate(MigrateMode::Sync), None);
        cached.set_migrate(MigrateMode::SyncLight, pfn(1024));
        assert_eq!(cached.migrate(MigrateMode::Async), Some(pfn(1024)));
        assert_eq!(cached.migrate(MigrateMode::Sync), Some(pfn(1024)));
    }
}
