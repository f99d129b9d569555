//! One descriptor: as the driver wrote it, and as it may be used.

use abi::virtio::ring::{DESC_BYTES, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::ChainFault;

/// A copy of a descriptor in guest memory; no field has been validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawDesc {
    /// Guest-physical address of the buffer, or of an indirect table.
    pub addr: u64,
    /// Bytes of the buffer or table.
    pub len: u32,
    /// `VIRTQ_DESC_F_*` bits.
    pub flags: u16,
    /// Index of the next descriptor if `flags` says there is one.
    pub next: u16,
}

impl RawDesc {
    /// Copies descriptor `index` of the table at `table`: the only read of it.
    ///
    /// # Errors
    /// [`ChainFault::TableOutsideRam`].
    pub fn read(
        mem: &GuestMemoryMmap,
        table: GuestAddress,
        index: u16,
    ) -> Result<Self, ChainFault> {
        let at = table
            .0
            .checked_add(u64::from(index) * DESC_BYTES)
            .ok_or(ChainFault::TableOutsideRam)?;
        // A volatile copy may tear if the guest writes at the same time: any
        // outcome is an unvalidated value, and it is read only once.
        let bytes: [u8; 16] =
            mem.read_obj(GuestAddress(at)).map_err(|_| ChainFault::TableOutsideRam)?;
        Ok(Self::from_le_bytes(bytes))
    }

    /// Decodes the wire layout: le64 addr, le32 len, le16 flags, le16 next.
    pub const fn from_le_bytes(bytes: [u8; 16]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Encodes the wire layout.
    pub const fn to_le_bytes(self) -> [u8; 16] {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = self.addr.to_le_bytes();
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        let [f0, f1] = self.flags.to_le_bytes();
        let [n0, n1] = self.next.to_le_bytes();
        [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1]
    }

    /// Whether the chain continues at `next`.
    pub const fn has_next(self) -> bool {
        self.flags & VIRTQ_DESC_F_NEXT != 0
    }

    /// Whether the device may only write the buffer.
    pub const fn is_writable(self) -> bool {
        self.flags & VIRTQ_DESC_F_WRITE != 0
    }

    /// Whether the buffer is a table of descriptors.
    pub const fn is_indirect(self) -> bool {
        self.flags & VIRTQ_DESC_F_INDIRECT != 0
    }
}

/// A buffer that lies in guest RAM as a whole and is not empty.
///
/// Holding one proves both, for the memory that it was checked against: RAM is
/// never unmapped while a device is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedDesc {
    addr: GuestAddress,
    len: u32,
}

impl CheckedDesc {
    /// Validates the buffer of `raw`; its flags and `next` are the walker's affair.
    ///
    /// # Errors
    /// [`ChainFault::ZeroLength`], [`ChainFault::BufferOutsideRam`].
    pub fn new(mem: &GuestMemoryMmap, raw: RawDesc) -> Result<Self, ChainFault> {
        if raw.len == 0 {
            return Err(ChainFault::ZeroLength);
        }
        if !range_in_ram(mem, raw.addr, u64::from(raw.len)) {
            return Err(ChainFault::BufferOutsideRam { addr: raw.addr, len: raw.len });
        }
        Ok(Self { addr: GuestAddress(raw.addr), len: raw.len })
    }

    /// Guest-physical address of the first byte.
    pub const fn addr(self) -> GuestAddress {
        self.addr
    }

    /// The part of at most `len` bytes from `offset` on; `None` if it would be empty.
    pub fn part(self, offset: u32, len: u32) -> Option<Self> {
        let len = self.len.checked_sub(offset)?.min(len);
        // Inside a buffer that was checked, so it cannot overflow.
        let addr = GuestAddress(self.addr.0 + u64::from(offset));
        (len > 0).then_some(Self { addr, len })
    }

    /// Bytes; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a checked buffer is never empty")]
    pub const fn len(self) -> u32 {
        self.len
    }
}

/// Whether all of `[addr, addr + len)` is RAM, without wrapping around.
pub(super) fn range_in_ram(mem: &GuestMemoryMmap, addr: u64, len: u64) -> bool {
    let Ok(count) = usize::try_from(len) else { return false };
    addr.checked_add(len).is_some()
        && GuestMemory::check_range(mem, GuestAddress(addr), count, Permissions::ReadWrite)
}
