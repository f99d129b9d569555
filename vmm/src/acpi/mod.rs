//! ACPI: the tables by which a guest finds its devices, and the fixed hardware that they speak of.
//!
//! [`Tables`] makes RSDP, XSDT, FADT, FACS, MADT and DSDT from a
//! [`MachineDescription`] and puts them below 1 MiB. Why fixed hardware rather
//! than the hardware-reduced model, and what is left out: `docs/acpi.md`.
//!
//! Source: ACPI Specification 6.5.

mod dsdt;
mod fadt;
mod madt;
pub(crate) mod pm1;

use abi::mmio::WINDOW_BYTES;
use abi::platform::{
    ACPI_TABLES_START, IOAPIC_PINS, LEGACY_AREA_END, MAX_VCPUS, MMIO_GAP_END, MMIO_GAP_START,
    SCI_GSI, SERIAL_GSI,
};
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// OEMID of every table.
const OEM_ID: [u8; 6] = *b"AEROST";
/// OEM Table ID of every table.
const OEM_TABLE_ID: [u8; 8] = *b"AEROSTAT";
/// OEM Revision of every table.
const OEM_REVISION: u32 = 1;
/// Bytes of the header that every system description table begins with.
const HEADER_BYTES: u32 = 36;

/// The FACS lies at a multiple of 64 (ACPI 6.5 §5.2.10); the rest does not mind.
const ALIGNMENT: usize = 64;
/// Room for tables.
const MAX_BYTES: u64 = LEGACY_AREA_END - ACPI_TABLES_START;

/// A virtio-mmio window and its interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest-physical address of the window.
    pub base: u64,
    /// Global system interrupt, edge-triggered.
    pub gsi: u32,
}

/// What the tables describe besides that which every machine has.
#[derive(Debug, Clone, Copy)]
pub struct MachineDescription<'a> {
    /// vCPUs: 1 to [`MAX_VCPUS`], with the APIC ids 0, 1, ….
    pub vcpus: u8,
    /// Windows that have a device.
    pub slots: &'a [VirtioSlot],
}

impl MachineDescription<'_> {
    fn check(&self) -> Result<(), AcpiError> {
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(AcpiError::Vcpus { vcpus: self.vcpus });
        }
        for (index, &VirtioSlot { base, gsi }) in self.slots.iter().enumerate() {
            let end = base.checked_add(WINDOW_BYTES);
            if base < MMIO_GAP_START || end.is_none_or(|end| end > MMIO_GAP_END) {
                return Err(AcpiError::Window { base });
            }
            let taken = [SCI_GSI, SERIAL_GSI];
            let earlier = self.slots.iter().take(index);
            if gsi >= IOAPIC_PINS
                || taken.contains(&gsi)
                || earlier.clone().any(|slot| slot.gsi == gsi)
            {
                return Err(AcpiError::Gsi { gsi });
            }
        }
        Ok(())
    }
}

/// The tables of a machine, at the addresses that they have in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// From [`ACPI_TABLES_START`]; the RSDP first.
    bytes: Vec<u8>,
}

impl Tables {
    /// Makes the tables of `machine`: the same bytes for the same machine.
    ///
    /// # Errors
    /// [`AcpiError`] when there can be no such machine.
    pub fn new(machine: &MachineDescription<'_>) -> Result<Self, AcpiError> {
        machine.check()?;
        let mut image = Image::default();
        // Its place at the start; filled in last, since it points at the rest.
        image.place(&[0; size_of::<Rsdp>()]);
        let facs = image.place(&aml_bytes(&FACS::new()));
        let dsdt = image.place(table(*b"DSDT", 2, &dsdt::definitions(machine.slots)).as_slice());
        let madt = image.place(table(*b"APIC", 5, &madt::structures(machine.vcpus)).as_slice());
        let fadt = image.place(&aml_bytes(&fadt::fadt(facs, dsdt)));
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(fadt.into());
        xsdt.add_entry(madt.into());
        let xsdt = image.place(&aml_bytes(&xsdt));
        let mut bytes = image.bytes;
        let rsdp = aml_bytes(&Rsdp::new(OEM_ID, xsdt.into()));
        bytes[..rsdp.len()].copy_from_slice(&rsdp);
        if bytes.len() as u64 > MAX_BYTES {
            return Err(AcpiError::TooLarge { len: bytes.len() });
        }
        Ok(Self { bytes })
    }

    /// Writes the tables into guest RAM from [`ACPI_TABLES_START`] and returns the address of the RSDP.
    ///
    /// # Errors
    /// [`AcpiError::Memory`].
    pub fn write(&self, memory: &GuestMemoryMmap) -> Result<GuestAddress, AcpiError> {
        let start = GuestAddress(ACPI_TABLES_START);
        memory.write_slice(&self.bytes, start)?;
        Ok(start)
    }

    /// The bytes from [`ACPI_TABLES_START`] on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Tables one after the other.
#[derive(Default)]
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Appends `table` and returns its address in guest memory.
    fn place(&mut self, table: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = ACPI_TABLES_START + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        // Beyond 4 GiB only when far more than MAX_BYTES have been placed, which is refused in the end.
        u32::try_from(address).unwrap_or(u32::MAX)
    }
}

/// A system description table with a header around `body`.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, HEADER_BYTES, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

fn aml_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// No tables can be made or written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// Number of vCPUs out of range.
    #[error("ACPI tables cannot describe {vcpus} vCPUs; allowed: 1 to {MAX_VCPUS}")]
    Vcpus {
        /// What was asked.
        vcpus: u8,
    },
    /// A window outside the gap for devices.
    #[error(
        "A virtio-mmio window at {base:#x} is not possible; allowed: {MMIO_GAP_START:#x} to {MMIO_GAP_END:#x}"
    )]
    Window {
        /// Its address.
        base: u64,
    },
    /// An interrupt that a device cannot have.
    #[error(
        "GSI {gsi} is not possible for a virtio-mmio window: it is taken, or the I/O APIC has no such pin (0 to 23)"
    )]
    Gsi {
        /// The GSI.
        gsi: u32,
    },
    /// More tables than there is room for.
    #[error("ACPI tables have {len} B; there is room for {MAX_BYTES} B")]
    TooLarge {
        /// Their size.
        len: usize,
    },
    /// Guest memory could not be written.
    #[error("Writing ACPI tables to guest RAM failed")]
    Memory(#[from] GuestMemoryError),
}

#[cfg(test)]
mod tests;
