//! virtio-mmio register layout, version 2. Source: virtio 1.2 §4.2.2.

/// Bytes of a device's register window as both Firecracker and aerostat lay it out.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Value of [`MAGIC_VALUE`]: "virt", little-endian.
pub const MAGIC: u32 = 0x7472_6976;
/// Value of [`VENDOR_ID`] of aerostat's devices: "AERO", little-endian. Drivers do not interpret it.
pub const VENDOR: u32 = u32::from_le_bytes(*b"AERO");
/// Value of [`VERSION`].
pub const VERSION_2: u32 = 2;

/// RO: [`MAGIC`].
pub const MAGIC_VALUE: u64 = 0x000;
/// RO: [`VERSION_2`].
pub const VERSION: u64 = 0x004;
/// RO: the virtio device id, 0 for an empty slot.
pub const DEVICE_ID: u64 = 0x008;
/// RO: the vendor id.
pub const VENDOR_ID: u64 = 0x00c;
/// RO: 32 feature bits that the device offers.
pub const DEVICE_FEATURES: u64 = 0x010;
/// WO: which 32 bits [`DEVICE_FEATURES`] shows.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// WO: 32 feature bits that the driver accepts.
pub const DRIVER_FEATURES: u64 = 0x020;
/// WO: which 32 bits [`DRIVER_FEATURES`] sets.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// WO: the queue that the queue registers speak of.
pub const QUEUE_SEL: u64 = 0x030;
/// RO: the largest size of the selected queue, 0 if there is no such queue.
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// WO: the size that the driver uses.
pub const QUEUE_NUM: u64 = 0x038;
/// RW: 1 once the driver has enabled the selected queue.
pub const QUEUE_READY: u64 = 0x044;
/// WO: a queue index; the driver has made buffers available there.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// RO: [`INT_VRING`] and [`INT_CONFIG`] bits.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// WO: the bits that the driver has dealt with.
pub const INTERRUPT_ACK: u64 = 0x064;
/// RW: device status, see [`crate::virtio::status`]; writing 0 resets.
pub const STATUS: u64 = 0x070;
/// WO: descriptor table, low 32 bits of its address.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// WO: descriptor table, high 32 bits.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// WO: available ring, low 32 bits.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// WO: available ring, high 32 bits.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// WO: used ring, low 32 bits.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// WO: used ring, high 32 bits.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// WO: the shared memory region that the four registers below speak of.
pub const SHM_SEL: u64 = 0x0ac;
/// RO: bytes of the shared memory region, low 32 bits; -1 where there is none.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// RO: bytes of the shared memory region, high 32 bits.
pub const SHM_LEN_HIGH: u64 = 0x0b4;
/// RO: guest-physical address of the shared memory region, low 32 bits.
pub const SHM_BASE_LOW: u64 = 0x0b8;
/// RO: guest-physical address of the shared memory region, high 32 bits.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// RO: changes whenever configuration space has changed.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// RW: device configuration space begins here.
pub const CONFIG: u64 = 0x100;

/// [`INTERRUPT_STATUS`]: a used ring was updated.
pub const INT_VRING: u32 = 1;
/// [`INTERRUPT_STATUS`]: the configuration (or status) changed.
pub const INT_CONFIG: u32 = 2;
