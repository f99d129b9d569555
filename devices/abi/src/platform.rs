//! What the VM looks like outside its devices: memory holes, ports, boot.
//!
//! The ports are those of QEMU and Firecracker, so that the guest kernel
//! needs no special case for either.

/// Start of the hole below 4 GiB that holds device windows and APICs.
pub const MMIO_GAP_START: u64 = 0xc000_0000;
/// One past the hole: RAM continues here.
pub const MMIO_GAP_END: u64 = 0x1_0000_0000;
/// First virtio-mmio window (as in Firecracker); windows follow each other.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// GSI of the first virtio-mmio window; the next has the next one.
pub const VIRTIO_MMIO_FIRST_GSI: u32 = 5;
/// Largest guest RAM.
pub const MAX_RAM_BYTES: u64 = 64 << 30;
/// Largest number of vCPUs.
pub const MAX_VCPUS: u8 = 4;

/// I/O port of the 16550 serial console (COM1).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt line.
pub const SERIAL_GSI: u32 = 4;

/// i8042 command port; writing [`I8042_RESET`] resets the machine.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// i8042 command: pulse the CPU reset line.
pub const I8042_RESET: u8 = 0xfe;

/// pvpanic port (QEMU's ISA pvpanic); a guest that panics writes [`PVPANIC_PANICKED`].
pub const PVPANIC_PORT: u16 = 0x505;
/// pvpanic event bit: the guest kernel has panicked.
pub const PVPANIC_PANICKED: u8 = 1;

/// ACPI PM1a control register; see [`PM1A_SLEEP_S5`].
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// 16-bit value that powers the machine off: SLP_EN with SLP_TYP 0 (QEMU's S5).
pub const PM1A_SLEEP_S5: u16 = 0x2000;
