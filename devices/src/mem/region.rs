//! Where the region lies, how it is cut into blocks, and which blocks a request speaks of.

use std::ops::Range;

use abi::{PAGE_SIZE, Pfn, PfnRange};

/// A region of hotplug memory: its place, size and block size.
///
/// Holding one proves that the block size is a power of two of at least a
/// page, that start and size are multiples of it and not beyond the address
/// space, and that the region is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemRegion {
    pfns: PfnRange,
    block_bytes: u64,
}

/// No such region is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemRegionError {
    /// The block size is no power of two of at least 4 KiB.
    #[error("A memory block of {block_bytes} B is not possible: a power of two, 4096 B or more")]
    BlockSize {
        /// Bytes.
        block_bytes: u64,
    },
    /// Start or size are no multiples of the block size, or the size is 0.
    #[error(
        "A region of {bytes} B at {addr:#x} cannot be cut into blocks of {block_bytes} B: start and size must be multiples, the size not 0"
    )]
    Unaligned {
        /// Guest-physical start.
        addr: u64,
        /// Bytes.
        bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// It ends beyond the 64-bit address space.
    #[error("A region of {bytes} B at {addr:#x} ends beyond the address space")]
    TooHigh {
        /// Guest-physical start.
        addr: u64,
        /// Bytes.
        bytes: u64,
    },
}

impl MemRegion {
    /// `bytes` from guest-physical `addr` on, in blocks of `block_bytes`.
    ///
    /// # Errors
    /// [`MemRegionError`].
    pub fn new(addr: u64, bytes: u64, block_bytes: u64) -> Result<Self, MemRegionError> {
        if !block_bytes.is_power_of_two() || block_bytes < PAGE_SIZE {
            return Err(MemRegionError::BlockSize { block_bytes });
        }
        if !addr.is_multiple_of(block_bytes) || !bytes.is_multiple_of(block_bytes) || bytes == 0 {
            return Err(MemRegionError::Unaligned { addr, bytes, block_bytes });
        }
        let end = addr.checked_add(bytes).ok_or(MemRegionError::TooHigh { addr, bytes })?;
        // `end` is above `addr`, so this is a range.
        PfnRange::new(Pfn::containing(addr), Pfn::containing(end))
            .map(|pfns| Self { pfns, block_bytes })
            .ok_or(MemRegionError::TooHigh { addr, bytes })
    }

    /// Guest-physical address of the first byte.
    pub const fn addr(&self) -> u64 {
        self.pfns.start().gpa()
    }

    /// Bytes.
    pub const fn bytes(&self) -> u64 {
        self.pfns.len().bytes()
    }

    /// Bytes of a block.
    pub const fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// The frames.
    pub const fn pfns(&self) -> PfnRange {
        self.pfns
    }

    /// Number of blocks.
    pub const fn blocks(&self) -> u64 {
        self.bytes() / self.block_bytes
    }

    /// The frames of `blocks`, which the caller knows to be in the region.
    pub(super) fn frames(&self, blocks: &Range<u64>) -> Option<PfnRange> {
        let at = |block: u64| {
            let offset = block.checked_mul(self.block_bytes)?;
            Some(Pfn::containing(self.addr().checked_add(offset)?))
        };
        let range = PfnRange::new(at(blocks.start)?, at(blocks.end)?)?;
        self.pfns.contains_range(range).then_some(range)
    }

    /// The blocks that a request names, if all of them lie in the first `usable_bytes`: the only door from a driver's
    /// claim to a block.
    pub(super) fn claimed(
        &self,
        addr: u64,
        nb_blocks: u16,
        usable_bytes: u64,
    ) -> Result<Range<u64>, ClaimFault> {
        if nb_blocks == 0 {
            return Err(ClaimFault::NoBlocks);
        }
        if !addr.is_multiple_of(self.block_bytes) {
            return Err(ClaimFault::Unaligned);
        }
        let offset = addr.checked_sub(self.addr()).ok_or(ClaimFault::OutsideRegion)?;
        let first = offset / self.block_bytes;
        let end = first.checked_add(nb_blocks.into()).ok_or(ClaimFault::OutsideRegion)?;
        if end > self.blocks() {
            return Err(ClaimFault::OutsideRegion);
        }
        if end > usable_bytes / self.block_bytes {
            return Err(ClaimFault::OutsideUsable);
        }
        Ok(first..end)
    }
}

/// Why a request names no blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimFault {
    NoBlocks,
    Unaligned,
    OutsideRegion,
    OutsideUsable,
}
