//! The walk from a head to the buffers of its chain.

use abi::virtio::ring::DESC_BYTES;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::desc::{CheckedDesc, RawDesc, range_in_ram};

/// Why a chain cannot be used. Its head is returned to the driver all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// More descriptors than the queue has, as in a loop (§2.7.5.1: a chain is
    /// never longer than the queue size).
    #[error("The chain has more descriptors than the queue: it loops or is too long")]
    TooManyDescriptors,
    /// `next` names no descriptor of the table.
    #[error("Descriptor {next} follows, but the table ends before it")]
    NextOutOfRange {
        /// The value of `next`.
        next: u16,
    },
    /// A buffer of no bytes.
    #[error("A buffer has length 0")]
    ZeroLength,
    /// The buffers have more than `u32::MAX` bytes together (§2.7.4.2: at most 2^32).
    #[error("The buffers together exceed 4 GiB")]
    TotalTooLong,
    /// A buffer that is not RAM as a whole.
    #[error("The buffer of {len:#x} bytes at {addr:#x} is not inside RAM")]
    BufferOutsideRam {
        /// Guest-physical address.
        addr: u64,
        /// Bytes.
        len: u32,
    },
    /// A device-readable buffer after a device-writable one (§2.7.4.2).
    #[error("A readable buffer follows a writable one")]
    ReadableAfterWritable,
    /// An indirect table although the feature was not negotiated.
    #[error("An indirect table is used but was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect table inside an indirect table (§2.7.5.3.1).
    #[error("An indirect table refers to another one")]
    NestedIndirect,
    /// A descriptor both indirect and continued (§2.7.5.3.1).
    #[error("A descriptor is indirect and continued at once")]
    IndirectWithNext,
    /// An indirect table whose length is 0, no multiple of 16, or more entries than the queue.
    #[error("An indirect table has a length of {len} bytes")]
    IndirectLength {
        /// Bytes.
        len: u32,
    },
    /// A descriptor table that is not RAM as a whole.
    #[error("The descriptor table is not inside RAM")]
    TableOutsideRam,
}

impl ChainFault {
    /// Name of the reason, for counters: lower case, words joined by `_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooManyDescriptors => "too_many_descriptors",
            Self::NextOutOfRange { .. } => "next_out_of_range",
            Self::ZeroLength => "zero_length",
            Self::TotalTooLong => "total_too_long",
            Self::BufferOutsideRam { .. } => "buffer_outside_ram",
            Self::ReadableAfterWritable => "readable_after_writable",
            Self::IndirectNotNegotiated => "indirect_not_negotiated",
            Self::NestedIndirect => "nested_indirect",
            Self::IndirectWithNext => "indirect_with_next",
            Self::IndirectLength { .. } => "indirect_length",
            Self::TableOutsideRam => "table_outside_ram",
        }
    }
}

/// The validated buffers of one chain: the readable ones first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buffers {
    readable: Vec<CheckedDesc>,
    writable: Vec<CheckedDesc>,
    readable_bytes: u32,
    writable_bytes: u32,
}

impl Buffers {
    /// Buffers that the device reads, in order.
    pub fn readable(&self) -> &[CheckedDesc] {
        &self.readable
    }

    /// Buffers that the device writes, in order.
    pub fn writable(&self) -> &[CheckedDesc] {
        &self.writable
    }

    /// Bytes of all readable buffers.
    pub fn readable_bytes(&self) -> u32 {
        self.readable_bytes
    }

    /// Bytes of all writable buffers.
    pub fn writable_bytes(&self) -> u32 {
        self.writable_bytes
    }

    /// Copies readable bytes from `offset` on (counted over all readable
    /// buffers) into `out`; returns how many there were, at most `out.len()`.
    ///
    /// # Errors
    /// [`ChainFault::BufferOutsideRam`] if RAM has changed since the walk.
    pub fn read(
        &self,
        mem: &GuestMemoryMmap,
        offset: u32,
        out: &mut [u8],
    ) -> Result<usize, ChainFault> {
        let mut done = 0;
        for part in self.readable_part(offset, u32::try_from(out.len()).unwrap_or(u32::MAX)) {
            let len = host_len(part);
            let Some(to) = out.get_mut(done..done + len) else { break };
            mem.read_slice(to, part.addr()).map_err(|_| gone(part))?;
            done += len;
        }
        Ok(done)
    }

    /// Copies `data` into the writable bytes from `offset` on; returns how many fitted.
    ///
    /// # Errors
    /// [`ChainFault::BufferOutsideRam`] if RAM has changed since the walk.
    pub fn write(
        &self,
        mem: &GuestMemoryMmap,
        offset: u32,
        data: &[u8],
    ) -> Result<usize, ChainFault> {
        let mut done = 0;
        for part in self.writable_part(offset, u32::try_from(data.len()).unwrap_or(u32::MAX)) {
            let len = host_len(part);
            let Some(from) = data.get(done..done + len) else { break };
            mem.write_slice(from, part.addr()).map_err(|_| gone(part))?;
            done += len;
        }
        Ok(done)
    }

    /// The readable buffers, or parts of them, that hold at most `len` bytes from `offset` on
    /// (counted over all readable buffers).
    pub fn readable_part(&self, offset: u32, len: u32) -> impl Iterator<Item = CheckedDesc> {
        parts(&self.readable, offset, len)
    }

    /// The same of the writable buffers.
    pub fn writable_part(&self, offset: u32, len: u32) -> impl Iterator<Item = CheckedDesc> {
        parts(&self.writable, offset, len)
    }

    fn push(&mut self, desc: CheckedDesc, writable: bool) -> Result<(), ChainFault> {
        let total =
            u64::from(self.readable_bytes) + u64::from(self.writable_bytes) + u64::from(desc.len());
        if total > u64::from(u32::MAX) {
            return Err(ChainFault::TotalTooLong);
        }
        if writable {
            self.writable_bytes += desc.len();
            self.writable.push(desc);
        } else if self.writable.is_empty() {
            self.readable_bytes += desc.len();
            self.readable.push(desc);
        } else {
            return Err(ChainFault::ReadableAfterWritable);
        }
        Ok(())
    }
}

/// RAM has changed since the walk.
fn gone(part: CheckedDesc) -> ChainFault {
    ChainFault::BufferOutsideRam { addr: part.addr().0, len: part.len() }
}

/// The parts of `descs` that cover at most `want` bytes from `offset` on.
fn parts(
    descs: &[CheckedDesc],
    offset: u32,
    want: u32,
) -> impl Iterator<Item = CheckedDesc> + use<'_> {
    let mut skip = offset;
    let mut left = want;
    descs.iter().filter_map(move |desc| {
        let part = desc.part(skip, left);
        skip = skip.saturating_sub(desc.len());
        left -= part.map_or(0, CheckedDesc::len);
        part
    })
}

/// Bytes of a checked buffer as the host's memory counts them.
fn host_len(part: CheckedDesc) -> usize {
    usize::try_from(part.len()).unwrap_or(usize::MAX)
}

/// Where a walk begins: facts of the queue that have been validated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    /// Descriptor table of the queue.
    pub(super) table: GuestAddress,
    /// Queue size: the entries of that table and the longest legal chain.
    pub(super) size: u16,
    /// First descriptor, below `size`.
    pub(super) head: u16,
    /// Whether INDIRECT_DESC was negotiated.
    pub(super) indirect: bool,
}

/// Follows a chain to its end and validates all of it.
///
/// Eager on purpose: a device sees either every buffer of a chain or the reason
/// why it sees none, so it never acts on half of a bad request. Work and memory
/// are bounded by the queue size.
pub(super) fn walk(mem: &GuestMemoryMmap, start: Start) -> Result<Buffers, ChainFault> {
    let mut buffers = Buffers::default();
    let mut table = start.table;
    let mut entries = start.size;
    let mut index = start.head;
    let mut in_indirect = false;
    // Indirect tables count too, or one per chain would exceed the bound.
    for _ in 0..=start.size {
        let raw = RawDesc::read(mem, table, index)?;
        if raw.is_indirect() {
            if in_indirect {
                return Err(ChainFault::NestedIndirect);
            }
            (table, entries) = indirect_table(mem, start, raw)?;
            in_indirect = true;
            index = 0;
            continue;
        }
        buffers.push(CheckedDesc::new(mem, raw)?, raw.is_writable())?;
        if buffers.readable.len() + buffers.writable.len() > usize::from(start.size) {
            return Err(ChainFault::TooManyDescriptors);
        }
        if !raw.has_next() {
            return Ok(buffers);
        }
        if raw.next >= entries {
            return Err(ChainFault::NextOutOfRange { next: raw.next });
        }
        index = raw.next;
    }
    Err(ChainFault::TooManyDescriptors)
}

/// Address and number of entries of the indirect table that `raw` refers to.
///
/// The WRITE flag of `raw` means nothing (§2.7.5.3.2).
fn indirect_table(
    mem: &GuestMemoryMmap,
    start: Start,
    raw: RawDesc,
) -> Result<(GuestAddress, u16), ChainFault> {
    if !start.indirect {
        return Err(ChainFault::IndirectNotNegotiated);
    }
    if raw.has_next() {
        return Err(ChainFault::IndirectWithNext);
    }
    let bad_length = ChainFault::IndirectLength { len: raw.len };
    let bytes = u64::from(raw.len);
    if bytes == 0 || !bytes.is_multiple_of(DESC_BYTES) {
        return Err(bad_length);
    }
    let entries = u16::try_from(bytes / DESC_BYTES).map_err(|_| bad_length)?;
    if entries > start.size {
        return Err(bad_length);
    }
    if !range_in_ram(mem, raw.addr, bytes) {
        return Err(ChainFault::TableOutsideRam);
    }
    Ok((GuestAddress(raw.addr), entries))
}
