//! The traditional memory balloon. Source: virtio 1.2 §5.5.

/// Feature bit numbers (§5.5.3).
pub mod feature {
    /// Deflated pages may be used only once the host has been told.
    pub const MUST_TELL_HOST: u64 = 1 << 0;
    /// Statistics queue.
    pub const STATS_VQ: u64 = 1 << 1;
    /// The guest may deflate by itself when out of memory.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// Free page hinting queue.
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    /// The guest fills free pages with `poison_val`.
    pub const PAGE_POISON: u64 = 1 << 4;
    /// Free page reporting queue.
    pub const REPORTING: u64 = 1 << 5;
}

/// Offset in configuration space of `num_pages`: le32, the target in 4 KiB pages. Device-owned.
pub const CONFIG_NUM_PAGES: u64 = 0;
/// Offset of `actual`: le32, 4 KiB pages in the balloon. Driver-owned.
pub const CONFIG_ACTUAL: u64 = 4;
/// Offset of `free_page_hint_cmd_id`: le32. Device-owned.
pub const CONFIG_FREE_PAGE_HINT_CMD_ID: u64 = 8;
/// Offset of `poison_val`: le32. Driver-owned before DRIVER_OK.
pub const CONFIG_POISON_VAL: u64 = 12;
/// Bytes of configuration space.
pub const CONFIG_BYTES: u64 = 16;

/// Bytes of a PFN in an inflate or deflate buffer: le32, 4 KiB units.
pub const PFN_BYTES: usize = 4;
/// PFNs that our driver and Linux's put in one descriptor.
pub const PFNS_PER_BUFFER: usize = 256;
/// Entries of the inflate and deflate rings that our device offers.
pub const RING_ENTRIES: u16 = 256;
