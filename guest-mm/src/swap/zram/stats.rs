//! What a compressed device has and has done.

use crate::sync::shim::{AtomicU64, Ordering};

/// Counters, by any CPU.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) pages: AtomicU64,
    pub(super) same: AtomicU64,
    pub(super) whole: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) failed_writes: AtomicU64,
    pub(super) failed_reads: AtomicU64,
}

/// What a compressed device has and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZramStats {
    /// Pages that slots hold.
    pub pages: u64,
    /// Those of one value, which take nothing.
    pub same_pages: u64,
    /// Those that do not get smaller and are kept as they are.
    pub whole_pages: u64,
    /// Bytes of the pages as they were written.
    pub original_bytes: u64,
    /// Bytes of what is kept of them.
    pub compressed_bytes: u64,
    /// Bytes of the frames that this is in, handles and lists included.
    pub memory_bytes: u64,
    /// Writes for which there was no memory.
    pub failed_writes: u64,
    /// Reads of what was not there, or not right. Should stay 0.
    pub failed_reads: u64,
}

impl ZramStats {
    /// Original size over the size of what is kept, in hundredths; `None` if nothing is.
    pub const fn ratio_percent(&self) -> Option<u64> {
        (self.original_bytes * 100).checked_div(self.compressed_bytes)
    }
}

impl Counters {
    pub(super) fn snapshot(&self, page_bytes: u64, frames: u64) -> ZramStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ZramStats {
            pages: read(&self.pages),
            same_pages: read(&self.same),
            whole_pages: read(&self.whole),
            original_bytes: read(&self.pages) * page_bytes,
            compressed_bytes: read(&self.bytes),
            memory_bytes: frames * page_bytes,
            failed_writes: read(&self.failed_writes),
            failed_reads: read(&self.failed_reads),
        }
    }
}
