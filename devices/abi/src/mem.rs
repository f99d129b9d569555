//! The memory device, virtio-mem. Source: virtio 1.2 §5.15.
//!
//! A device manages a region of guest-physical address space in blocks. It asks
//! for an amount (`requested_size`); the driver chooses which blocks it plugs and
//! unplugs to get there, by requests on the one queue.

/// Feature bits (§5.15.3).
pub mod feature {
    /// `node_id` is a proximity domain of ACPI.
    pub const VIRTIO_MEM_F_ACPI_PXM: u64 = 1 << 0;
    /// The driver must not touch unplugged memory at all, not even read it.
    pub const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
    /// Plugged memory keeps its contents while the driver is suspended (virtio 1.3).
    pub const VIRTIO_MEM_F_PERSISTENT_SUSPEND: u64 = 1 << 2;
}

/// The one queue, guest requests (§5.15.2).
pub const GUEST_REQUEST_QUEUE: u16 = 0;

/// Offset in configuration space of `block_size`: le64, bytes, a power of two. Everything here is device-owned.
pub const CONFIG_BLOCK_SIZE: u64 = 0;
/// Offset of `node_id`: le16, valid with `ACPI_PXM`; 6 bytes of padding follow.
pub const CONFIG_NODE_ID: u64 = 8;
/// Offset of `addr`: le64, guest-physical start of the region, a multiple of `block_size`.
pub const CONFIG_ADDR: u64 = 16;
/// Offset of `region_size`: le64, bytes, a multiple of `block_size`. It never changes.
pub const CONFIG_REGION_SIZE: u64 = 24;
/// Offset of `usable_region_size`: le64, bytes from `addr` on in which blocks may be plugged now.
pub const CONFIG_USABLE_REGION_SIZE: u64 = 32;
/// Offset of `plugged_size`: le64, bytes that are plugged.
pub const CONFIG_PLUGGED_SIZE: u64 = 40;
/// Offset of `requested_size`: le64, bytes that the device would like to be plugged.
pub const CONFIG_REQUESTED_SIZE: u64 = 48;
/// Bytes of configuration space.
pub const CONFIG_BYTES: usize = 56;

/// Request types (§5.15.6): the first le16 of a request.
pub mod request {
    /// Plug `nb_blocks` blocks from `addr` on, all unplugged so far.
    pub const VIRTIO_MEM_REQ_PLUG: u16 = 0;
    /// Unplug `nb_blocks` blocks from `addr` on, all plugged so far.
    pub const VIRTIO_MEM_REQ_UNPLUG: u16 = 1;
    /// Unplug everything.
    pub const VIRTIO_MEM_REQ_UNPLUG_ALL: u16 = 2;
    /// Tell whether `nb_blocks` blocks from `addr` on are plugged.
    pub const VIRTIO_MEM_REQ_STATE: u16 = 3;
}

/// Bytes of a request: le16 type, 6 bytes of padding, le64 addr, le16 `nb_blocks`, 6 bytes of padding. Device-readable.
pub const REQUEST_BYTES: usize = 24;
/// Offset in a request of its type.
pub const REQUEST_TYPE: usize = 0;
/// Offset in a request of `addr`: le64, guest-physical, a multiple of the block size.
pub const REQUEST_ADDR: usize = 8;
/// Offset in a request of `nb_blocks`: le16.
pub const REQUEST_NB_BLOCKS: usize = 16;

/// Response types (§5.15.6): the first le16 of a response.
pub mod response {
    /// Done; for STATE the state follows.
    pub const VIRTIO_MEM_RESP_ACK: u16 = 0;
    /// Not now, although the request is right: a plug beyond `requested_size`. Look at the configuration again.
    pub const VIRTIO_MEM_RESP_NACK: u16 = 1;
    /// The device cannot do it at present: try again later.
    pub const VIRTIO_MEM_RESP_BUSY: u16 = 2;
    /// The request is wrong: alignment, range, number of blocks, or their state.
    pub const VIRTIO_MEM_RESP_ERROR: u16 = 3;
}

/// Bytes of a response: le16 type, 6 bytes of padding, le16 state. Device-writable.
pub const RESPONSE_BYTES: usize = 10;
/// Offset in a response of its type.
pub const RESPONSE_TYPE: usize = 0;
/// Offset in a response of the state, valid in an ACK of STATE.
pub const RESPONSE_STATE: usize = 8;

/// States of a range of blocks, in the response to STATE (§5.15.6).
pub mod state {
    /// All are plugged.
    pub const VIRTIO_MEM_STATE_PLUGGED: u16 = 0;
    /// All are unplugged.
    pub const VIRTIO_MEM_STATE_UNPLUGGED: u16 = 1;
    /// Some are, some are not.
    pub const VIRTIO_MEM_STATE_MIXED: u16 = 2;
}

const _: () = {
    assert!(CONFIG_BYTES as u64 == CONFIG_REQUESTED_SIZE + 8);
    assert!(REQUEST_BYTES == REQUEST_NB_BLOCKS + 2 + 6);
    assert!(RESPONSE_BYTES == RESPONSE_STATE + 2);
};
