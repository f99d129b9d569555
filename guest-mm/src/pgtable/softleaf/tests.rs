//! Exhaustive where the space allows, random elsewhere.

use abi::Pfn;
use proptest::prelude::*;

use super::rules::{ForkLeaf, MarkerZap, Owner, Sharing, Target};
use super::{
    DevOffset, Leaf, LeafFlags, Location, Marker, MigrationAccess, PmdLeaf, PmdSoftleaf, Softleaf,
    SwapSlot,
};
use crate::pgtable::{Entry, PmdState, PteState};

/// Edges of every field that an offset crosses.
fn offsets() -> impl Iterator<Item = u64> {
    let powers = (0..52).flat_map(|bit| [1 << bit, (1u64 << bit) - 1, (1 << bit) + 1]);
    powers.chain([(1 << 52) - 1, (1 << 52) - 2, 0xa_aaaa_aaaa_aaaa, 0x5_5555_5555_5555])
}

/// Every kind at one offset; markers, which have none, in all their values.
fn kinds(offset: u64) -> Vec<Softleaf> {
    let pfn = Pfn::new(offset).unwrap();
    let at = DevOffset::new(offset).unwrap();
    let slot = SwapSlot::new(offset).unwrap();
    let mut kinds = vec![
        Softleaf::Swap { slot, exclusive: false },
        Softleaf::Swap { slot, exclusive: true },
        Softleaf::MigrationRead(pfn),
        Softleaf::MigrationReadExclusive(pfn),
        Softleaf::MigrationWrite(pfn),
        Softleaf::DevicePrivateRead(at),
        Softleaf::DevicePrivateWrite(at),
        Softleaf::DeviceExclusive(pfn),
        Softleaf::HwPoison(pfn),
        Softleaf::MigrationDevicePrivateRead(at),
        Softleaf::MigrationDevicePrivateReadExclusive(at),
        Softleaf::MigrationDevicePrivateWrite(at),
    ];
    kinds.extend((1..8).map(|bits| Softleaf::Marker(Marker::from_bits(bits).unwrap())));
    kinds
}

fn all_flags() -> impl Iterator<Item = LeafFlags> + Clone {
    (0..16).map(LeafFlags::from_bits_retain)
}

/// Every kind, at a few offsets, in every state.
fn leaves() -> impl Iterator<Item = Leaf> {
    [0, 0x1234, (1 << 52) - 1]
        .into_iter()
        .flat_map(kinds)
        .flat_map(|kind| all_flags().map(move |flags| Leaf::new(kind, flags)))
}

#[test]
fn every_leaf_decodes_to_itself_and_no_two_share_an_entry() {
    let mut seen = std::collections::HashMap::new();
    for offset in offsets() {
        for kind in kinds(offset) {
            for flags in all_flags() {
                let leaf = Leaf::new(kind, flags);
                let entry = leaf.entry();
                assert!(!entry.is_present() && !entry.is_none(), "{leaf:?}");
                assert_eq!(Leaf::decode(entry), Ok(leaf));
                assert_eq!(entry.pte(), PteState::Soft(leaf));
                let other = seen.insert(entry, leaf);
                assert!(other.is_none_or(|other| other == leaf), "{leaf:?} and {other:?}");
            }
        }
    }
    assert_eq!(Leaf::from(Softleaf::None).entry(), Entry::NONE);
    assert_eq!(Leaf::decode(Entry::NONE), Ok(Leaf::from(Softleaf::None)));
    assert_eq!(Leaf::new(Softleaf::None, LeafFlags::all()), Leaf::from(Softleaf::None));
}

#[test]
fn what_speculation_would_take_for_an_address_lies_beyond_ram() {
    // 64 GiB of frames, and as much swap or device memory.
    for offset in [0, 1, 0xff_ffff] {
        for leaf in kinds(offset).into_iter().map(Leaf::from) {
            let address = leaf.entry().bits() & ((1 << 52) - 1) & !0xfff;
            assert!(address >= 1 << 46, "{leaf:?}: {address:#x}");
        }
    }
}

#[test]
fn numbers_too_large_for_a_leaf_are_refused() {
    assert_eq!(DevOffset::new(1 << 52), None);
    assert_eq!(SwapSlot::new(1 << 52), None);
    assert_eq!(DevOffset::new((1 << 52) - 1).unwrap().checked_add(1), None);
    assert_eq!(DevOffset::new(7).unwrap().checked_add(u64::MAX), None);
}

#[test]
fn predicates_agree_with_each_other() {
    for leaf in leaves() {
        let kind = leaf.kind();
        let on_the_move = matches!(kind.target(), Target::Migrating(_));
        assert_eq!(kind.is_migration(), on_the_move, "{kind:?}");
        assert_eq!(kind.migration_access().is_some(), kind.is_migration(), "{kind:?}");
        let in_device = matches!(kind.location(), Some(Location::DevOffset(_)));
        assert_eq!(kind.is_device_private(), in_device, "{kind:?}");
        if let (Some(at), Some(access)) = (kind.location(), kind.migration_access()) {
            assert_eq!(Softleaf::migration(at, access), kind);
            assert_eq!(kind.is_writable(), access == MigrationAccess::Write);
        }
        if let Target::Mapped(at) | Target::Migrating(at) = kind.target() {
            assert_eq!(Some(at), kind.location());
        }
    }
    let at = DevOffset::new(3).unwrap();
    let both = Softleaf::MigrationDevicePrivateRead(at);
    assert!(both.is_migration() && both.is_device_private());
    for writable in [false, true] {
        let leaf = Softleaf::device_private(at, writable);
        assert!(leaf.is_device_private() && !leaf.is_migration());
        assert_eq!(leaf.is_writable(), writable);
    }
}

#[test]
fn fork_leaves_nothing_writable_or_exclusive_in_a_private_mapping() {
    for leaf in leaves() {
        let (parent, child) = match leaf.for_fork(Sharing::Private, true) {
            ForkLeaf::Copy { parent, child } => (parent, child),
            ForkLeaf::RestoreExclusive(pfn) => {
                assert_eq!(leaf.kind(), Softleaf::DeviceExclusive(pfn));
                continue;
            }
            ForkLeaf::Skip => panic!("{leaf:?} skipped"),
        };
        assert_eq!(parent, child, "{leaf:?}");
        assert_eq!(parent.flags(), leaf.flags(), "{leaf:?}");
        assert_eq!(parent.kind().target(), leaf.kind().target());
        assert!(!parent.kind().is_writable(), "{leaf:?}");
        let exclusive = matches!(parent.kind(), Softleaf::Swap { exclusive: true, .. })
            || parent.kind().migration_access() == Some(MigrationAccess::ReadExclusive);
        assert!(!exclusive, "{leaf:?}");
        // Forking again changes nothing.
        let again = parent.for_fork(Sharing::Private, true);
        assert_eq!(again, ForkLeaf::Copy { parent, child: parent });
    }
}

#[test]
fn fork_keeps_the_leaves_of_a_shared_mapping() {
    for leaf in leaves().filter(|leaf| !matches!(leaf.kind(), Softleaf::DeviceExclusive(_))) {
        let copied = leaf.for_fork(Sharing::Shared, true);
        assert_eq!(copied, ForkLeaf::Copy { parent: leaf, child: leaf });
    }
}

#[test]
fn a_child_without_userfaultfd_is_not_watched() {
    for leaf in leaves() {
        match leaf.for_fork(Sharing::Private, false) {
            ForkLeaf::Copy { parent, child } => {
                assert!(!child.is_uffd_wp(), "{leaf:?}");
                assert_eq!(parent.is_uffd_wp(), leaf.is_uffd_wp());
                let kept = leaf.flags() - LeafFlags::UFFD_WP;
                assert_eq!(child.flags(), kept);
            }
            ForkLeaf::Skip => assert_eq!(leaf.kind(), Softleaf::Marker(Marker::UFFD_WP)),
            ForkLeaf::RestoreExclusive(_) => {}
        }
    }
    let nothing = Leaf::from(Softleaf::None);
    assert_eq!(nothing.for_fork(Sharing::Private, true), ForkLeaf::Skip);
}

#[test]
fn mprotect_leaves_nothing_writable_and_keeps_what_is_exclusive() {
    for leaf in leaves() {
        for owner in [Owner::Anon, Owner::File] {
            let after = leaf.for_mprotect(owner);
            assert!(!after.kind().is_writable(), "{leaf:?}");
            assert_eq!(after.flags(), leaf.flags());
            assert_eq!(after.kind().target(), leaf.kind().target());
            assert_eq!(after.for_mprotect(owner), after);
            if !leaf.kind().is_writable() {
                assert_eq!(after, leaf);
            }
        }
    }
    let pfn = Pfn::new(9).unwrap();
    let write = Softleaf::MigrationWrite(pfn);
    assert_eq!(write.for_mprotect(Owner::Anon), Softleaf::MigrationReadExclusive(pfn));
    assert_eq!(write.for_mprotect(Owner::File), Softleaf::MigrationRead(pfn));
}

#[test]
fn a_move_marks_soft_dirty_and_changes_nothing_else() {
    for leaf in leaves() {
        let moved = leaf.for_move(true).unwrap();
        assert_eq!(moved.kind(), leaf.kind());
        assert_eq!(moved.flags(), leaf.flags() | LeafFlags::SOFT_DIRTY);
        match leaf.for_move(false) {
            Some(moved) => assert!(!moved.is_uffd_wp()),
            None => assert_eq!(leaf.kind(), Softleaf::Marker(Marker::UFFD_WP)),
        }
    }
    assert_eq!(Leaf::from(Softleaf::None).for_move(true), None);
}

#[test]
fn zapping_pages_keeps_markers_and_unmapping_does_not() {
    for leaf in leaves() {
        let is_marker = matches!(leaf.kind(), Softleaf::Marker(_));
        assert!(leaf.kind().is_zapped(MarkerZap::Drop));
        assert_eq!(leaf.kind().is_zapped(MarkerZap::Keep), !is_marker);
    }
    assert!(!Softleaf::None.is_zapped(MarkerZap::Drop));
}

#[test]
fn a_directory_holds_migration_and_device_private_leaves_only() {
    for leaf in leaves() {
        let allowed = leaf.kind().is_migration() || leaf.kind().is_device_private();
        assert_eq!(PmdLeaf::from_leaf(leaf).is_some(), allowed, "{leaf:?}");
        match PmdLeaf::from_leaf(leaf) {
            Some(pmd) => {
                assert_eq!(pmd.leaf(), leaf);
                assert_eq!(pmd.entry().pmd(), PmdState::Soft(pmd));
                assert_eq!(PmdSoftleaf::from_softleaf(pmd.kind().softleaf()), Some(pmd.kind()));
                assert!(pmd.for_fork(Sharing::Private, false).is_some());
                assert!(pmd.for_mprotect(Owner::Anon).is_some());
                assert!(pmd.for_move(false).is_some());
            }
            None => assert!(matches!(leaf.entry().pmd(), PmdState::Unknown(_))),
        }
    }
}

#[test]
fn a_split_directory_leaf_names_each_page_in_the_same_state() {
    for kind in kinds(0x40_0000).into_iter().filter_map(PmdSoftleaf::from_softleaf) {
        for flags in all_flags() {
            let pmd = PmdLeaf::new(kind, flags);
            for index in 0..512 {
                let leaf = pmd.split(index).unwrap();
                assert_eq!(leaf.flags(), flags);
                assert_eq!(leaf.kind().migration_access(), kind.softleaf().migration_access());
                assert_eq!(leaf.kind().is_writable(), kind.softleaf().is_writable());
                let expected = match kind.softleaf().location().unwrap() {
                    Location::Pfn(pfn) => Location::Pfn(Pfn::new(pfn.number() + index).unwrap()),
                    Location::DevOffset(at) => Location::DevOffset(at.checked_add(index).unwrap()),
                };
                assert_eq!(leaf.kind().location(), Some(expected));
            }
            assert_eq!(pmd.split(512), None);
        }
    }
}

proptest! {
    #[test]
    fn every_pattern_is_a_leaf_or_refused(bits: u64) {
        // As it comes, non-present, and with each valid kind number.
        let numbered = (0..32).map(|number| bits & !(0x1f << 59) & !1 | number << 59);
        let sparing = (0..13).map(|number| bits & !(0x3f << 58) & !9 | number << 59);
        for bits in numbered.chain(sparing).chain([bits, bits & !1]) {
            let entry = Entry::from_bits(bits);
            match Leaf::decode(entry) {
                Ok(leaf) => prop_assert_eq!(leaf.entry(), entry),
                Err(unknown) => prop_assert_eq!(unknown.0, entry),
            }
        }
    }

    #[test]
    fn damaged_leaves_of_unused_numbers_are_refused(bits: u64, number in 13u64..32) {
        let entry = Entry::from_bits(bits & !(0x1f << 59) & !1 | number << 59);
        prop_assert!(Leaf::decode(entry).is_err());
    }
}
