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
/// Number of virtio-mmio windows that can have a device: one for each GSI that is left.
pub const VIRTIO_MMIO_SLOTS: u16 = 18;
/// GSI of the first virtio-mmio window.
const VIRTIO_MMIO_FIRST_GSI: u32 = 5;
/// GSI of ACPI's system control interrupt.
pub const SCI_GSI: u32 = 9;

/// GSI of virtio-mmio window number `slot`: 5, 6, 7, 8, then from 10 to 23, which is the I/O APIC's last pin.
///
/// `None` from [`VIRTIO_MMIO_SLOTS`] on.
pub const fn virtio_mmio_gsi(slot: u16) -> Option<u32> {
    if slot >= VIRTIO_MMIO_SLOTS {
        return None;
    }
    let gsi = VIRTIO_MMIO_FIRST_GSI + slot as u32;
    Some(if gsi < SCI_GSI { gsi } else { gsi + 1 })
}

/// Start of the legacy area below 1 MiB (display memory, adapter and system firmware on a PC), which guests are told is no RAM.
///
/// Host memory is behind it all the same: the firmware tables lie there.
pub const LEGACY_AREA_START: u64 = 0xa_0000;
/// One past the legacy area.
pub const LEGACY_AREA_END: u64 = 0x10_0000;
/// Start of the part of the legacy area that a guest without a better word searches for ACPI's root pointer; it ends at
/// [`LEGACY_AREA_END`].
pub const ACPI_TABLES_START: u64 = 0xe_0000;

/// Pins of the I/O APIC, and so the number of GSIs.
pub const IOAPIC_PINS: u32 = 24;
/// Guest-physical address of the I/O APIC.
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// Guest-physical address of each vCPU's local APIC at reset.
pub const LOCAL_APIC_BASE: u32 = 0xfee0_0000;

/// Largest guest RAM.
pub const MAX_RAM_BYTES: u64 = 64 << 30;
/// Largest region of hotplug memory (virtio-mem).
pub const MAX_HOTPLUG_BYTES: u64 = 64 << 30;
/// The region of hotplug memory starts at the first multiple of this that lies above RAM and the hole below 4 GiB.
///
/// The largest memory block of Linux on x86-64: whatever size a kernel adds memory in, the region starts at one.
pub const HOTPLUG_ALIGN_BYTES: u64 = 2 << 30;
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

/// ACPI PM1a status register (16 bits); the enable register follows it.
pub const PM1A_STATUS_PORT: u16 = 0x600;
/// ACPI PM1a enable register (16 bits).
pub const PM1A_ENABLE_PORT: u16 = 0x602;
/// ACPI PM1a control register; see [`PM1A_SLEEP_S5`].
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// 16-bit value that powers the machine off: SLP_EN with SLP_TYP 0 (QEMU's S5).
pub const PM1A_SLEEP_S5: u16 = 0x2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_distinct_lines_that_nothing_else_has() {
        let expected = [5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
        assert!((0..VIRTIO_MMIO_SLOTS).map(virtio_mmio_gsi).eq(expected.map(Some)));
        assert!(!expected.contains(&SCI_GSI) && !expected.contains(&SERIAL_GSI));
        assert_eq!(virtio_mmio_gsi(VIRTIO_MMIO_SLOTS), None);
        assert_eq!(virtio_mmio_gsi(u16::MAX), None);
    }
}
