//! The tables through the eyes of the `acpi` crate, which others wrote for their kernels.

use std::ptr::NonNull;

use acpi::address::AddressSpace;
use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};

use super::*;

/// Guest memory from [`ACPI_TABLES_START`], the tables at its beginning.
#[derive(Clone, Copy)]
struct Rom<'a>(&'a [u8]);

impl AcpiHandler for Rom<'_> {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        let at = address - usize::try_from(ACPI_TABLES_START).expect("an address");
        let region = &self.0[at..][..size];
        let start = NonNull::from(region).cast::<T>();
        // SAFETY: `region` has `size` bytes and is borrowed for longer than any mapping that the
        // tests below make; `T` is a packed structure of integers, which any bytes are.
        unsafe { PhysicalMapping::new(address, start, size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

fn with_tables(vcpus: u8, slot_count: u16, check: impl FnOnce(AcpiTables<Rom<'_>>)) {
    let tables = tables(vcpus, slot_count);
    let rsdp = usize::try_from(ACPI_TABLES_START).expect("an address");
    // SAFETY: the tables' RSDP is at that address of `Rom`.
    let found = unsafe { AcpiTables::from_rsdp(Rom(tables.bytes()), rsdp) };
    check(found.expect("valid tables"));
}

#[test]
fn the_fadt_describes_fixed_hardware_and_denies_what_is_not_there() {
    with_tables(1, 2, |tables| {
        let fadt = tables.find_table::<Fadt>().expect("a FADT with a good checksum");
        fadt.validate().expect("valid");
        let port = |address: acpi::address::GenericAddress| {
            assert_eq!(address.address_space, AddressSpace::SystemIo);
            (address.address, address.bit_width)
        };
        assert_eq!(port(fadt.pm1a_event_block().expect("PM1 events")), (0x600, 32));
        assert_eq!(port(fadt.pm1a_control_block().expect("PM1 control")), (0x604, 16));
        assert_eq!(port(fadt.reset_register().expect("a reset register")), (0x64, 8));
        assert!(fadt.pm_timer_block().expect("consistent").is_none());
        assert!(fadt.gpe0_block().expect("consistent").is_none());
        let (flags, arch) = (fadt.flags, fadt.iapc_boot_arch);
        assert!(!flags.power_button_is_control_method());
        assert!(flags.sleep_button_is_control_method());
        assert!(flags.supports_system_reset_via_fadt());
        assert!(!flags.system_is_hw_reduced_acpi());
        assert!(!arch.legacy_devices_are_accessible() && !arch.motherboard_implements_8042());
        assert!(arch.dont_probe_vga() && arch.use_time_and_alarm_namespace_for_rtc());
    });
}

#[test]
#[expect(clippy::wildcard_enum_match_arm, reason = "any other structure is one too many")]
fn the_madt_has_each_vcpu_the_io_apic_and_a_level_triggered_sci() {
    for vcpus in 1..=4 {
        with_tables(vcpus, 2, |tables| {
            let madt = tables.find_table::<Madt>().expect("a MADT with a good checksum");
            let (mut cpus, mut ioapics, mut overrides) = (Vec::new(), Vec::new(), Vec::new());
            for entry in madt.get().entries() {
                match entry {
                    MadtEntry::LocalApic(apic) => {
                        cpus.push((apic.processor_id, apic.apic_id, { apic.flags }));
                    }
                    MadtEntry::IoApic(ioapic) => {
                        ioapics.push(({ ioapic.io_apic_address }, {
                            ioapic.global_system_interrupt_base
                        }));
                    }
                    MadtEntry::InterruptSourceOverride(sci) => {
                        overrides.push((sci.bus, sci.irq, { sci.global_system_interrupt }, {
                            sci.flags
                        }));
                    }
                    _ => panic!("no other structure is expected"),
                }
            }
            assert_eq!(cpus, (0..vcpus).map(|id| (id, id, 1)).collect::<Vec<_>>());
            assert_eq!(ioapics, [(0xfec0_0000, 0)]);
            assert_eq!(overrides, [(0, 9, 9, 0xd)]);
        });
    }
}

#[test]
fn the_dsdt_is_reached_and_there_is_no_other_aml() {
    with_tables(2, 2, |tables| {
        let dsdt = tables.dsdt().expect("a DSDT");
        assert!(dsdt.address > 0xe_0000 && dsdt.length > 100);
        assert_eq!(tables.ssdts().count(), 0);
    });
}
