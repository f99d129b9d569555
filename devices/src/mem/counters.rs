//! What the memory device counts. All of it only grows, until the VM ends; resets keep it.

use crate::counters::counters;

counters! {
    /// Requests, answers, and rules broken by the driver.
    pub struct MemCounters {
        /// Requests to plug.
        plug_requests,
        /// Requests to unplug.
        unplug_requests,
        /// Requests to unplug everything.
        unplug_all_requests,
        /// Requests for the state of blocks.
        state_requests,
        /// Answered with ACK.
        acks,
        /// Answered with NACK: beyond the size that is requested.
        nacks,
        /// Answered with BUSY: the host has refused.
        busies,
        /// Answered with ERROR, for one of the reasons below.
        errors,
        /// Blocks plugged.
        plugged_blocks,
        /// Blocks unplugged.
        unplugged_blocks,
        /// Unplugs after which the host still held memory that it had been told to free.
        release_failed,
        /// A chain that breaks the rules of the ring.
        chain_bad,
        /// A request with fewer than 24 bytes.
        request_short,
        /// A request whose answer has no room, so that it is neither carried out nor answered.
        response_short,
        /// A type that is none.
        unknown_type,
        /// No blocks at all.
        no_blocks,
        /// An address that is no multiple of the block size.
        unaligned,
        /// Blocks outside the region.
        outside_region,
        /// Blocks in the region, but not in its usable part.
        outside_usable,
        /// A plug of blocks some of which are plugged.
        already_plugged,
        /// An unplug of blocks some of which are not plugged.
        not_plugged,
        /// Writes to configuration space, of which the driver owns nothing.
        refused_config_writes,
        /// Resets of the device by its driver, which keep what is plugged.
        device_resets,
        /// Resets of the machine, which unplug everything.
        system_resets,
    }
}
