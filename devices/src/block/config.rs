//! Features and configuration space.

use abi::block::{
    CONFIG_BLK_SIZE, CONFIG_BYTES, CONFIG_CAPACITY, CONFIG_DISCARD_SECTOR_ALIGNMENT,
    CONFIG_MAX_DISCARD_SECTORS, CONFIG_MAX_DISCARD_SEG, CONFIG_MAX_WRITE_ZEROES_SECTORS,
    CONFIG_MAX_WRITE_ZEROES_SEG, CONFIG_PHYSICAL_BLOCK_EXP, CONFIG_SEG_MAX,
    CONFIG_WRITE_ZEROES_MAY_UNMAP, CONFIG_WRITEBACK, SECTOR_BYTES, feature,
};

use super::BackendProperties;
use crate::virtio::{GuestFault, read_config_bytes};

/// Entries of the request queue.
pub(super) const QUEUE_ENTRIES: u16 = 256;
/// Data buffers of a request: header and status have the other two descriptors.
pub(super) const SEG_MAX: u32 = QUEUE_ENTRIES as u32 - 2;
/// Segments of a discard or write-zeroes request.
pub(super) const MAX_SEGMENTS: u32 = 32;
/// Sectors of a discarded segment: 2 GiB, which a file system gives back in some milliseconds.
pub(super) const MAX_DISCARD_SECTORS: u32 = 4 << 20;
/// Sectors of a zeroed segment: 16 MiB, because a host may have to write them all.
pub(super) const MAX_ZEROED_SECTORS: u32 = 32 << 10;

/// What the driver reads and may write. Source: virtio 1.2 §5.2.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
}

/// Feature bits that a device over such a backend offers.
pub(super) fn features(disk: &BackendProperties) -> u64 {
    let always = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY;
    if disk.is_read_only {
        return always | feature::RO;
    }
    let discard = if disk.can_discard { feature::DISCARD } else { 0 };
    always | feature::CONFIG_WCE | feature::WRITE_ZEROES | discard
}

impl ConfigSpace {
    /// The space of a device over `disk`, in write-back mode.
    pub(super) fn new(disk: &BackendProperties) -> Self {
        let sector = u32::try_from(SECTOR_BYTES).unwrap_or(512);
        let block_sectors = (disk.physical_block_bytes / sector).max(1);
        let exponent = u8::try_from(block_sectors.ilog2()).unwrap_or(0);
        let mut space = Self { bytes: [0; CONFIG_BYTES] };
        space.put(CONFIG_CAPACITY, &disk.sectors.to_le_bytes());
        space.put(CONFIG_SEG_MAX, &SEG_MAX.to_le_bytes());
        space.put(CONFIG_BLK_SIZE, &sector.to_le_bytes());
        space.put(CONFIG_PHYSICAL_BLOCK_EXP, &[exponent]);
        space.set_writeback(true);
        if disk.is_read_only {
            return space;
        }
        if disk.can_discard {
            space.put(CONFIG_MAX_DISCARD_SECTORS, &MAX_DISCARD_SECTORS.to_le_bytes());
            space.put(CONFIG_MAX_DISCARD_SEG, &MAX_SEGMENTS.to_le_bytes());
            space.put(CONFIG_DISCARD_SECTOR_ALIGNMENT, &block_sectors.to_le_bytes());
        }
        space.put(CONFIG_MAX_WRITE_ZEROES_SECTORS, &MAX_ZEROED_SECTORS.to_le_bytes());
        space.put(CONFIG_MAX_WRITE_ZEROES_SEG, &MAX_SEGMENTS.to_le_bytes());
        space.put(CONFIG_WRITE_ZEROES_MAY_UNMAP, &[disk.can_discard.into()]);
        space
    }

    /// Bytes from `offset` on; beyond the fields zeros.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        read_config_bytes(&self.bytes, offset, out);
    }

    /// Takes a write of `writeback`, the driver's one field.
    ///
    /// # Errors
    /// [`GuestFault`] for anything else, which changes nothing.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestFault> {
        match (usize::try_from(offset), data) {
            (Ok(CONFIG_WRITEBACK), &[value @ (0 | 1)]) => {
                self.set_writeback(value == 1);
                Ok(())
            }
            _ => Err(GuestFault::ReadOnlyConfig { offset, len: data.len() }),
        }
    }

    /// Whether the driver has to flush, or each write is permanent by itself.
    pub(super) fn is_writeback(&self) -> bool {
        self.bytes.get(CONFIG_WRITEBACK) == Some(&1)
    }

    pub(super) fn set_writeback(&mut self, is_writeback: bool) {
        self.put(CONFIG_WRITEBACK, &[is_writeback.into()]);
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(value) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: BackendProperties = BackendProperties {
        sectors: 0x0102_0304_0506,
        is_read_only: false,
        can_discard: true,
        physical_block_bytes: 4096,
    };

    fn field(space: &ConfigSpace, at: usize, len: usize) -> u64 {
        let mut bytes = [0; 8];
        space.read(at as u64, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let space = ConfigSpace::new(&DISK);
        assert_eq!(field(&space, 0, 8), 0x0102_0304_0506);
        assert_eq!(field(&space, 12, 4), 254);
        assert_eq!(field(&space, 20, 4), 512);
        assert_eq!(field(&space, 24, 1), 3, "8 sectors are a physical block");
        assert_eq!(field(&space, 32, 1), 1, "write-back");
        assert_eq!(field(&space, 36, 4), 4 << 20);
        assert_eq!(field(&space, 40, 4), 32);
        assert_eq!(field(&space, 44, 4), 8);
        assert_eq!(field(&space, 48, 4), 32 << 10);
        assert_eq!(field(&space, 52, 4), 32);
        assert_eq!(field(&space, 56, 1), 1);
        assert_eq!(field(&space, 57, 8), 0, "padding and beyond");
    }

    #[test]
    fn what_a_disk_cannot_do_is_not_offered() {
        let read_only = BackendProperties { is_read_only: true, ..DISK };
        let writes = feature::CONFIG_WCE | feature::DISCARD | feature::WRITE_ZEROES;
        assert_eq!(features(&read_only) & (writes | feature::RO), feature::RO);
        let solid = BackendProperties { can_discard: false, ..DISK };
        assert_eq!(features(&solid) & (writes | feature::RO), writes & !feature::DISCARD);
        assert_eq!(field(&ConfigSpace::new(&solid), 36, 4), 0);
        assert_eq!(field(&ConfigSpace::new(&solid), 56, 1), 0, "zeros may not be unmapped");
        assert_eq!(features(&DISK) & (writes | feature::RO), writes);
        assert_ne!(features(&DISK) & feature::FLUSH, 0, "§5.2.5.2: CONFIG_WCE needs FLUSH");
    }

    #[test]
    fn the_driver_can_write_nothing_but_the_cache_mode() {
        let mut space = ConfigSpace::new(&DISK);
        let before = space;
        for (offset, data) in
            [(0, &[0u8; 8][..]), (32, &[]), (32, &[2]), (32, &[0, 0]), (31, &[0]), (60, &[0])]
        {
            assert!(space.write(offset, data).is_err(), "{data:?} at {offset}");
            assert!(space.write(u64::MAX, data).is_err());
            assert_eq!(space, before);
        }
        assert_eq!(space.write(32, &[0]), Ok(()));
        assert!(!space.is_writeback());
        assert_eq!(space.write(32, &[1]), Ok(()));
        assert_eq!(space, before);
    }
}
