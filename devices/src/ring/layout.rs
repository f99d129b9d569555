//! Where a driver put a ring, and what makes that usable.

use abi::virtio::ring::{DESC_BYTES, USED_ELEM_BYTES};
use vm_memory::GuestMemoryMmap;

use super::desc::range_in_ram;

/// Bytes of `flags` and `idx` before, and of the event field after, the entries
/// of an available or used ring.
const RING_EXTRA_BYTES: u64 = 6;
/// Bytes of an entry of the available ring.
const AVAIL_ENTRY_BYTES: u64 = 2;

/// The register values that describe one queue; the driver wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingLayout {
    /// Entries; 0 until the driver has said.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring ("driver area").
    pub avail: u64,
    /// Guest-physical address of the used ring ("device area").
    pub used: u64,
}

impl RingLayout {
    /// Whether a device with queues of at most `max_size` can use the ring in `mem`.
    ///
    /// # Errors
    /// The first [`LayoutFault`] found.
    ///
    /// Spec: VirtIO 1.2 §2.7 (sizes and alignments).
    pub fn check(&self, max_size: u16, mem: &GuestMemoryMmap) -> Result<(), LayoutFault> {
        if !self.size.is_power_of_two() || self.size > max_size {
            return Err(LayoutFault::Size { size: self.size });
        }
        let size = u64::from(self.size);
        let areas = [
            (RingArea::Desc, self.desc, 16, size * DESC_BYTES),
            (RingArea::Avail, self.avail, 2, size * AVAIL_ENTRY_BYTES + RING_EXTRA_BYTES),
            (RingArea::Used, self.used, 4, size * USED_ELEM_BYTES + RING_EXTRA_BYTES),
        ];
        for (area, addr, align, bytes) in areas {
            if !addr.is_multiple_of(align) {
                return Err(LayoutFault::Misaligned { area, addr });
            }
            if !range_in_ram(mem, addr, bytes) {
                return Err(LayoutFault::OutsideRam { area, addr });
            }
        }
        Ok(())
    }
}

/// One of the three areas of a split ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingArea {
    /// Descriptor table.
    Desc,
    /// Available ring.
    Avail,
    /// Used ring.
    Used,
}

/// Why a ring cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutFault {
    /// Not a power of two, or above the device's maximum.
    #[error("A queue of {size} entries is not possible")]
    Size {
        /// Entries asked for.
        size: u16,
    },
    /// An address without the alignment that the specification asks for.
    #[error("The {area:?} area at {addr:#x} is misaligned")]
    Misaligned {
        /// Which area.
        area: RingArea,
        /// Its address.
        addr: u64,
    },
    /// An area that is not RAM as a whole.
    #[error("The {area:?} area at {addr:#x} is not inside RAM")]
    OutsideRam {
        /// Which area.
        area: RingArea,
        /// Its address.
        addr: u64,
    },
}
