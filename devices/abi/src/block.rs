//! The block device. Source: virtio 1.2 §5.2.

/// Bytes of a sector, the unit of every position and length, whatever `blk_size` says (§5.2.6).
pub const SECTOR_BYTES: u64 = 512;
/// Bytes of a request's header: le32 type, le32 reserved, le64 sector.
pub const HEADER_BYTES: usize = 16;
/// Bytes of the device's identification, padded with NUL.
pub const ID_BYTES: usize = 20;
/// Bytes of a segment of a discard or write-zeroes request: le64 sector, le32 sectors, le32 flags.
pub const SEGMENT_BYTES: usize = 16;

/// Feature bits (§5.2.3).
pub mod feature {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device cannot be written.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Cache flush requests.
    pub const FLUSH: u64 = 1 << 9;
    /// `topology` is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver may switch between write-back and write-through.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Discard requests.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (§5.2.6).
pub mod request {
    /// Read.
    pub const VIRTIO_BLK_T_IN: u32 = 0;
    /// Write.
    pub const VIRTIO_BLK_T_OUT: u32 = 1;
    /// Flush the write cache.
    pub const VIRTIO_BLK_T_FLUSH: u32 = 4;
    /// Identification.
    pub const VIRTIO_BLK_T_GET_ID: u32 = 8;
    /// Discard.
    pub const VIRTIO_BLK_T_DISCARD: u32 = 11;
    /// Write zeroes.
    pub const VIRTIO_BLK_T_WRITE_ZEROES: u32 = 13;
}

/// Flag of a write-zeroes segment: the device may deallocate it.
pub const WRITE_ZEROES_FLAG_UNMAP: u32 = 1;

/// Status bytes (§5.2.6).
pub mod status {
    /// Done.
    pub const VIRTIO_BLK_S_OK: u8 = 0;
    /// The device or the driver failed.
    pub const VIRTIO_BLK_S_IOERR: u8 = 1;
    /// The device does not know the request.
    pub const VIRTIO_BLK_S_UNSUPP: u8 = 2;
}

/// Offset in configuration space of `capacity`: le64, in sectors.
pub const CONFIG_CAPACITY: usize = 0;
/// Offset of `seg_max`: le32.
pub const CONFIG_SEG_MAX: usize = 12;
/// Offset of `blk_size`: le32.
pub const CONFIG_BLK_SIZE: usize = 20;
/// Offset of `topology.physical_block_exp`: u8.
pub const CONFIG_PHYSICAL_BLOCK_EXP: usize = 24;
/// Offset of `writeback`: u8, 0 write-through, 1 write-back. Driver-owned with CONFIG_WCE.
pub const CONFIG_WRITEBACK: usize = 32;
/// Offset of `max_discard_sectors`: le32.
pub const CONFIG_MAX_DISCARD_SECTORS: usize = 36;
/// Offset of `max_discard_seg`: le32.
pub const CONFIG_MAX_DISCARD_SEG: usize = 40;
/// Offset of `discard_sector_alignment`: le32.
pub const CONFIG_DISCARD_SECTOR_ALIGNMENT: usize = 44;
/// Offset of `max_write_zeroes_sectors`: le32.
pub const CONFIG_MAX_WRITE_ZEROES_SECTORS: usize = 48;
/// Offset of `max_write_zeroes_seg`: le32.
pub const CONFIG_MAX_WRITE_ZEROES_SEG: usize = 52;
/// Offset of `write_zeroes_may_unmap`: u8.
pub const CONFIG_WRITE_ZEROES_MAY_UNMAP: usize = 56;
/// Bytes of configuration space up to the secure-erase fields, which come last.
pub const CONFIG_BYTES: usize = 60;
