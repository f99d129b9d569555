//! What a block device counts.

use std::collections::BTreeMap;

use crate::counters::{count, counters};

counters! {
    /// Events of one block device since the VM started; a reset does not clear them.
    ///
    /// Rules that the driver broke are counted by name in [`BlockFaults`].
    pub struct BlockCounters {
        /// Batches of requests handed out.
        batches,
        /// Requests that shared the system call of a neighbour.
        merged_requests,
        /// Reads done.
        reads,
        /// Bytes that they read.
        read_bytes,
        /// Writes done.
        writes,
        /// Bytes that they wrote.
        written_bytes,
        /// Flushes answered with success.
        flushes,
        /// Flushes of the host's file: several requests share one.
        host_flushes,
        /// Identifications given.
        identifications,
        /// Discards done.
        discards,
        /// Bytes that they gave back.
        discarded_bytes,
        /// Write-zeroes requests done.
        zeroings,
        /// Bytes that they zeroed.
        zeroed_bytes,
        /// Reads that the host could not do.
        failed_reads,
        /// Writes that the host could not do.
        failed_writes,
        /// Flushes that the host could not do.
        failed_flushes,
        /// Discards that the host could not do.
        failed_discards,
        /// Write-zeroes requests that the host could not do.
        failed_zeroings,
        /// Failures because the host had no space.
        no_space,
        /// Failures because the file was shorter than the disk.
        past_end,
        /// Configuration writes refused.
        refused_config_writes,
        /// Resets.
        resets,
    }
}

/// Rules broken by the driver, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockFaults(BTreeMap<&'static str, u64>);

impl BlockFaults {
    /// Every rule that was broken, ascending by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(&reason, &count)| (reason, count))
    }

    /// How often this rule was broken.
    pub fn get(&self, reason: &str) -> u64 {
        self.0.get(reason).copied().unwrap_or(0)
    }

    /// Counts one more; `true` when that is worth a line in the log.
    pub(super) fn count(&mut self, reason: &'static str) -> bool {
        count(self.0.entry(reason).or_default())
    }
}
