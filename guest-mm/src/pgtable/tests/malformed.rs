//! What no encoder produces, in the way of every operation.

use super::super::{
    Leaf, LeafFlags, LeafState, Marker, PageProt, PmdLeaf, PmdSoftleaf, Protection, Sharing,
    Softleaf, TlbGather, ZapRules,
};
use super::ranges::{BASE, protect};
use super::*;

/// Malformed entries of both levels: what a stray store leaves.
fn corrupt(space: &Space<'_>) {
    let tables = space.tables();
    let put = |frame: Pfn, at: VirtAddr, level: u32, bits: u64| {
        let slot = tables.slot(frame, at.table_index(level));
        slot.store(bits, core::sync::atomic::Ordering::Relaxed);
    };
    for (n, bits) in [(3, 0x1ff0_0000_0000_0001), (4, 31 << 59), (5, 1 << 8)] {
        let at = page(BASE + n);
        let mut guard = tables.alloc_lock_pte(at).unwrap().unwrap();
        guard.swap(at, Leaf::from(Softleaf::Marker(Marker::GUARD)).entry());
        put(guard.frame(), at, 0, bits);
    }
    // A large leaf that is not aligned, and a table in a frame that is none.
    for (n, bits) in [(512, 0x1087), (1024, 0x2027)] {
        let at = page(BASE + n);
        let leaf = PmdLeaf::new(PmdSoftleaf::MigrationRead(frame(1024)), LeafFlags::empty());
        let mut guard = tables.lock_pmd(at).unwrap();
        guard.swap(at, leaf.entry());
        put(guard.frame(), at, 1, bits);
    }
}

#[test]
fn operations_pass_over_malformed_entries_and_count_them() {
    let base = machine();
    let range = pages(BASE, 2048);
    let mut owner = Owner::default();
    let space = Space::new(&base);
    let child = Space::new(&base);
    space.set_pte(page(BASE + 9), rw(9).entry());
    owner.add(LeafState::Present(rw(9)), 1);
    corrupt(&space);
    let unknown = || base.table_counters().unknown;
    let mut before = unknown();
    let more = |before: &mut u64, what: &str| {
        let now = unknown();
        assert!(now >= *before + 5, "{what}: {now} after {before}");
        *before = now;
    };
    let prot = PageProt::READ;
    let to = Protection { prot, sharing: Sharing::Private, tracks_soft_dirty: false };
    assert_eq!(protect(&space, range, to, &mut owner), 1);
    more(&mut before, "mprotect");
    let mut gather = TlbGather::new(space.tables());
    let (from, to) = (space.tables(), child.tables());
    from.copy_range(&to, range, PRIVATE, &mut gather, &mut owner).unwrap();
    gather.flush(&mut owner);
    more(&mut before, "fork");
    assert_eq!(child.leaves().len(), 1);
    from.move_range(pages(BASE, 512), page(BASE + 4096 + 3), true, &mut owner).unwrap();
    assert_eq!(space.leaves().len(), 1);
    corrupt(&space);
    before = unknown();
    from.zap_range(pages(BASE, 8192), ZapRules::UNMAP, &mut gather, &mut owner).unwrap();
    assert!(unknown() > before);
    from.free_tables(pages(BASE, 8192), &mut gather, &mut owner);
    gather.flush(&mut owner);
    drop(gather);
    assert_eq!(space.leaves(), []);
    owner.check(&[&child]);
    child.destroy(&mut owner);
}
