//! The compaction thread: makes large blocks before somebody waits for one.
//!
//! As the reclaim thread, it is a poll: a bounded piece of work whenever nobody
//! else has any.

use super::run::{CompactResult, Ended, Goal, Request};
use super::stats::CompactEvent;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::migrate::MigrateMode;
use crate::mm::Mm;
use crate::platform::Platform;

/// Words that one call looks at, for pages and for places to move them to; or a 32nd of that in moved pages.
const WORDS_PER_POLL: u64 = 8192;
/// How often it looks whether memory is scattered (Linux `HPAGE_FRAG_CHECK_INTERVAL_MSEC`).
const INTERVAL_NS: u64 = 500_000_000;
/// Looks left out after a run that changed nothing.
const FUTILE_INTERVALS: u64 = 64;
/// A proactive run ends at this score or below (Linux, with `compaction_proactiveness` 20) …
const LOW_SCORE: u32 = 80;
/// … and begins above this one.
const HIGH_SCORE: u32 = 90;

impl<'m, P: Platform> Mm<'m, P> {
    /// Says that somebody could not get a block of `order` and did not wait for it.
    pub fn wake_kcompactd(&self, order: Order) {
        if order > Order::ZERO {
            self.with_compaction(|state| {
                state.daemon.wanted = state.daemon.wanted.max(Some(order));
            });
        }
    }

    /// A piece of the compaction thread's work; returns whether there is more to do at once.
    ///
    /// Compacts for orders that somebody could not get, and if memory is so scattered
    /// that nobody could ([`Fragmentation::score`](super::Fragmentation::score) above 90),
    /// until it is not (80). To be called by whoever runs threads, with no lock held.
    pub fn kcompactd_poll(&self) -> bool {
        let daemon = self.with_compaction(|state| state.daemon);
        if let Some(order) = daemon.wanted {
            return self.compact_wanted(order);
        }
        if let Some(began_at) = daemon.proactive {
            return self.compact_proactively(began_at);
        }
        let now = self.platform().now_ns();
        if now < daemon.look_at_ns {
            return false;
        }
        let score = self.fragmentation(Order::PAGEBLOCK).score();
        let has_room = !self.memory().is_below_low();
        let begins = score > HIGH_SCORE && has_room;
        self.with_compaction(|state| {
            state.daemon.look_at_ns = now + INTERVAL_NS;
            state.daemon.proactive = begins.then_some(score);
        });
        if begins {
            self.count_compact(CompactEvent::Proactive, 1);
        }
        begins
    }

    fn compact_wanted(&self, order: Order) -> bool {
        if self.with_compaction(|state| state.deferral.defers(order)) {
            self.with_compaction(|state| state.daemon.wanted = None);
            return false;
        }
        let ended = self.run_daemon(Goal::Block(order));
        if ended.is_unfinished {
            return true;
        }
        let (succeeded, is_over) = (
            ended.result == CompactResult::Success,
            matches!(ended.result, CompactResult::Partial | CompactResult::Complete),
        );
        self.with_compaction(|state| {
            if state.daemon.wanted == Some(order) {
                state.daemon.wanted = None;
            }
            if succeeded {
                state.deferral.note_success(order, false);
            } else if is_over {
                state.deferral.note_failure(order);
            }
        });
        false
    }

    fn compact_proactively(&self, began_at: u32) -> bool {
        let ended = self.run_daemon(Goal::Score(LOW_SCORE));
        if ended.is_unfinished {
            return true;
        }
        let score = self.fragmentation(Order::PAGEBLOCK).score();
        let intervals = if score < began_at { 1 } else { FUTILE_INTERVALS };
        let now = self.platform().now_ns();
        self.with_compaction(|state| {
            state.daemon.proactive = None;
            state.daemon.look_at_ns = now + intervals * INTERVAL_NS;
        });
        false
    }

    fn run_daemon(&self, goal: Goal) -> Ended {
        let request = Request {
            goal,
            gfp: Gfp::USER,
            mode: MigrateMode::SyncLight,
            whole_zone: false,
            ignore_skips: false,
            capture: false,
            budget: Some(WORDS_PER_POLL),
        };
        let ended = self.compact_zone(&request);
        self.count_compact(CompactEvent::DaemonRun, 1);
        self.count_compact(CompactEvent::DaemonMigrateScanned, ended.migrate_scanned);
        self.count_compact(CompactEvent::DaemonFreeScanned, ended.free_scanned);
        ended
    }
}
