//! Bits of entries, one at a time and at random.

use super::*;
use proptest::prelude::*;

fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

fn prots() -> impl Iterator<Item = PageProt> {
    (0..8).map(PageProt::from_bits_retain)
}

fn is_unknown(state: PteState) -> bool {
    matches!(state, PteState::Unknown(_))
}

#[test]
fn permissions_survive_and_imply_reading() {
    for prot in prots() {
        let mut seen = prot;
        seen.set(PageProt::READ, !prot.is_empty());
        assert_eq!(Pte::new(pfn(5), prot).unwrap().prot(), seen, "{prot:?}");
        assert_eq!(Pmd::new(pfn(512), prot).unwrap().prot(), seen, "{prot:?}");
    }
    let none = Pte::new(pfn(5), PageProt::empty()).unwrap();
    assert!(none.entry().is_present() && !none.is_readable());
}

#[test]
fn frames_that_do_not_fit_or_are_unaligned_are_refused() {
    assert!(Pte::new(pfn((1 << 40) - 1), PageProt::READ).is_some());
    assert_eq!(Pte::new(pfn(1 << 40), PageProt::READ), None);
    assert_eq!(Pmd::new(pfn(511), PageProt::READ), None);
    assert_eq!(Entry::table(pfn(1 << 40)), None);
    assert_eq!(Pte::new(pfn(1), PageProt::READ).unwrap().with_pfn(pfn(1 << 40)), None);
}

#[test]
fn each_helper_changes_its_bit_and_no_other() {
    let plain = Pte::new(pfn(0x1234), PageProt::READ | PageProt::WRITE).unwrap();
    let full = plain.mk_young().mk_dirty().mk_anon_exclusive().mk_special();
    assert!(full.is_young() && full.is_dirty() && full.is_soft_dirty());
    assert!(full.is_anon_exclusive() && full.is_special() && !full.is_uffd_wp());
    assert_eq!(full.mk_old().mk_young(), full);
    assert!(full.mk_clean().is_soft_dirty());
    assert_eq!(full.wrprotect().mk_write(), full);
    assert!(!full.clear_soft_dirty().is_writable() && full.clear_soft_dirty().is_dirty());
    assert!(!full.mk_uffd_wp().is_writable() && full.mk_uffd_wp().is_uffd_wp());
    assert_eq!(full.clear_anon_exclusive().mk_anon_exclusive(), full);
    for prot in prots() {
        let changed = full.with_prot(prot);
        assert_eq!(changed.with_prot(full.prot()), full, "{prot:?}");
    }
    let moved = full.with_pfn(pfn(7)).unwrap();
    assert_eq!((moved.pfn(), moved.with_pfn(full.pfn())), (pfn(7), Some(full)));
}

#[test]
fn a_split_block_maps_the_same_frames_with_the_same_bits() {
    let pmd = Pmd::new(pfn(1024), PageProt::all()).unwrap().mk_dirty().mk_anon_exclusive();
    for index in 0..512 {
        let pte = pmd.split(index).unwrap();
        assert_eq!(pte.pfn(), pfn(1024 + index));
        assert_eq!(pte.entry().pte(), PteState::Present(pte));
        assert_eq!(pte.with_pfn(pmd.pfn()).unwrap().collapse(), Some(pmd));
    }
    assert_eq!(pmd.split(512), None);
}

#[test]
fn the_same_bits_mean_different_things_by_level() {
    let table = Entry::table(pfn(9)).unwrap();
    assert_eq!(table.pmd(), PmdState::Table(pfn(9)));
    assert_eq!(table.upper(), UpperState::Table(pfn(9)));
    let pmd = Pmd::new(pfn(512), PageProt::READ).unwrap().entry();
    assert!(is_unknown(pmd.pte()));
    assert!(matches!(pmd.upper(), UpperState::Unknown(_)));
    assert_eq!(Entry::NONE.pte(), PteState::None);
    assert_eq!(Entry::NONE.pmd(), PmdState::None);
    assert_eq!(Entry::NONE.upper(), UpperState::None);
}

#[test]
fn stray_bits_in_a_present_entry_are_noticed() {
    let pte = Pte::new(pfn(77), PageProt::all()).unwrap().entry();
    for bit in [3, 4, 7, 8].into_iter().chain(53..63) {
        assert!(is_unknown(Entry::from_bits(pte.bits() | 1 << bit).pte()), "bit {bit}");
    }
    let supervisor_writable = Entry::from_bits(pte.bits() & !U);
    assert!(is_unknown(supervisor_writable.pte()));
}

proptest! {
    #[test]
    fn decoded_entries_encode_to_themselves(bits: u64) {
        for bits in [bits, bits & !P, bits | P, bits & (LEAF_BITS | ADDRESS), bits & !PS | P] {
            let entry = Entry::from_bits(bits);
            match entry.pte() {
                PteState::None => prop_assert_eq!(bits, 0),
                PteState::Present(pte) => prop_assert_eq!(pte.entry(), entry),
                PteState::Soft(leaf) => prop_assert_eq!(leaf.entry(), entry),
                PteState::Unknown(unknown) => prop_assert_eq!(unknown.0, entry),
            }
            match entry.pmd() {
                PmdState::None => prop_assert_eq!(bits, 0),
                PmdState::Table(table) => prop_assert_eq!(Entry::table(table), Some(entry)),
                PmdState::Present(pmd) => prop_assert_eq!(pmd.entry(), entry),
                PmdState::Soft(leaf) => prop_assert_eq!(leaf.entry(), entry),
                PmdState::Unknown(unknown) => prop_assert_eq!(unknown.0, entry),
            }
        }
    }
}
