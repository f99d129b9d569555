//! The memory of a split virtqueue (virtio 1.2 §2.7) as atomic cells.
//!
//! The queue logic in [`super::queue`] names the orderings; this file only says
//! where the cells are. Under `cfg(loom)` the same cells are loom's, so that the
//! model checker runs the real queue code.

#[cfg(not(loom))]
pub use raw::RingMemory;

#[cfg(loom)]
pub use model::RingMemory;

/// Largest ring that drivers here use.
pub const MAX_RING_ENTRIES: u16 = 256;

/// Whether a ring may have this many entries.
const fn is_ring_size(entries: u16) -> bool {
    entries.is_power_of_two() && entries <= MAX_RING_ENTRIES
}

#[cfg(not(loom))]
mod raw {
    use core::ptr::NonNull;
    use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

    use super::is_ring_size;
    use crate::virtio::DmaSlice;

    /// Descriptor table and both rings of one queue, in pages lent to the device.
    #[derive(Debug)]
    pub struct RingMemory {
        entries: u16,
        descriptors: DmaSlice,
        available: DmaSlice,
        used: DmaSlice,
    }

    impl RingMemory {
        /// Bytes of the descriptor table.
        pub const fn descriptor_bytes(entries: u16) -> usize {
            DESC_BYTES * entries as usize
        }

        /// Bytes of both rings, laid out one after the other.
        pub const fn rings_bytes(entries: u16) -> usize {
            used_offset(entries) + 4 + USED_ELEM_BYTES * entries as usize
        }

        /// Bytes of a queue in one piece.
        pub const fn bytes(entries: u16) -> usize {
            Self::descriptor_bytes(entries) + Self::rings_bytes(entries)
        }

        /// Lays a queue of `entries` out in two pieces and zeroes both.
        ///
        /// `None` if `entries` is not a power of two up to 256, if a piece is
        /// too small, or if `descriptors` is not 16-aligned or `rings` not 4-aligned.
        pub fn new(entries: u16, descriptors: DmaSlice, rings: DmaSlice) -> Option<Self> {
            let ring = Self::lay_out(entries, descriptors, rings)?;
            for piece in [&ring.descriptors, &ring.available, &ring.used] {
                piece.zero();
            }
            Some(ring)
        }

        fn lay_out(entries: u16, descriptors: DmaSlice, rings: DmaSlice) -> Option<Self> {
            if !is_ring_size(entries)
                || !descriptors.gpa().is_multiple_of(16)
                || !rings.gpa().is_multiple_of(4)
            {
                return None;
            }
            let descriptors = descriptors.part(0, Self::descriptor_bytes(entries))?;
            let rings = rings.part(0, Self::rings_bytes(entries))?;
            let available = rings.part(0, available_bytes(entries))?;
            let used = rings.part(used_offset(entries), rings.len() - used_offset(entries))?;
            Some(Self { entries, descriptors, available, used })
        }

        /// Lays a queue of `entries` out in one piece; see [`Self::new`].
        pub fn in_one_piece(entries: u16, memory: DmaSlice) -> Option<Self> {
            Self::new(entries, memory, Self::rings_part(entries, memory)?)
        }

        /// A queue laid out by [`Self::in_one_piece`] and enabled before, on
        /// which no buffer was ever added: as it is, without zeroing.
        pub fn enabled_in_one_piece(entries: u16, memory: DmaSlice) -> Option<Self> {
            Self::lay_out(entries, memory, Self::rings_part(entries, memory)?)
        }

        fn rings_part(entries: u16, memory: DmaSlice) -> Option<DmaSlice> {
            let split = Self::descriptor_bytes(entries);
            memory.part(split, memory.len().checked_sub(split)?)
        }

        /// Guest-physical addresses of descriptor table, available ring and used ring.
        pub const fn addresses(&self) -> [u64; 3] {
            [self.descriptors.gpa(), self.available.gpa(), self.used.gpa()]
        }

        /// Entries of the ring.
        pub const fn entries(&self) -> u16 {
            self.entries
        }

        pub(crate) fn desc_addr(&self, index: u16) -> &AtomicU64 {
            let ptr = cell::<u64>(&self.descriptors, self.desc_offset(index));
            // SAFETY: `cell` checked bounds and alignment; the page outlives
            // `self` (`DmaPage::into_pfn`); both sides use atomics.
            unsafe { AtomicU64::from_ptr(ptr.as_ptr()) }
        }

        pub(crate) fn desc_len(&self, index: u16) -> &AtomicU32 {
            cell32(&self.descriptors, self.desc_offset(index) + 8)
        }

        pub(crate) fn desc_flags(&self, index: u16) -> &AtomicU16 {
            cell16(&self.descriptors, self.desc_offset(index) + 12)
        }

        pub(crate) fn desc_next(&self, index: u16) -> &AtomicU16 {
            cell16(&self.descriptors, self.desc_offset(index) + 14)
        }

        pub(crate) fn avail_idx(&self) -> &AtomicU16 {
            cell16(&self.available, 2)
        }

        pub(crate) fn avail_entry(&self, index: u16) -> &AtomicU16 {
            cell16(&self.available, 4 + 2 * usize::from(index % self.entries))
        }

        pub(crate) fn used_flags(&self) -> &AtomicU16 {
            cell16(&self.used, 0)
        }

        pub(crate) fn used_idx(&self) -> &AtomicU16 {
            cell16(&self.used, 2)
        }

        pub(crate) fn used_id(&self, index: u16) -> &AtomicU32 {
            cell32(&self.used, 4 + 8 * usize::from(index % self.entries))
        }

        pub(crate) fn used_len(&self, index: u16) -> &AtomicU32 {
            cell32(&self.used, 8 + 8 * usize::from(index % self.entries))
        }

        fn desc_offset(&self, index: u16) -> usize {
            DESC_BYTES * usize::from(index % self.entries)
        }
    }

    /// [`abi::virtio::ring::DESC_BYTES`], for indexing.
    const DESC_BYTES: usize = 16;
    /// [`abi::virtio::ring::USED_ELEM_BYTES`], for indexing.
    const USED_ELEM_BYTES: usize = 8;
    const _: () = assert!(DESC_BYTES as u64 == abi::virtio::ring::DESC_BYTES);
    const _: () = assert!(USED_ELEM_BYTES as u64 == abi::virtio::ring::USED_ELEM_BYTES);

    /// le16 flags, le16 idx, le16 ring[entries].
    const fn available_bytes(entries: u16) -> usize {
        4 + 2 * entries as usize
    }

    const fn used_offset(entries: u16) -> usize {
        // The used ring is 4-aligned (§2.7).
        available_bytes(entries).next_multiple_of(4)
    }

    /// The cell at `offset`, inside the slice and aligned.
    ///
    /// # Panics
    /// If it is not: a bug in this file, since `new` sized the slices and every
    /// index is reduced modulo the ring's size.
    fn cell<T>(slice: &DmaSlice, offset: usize) -> NonNull<T> {
        let part = slice.part(offset, size_of::<T>());
        let ptr = part.map(|part| part.as_ptr().cast::<T>()).filter(|ptr| ptr.is_aligned());
        ptr.expect("a ring cell lies inside its ring")
    }

    fn cell16(slice: &DmaSlice, offset: usize) -> &AtomicU16 {
        let ptr = cell::<u16>(slice, offset);
        // SAFETY: as in `desc_addr`.
        unsafe { AtomicU16::from_ptr(ptr.as_ptr()) }
    }

    fn cell32(slice: &DmaSlice, offset: usize) -> &AtomicU32 {
        let ptr = cell::<u32>(slice, offset);
        // SAFETY: as in `desc_addr`.
        unsafe { AtomicU32::from_ptr(ptr.as_ptr()) }
    }
}

#[cfg(loom)]
mod model {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};
    use std::vec::Vec;

    use super::is_ring_size;

    #[derive(Debug)]
    struct Cells {
        desc: Vec<(AtomicU64, AtomicU32, AtomicU16)>,
        next: Vec<AtomicU16>,
        avail: Vec<AtomicU16>,
        avail_idx: AtomicU16,
        used: Vec<(AtomicU32, AtomicU32)>,
        used_idx: AtomicU16,
        used_flags: AtomicU16,
    }

    /// A ring of model-checked cells; clones share it.
    #[derive(Debug, Clone)]
    pub struct RingMemory {
        cells: Arc<Cells>,
    }

    impl RingMemory {
        pub(crate) fn modelled(entries: u16) -> Self {
            assert!(is_ring_size(entries));
            let cells = Cells {
                desc: (0..entries)
                    .map(|_| (AtomicU64::new(0), AtomicU32::new(0), AtomicU16::new(0)))
                    .collect(),
                next: (0..entries).map(|_| AtomicU16::new(0)).collect(),
                avail: (0..entries).map(|_| AtomicU16::new(0)).collect(),
                avail_idx: AtomicU16::new(0),
                used: (0..entries).map(|_| (AtomicU32::new(0), AtomicU32::new(0))).collect(),
                used_idx: AtomicU16::new(0),
                used_flags: AtomicU16::new(0),
            };
            Self { cells: Arc::new(cells) }
        }

        /// Placeholder addresses: a model has none.
        pub fn addresses(&self) -> [u64; 3] {
            [0; 3]
        }

        /// Entries of the ring.
        pub fn entries(&self) -> u16 {
            u16::try_from(self.cells.avail.len()).expect("checked by modelled")
        }

        fn at(&self, index: u16) -> usize {
            usize::from(index) % self.cells.avail.len()
        }

        pub(crate) fn desc_addr(&self, index: u16) -> &AtomicU64 {
            &self.cells.desc[self.at(index)].0
        }

        pub(crate) fn desc_len(&self, index: u16) -> &AtomicU32 {
            &self.cells.desc[self.at(index)].1
        }

        pub(crate) fn desc_flags(&self, index: u16) -> &AtomicU16 {
            &self.cells.desc[self.at(index)].2
        }

        pub(crate) fn desc_next(&self, index: u16) -> &AtomicU16 {
            &self.cells.next[self.at(index)]
        }

        pub(crate) fn avail_idx(&self) -> &AtomicU16 {
            &self.cells.avail_idx
        }

        pub(crate) fn avail_entry(&self, index: u16) -> &AtomicU16 {
            &self.cells.avail[self.at(index)]
        }

        pub(crate) fn used_flags(&self) -> &AtomicU16 {
            &self.cells.used_flags
        }

        pub(crate) fn used_idx(&self) -> &AtomicU16 {
            &self.cells.used_idx
        }

        pub(crate) fn used_id(&self, index: u16) -> &AtomicU32 {
            &self.cells.used[self.at(index)].0
        }

        pub(crate) fn used_len(&self, index: u16) -> &AtomicU32 {
            &self.cells.used[self.at(index)].1
        }
    }
}
