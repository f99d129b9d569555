//! The MADT: local APICs, the I/O APIC, and how the SCI differs from an ISA interrupt.
//!
//! Source: ACPI 6.5 §5.2.12.

use abi::platform::{IOAPIC_BASE, LOCAL_APIC_BASE, SCI_GSI};
use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};

/// Multiple APIC Flags: no PCAT_COMPAT. KVM has 8259s, but no line leads to them.
const FLAGS: u32 = 0;
/// Id of the I/O APIC, as KVM has it at reset.
const IOAPIC_ID: u8 = 0;

/// Interrupt Source Override structure: type, length, bus (ISA).
const INTERRUPT_SOURCE_OVERRIDE: [u8; 3] = [2, 10, 0];
/// MPS INTI flags: active high, level-triggered.
const ACTIVE_HIGH_LEVEL: u16 = 0b11 << 2 | 0b01;

/// What follows the table's header, for vCPUs with the APIC ids 0 to `vcpus` - 1.
pub(super) fn structures(vcpus: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(LOCAL_APIC_BASE.to_le_bytes());
    bytes.extend(FLAGS.to_le_bytes());
    for id in 0..vcpus {
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut bytes);
    }
    IoApic::new(IOAPIC_ID, IOAPIC_BASE, 0).to_aml_bytes(&mut bytes);
    // ISA interrupts are edges by default; so are all of ours but this one. The crate has no such structure.
    bytes.extend(INTERRUPT_SOURCE_OVERRIDE);
    // An ISA interrupt's number fits into a byte.
    bytes.push(u8::try_from(SCI_GSI).unwrap_or_default());
    bytes.extend(SCI_GSI.to_le_bytes());
    bytes.extend(ACTIVE_HIGH_LEVEL.to_le_bytes());
    bytes
}
