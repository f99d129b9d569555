//! Facts common to all virtio devices. Source: virtio 1.2 §2 and §5.

/// Device id of the block device (§5.2).
pub const VIRTIO_ID_BLOCK: u32 = 2;
/// Device id of the console (§5.3).
pub const VIRTIO_ID_CONSOLE: u32 = 3;
/// Device id of the entropy source (§5.4).
pub const VIRTIO_ID_RNG: u32 = 4;
/// Device id of the traditional memory balloon (§5.5).
pub const VIRTIO_ID_BALLOON: u32 = 5;
/// Device id of the memory device (§5.15).
pub const VIRTIO_ID_MEM: u32 = 24;

/// Ring descriptors may be indirect (§6, bit 28).
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// `used_event`/`avail_event` suppress notifications (§6, bit 29).
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;
/// The device is not legacy (§6, bit 32).
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// The rings have the packed layout (§6, bit 34).
pub const VIRTIO_F_RING_PACKED: u64 = 1 << 34;

/// Device status bits (§2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest has a driver for it.
    pub const DRIVER: u32 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u32 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u32 = 8;
    /// The device has met an error that only a reset mends.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The guest has given up on the device.
    pub const FAILED: u32 = 128;
}

/// Split-ring layout (§2.7).
pub mod ring {
    /// Descriptor continues in `next`.
    pub const VIRTQ_DESC_F_NEXT: u16 = 1;
    /// Buffer is device-writable.
    pub const VIRTQ_DESC_F_WRITE: u16 = 2;
    /// Buffer holds a table of descriptors.
    pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;
    /// Bytes of a descriptor: le64 addr, le32 len, le16 flags, le16 next.
    pub const DESC_BYTES: u64 = 16;
    /// Bytes of a used element: le32 id, le32 len.
    pub const USED_ELEM_BYTES: u64 = 8;
    /// `flags` in the available ring: the driver wants no interrupt.
    pub const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;
    /// `flags` in the used ring: the device wants no kick.
    pub const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;
}
