//! Tables of several firmwares, and hostile ones.

use super::*;
use proptest::prelude::*;

/// The first MiB.
struct Low(Vec<u8>);

impl Low {
    fn new() -> Self {
        Self(vec![0; 1 << 20])
    }

    fn put(&mut self, gpa: u64, bytes: &[u8]) {
        let at = usize::try_from(gpa).unwrap();
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

impl LoaderMemory for Low {
    fn bytes(&self, gpa: u64, len: u64) -> Option<&[u8]> {
        let start = usize::try_from(gpa).ok()?;
        self.0.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    }
}

/// Makes the bytes add up, by the one at `at`.
fn sum_up(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = sum.wrapping_neg();
}

fn sdt(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..4].copy_from_slice(signature);
    bytes.extend(body);
    let len = u32::try_from(bytes.len()).unwrap();
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    sum_up(&mut bytes, 9);
    bytes
}

fn madt(entries: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![0; 8];
    entries.iter().for_each(|entry| body.extend(*entry));
    sdt(b"APIC", &body)
}

fn rsdp(revision: u8, rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut bytes = vec![0; 36];
    bytes[..8].copy_from_slice(RSDP_SIGNATURE);
    bytes[15] = revision;
    bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
    bytes[20] = 36;
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    sum_up(&mut bytes[..20], 8);
    sum_up(&mut bytes, 32);
    bytes
}

/// A local APIC entry.
const fn cpu(id: u8, flags: u8) -> [u8; 8] {
    [0, 8, id, id, flags, 0, 0, 0]
}

fn with_xsdt(madt: &[u8]) -> Low {
    let mut low = Low::new();
    low.put(0xe_0000, &rsdp(2, 0, 0xe_0100));
    let mut entries = 0xe_0080u64.to_le_bytes().to_vec(); // not a MADT
    entries.extend(0xe_0200u64.to_le_bytes());
    low.put(0xe_0080, &sdt(b"FACP", &[1; 40]));
    low.put(0xe_0100, &sdt(b"XSDT", &entries));
    low.put(0xe_0200, madt);
    low
}

fn mp(entries: &[&[u8]], pointer_at: u64) -> Low {
    let mut low = Low::new();
    let mut config = vec![0; 44];
    config[..4].copy_from_slice(b"PCMP");
    config[34] = u8::try_from(entries.len()).unwrap();
    entries.iter().for_each(|entry| config.extend(*entry));
    let len = u16::try_from(config.len()).unwrap();
    config[4..6].copy_from_slice(&len.to_le_bytes());
    sum_up(&mut config, 7);
    low.put(0xf_5000, &config);
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&0xf_5000u32.to_le_bytes());
    pointer[8] = 1;
    sum_up(&mut pointer, 10);
    low.put(pointer_at, &pointer);
    low
}

#[test]
fn the_cpus_of_a_madt_are_found_by_a_pointer_and_by_a_search() {
    let x2apic = [9, 16, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let low = with_xsdt(&madt(&[
        &cpu(0, 1),
        &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &cpu(2, 1),
        &x2apic,
    ]));
    for root in [0xe_0000, 0] {
        let found = find_cpus(&low, root, Some(1));
        assert_eq!((found.ids(), found.source), (&[0, 2, 7][..], Source::Madt));
        assert_eq!(found.others(0, CPUS).collect::<Vec<_>>(), [2, 7]);
        assert_eq!(found.others(2, 2).collect::<Vec<_>>(), [0]);
        assert_eq!(found.others(0, 0).count(), 0);
    }
}

#[test]
fn a_root_of_revision_0_leads_through_the_rsdt() {
    let mut low = Low::new();
    low.put(0xf_0010, &rsdp(0, 0xf_0100, 0));
    low.put(0xf_0100, &sdt(b"RSDT", &0xf_0200u32.to_le_bytes()));
    low.put(0xf_0200, &madt(&[&cpu(0, 1), &cpu(1, 1)]));
    assert_eq!(find_cpus(&low, 0, None).ids(), [0, 1]);
}

#[test]
fn cpus_that_may_not_exist_are_left_alone_and_those_beyond_our_room_counted() {
    let low = with_xsdt(&madt(&[&cpu(0, 1), &cpu(1, 2), &cpu(2, 0), &cpu(0, 1), &cpu(0xff, 1)]));
    let found = find_cpus(&low, 0xe_0000, None);
    assert_eq!((found.ids(), found.left_out), (&[0][..], 1));
    let many: Vec<_> = (0..9).map(|id| cpu(id, 1)).collect();
    let many: Vec<&[u8]> = many.iter().map(|cpu| &cpu[..]).collect();
    let found = find_cpus(&with_xsdt(&madt(&many)), 0xe_0000, None);
    assert_eq!((found.ids(), found.left_out), (&[0, 1, 2, 3][..], 5));
}

#[test]
fn the_mp_table_serves_where_there_is_no_acpi() {
    let mut processor = [0u8; 20];
    processor[3] = 1;
    let mut second = processor;
    second[1] = 5;
    let mut disabled = processor;
    (disabled[1], disabled[3]) = (6, 0);
    for at in [0x9_fc00, 0xf_8000] {
        let low = mp(&[&processor, &second, &disabled, &[1, 0, 0, 0, 0, 0, 0, 0]], at);
        let found = find_cpus(&low, 0, Some(4));
        assert_eq!((found.ids(), found.source), (&[0, 5][..], Source::MpTable));
    }
}

#[test]
fn without_tables_the_command_line_counts_and_without_it_nothing() {
    let low = Low::new();
    assert_eq!(find_cpus(&low, 0, Some(2)).ids(), [0, 1]);
    assert_eq!(find_cpus(&low, 0, Some(99)).ids(), [0, 1, 2, 3]);
    let nothing = find_cpus(&low, 0, None);
    assert_eq!((nothing.ids(), nothing.source), (&[][..], Source::Nothing));
    assert_eq!(nothing.others(0, CPUS).count(), 0);
}

#[test]
fn a_table_that_does_not_add_up_or_ends_early_is_none() {
    let good = madt(&[&cpu(0, 1), &cpu(1, 1)]);
    let mut bad = good.clone();
    bad[50] ^= 1;
    assert_eq!(find_cpus(&with_xsdt(&bad), 0xe_0000, None).source, Source::Nothing);
    let mut endless = good.clone();
    endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(find_cpus(&with_xsdt(&endless), 0xe_0000, None).source, Source::Nothing);
    // An entry of no length, and one that reaches beyond the table.
    for len in [0, 1, 200] {
        let low = with_xsdt(&madt(&[&cpu(0, 1), &[0, len, 1, 1, 1, 0, 0, 0], &cpu(3, 1)]));
        assert_eq!(find_cpus(&low, 0xe_0000, None).ids(), [0]);
    }
    assert_eq!(find_cpus(&Low::new(), u64::MAX - 4, None).source, Source::Nothing);
}

proptest! {
    #[test]
    fn no_bytes_panic_and_no_more_cpus_come_out_than_fit(
        body in prop::collection::vec(any::<u8>(), 8..200),
        root in prop::collection::vec(any::<u8>(), 36),
        entries in prop::collection::vec(prop_oneof![Just(vec![0u8; 8]), prop::collection::vec(any::<u8>(), 1..30)], 0..12),
    ) {
        let low = with_xsdt(&sdt(b"APIC", &body));
        prop_assert!(find_cpus(&low, 0xe_0000, None).ids().len() <= CPUS);
        let mut low = Low::new();
        low.put(0xe_0000, &root);
        find_cpus(&low, 0xe_0000, None);
        let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
        prop_assert!(find_cpus(&mp(&entries, 0x9_fc00), 0, None).ids().len() <= CPUS);
    }
}
