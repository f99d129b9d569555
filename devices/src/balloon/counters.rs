//! What the balloon counts. All of it only grows, until the VM ends; a reset of the device keeps it.

use std::collections::BTreeMap;

use super::histogram::Histogram;

/// Everything that the device counts.
#[derive(Debug, Clone, Default)]
pub struct BalloonCounters {
    /// The inflate queue.
    pub inflate: QueueCounters,
    /// The deflate queue.
    pub deflate: QueueCounters,
    /// Frames inflated, each once per window, whether the host freed anything or not.
    pub inflated_pages: u64,
    /// Frames named again within one window.
    pub repeated_pages: u64,
    /// Frames inflated that were in the balloon already.
    pub already_inflated_pages: u64,
    /// Frames deflated that were in the balloon.
    pub returned_pages: u64,
    /// Frames deflated that were not in the balloon.
    pub not_inflated_pages: u64,
    /// Pages whose release the host accepted.
    pub released_pages: u64,
    /// Pages whose release the host refused; they stay in the balloon as the guest sees it.
    pub refused_pages: u64,
    /// Windows of which the host refused some page.
    pub failed_windows: u64,
    /// System calls that releases took.
    pub discard_calls: u64,
    /// Writes to configuration space that were refused.
    pub refused_config_writes: u64,
    /// Writes of `actual` with a value above guest RAM.
    pub implausible_actual: u64,
    /// Device resets.
    pub resets: u64,
    /// Pages of each run released.
    pub run_pages: Histogram,
    /// Distinct pages of each window.
    pub window_pages: Histogram,
    /// Nanoseconds from the first release call of a window to the end of the last.
    pub release_ns: Histogram,
}

/// What one queue counts.
#[derive(Debug, Clone, Default)]
pub struct QueueCounters {
    /// Times the driver's buffers were looked at.
    pub notifications: u64,
    /// Buffers returned to the driver.
    pub buffers: u64,
    /// Frame numbers read, good or bad.
    pub pfns: u64,
    faults: BTreeMap<&'static str, u64>,
}

impl QueueCounters {
    /// Rules broken by the driver, by reason, ascending by name.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.faults.iter().map(|(&reason, &count)| (reason, count))
    }

    /// How often this rule was broken.
    pub fn fault(&self, reason: &str) -> u64 {
        self.faults.get(reason).copied().unwrap_or(0)
    }

    /// Counts `times` more; warns whenever the count has doubled, so that a guest cannot flood the log.
    pub(super) fn broke(&mut self, queue: &'static str, reason: &'static str, times: u64) {
        if times == 0 {
            return;
        }
        let count = self.faults.entry(reason).or_default();
        let before = *count;
        *count = count.saturating_add(times);
        if before.leading_zeros() != count.leading_zeros() {
            log::warn!("device=balloon queue={queue} fault={reason} count={count}");
        }
    }
}
