//! Leaves of real spaces: folios, counters, reverse maps.

use super::super::{
    Leaf, LeafFlags, LeafState, LeafWalk, Location, MigrationAccess, PageProt, Protection, Sharing,
    Softleaf, Sought, SoughtLeaves,
};
use super::*;
use crate::folio::{Folio, FolioFlags, FolioKind};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::space::{AddressSpace, MmapArgs, SpaceRef, Vma};
use crate::sync::shim::Ordering;

const HERE: u64 = 0x10_0000_0000;
const HERE_PAGE: u64 = HERE >> 12;

type Space<'m> = AddressSpace<'m, TestPlatform>;

struct World<'m> {
    mm: Mm<'m, TestPlatform>,
}

impl<'m> World<'m> {
    fn new(base: &'m Mem) -> Self {
        Self { mm: Mm::new(base) }
    }

    /// A space with one private anonymous mapping of `count` pages at `HERE`.
    fn space(&self, count: u64) -> SpaceRef<'m, TestPlatform> {
        let space = self.mm.new_space().unwrap();
        let args = MmapArgs::anonymous(count << 12).fixed(HERE);
        self.mm.mmap(&space, args).unwrap();
        self.with_vma(&space, |vma| self.mm.anon_vma_prepare(vma, None)).unwrap();
        space
    }

    fn with_vma<R>(&self, space: &Space<'m>, with: impl FnOnce(&Vma<'m, TestPlatform>) -> R) -> R {
        let guard = space.write();
        with(guard.lookup(page(HERE_PAGE)).unwrap())
    }

    /// What a fault does: a new folio of `order` at page `at`, by one leaf.
    fn fault(&self, space: &Space<'m>, at: u64, order: u32) -> &'m Folio {
        let order = Order::new(order.try_into().unwrap()).unwrap();
        let folio = self.mm.alloc_folio(order, crate::buddy::Gfp::USER, FolioKind::Anon).unwrap();
        folio.set_flags(FolioFlags::UPTODATE);
        let pfn = folio.pfn();
        let head = page(HERE_PAGE + at);
        self.with_vma(space, |vma| self.mm.add_new_anon_rmap(folio, vma, head));
        space.rss.anon.fetch_add(order.pages().get(), Ordering::Relaxed);
        let tables = space.tables();
        let prot = PageProt::READ | PageProt::WRITE;
        if order.get() == 9 {
            let pmd = Pmd::new(pfn, prot).unwrap().mk_anon_exclusive().mk_dirty();
            tables.alloc_lock_pmd(head).unwrap().set(head, pmd.entry());
        } else {
            let pte = Pte::new(pfn, prot).unwrap().mk_anon_exclusive().mk_dirty();
            tables.alloc_lock_pte(head).unwrap().unwrap().set(head, pte.entry());
        }
        // SAFETY: the leaf just set maps it until the test unmaps it.
        unsafe { self.mm.mapped_folio(pfn) }.unwrap()
    }

    /// A child with the parent's leaves.
    fn fork(&self, parent: &Space<'m>, count: u64) -> SpaceRef<'m, TestPlatform> {
        let child = self.mm.new_space().unwrap();
        self.mm.mmap(&child, MmapArgs::anonymous(count << 12).fixed(HERE)).unwrap();
        self.with_vma(parent, |mine| {
            let guard = child.write_nested();
            let theirs = guard.lookup(page(HERE_PAGE)).unwrap();
            self.mm.anon_vma_fork(theirs, mine).unwrap();
            let range = pages(HERE_PAGE, count);
            self.mm.copy_leaves(parent, (&child, theirs), range, PRIVATE).unwrap();
        });
        child
    }

    fn exit(&self, space: SpaceRef<'m, TestPlatform>) {
        let all = VaRange::new(VirtAddr::ZERO, VirtAddr::END).unwrap();
        self.mm.unmap_leaves(&space, all).unwrap();
        assert_eq!(rss(&space), (0, 0, 0));
        self.with_vma(&space, |vma| self.mm.anon_vma_unlink(vma));
        self.mm.exit_space(space);
    }
}

fn rss(space: &Space<'_>) -> (u64, u64, u64) {
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    (get(&space.rss.anon), get(&space.rss.file), get(&space.rss.swap))
}

fn no_folios_left(base: &Mem) {
    nothing_left(base);
    assert_eq!(base.memory.census().pages(Kind::Anon).get(), 0);
}

#[test]
fn unmapping_frees_folios_and_empties_the_counters() {
    let base = machine();
    let world = World::new(&base);
    let space = world.space(1024);
    for at in 0..5 {
        let folio = world.fault(&space, at, 0);
        assert_eq!((folio.mapcount(), folio.refcount()), (1, 1));
    }
    let huge = world.fault(&space, 512, 9);
    assert_eq!(rss(&space), (517, 0, 0));
    assert_eq!(base.memory.census().pages(Kind::Anon).get(), 517);
    // A hole in the large one: 512 leaves less the hole's.
    world
        .mm
        .zap_leaves(&space, pages(HERE_PAGE + 600, 12), super::super::ZapRules::DISCARD)
        .unwrap();
    assert_eq!((huge.mapcount(), huge.refcount()), (500, 500));
    assert_eq!(rss(&space), (505, 0, 0));
    assert_eq!(world.mm.deferred_splits(), 1);
    world.exit(space);
    no_folios_left(&base);
}

#[test]
fn a_fork_shares_folios_and_copies_pinned_pages() {
    let base = machine();
    let world = World::new(&base);
    let parent = world.space(1024);
    let shared = world.fault(&parent, 0, 0);
    let pinned = world.fault(&parent, 1, 0);
    let huge = world.fault(&parent, 512, 9);
    world.mm.get(pinned).write(&world.mm, 7);
    let pin = world.mm.get(pinned).pin();
    let child = world.fork(&parent, 1024);
    assert_eq!((shared.mapcount(), shared.refcount()), (2, 2));
    assert_eq!((huge.mapcount(), huge.refcount()), (2, 2), "one leaf each");
    assert_eq!((pinned.mapcount(), pinned.refcount()), (1, 2), "the parent's, and the pin");
    assert_eq!(rss(&child), rss(&parent));
    let at = page(HERE_PAGE + 1);
    let state = child.tables().lock_pte(at).unwrap().state(at);
    let super::super::PteState::Present(copy) = state else { panic!("{state:?}") };
    assert!(copy.is_anon_exclusive() && copy.is_writable() && copy.pfn() != pinned.pfn());
    // SAFETY: the child's leaf maps it.
    let copied = unsafe { world.mm.mapped_folio(copy.pfn()) }.unwrap();
    let mut byte = [0];
    world.mm.read_folio(copied, 0, &mut byte);
    assert_eq!(byte, [7]);
    world.exit(parent);
    assert_eq!((pinned.mapcount(), pinned.refcount()), (0, 1));
    world.mm.unpin(pin);
    world.exit(child);
    no_folios_left(&base);
}

trait WriteByte<'m> {
    /// Writes the first byte and gives the reference back.
    fn write(self, mm: &Mm<'m, TestPlatform>, byte: u8);
}

impl<'m> WriteByte<'m> for crate::folio::FolioRef<'m> {
    fn write(self, mm: &Mm<'m, TestPlatform>, byte: u8) {
        mm.write_folio(&self, 0, &[byte]);
        mm.put(self);
    }
}

#[test]
fn a_fork_of_a_pinned_huge_page_copies_every_page_of_it() {
    let base = machine();
    let world = World::new(&base);
    let parent = world.space(1024);
    let huge = world.fault(&parent, 512, 9);
    let pin = world.mm.get(huge).pin();
    let child = world.fork(&parent, 1024);
    // Pins are of the folio: all of its pages stay the parent's, and the child has copies.
    assert_eq!((huge.mapcount(), huge.pincount()), (512, 1));
    assert_eq!(rss(&child), (512, 0, 0));
    world.mm.unpin(pin);
    world.exit(parent);
    world.exit(child);
    no_folios_left(&base);
}

#[test]
fn each_failing_allocation_of_a_fork_leaves_nothing_behind() {
    for nth in 1.. {
        let base = machine();
        let world = World::new(&base);
        let parent = world.space(1024);
        world.fault(&parent, 0, 0);
        let pinned = world.fault(&parent, 1, 0);
        let pin = world.mm.get(pinned).pin();
        let child = world.mm.new_space().unwrap();
        world.mm.mmap(&child, MmapArgs::anonymous(1024 << 12).fixed(HERE)).unwrap();
        let faults = base.platform().faults();
        let forked = world.with_vma(&parent, |mine| {
            let guard = child.write_nested();
            let theirs = guard.lookup(page(HERE_PAGE)).unwrap();
            world.mm.anon_vma_fork(theirs, mine).unwrap();
            faults.fail_nth(crate::platform::FaultSite::BuddyAlloc, nth);
            let range = pages(HERE_PAGE, 1024);
            world.mm.copy_leaves(&parent, (&child, theirs), range, PRIVATE)
        });
        let struck = faults.struck(crate::platform::FaultSite::BuddyAlloc) > 0;
        assert_eq!(forked.is_err(), struck, "{nth}");
        faults.fail_nth(crate::platform::FaultSite::BuddyAlloc, 0);
        world.mm.unpin(pin);
        world.exit(child);
        world.exit(parent);
        no_folios_left(&base);
        if !struck {
            break;
        }
    }
}

#[test]
fn swapped_pages_are_counted_by_slot_in_both_spaces() {
    let base = Base::new(testing::memory(4096)).unwrap();
    let world = World::new(&base);
    world.mm.swapon_ram(16).unwrap();
    let parent = world.space(16);
    let folio = world.fault(&parent, 3, 0);
    let slot = {
        let lock = folio.lock(base.platform());
        world.mm.swap_alloc(&lock).unwrap()
    };
    // What reclaim does: the leaf becomes a swap leaf.
    let at = page(HERE_PAGE + 3);
    {
        let tables = parent.tables();
        let mut gather = TlbGather::new(tables);
        let mut guard = tables.lock_pte(at).unwrap();
        let leaf = SizedLeaf::of_pte(guard.clear(at)).unwrap().unwrap();
        let mut owner = super::super::SpaceLeaves::new(&world.mm, &parent);
        let rest = owner.unmapped(at, leaf);
        world.mm.swap_dup(slot).unwrap();
        guard.set(at, Leaf::from(Softleaf::Swap { slot, exclusive: true }).entry());
        drop(guard);
        parent.rss.swap.fetch_add(1, Ordering::Relaxed);
        gather.note(at, 4096);
        gather.add(rest.put.unwrap());
        gather.flush(&mut owner);
    }
    assert_eq!((rss(&parent), world.mm.swap_count(slot)), ((0, 0, 1), 1));
    let child = world.fork(&parent, 16);
    assert_eq!((rss(&child), world.mm.swap_count(slot)), ((0, 0, 1), 2));
    world.exit(parent);
    assert_eq!(world.mm.swap_count(slot), 1);
    world.exit(child);
    assert_eq!(world.mm.swap_count(slot), 0);
    world.mm.swapoff().unwrap();
    no_folios_left(&base);
}

#[test]
fn a_leaf_walk_finds_every_leaf_of_its_folio_and_no_other() {
    let base = machine();
    let world = World::new(&base);
    let space = world.space(2048);
    let small = world.fault(&space, 5, 0);
    world.fault(&space, 6, 0);
    let huge = world.fault(&space, 512, 9);
    let all = pages(HERE_PAGE, 2048);
    let find = |folio: &Folio, leaves: SoughtLeaves| -> Vec<(u64, u32)> {
        let sought = Sought::Frames(folio.range());
        let mut walk = LeafWalk::new(space.tables(), all, sought, leaves);
        let mut found = Vec::new();
        while let Some((at, leaf)) = walk.next_leaf() {
            found.push((at.page() - HERE_PAGE, leaf.order));
        }
        found
    };
    assert_eq!(find(small, SoughtLeaves::Mapped), [(5, 0)]);
    assert_eq!(find(small, SoughtLeaves::Migrating), []);
    assert_eq!(find(huge, SoughtLeaves::Mapped), [(512, 9)]);
    world.mm.split_pmd(&space, page(HERE_PAGE + 700)).unwrap();
    let found = find(huge, SoughtLeaves::Mapped);
    assert!(found.len() == 512 && found.iter().zip(512..).all(|(f, at)| *f == (at, 0)));
    world.exit(space);
    no_folios_left(&base);
}

#[test]
fn leaves_become_migration_leaves_and_come_back_as_they_were() {
    let base = machine();
    let world = World::new(&base);
    let space = world.space(1024);
    let folio = world.fault(&space, 5, 0);
    let huge = world.fault(&space, 512, 9);
    let all = pages(HERE_PAGE, 1024);
    for folio in [folio, huge] {
        let sought = Sought::Frames(folio.range());
        let tables = space.tables();
        let before = tables_of(&space);
        // Install: what a migration does under the folio lock.
        let mut walk = LeafWalk::new(tables, all, sought, SoughtLeaves::Mapped);
        let (at, leaf) = walk.next_leaf().unwrap();
        let LeafState::Present(pte) = leaf.state else { panic!("{leaf:?}") };
        let kind = Softleaf::migration(Location::Pfn(pte.pfn()), MigrationAccess::Write);
        let soft = Leaf::new(kind, LeafFlags::DIRTY | LeafFlags::SOFT_DIRTY);
        let old = walk.replace(soft.entry());
        assert_eq!(walk.next_leaf(), None);
        drop(walk);
        // mprotect in between takes the write permission, and keeps what is exclusive.
        let prot = PageProt::READ;
        let to = Protection { prot, sharing: Sharing::Private, tracks_soft_dirty: false };
        world.mm.protect_leaves(&space, all, to).unwrap();
        let mut walk = LeafWalk::new(tables, all, sought, SoughtLeaves::Migrating);
        let (again, leaf) = walk.next_leaf().unwrap();
        let LeafState::Soft(soft) = leaf.state else { panic!("{leaf:?}") };
        assert_eq!(soft.kind().migration_access(), Some(MigrationAccess::ReadExclusive));
        assert!(again == at && soft.is_dirty() && soft.is_soft_dirty());
        walk.replace(old);
        drop(walk);
        assert_eq!(tables_of(&space).len(), before.len());
    }
    world.exit(space);
    no_folios_left(&base);
}

fn tables_of(space: &Space<'_>) -> Vec<(VirtAddr, SizedLeaf)> {
    let mut leaves = Vec::new();
    space.tables().for_each_leaf(&mut |at, leaf| leaves.push((at, leaf)));
    leaves
}

#[test]
fn digests_tell_states_apart_and_not_frames() {
    let base = machine();
    let world = World::new(&base);
    let digest = |space: &Space<'_>| world.mm.leaf_digest(space).unwrap();
    let (first, second) = (world.space(64), world.space(64));
    let waste =
        world.mm.alloc_folio(Order::ZERO, crate::buddy::Gfp::USER, FolioKind::Anon).unwrap();
    for at in [3, 4, 9] {
        world.fault(&first, at, 0);
    }
    for at in [9, 3, 4] {
        world.fault(&second, at, 0);
    }
    assert_eq!(digest(&first), digest(&second));
    base.platform().faults().fail_nth(crate::platform::FaultSite::SlabAlloc, 1);
    assert!(world.mm.leaf_digest(&first).is_err());
    let at = page(HERE_PAGE + 4);
    let prot = PageProt::READ;
    let to = Protection { prot, sharing: Sharing::Private, tracks_soft_dirty: false };
    let range = VaRange::page_of(at).unwrap();
    world.mm.protect_leaves(&second, range, to).unwrap();
    assert_ne!(digest(&first), digest(&second));
    world.mm.put(waste);
    world.exit(first);
    world.exit(second);
    no_folios_left(&base);
}

#[test]
fn leaves_made_from_a_folio_name_its_pages() {
    let base = machine();
    let mm = Mm::new(&base);
    let order = Order::new(2).unwrap();
    let folio = mm.alloc_folio(order, crate::buddy::Gfp::USER, FolioKind::Anon).unwrap();
    let second = folio.pfn().checked_add(abi::PageCount::ONE).unwrap();
    assert_eq!(Location::of_folio(&folio, 1), Some(Location::Pfn(second)));
    assert_eq!(Location::of_folio(&folio, 4), None);
    let write = Softleaf::migration_of(&folio, 1, MigrationAccess::Write);
    assert_eq!(write, Some(Softleaf::MigrationWrite(second)));
    assert_eq!(Softleaf::device_of(&folio, 1, true), Some(Softleaf::DeviceExclusive(second)));
    assert_eq!(Softleaf::hwpoison_of(&folio, 1), Some(Softleaf::HwPoison(second)));
    mm.put(folio);
}

#[test]
fn device_and_migration_leaves_are_counted_alike_by_census_and_unmapping() {
    let base = machine();
    let world = World::new(&base);
    let space = world.space(16);
    let folio = world.fault(&space, 0, 0);
    let moving = world.fault(&space, 1, 0);
    let offset = super::super::DevOffset::new(77).unwrap();
    let device = Softleaf::device_private(offset, true);
    let both = Softleaf::migration(Location::DevOffset(offset), MigrationAccess::Read);
    let tables = space.tables();
    let set = |at: u64, kind: Softleaf| {
        let at = page(HERE_PAGE + at);
        let mut guard = tables.alloc_lock_pte(at).unwrap().unwrap();
        guard.swap(at, Leaf::from(kind).entry())
    };
    set(2, device);
    set(3, both);
    space.rss.anon.fetch_add(2, Ordering::Relaxed);
    // A device takes a page for itself: reference and mapcount stay.
    set(0, Softleaf::device_of(folio, 0, true).unwrap());
    // Migration takes both along.
    set(1, Softleaf::migration_of(moving, 0, MigrationAccess::Write).unwrap());
    let reference = world.mm.remove_rmap(moving, crate::rmap::MappedBy::Pte);
    assert_eq!(rss(&space), (4, 0, 0));
    let consistent = || {
        let census = world.mm.census(&[]);
        let found = census.discrepancies().iter().map(ToString::to_string);
        // The reference of the migration is the only thing that nothing explains, and
        // nobody has the folio locked.
        let is_known = |text: &String| text.contains("reference") || text.contains("moving");
        found.filter(|text| !is_known(text)).collect::<Vec<_>>()
    };
    assert_eq!(consistent(), Vec::<String>::new());
    world.mm.unmap_leaves(&space, pages(HERE_PAGE, 16)).unwrap();
    assert_eq!(rss(&space), (0, 0, 0));
    assert_eq!(consistent(), Vec::<String>::new());
    world.mm.put(reference);
    assert!(world.mm.census(&[]).is_consistent());
    world.exit(space);
    no_folios_left(&base);
}
