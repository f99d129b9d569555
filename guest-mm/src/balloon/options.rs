//! What a balloon driver is told, and what it tells.

use abi::PageCount;

use crate::store::MAX_BLOCK_ORDER;

/// How a balloon driver shall behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Largest order of the blocks that inflation takes; 0 inflates page by page.
    pub max_order: u32,
    /// Time without any used buffer, while some are outstanding, after which
    /// nothing new is published until the device answers.
    pub ack_timeout_ns: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_order: MAX_BLOCK_ORDER, ack_timeout_ns: 10_000_000_000 }
    }
}

/// When [`poll`](super::BalloonDriver::poll) wants to be called again, unless an interrupt comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// At once: there is more to do.
    Now,
    /// When `Platform::now_ns` reaches this.
    At(u64),
    /// Only after an interrupt.
    OnInterrupt,
}

impl Wake {
    /// The earlier of two.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        match (self, other) {
            (Self::Now, _) | (_, Self::Now) => Self::Now,
            (Self::At(a), Self::At(b)) => Self::At(a.min(b)),
            (Self::At(a), Self::OnInterrupt) | (Self::OnInterrupt, Self::At(a)) => Self::At(a),
            (Self::OnInterrupt, Self::OnInterrupt) => Self::OnInterrupt,
        }
    }
}

/// Where the driver stands with its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalloonPhase {
    /// Following the target.
    Running,
    /// Running, but the device has not answered for too long: nothing new is published.
    Degraded,
    /// Waiting for the device to finish a reset.
    Resetting,
    /// Taking every page back after a reset.
    Draining,
    /// Unbound: the device is reset and the balloon empty.
    Down,
    /// Given up: the reason is in [`BalloonStatus::failure`].
    Failed,
}

/// A snapshot of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Where the driver stands.
    pub phase: BalloonPhase,
    /// Why it gave up, if it did.
    pub failure: Option<super::BalloonError>,
    /// `num_pages` as the device last showed it.
    pub requested: PageCount,
    /// What the driver aims at: `requested`, at most the managed memory, and what out-of-memory deflation has left
    /// since the device showed its configuration.
    pub target: PageCount,
    /// Pages whose inflation the host has confirmed and whose deflation has not begun.
    pub actual: PageCount,
    /// Pages on their way to the host.
    pub inflating: PageCount,
    /// Pages on their way back.
    pub deflating: PageCount,
    /// Whether an allocation that has nothing else may have its pages.
    pub deflates_on_oom: bool,
    /// What happened so far.
    pub counters: BalloonCounters,
}

impl BalloonStatus {
    /// Pages that the guest does not have because of the balloon.
    pub const fn pages(&self) -> PageCount {
        self.actual.saturating_add(self.inflating).saturating_add(self.deflating)
    }
}

/// What happened so far. Times are the driver's own work, without the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonCounters {
    /// Pages published for inflation.
    pub inflated_pages: u64,
    /// Blocks published for inflation.
    pub inflated_blocks: u64,
    /// Nanoseconds spent reserving, allocating, marking, committing and enqueuing
    /// them, without the notification.
    pub inflate_ns: u64,
    /// Pages whose inflation was confirmed.
    pub settled_pages: u64,
    /// Nanoseconds spent making them movable.
    pub settle_ns: u64,
    /// Pages published for deflation.
    pub deflated_pages: u64,
    /// Nanoseconds spent claiming and enqueuing them, without the notification.
    pub deflate_ns: u64,
    /// Pages freed after the host's answer.
    pub freed_pages: u64,
    /// Nanoseconds spent clearing the store and freeing them.
    pub free_ns: u64,
    /// Buffers returned by the device.
    pub used_groups: u64,
    /// Notifications sent.
    pub kicks: u64,
    /// Interrupts that had a reason.
    pub interrupts: u64,
    /// Interrupts without one.
    pub spurious_interrupts: u64,
    /// Times the allocator had not even a single page to spare.
    pub out_of_pages: u64,
    /// Times the store had no room.
    pub store_failures: u64,
    /// Times a virtqueue refused a buffer.
    pub queue_failures: u64,
    /// Blocks that did not fit in 32-bit PFNs, or lay outside the store's range.
    pub unaddressable_blocks: u64,
    /// Blocks passed over by deflation because somebody had isolated them.
    pub isolated_skips: u64,
    /// Blocks split to deflate a part.
    pub splits: u64,
    /// Splits that found no memory.
    pub split_failures: u64,
    /// Times that a guest out of memory asked for pages: again and again while all that is left is on the move.
    pub oom_notifications: u64,
    /// Pages that it got.
    pub oom_pages: u64,
    /// Times that it gave up waiting for the device.
    pub oom_timeouts: u64,
    /// Calls of migration, each one round trip to the device and back for all of its pages.
    pub migrate_rounds: u64,
    /// Pages that went over to other frames.
    pub migrated_pages: u64,
    /// Pages that were given up when they should move: the balloon was too large, or being emptied.
    pub released_pages: u64,
    /// Pages of moves that the device, or a ring, stopped in the middle.
    pub kept_pages: u64,
    /// Nanoseconds spent on migration, waiting for the device included.
    pub migrate_ns: u64,
    /// Times that migration gave up waiting for the device.
    pub migrate_timeouts: u64,
    /// Resets of the device by the driver, its start not counted.
    pub resets: u64,
    /// Times the device broke a rule or asked for a reset.
    pub device_faults: u64,
    /// Times the device was silent for too long.
    pub ack_timeouts: u64,
    /// Buffers whose PFNs had been overwritten when they came back.
    pub scribbled_buffers: u64,
    /// Frames whose word or store entry was not what the driver had made it: our bug, or a stray write.
    pub inconsistencies: u64,
}
