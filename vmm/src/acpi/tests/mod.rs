//! The tables as their readers see them: the `acpi` crate for the static ones, a reader of a few dozen lines for AML.
//!
//! Linux's ACPICA reads them in the lab. The `acpi` crate's AML interpreter needs a nightly compiler.

mod aml;
mod foreign;

use abi::platform::{VIRTIO_MMIO_BASE, VIRTIO_MMIO_SLOTS, virtio_mmio_gsi};
use proptest::prelude::*;

use super::*;

fn slots(count: u16) -> Vec<VirtioSlot> {
    (0..count)
        .map(|slot| VirtioSlot {
            base: VIRTIO_MMIO_BASE + u64::from(slot) * WINDOW_BYTES,
            gsi: virtio_mmio_gsi(slot).expect("a slot"),
        })
        .collect()
}

fn tables(vcpus: u8, slot_count: u16) -> Tables {
    let machine = MachineDescription { vcpus, slots: &slots(slot_count) };
    Tables::new(&machine).expect("a possible machine")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..][..4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..][..8].try_into().expect("eight bytes"))
}

/// The table at guest-physical `address`, as long as it says.
fn table_at(bytes: &[u8], address: u64) -> &[u8] {
    let at = usize::try_from(address - ACPI_TABLES_START).expect("an offset");
    let len = u32_at(bytes, at + 4) as usize;
    &bytes[at..][..len]
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// DSDT, found from the RSDP on.
fn dsdt(bytes: &[u8]) -> &[u8] {
    let xsdt = table_at(bytes, u64_at(bytes, 24));
    let fadt = table_at(bytes, u64_at(xsdt, 36));
    table_at(bytes, u64_at(fadt, 140))
}

#[test]
fn every_table_is_found_from_the_root_and_sums_to_zero() {
    for (vcpus, slot_count) in [(1, 0), (1, 2), (4, VIRTIO_MMIO_SLOTS)] {
        let tables = tables(vcpus, slot_count);
        let bytes = tables.bytes();
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
        let xsdt = table_at(bytes, u64_at(bytes, 24));
        assert_eq!((&xsdt[..4], xsdt.len(), sum(xsdt)), (&b"XSDT"[..], 36 + 2 * 8, 0));
        let fadt = table_at(bytes, u64_at(xsdt, 36));
        assert_eq!((&fadt[..4], fadt.len(), sum(fadt)), (&b"FACP"[..], 276, 0));
        let madt = table_at(bytes, u64_at(xsdt, 44));
        let madt_len = 44 + 8 * usize::from(vcpus) + 12 + 10;
        assert_eq!((&madt[..4], madt.len(), sum(madt)), (&b"APIC"[..], madt_len, 0));
        let dsdt = dsdt(bytes);
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
        assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140), "DSDT and X_DSDT agree");
        let facs = u64::from(u32_at(fadt, 36));
        assert_eq!((&table_at(bytes, facs)[..4], facs % 64), (&b"FACS"[..], 0));
    }
}

#[test]
fn tables_do_not_overlap_and_end_below_1_mib() {
    let tables = tables(4, VIRTIO_MMIO_SLOTS);
    let bytes = tables.bytes();
    let xsdt = u64_at(bytes, 24);
    let fadt = u64_at(table_at(bytes, xsdt), 36);
    let madt = u64_at(table_at(bytes, xsdt), 44);
    let facs = u64::from(u32_at(table_at(bytes, fadt), 36));
    let dsdt = u64::from(u32_at(table_at(bytes, fadt), 40));
    let mut places: Vec<_> = [xsdt, fadt, madt, facs, dsdt]
        .map(|address| (address, address + table_at(bytes, address).len() as u64))
        .into();
    places.push((ACPI_TABLES_START, ACPI_TABLES_START + 36));
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{places:x?}");
    assert!(places.iter().all(|&(_, end)| end <= LEGACY_AREA_END), "{places:x?}");
}

#[test]
fn the_same_machine_has_the_same_tables() {
    assert_eq!(tables(3, 5), tables(3, 5));
    assert_ne!(tables(3, 5), tables(2, 5));
    assert_ne!(tables(3, 5), tables(3, 4));
}

#[test]
fn tables_are_written_where_a_guest_searches_and_nowhere_else() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("2 MiB");
    let tables = tables(2, 3);
    assert_eq!(tables.write(&memory).expect("room").0, 0xe_0000);
    let mut seen = vec![0; 2 << 20];
    memory.read_slice(&mut seen, GuestAddress(0)).expect("RAM");
    let (before, rest) = seen.split_at(0xe_0000);
    let (own, after) = rest.split_at(tables.bytes().len());
    assert_eq!(own, tables.bytes());
    assert!(before.iter().chain(after).all(|&byte| byte == 0));
}

#[test]
fn memory_that_ends_too_early_is_an_error() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xe_1000)]).expect("memory");
    tables(1, 2).write(&memory).expect("just enough");
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xd_0000)]).expect("memory");
    assert!(matches!(tables(1, 2).write(&memory), Err(AcpiError::Memory(_))));
}

#[test]
fn machines_that_cannot_be_are_refused_with_the_value() {
    let slot = |base, gsi| VirtioSlot { base, gsi };
    let refused = |vcpus, slots: &[VirtioSlot]| {
        Tables::new(&MachineDescription { vcpus, slots }).expect_err("no such machine").to_string()
    };
    assert!(refused(0, &[]).contains("0 vCPUs"));
    assert!(refused(5, &[]).contains("5 vCPUs") && refused(5, &[]).contains("1 to 4"));
    for base in [0, MMIO_GAP_START - WINDOW_BYTES, MMIO_GAP_END - WINDOW_BYTES + 1, u64::MAX] {
        assert!(refused(1, &[slot(base, 5)]).contains(&format!("{base:#x}")));
    }
    for gsi in [SCI_GSI, SERIAL_GSI, IOAPIC_PINS, u32::MAX] {
        assert!(refused(1, &[slot(VIRTIO_MMIO_BASE, gsi)]).contains(&format!("GSI {gsi}")));
    }
    let twice = [slot(VIRTIO_MMIO_BASE, 5), slot(VIRTIO_MMIO_BASE + WINDOW_BYTES, 5)];
    assert!(refused(1, &twice).contains("GSI 5"));
}

proptest! {
    #[test]
    fn any_description_gives_tables_that_fit_or_an_error(
        vcpus: u8, raw in prop::collection::vec((any::<u64>(), 0u32..40), 0..40)
    ) {
        let slots: Vec<_> = raw.into_iter().map(|(base, gsi)| VirtioSlot { base, gsi }).collect();
        if let Ok(tables) = Tables::new(&MachineDescription { vcpus, slots: &slots }) {
            prop_assert!(tables.bytes().len() as u64 <= MAX_BYTES);
            prop_assert_eq!(sum(dsdt(tables.bytes())), 0);
        }
    }
}
