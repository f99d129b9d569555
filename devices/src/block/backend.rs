//! What holds the sectors: a file or a block device for the VMM, memory for tests.

use std::io;

use abi::block::SECTOR_BYTES;
use vm_memory::GuestMemoryMmap;

use crate::ring::CheckedDesc;

/// Where the sectors of a block device are.
///
/// Called by [`IoJob::run`](super::IoJob::run) only, one call at a time, and
/// without the device's lock: an implementation may block.
pub trait BlockBackend: Send + Sync {
    /// What it can do; always the same.
    fn properties(&self) -> BackendProperties;

    /// Fills the guest's buffers with `range`; they have as many bytes as it.
    ///
    /// # Errors
    /// [`BackendError`]; the buffers then hold anything.
    fn read(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        to: &[CheckedDesc],
    ) -> Result<(), BackendError>;

    /// Reads like [`Self::read`] if that needs no waiting for a disk; else `false`, and the disk is
    /// fetching the range if it can be told to.
    ///
    /// Asked for every read of a batch that has several, before any is waited for: so a disk
    /// works on them side by side although one thread reads them one by one.
    ///
    /// # Errors
    /// [`BackendError`]; the buffers then hold anything, as they may after `false`.
    fn try_read(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        to: &[CheckedDesc],
    ) -> Result<bool, BackendError> {
        // For backends that never wait.
        _ = (range, memory, to);
        Ok(false)
    }

    /// Writes the guest's buffers to `range`; they have as many bytes as it.
    ///
    /// # Errors
    /// [`BackendError`]; any part of the range may have been written.
    fn write(
        &self,
        range: DiskRange,
        memory: &GuestMemoryMmap,
        from: &[CheckedDesc],
    ) -> Result<(), BackendError>;

    /// Makes everything that has been written permanent.
    ///
    /// # Errors
    /// [`BackendError`]; what was written since the last success may be lost.
    fn flush(&self) -> Result<(), BackendError>;

    /// Gives the space of `range` back; it reads as anything afterwards.
    ///
    /// # Errors
    /// [`BackendError`].
    fn discard(&self, range: DiskRange) -> Result<(), BackendError>;

    /// Makes `range` read as zeros; its space may be given back if `may_unmap`, else it stays.
    ///
    /// # Errors
    /// [`BackendError`]; any part of the range may have been zeroed.
    fn write_zeroes(&self, range: DiskRange, may_unmap: bool) -> Result<(), BackendError>;
}

/// What a backend is and can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendProperties {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether nothing can be written.
    pub is_read_only: bool,
    /// Whether space can be given back.
    pub can_discard: bool,
    /// Smallest write that needs no read before it, in bytes: a power of two from 512 to 64 KiB.
    pub physical_block_bytes: u32,
}

impl BackendProperties {
    /// Size in bytes.
    pub const fn bytes(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR_BYTES)
    }
}

/// A part of a disk that lies inside its capacity, in whole sectors; it may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskRange {
    offset: u64,
    len: u64,
}

/// Why a range is no part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeFault {
    /// Its length is no whole number of sectors.
    #[error("The length is no whole number of sectors")]
    Unaligned,
    /// It has no end below 2^64.
    #[error("The range has no end below 2^64")]
    Overflow,
    /// It ends beyond the disk.
    #[error("The range ends beyond the disk")]
    OutOfRange,
}

impl DiskRange {
    /// `len` bytes from sector `sector` on, of a disk of `capacity` bytes.
    ///
    /// # Errors
    /// [`RangeFault`].
    pub fn new(sector: u64, len: u64, capacity: u64) -> Result<Self, RangeFault> {
        if !len.is_multiple_of(SECTOR_BYTES) {
            return Err(RangeFault::Unaligned);
        }
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(RangeFault::Overflow)?;
        let end = offset.checked_add(len).ok_or(RangeFault::Overflow)?;
        if end > capacity { Err(RangeFault::OutOfRange) } else { Ok(Self { offset, len }) }
    }

    /// First byte.
    pub const fn offset(self) -> u64 {
        self.offset
    }

    /// Bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Its first `bytes` and the rest; `bytes` is at most its length.
    pub(super) fn split_at(self, bytes: u64) -> (Self, Self) {
        let bytes = bytes.min(self.len);
        let rest = Self { offset: self.offset + bytes, len: self.len - bytes };
        (Self { len: bytes, ..self }, rest)
    }

    /// Both as one, if `next` begins where this one ends.
    pub(super) fn join(self, next: Self) -> Option<Self> {
        (self.end() == next.offset).then(|| Self { len: self.len + next.len, ..self })
    }
}

/// The host could not do what the guest may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendError {
    /// The file is shorter than the disk: it was cut while in use.
    PastEnd,
    /// The host has no space left, or allows the file no more; the error number.
    NoSpace(i32),
    /// The backend cannot do that at all.
    Unsupported,
    /// Anything else; the error number.
    Host(i32),
}

impl std::error::Error for BackendError {}

impl std::fmt::Display for BackendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PastEnd => f.write_str("The file has become shorter than the disk"),
            Self::Unsupported => f.write_str("The file cannot do that"),
            Self::NoSpace(errno) | Self::Host(errno) => io::Error::from_raw_os_error(*errno).fmt(f),
        }
    }
}
