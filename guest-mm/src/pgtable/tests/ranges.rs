//! Each operation by itself.

use super::super::{
    DevOffset, Leaf, LeafFlags, LeafState, Marker, MigrationAccess, PageProt, PmdLeaf, PmdSoftleaf,
    Protection, Sharing, Softleaf, SwapSlot, TlbGather, ZapRules,
};
use super::*;
use crate::platform::FaultSite;

pub(super) const BASE: u64 = 0x7_f000_0000;

/// One leaf of every kind from `first` on; returns the number of pages.
fn map_one_of_each(space: &Space<'_>, owner: &mut Owner, first: u64) -> u64 {
    let at = DevOffset::new(5).unwrap();
    let kinds = [
        Softleaf::Swap { slot: SwapSlot::new(7).unwrap(), exclusive: true },
        Softleaf::MigrationRead(frame(20)),
        Softleaf::MigrationReadExclusive(frame(21)),
        Softleaf::MigrationWrite(frame(22)),
        Softleaf::DevicePrivateRead(at),
        Softleaf::DevicePrivateWrite(at),
        Softleaf::DeviceExclusive(frame(23)),
        Softleaf::HwPoison(frame(24)),
        Softleaf::Marker(Marker::GUARD),
        Softleaf::Marker(Marker::UFFD_WP),
        Softleaf::MigrationDevicePrivateRead(at),
        Softleaf::MigrationDevicePrivateReadExclusive(at),
        Softleaf::MigrationDevicePrivateWrite(at),
    ];
    let mut n = 0;
    for kind in kinds {
        let leaf = Leaf::new(kind, LeafFlags::YOUNG | LeafFlags::DIRTY);
        space.set_pte(page(first + n), leaf.entry());
        owner.add(LeafState::Soft(leaf), 1);
        n += 1;
    }
    for pte in [rw(30).mk_anon_exclusive().mk_dirty(), rw(31), rw(32).wrprotect().mk_special()] {
        space.set_pte(page(first + n), pte.entry());
        owner.add(LeafState::Present(pte), 1);
        n += 1;
    }
    n
}

fn map_huge(space: &Space<'_>, owner: &mut Owner, first: u64, pmd: Pmd) {
    space.set_pmd(page(first), pmd.entry());
    owner.add(LeafState::Present(pmd.split(0).unwrap()), 1);
}

#[test]
fn discarding_keeps_markers_and_unmapping_leaves_nothing() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    let count = map_one_of_each(&space, &mut owner, BASE);
    let mut gather = TlbGather::new(space.tables());
    let range = pages(BASE, count);
    space.tables().zap_range(range, ZapRules::DISCARD, &mut gather, &mut owner).unwrap();
    gather.flush(&mut owner);
    let left = space.leaves();
    let is_marker = |leaf: &LeafState| matches!(leaf, LeafState::Soft(leaf) if matches!(leaf.kind(), Softleaf::Marker(_)));
    assert!(left.len() == 2 && left.iter().all(|(_, leaf)| is_marker(leaf)), "{left:?}");
    owner.check(&[&space]);
    space.tables().zap_range(range, ZapRules::UNMAP, &mut gather, &mut owner).unwrap();
    gather.flush(&mut owner);
    assert_eq!(space.leaves(), []);
    drop(gather);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn zapping_a_part_of_a_large_leaf_leaves_the_rest() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    let first = BASE & !511;
    let pmd = huge_rw(1024).mk_dirty().mk_anon_exclusive();
    map_huge(&space, &mut owner, first, pmd);
    let mut gather = TlbGather::new(space.tables());
    let middle = pages(first + 100, 50);
    space.tables().zap_range(middle, ZapRules::DISCARD, &mut gather, &mut owner).unwrap();
    gather.flush(&mut owner);
    drop(gather);
    let expected: Vec<_> = (0..512)
        .filter(|n| !(100..150).contains(n))
        .map(|n| (first + n, LeafState::Present(pmd.split(n).unwrap())))
        .collect();
    assert_eq!(space.leaves(), expected);
    owner.check(&[&space]);
    assert_eq!(owner.mapcount[&Location::Pfn(frame(1024))], 462);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn without_memory_a_large_leaf_is_not_split_and_nothing_changes() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    let first = BASE & !511;
    map_huge(&space, &mut owner, first, huge_rw(1024));
    let before = space.leaves();
    let range = pages(first + 1, 5);
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        base.platform().faults().fail_nth(site, 1);
        assert!(space.tables().split_ends(range, &mut owner).is_err(), "{site:?}");
        assert_eq!(space.leaves(), before);
        owner.check(&[&space]);
    }
    space.tables().split_ends(range, &mut owner).unwrap();
    assert_eq!(space.leaves(), before);
    owner.check(&[&space]);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn a_split_of_every_kind_of_directory_leaf_keeps_each_page() {
    let base = machine();
    let mut owner = Owner::default();
    let at = DevOffset::new(2048).unwrap();
    let pfn = frame(2048);
    for kind in [
        PmdSoftleaf::MigrationRead(pfn),
        PmdSoftleaf::MigrationReadExclusive(pfn),
        PmdSoftleaf::MigrationWrite(pfn),
        PmdSoftleaf::DevicePrivateRead(at),
        PmdSoftleaf::DevicePrivateWrite(at),
        PmdSoftleaf::MigrationDevicePrivateRead(at),
        PmdSoftleaf::MigrationDevicePrivateReadExclusive(at),
        PmdSoftleaf::MigrationDevicePrivateWrite(at),
    ] {
        let space = Space::new(&base);
        let leaf = PmdLeaf::new(kind, LeafFlags::DIRTY);
        space.set_pmd(page(512), leaf.entry());
        owner.add(LeafState::Soft(leaf.leaf()), 1);
        let before = space.leaves();
        assert_eq!(space.tables().split_pmd(page(700), &mut owner), Ok(true), "{kind:?}");
        assert_eq!(space.leaves(), before);
        assert_eq!(space.tables().split_pmd(page(700), &mut owner), Ok(false));
        owner.check(&[&space]);
        space.destroy(&mut owner);
    }
    nothing_left(&base);
}

pub(super) fn protect(space: &Space<'_>, range: VaRange, to: Protection, owner: &mut Owner) -> u64 {
    let mut gather = TlbGather::new(space.tables());
    let changed = space.tables().change_protection(range, to, &mut gather, owner).unwrap();
    gather.flush(owner);
    changed
}

#[test]
fn mprotect_makes_only_exclusive_or_dirty_shared_pages_writable() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    let read_only = [
        rw(1).wrprotect().mk_anon_exclusive(),
        rw(2).wrprotect(),
        rw(3).wrprotect().mk_dirty(),
        rw(4).wrprotect().mk_special(),
        rw(5).wrprotect().mk_anon_exclusive().mk_uffd_wp(),
    ];
    for (n, pte) in (0..).zip(read_only) {
        space.set_pte(page(BASE + n), pte.entry());
        owner.add(LeafState::Present(pte), 1);
    }
    let writable = |space: &Space<'_>| -> Vec<bool> {
        let is_writable =
            |leaf: LeafState| matches!(leaf, LeafState::Present(pte) if pte.is_writable());
        space.leaves().into_iter().map(|(_, leaf)| is_writable(leaf)).collect()
    };
    let prot = PageProt::READ | PageProt::WRITE;
    let private = Protection { prot, sharing: Sharing::Private, tracks_soft_dirty: false };
    protect(&space, pages(BASE, 5), private, &mut owner);
    assert_eq!(writable(&space), [true, false, false, false, false]);
    let tracked = Protection { tracks_soft_dirty: true, ..private };
    protect(&space, pages(BASE, 5), tracked, &mut owner);
    assert_eq!(writable(&space), [false; 5]);
    let shared = Protection { sharing: Sharing::Shared, ..private };
    protect(&space, pages(BASE, 5), shared, &mut owner);
    assert_eq!(writable(&space), [false, false, true, false, false]);
    // None at all: not even readable, state kept, and back.
    let none = Protection { prot: PageProt::empty(), ..private };
    protect(&space, pages(BASE, 5), none, &mut owner);
    for (_, leaf) in space.leaves() {
        assert!(matches!(leaf, LeafState::Present(pte) if !pte.is_readable()), "{leaf:?}");
    }
    protect(&space, pages(BASE, 5), Protection { prot: PageProt::READ, ..private }, &mut owner);
    let expected: Vec<_> = (BASE..).zip(read_only.map(LeafState::Present)).collect();
    assert_eq!(space.leaves(), expected);
    owner.check(&[&space]);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn mprotect_downgrades_leaves_of_migrating_and_device_pages() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    let count = map_one_of_each(&space, &mut owner, BASE);
    let prot = PageProt::READ;
    let to = Protection { prot, sharing: Sharing::Private, tracks_soft_dirty: false };
    let changed = protect(&space, pages(BASE, count), to, &mut owner);
    // Three writable leaves and two writable pages.
    assert_eq!(changed, 5);
    for (_, leaf) in space.leaves() {
        match leaf {
            LeafState::Present(pte) => assert!(!pte.is_writable()),
            LeafState::Soft(leaf) => {
                assert!(!leaf.kind().is_writable());
                assert_eq!(leaf.flags(), LeafFlags::YOUNG | LeafFlags::DIRTY);
            }
        }
    }
    owner.check(&[&space]);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn fork_shares_private_pages_read_only_and_copies_pinned_ones() {
    let base = machine();
    let (parent, child) = (Space::new(&base), Space::new(&base));
    let mut owner = Owner { next_spare: 900, ..Owner::default() };
    for n in 0..4 {
        let pte = rw(40 + n).mk_anon_exclusive().mk_dirty().mk_young();
        parent.set_pte(page(BASE + n), pte.entry());
        owner.add(LeafState::Present(pte), 1);
    }
    owner.pinned.insert(frame(42));
    let mut gather = TlbGather::new(parent.tables());
    let range = pages(BASE, 4);
    parent.tables().copy_range(&child.tables(), range, PRIVATE, &mut gather, &mut owner).unwrap();
    gather.flush(&mut owner);
    drop(gather);
    for ((at, mine), (_, theirs)) in parent.leaves().into_iter().zip(child.leaves()) {
        let (LeafState::Present(mine), LeafState::Present(theirs)) = (mine, theirs) else {
            panic!("{at:#x}: {mine:?} {theirs:?}");
        };
        assert!(mine.is_young() && mine.is_dirty() && mine.is_soft_dirty());
        if mine.pfn() == frame(42) {
            assert!(mine.is_writable() && mine.is_anon_exclusive(), "still pinned");
            assert_eq!(theirs.pfn(), frame(900));
            assert!(theirs.is_anon_exclusive());
        } else {
            assert!(!mine.is_writable() && !mine.is_anon_exclusive());
            assert_eq!(theirs, mine.mk_old());
        }
    }
    owner.check(&[&parent, &child]);
    parent.destroy(&mut owner);
    child.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn fork_of_a_pinned_large_leaf_splits_it_and_copies_the_page() {
    let base = machine();
    let (parent, child) = (Space::new(&base), Space::new(&base));
    let mut owner = Owner { next_spare: 900, ..Owner::default() };
    let first = BASE & !511;
    map_huge(&parent, &mut owner, first, huge_rw(1024).mk_anon_exclusive());
    map_huge(&parent, &mut owner, first + 512, huge_rw(2048).mk_anon_exclusive());
    owner.pinned.insert(frame(1024 + 77));
    let mut gather = TlbGather::new(parent.tables());
    let range = pages(first, 1024);
    parent.tables().copy_range(&child.tables(), range, PRIVATE, &mut gather, &mut owner).unwrap();
    gather.flush(&mut owner);
    drop(gather);
    let (mine, theirs) = (parent.leaves(), child.leaves());
    assert_eq!((mine.len(), theirs.len()), (1024, 1024));
    let exclusive = |leaf: &(u64, LeafState)| matches!(leaf.1, LeafState::Present(p) if p.is_anon_exclusive() && p.is_writable());
    let exclusive: Vec<_> = mine.iter().filter(|leaf| exclusive(leaf)).collect();
    assert_eq!(exclusive, [&(first + 77, LeafState::Present(rw(1024 + 77).mk_anon_exclusive()))]);
    owner.check(&[&parent, &child]);
    assert_eq!(owner.mapcount[&Location::Pfn(frame(2048))], 2, "still one leaf each");
    parent.destroy(&mut owner);
    child.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn fork_decides_every_kind_of_leaf() {
    let base = machine();
    let (parent, child) = (Space::new(&base), Space::new(&base));
    let mut owner = Owner::default();
    let count = map_one_of_each(&parent, &mut owner, BASE);
    let mut gather = TlbGather::new(parent.tables());
    let mut at = BASE;
    let mut restored = 0;
    loop {
        let range = VaRange::new(page(at), page(BASE + count)).unwrap();
        let (mine, theirs) = (parent.tables(), child.tables());
        match mine.copy_range(&theirs, range, PRIVATE, &mut gather, &mut owner) {
            Ok(()) => break,
            Err(super::super::ForkError::Restore(there)) => {
                restored += 1;
                // As the fault on a device-exclusive leaf does.
                let mut guard = mine.lock_pte(there).unwrap();
                guard.swap(there, rw(23).wrprotect().mk_anon_exclusive().entry());
                at = there.page();
            }
            Err(error) => panic!("{error}"),
        }
    }
    gather.flush(&mut owner);
    drop(gather);
    assert_eq!(restored, 1);
    // The marker of userfaultfd is not for this child.
    assert_eq!(child.leaves().len() as u64, count - 1);
    for (_, leaf) in parent.leaves().into_iter().chain(child.leaves()) {
        match leaf {
            LeafState::Present(pte) => assert!(!pte.is_writable() && !pte.is_anon_exclusive()),
            LeafState::Soft(leaf) => {
                let access = leaf.kind().migration_access();
                assert!(matches!(access, None | Some(MigrationAccess::Read)), "{leaf:?}");
                assert!(!leaf.kind().is_writable() && leaf.is_dirty() && leaf.is_young());
                assert!(!matches!(leaf.kind(), Softleaf::Swap { exclusive: true, .. }));
            }
        }
    }
    owner.check(&[&parent, &child]);
    parent.destroy(&mut owner);
    child.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn fork_without_memory_stops_and_what_is_there_can_be_undone() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        for nth in 1.. {
            let base = machine();
            let (parent, child) = (Space::new(&base), Space::new(&base));
            let mut owner = Owner { next_spare: 900, ..Owner::default() };
            let first = BASE & !511;
            map_one_of_each(&parent, &mut owner, first);
            map_huge(&parent, &mut owner, first + 512, huge_rw(1024).mk_anon_exclusive());
            owner.pinned.insert(frame(1024 + 3));
            let tables = parent.tables();
            let mut guard = tables.lock_pte(page(first + 6)).unwrap();
            let exclusive = guard.clear(page(first + 6));
            drop(guard);
            owner.add(SizedLeaf::of_pte(exclusive).unwrap().unwrap().state, -1);
            base.platform().faults().fail_nth(site, nth);
            let mut gather = TlbGather::new(tables);
            let range = pages(first, 1024);
            let forked =
                tables.copy_range(&child.tables(), range, PRIVATE, &mut gather, &mut owner);
            gather.flush(&mut owner);
            drop(gather);
            let struck = base.platform().faults().struck(site) > 0;
            assert_eq!(forked.is_err(), struck, "{site:?} {nth}");
            owner.check(&[&parent, &child]);
            parent.destroy(&mut owner);
            child.destroy(&mut owner);
            nothing_left(&base);
            if !struck {
                break;
            }
        }
    }
}

#[test]
fn a_move_by_whole_tables_takes_no_leaf_in_hand_and_marks_large_ones() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    let (first, target) = (BASE & !511, (BASE & !511) + (1 << 18) * 3);
    let count = map_one_of_each(&space, &mut owner, first);
    map_huge(&space, &mut owner, first + 512, huge_rw(1024));
    let before = space.leaves();
    let tables = space.tables().table_pages();
    space.tables().move_range(pages(first, 1024), page(target), true, &mut owner).unwrap();
    let after = space.leaves();
    assert_eq!(after.len(), before.len());
    for ((old, leaf), (new, moved)) in before.iter().zip(&after) {
        assert_eq!(new - old, target - first);
        if *old >= first + 512 {
            assert!(matches!(moved, LeafState::Present(pte) if pte.is_soft_dirty()));
        } else {
            assert_eq!(leaf, moved);
        }
    }
    // The table changed its parent: one directory more.
    assert_eq!(space.tables().table_pages(), tables + 1);
    assert!(count > 0);
    owner.check(&[&space]);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn a_move_by_pages_marks_every_leaf_soft_dirty() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    let (first, target) = (BASE & !511, (BASE & !511) + 1536 + 100);
    let count = map_one_of_each(&space, &mut owner, first + 500);
    let before = space.leaves();
    space.tables().move_range(pages(first + 500, count), page(target), true, &mut owner).unwrap();
    let after = space.leaves();
    assert_eq!(after.len(), before.len());
    for ((old, leaf), (new, moved)) in before.iter().zip(&after) {
        assert_eq!(new - old, target - first - 500);
        match (leaf, moved) {
            (LeafState::Present(leaf), LeafState::Present(moved)) => {
                assert_eq!(leaf.mk_soft_dirty(), *moved);
            }
            (LeafState::Soft(leaf), LeafState::Soft(moved)) => {
                assert_eq!(leaf.with_flags(LeafFlags::SOFT_DIRTY), *moved);
            }
            _ => panic!("{leaf:?} became {moved:?}"),
        }
    }
    owner.check(&[&space]);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn a_failed_move_says_how_far_it_came_and_can_be_moved_back() {
    for nth in 1.. {
        let base = machine();
        let (space, mut owner) = (Space::new(&base), Owner::default());
        let (first, target) = (BASE & !511, (BASE & !511) + (1 << 18) * 3 + 7);
        for n in 0..3 {
            let pte = rw(50 + n).mk_soft_dirty();
            space.set_pte(page(first + n * 512), pte.entry());
            owner.add(LeafState::Present(pte), 1);
        }
        map_huge(&space, &mut owner, first + 1536, huge_rw(1024).mk_soft_dirty());
        let before = space.leaves();
        base.platform().faults().fail_nth(FaultSite::BuddyAlloc, nth);
        let moved = space.tables().move_range(pages(first, 2048), page(target), true, &mut owner);
        let struck = base.platform().faults().struck(FaultSite::BuddyAlloc) > 0;
        assert_eq!(moved.is_err(), struck, "{nth}");
        if let Err(error) = moved {
            let back = pages(target, error.moved >> 12);
            space.tables().move_range(back, page(first), true, &mut owner).unwrap();
            assert_eq!(space.leaves(), before);
        }
        owner.check(&[&space]);
        space.destroy(&mut owner);
        nothing_left(&base);
        if !struck {
            break;
        }
    }
}

#[test]
fn tables_that_neighbours_use_stay() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    let first = BASE & !511;
    for at in [first, first + 1, first + 512, first + (1 << 18), first + (1 << 27)] {
        space.set_pte(page(at), rw(1).entry());
        owner.add(LeafState::Present(rw(1)), 1);
    }
    // Four PTE tables in three directories below two upper tables.
    assert_eq!(space.tables().table_pages(), 9);
    let drop_range = |owner: &mut Owner, range: VaRange| {
        let mut gather = TlbGather::new(space.tables());
        space.tables().zap_range(range, ZapRules::UNMAP, &mut gather, owner).unwrap();
        space.tables().free_tables(range, &mut gather, owner);
        gather.flush(owner);
        space.tables().table_pages()
    };
    assert_eq!(drop_range(&mut owner, pages(first, 1)), 9, "its neighbour is in the same table");
    assert_eq!(drop_range(&mut owner, pages(first + 1, 511)), 8);
    assert_eq!(drop_range(&mut owner, pages(first + 512, 1)), 6);
    assert_eq!(drop_range(&mut owner, pages(first + (1 << 18), 1)), 3);
    assert_eq!(drop_range(&mut owner, pages(first, (1 << 27) + 1)), 0);
    owner.check(&[&space]);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn a_table_is_freed_only_when_its_readers_have_left() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    space.set_pte(page(BASE), Leaf::from(Softleaf::Marker(Marker::GUARD)).entry());
    let section = base.rcu.read(1);
    let super::super::Found::Pte { slot, .. } = space.tables().walk(&section, page(BASE)) else {
        panic!("no PTE");
    };
    let mut gather = TlbGather::new(space.tables());
    space.tables().zap_range(pages(BASE, 1), ZapRules::UNMAP, &mut gather, &mut owner).unwrap();
    space.tables().free_tables(pages(BASE, 1), &mut gather, &mut owner);
    gather.flush(&mut owner);
    drop(gather);
    assert_eq!(base.reap_tables(16), 0);
    assert_eq!(base.deferred_tables(), 3);
    assert!(slot.load().is_none());
    drop(section);
    assert_eq!(base.reap_tables(16), 3);
    space.destroy(&mut owner);
    nothing_left(&base);
}

#[test]
fn more_than_a_batch_is_flushed_in_parts() {
    let base = machine();
    let (space, mut owner) = (Space::new(&base), Owner::default());
    space.cpus.insert(0);
    for n in 0..300 {
        space.set_pte(page(BASE + n), rw(n).entry());
        owner.add(LeafState::Present(rw(n)), 1);
    }
    let mut gather = TlbGather::new(space.tables());
    space.tables().zap_range(pages(BASE, 300), ZapRules::UNMAP, &mut gather, &mut owner).unwrap();
    gather.flush(&mut owner);
    assert_eq!(gather.flushes(), 5);
    drop(gather);
    owner.check(&[&space]);
    space.destroy(&mut owner);
}
