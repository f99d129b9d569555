//! Releasing one window of inflated pages, with or without the device's lock.
//!
//! A release of 256 MiB takes tens of milliseconds, and a vCPU that reads
//! configuration space should not wait for it. So the work is a value: the
//! device hands out a [`ReleaseJob`], whoever runs it need not hold the device,
//! and the device publishes the used elements when it gets [`ReleaseDone`] back.
//!
//! A reset in between must not let a late discard destroy a page that the guest
//! uses again: the job runs inside [`LifeGate`], and a reset first closes
//! that. Lock order: device, then gate; a job takes only the gate.

use std::sync::Arc;
use std::time::Duration;

use abi::PfnRange;

use super::histogram::Histogram;
use super::page_set::{PageSet, RamIndex};
use crate::clock::Clock;
use crate::life::LifeGate;
use crate::ram::{DiscardError, GuestRam};

/// Runs handed to [`GuestRam::discard`] at a time: what one `process_madvise` takes.
const RUNS_PER_DISCARD: usize = 1024;

/// A window of inflated pages to be released.
///
/// The chains that named them stay with the device and are returned to the
/// driver only after [`ReleaseDone`] has come back. Dropping a job leaves them
/// with the device until the next reset.
#[must_use = "the driver waits until the pages have been released"]
pub struct ReleaseJob {
    pub(super) ram: Arc<dyn GuestRam>,
    pub(super) index: Arc<RamIndex>,
    pub(super) pages: PageSet,
    pub(super) gate: Arc<LifeGate>,
    pub(super) life: u64,
    pub(super) clock: Arc<dyn Clock>,
}

/// What became of a [`ReleaseJob`].
#[must_use = "hand it back to the balloon, which then answers the driver"]
#[derive(Debug)]
pub struct ReleaseDone {
    pub(super) pages: PageSet,
    pub(super) life: u64,
    pub(super) outcome: ReleaseOutcome,
}

/// The figures of one release.
#[derive(Debug, Default)]
pub(super) struct ReleaseOutcome {
    pub(super) released_pages: u64,
    pub(super) calls: u64,
    pub(super) run_pages: Histogram,
    pub(super) time: Duration,
    /// The first refusal of the host.
    pub(super) refused: Option<DiscardError>,
}

impl ReleaseJob {
    /// Releases every run of the window, ascending; a run that the host refuses does not stop the rest.
    ///
    /// Does nothing if the device has been reset since. Blocks for the release
    /// calls, and blocks a reset of the device for as long.
    pub fn run(self) -> ReleaseDone {
        let Self { ram, index, pages, gate, life, clock } = self;
        let mut outcome = ReleaseOutcome::default();
        gate.run(life, || {
            let started = clock.now();
            let mut runs = Vec::new();
            pages.for_each_run(&index, |run| {
                outcome.run_pages.record(run.len().get());
                runs.push(run);
                if runs.len() == RUNS_PER_DISCARD {
                    outcome.discard(&*ram, &runs);
                    runs.clear();
                }
            });
            outcome.discard(&*ram, &runs);
            outcome.time = clock.now().saturating_sub(started);
        });
        ReleaseDone { pages, life, outcome }
    }
}

impl ReleaseOutcome {
    fn discard(&mut self, ram: &dyn GuestRam, runs: &[PfnRange]) {
        if runs.is_empty() {
            return;
        }
        let done = ram.discard(runs).unwrap_or_else(|error| {
            let done = error.done;
            self.refused.get_or_insert(error);
            done
        });
        self.released_pages += done.pages.get();
        self.calls += done.calls;
    }
}
