//! Each kind of damage is done, found and named, and is gone once it is repaired.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PAGE_SIZE, Pfn};

use super::*;
use crate::buddy::Gfp;
use crate::folio::{Folio, FolioFlags, FolioKind, FolioRef};
use crate::memdesc::{Descriptor, DescriptorKind, Memdesc, Order};
use crate::mm::Base;
use crate::pagecache::FileRef;
use crate::pgtable::{Entry, Leaf, MigrationAccess, Pte, Softleaf, TableDiscrepancy};
use crate::rmap::tests::world::{Space, World, va};
use crate::rmap::{MappedBy, RmapDiscrepancy};
use crate::space::{MapFlags, SpaceDiscrepancy};
use crate::swap::SwapDiscrepancy;
use crate::testing::{self, TestPlatform};
use crate::xarray::Entry as XEntry;

/// The census finds a discrepancy of this pattern.
macro_rules! assert_found {
    ($scene:expr, $pattern:pat $(if $guard:expr)?) => {{
        let census = $scene.world.mm.census(&[]);
        let found: Vec<_> = census.discrepancies().iter().collect();
        let is_found = found.iter().any(|one| matches!(one, $pattern $(if $guard)?));
        assert!(is_found, "{} in {found:?}", stringify!($pattern));
    }};
}

/// A process with two anonymous pages and one of a file.
struct Scene {
    world: World,
    space: Space,
    anon: u64,
    shared: u64,
    file: FileRef<'static, TestPlatform>,
}

impl Scene {
    fn new() -> Self {
        let world = World::new(4096);
        let space = world.space();
        let anon = world.map(&space, 2);
        let file = world.mm.shmem_file(PAGE_SIZE).unwrap();
        let shared = world.map_file(&space, &file, (0, 1), MapFlags::SHARED);
        for at in [anon, anon + PAGE_SIZE, shared] {
            world.store(&space, at, 7).unwrap();
        }
        let scene = Self { world, space, anon, shared, file };
        scene.is_whole();
        scene
    }

    fn is_whole(&self) {
        self.world.assert_consistent();
    }

    /// Nothing is wrong, and nothing is kept.
    fn end(self) {
        self.world.mm.file_put(self.file);
        self.world.end([self.space]);
    }

    fn mm(&self) -> &Mm<'static, TestPlatform> {
        &self.world.mm
    }

    /// The folio that is mapped at `at`; its leaf keeps it.
    fn folio(&self, at: u64) -> &'static Folio {
        let pfn = self.world.pte(&self.space, at).pfn();
        // SAFETY: the leaf stays, or a test puts it back.
        unsafe { self.mm().mapped_folio(pfn) }.unwrap()
    }

    /// Replaces a leaf; returns what it was.
    fn change(&self, at: u64, change: impl Fn(Pte) -> Pte) -> Pte {
        let before = self.world.pte(&self.space, at);
        self.set(at, change(before).entry());
        before
    }

    fn set(&self, at: u64, entry: Entry) {
        self.space.tables().lock_pte(va(at)).unwrap().update(va(at), |_| entry);
    }

    /// An entry of a table, to be overwritten behind the tables' back.
    fn slot(&self, table: Pfn, index: usize) -> &AtomicU64 {
        let table = self.world.platform().frame_ptr(table).cast::<AtomicU64>();
        // SAFETY: below 512 entries of 8 bytes, so inside the frame.
        let slot = unsafe { table.add(index) };
        // SAFETY: a table's word, reached as an atomic only.
        unsafe { slot.as_ref() }
    }
}

#[test]
fn an_unexplained_reference_is_found() {
    let base = Base::new(testing::memory(1024)).unwrap();
    let mm = Mm::new(&base);
    let before = mm.census(&[]);
    assert!(before.is_consistent(), "{:?}", before.discrepancies());
    let folio = mm.alloc_folio(Order::new(2).unwrap(), Gfp::KERNEL, FolioKind::Anon);
    let folio = folio.unwrap();
    let head = folio.pfn();
    let census = mm.census(&[]);
    assert_eq!(census.folios, 1);
    assert_eq!(
        census.discrepancies().iter().collect::<Vec<_>>(),
        [&MmDiscrepancy::References { folio: head, counted: 1, explained: 0 }]
    );
    mm.put(folio);
    base.settle();
    assert!(mm.census(&[]).is_consistent());
}

#[test]
fn pins_are_counted() {
    let scene = Scene::new();
    let pin = scene.mm().get(scene.folio(scene.anon)).pin();
    assert_eq!(scene.mm().census(&[]).pins, 1);
    scene.is_whole();
    scene.mm().unpin(pin);
    assert_eq!(scene.mm().census(&[]).pins, 0);
    scene.end();
}

#[test]
fn leaves_of_what_nobody_may_map_so_are_found() {
    let scene = Scene::new();
    let (at, zero) = (scene.anon, scene.mm().base().zero_page);
    let changes: [fn(Pte, Pfn) -> Pte; 2] =
        [|pte, zero| pte.with_pfn(zero).unwrap(), |pte, _| pte.mk_special()];
    for change in changes {
        let good = scene.change(at, |pte| change(pte, zero));
        assert_found!(scene, MmDiscrepancy::NoFolio { at: found, .. } if found.get() == at);
        scene.set(at, good.entry());
    }
    let good = scene.change(at, |pte| pte.with_pfn(zero).unwrap().mk_special().mk_write());
    assert_found!(scene, MmDiscrepancy::SharedWritable { folio, .. } if *folio == zero);
    scene.set(at, good.entry());
    let good = scene.change(at, |pte| pte.mk_write().clear_anon_exclusive());
    assert_found!(scene, MmDiscrepancy::SharedWritable { folio, .. } if *folio == good.pfn());
    scene.set(at, good.entry());

    let child = scene.mm().fork(&scene.space).unwrap();
    let good = scene.change(at, Pte::mk_anon_exclusive);
    assert_found!(scene, MmDiscrepancy::SharedExclusive { folio, .. } if *folio == good.pfn());
    scene.set(at, good.entry());
    scene.mm().exit_space(child);
    scene.mm().reap_spaces();
    scene.is_whole();
    scene.end();
}

#[test]
fn a_leaf_beyond_its_folio_is_found() {
    let world = World::new(8192);
    let space = world.space();
    let anon = world.map_huge(&space);
    world.store(&space, anon, 1).unwrap();
    let folio = world.folio(&space, anon);
    let head = folio.pfn();
    world.mm.put(folio);
    // SAFETY: the leaf stays.
    let folio = unsafe { world.mm.mapped_folio(head) }.unwrap();
    // One order less: the byte above the flags.
    let one = 1 << 24;
    folio.flags.fetch_sub(one, Ordering::Relaxed);
    let census = world.mm.census(&[]);
    let found: Vec<_> = census.discrepancies().iter().copied().collect();
    let beyond = MmDiscrepancy::BeyondFolio { space: space.id(), at: va(anon), folio: head };
    assert!(found.contains(&beyond), "{found:?}");
    assert!(found.iter().any(|one| matches!(one, MmDiscrepancy::Words(_))), "{found:?}");
    folio.flags.fetch_add(one, Ordering::Relaxed);
    world.end([space]);
}

#[test]
fn counts_that_differ_from_the_leaves_are_found() {
    let scene = Scene::new();
    scene.space.rss.anon.fetch_add(1, Ordering::Relaxed);
    assert_found!(scene, MmDiscrepancy::Rss { counted: [3, 1, 0], found: [2, 1, 0], .. });
    scene.space.rss.anon.fetch_sub(1, Ordering::Relaxed);

    // Two wrong counts whose sum is right.
    let (first, second) = (scene.folio(scene.anon), scene.folio(scene.shared));
    first.mapcount.fetch_add(1, Ordering::Relaxed);
    second.mapcount.fetch_sub(1, Ordering::Relaxed);
    assert_found!(scene, MmDiscrepancy::Mapcounts { counted: 3, leaves: 3 });
    for (folio, counted) in [(first, 2), (second, 0)] {
        assert_found!(
            scene,
            MmDiscrepancy::Mapcount { folio: found, counted: count, leaves: 1 }
                if *found == folio.pfn() && *count == counted
        );
    }
    assert_found!(scene, MmDiscrepancy::Rmap(RmapDiscrepancy::Unreached { counted: 2, .. }));
    first.mapcount.fetch_sub(1, Ordering::Relaxed);
    second.mapcount.fetch_add(1, Ordering::Relaxed);
    scene.end();
}

#[test]
fn folios_in_a_state_that_nobody_leaves_them_in_are_found() {
    let scene = Scene::new();
    for at in [scene.anon, scene.shared] {
        let folio = scene.folio(at);
        let pfn = folio.pfn();
        let references = folio.refcount.swap(0, Ordering::Relaxed);
        assert_found!(scene, MmDiscrepancy::Frozen(found) if *found == pfn);
        folio.refcount.store(references, Ordering::Relaxed);
        folio.set_flags(FolioFlags::LOCKED);
        assert_found!(scene, MmDiscrepancy::Locked(found) if *found == pfn);
        folio.clear_flags(FolioFlags::LOCKED);
    }
    // Another kind than its words say.
    let folio = scene.folio(scene.shared);
    folio.set_flags(FolioFlags::DEVICE);
    assert_found!(scene, MmDiscrepancy::Words(found) if *found == folio.pfn());
    folio.clear_flags(FolioFlags::DEVICE);
    scene.end();
}

#[test]
fn a_migration_that_nobody_ends_is_found() {
    let scene = Scene::new();
    let (at, folio) = (scene.anon, scene.folio(scene.anon));
    let leaf = Softleaf::migration_of(folio, 0, MigrationAccess::Write).unwrap();
    scene.set(at, Leaf::from(leaf).entry());
    let reference: FolioRef<'_> = scene.mm().remove_rmap(folio, MappedBy::Pte);
    let frame = folio.pfn();
    assert_found!(scene, MmDiscrepancy::Migrating { frame: found, .. } if *found == frame);
    scene.world.zap(&scene.space, at, 1);
    scene.mm().put(reference);
    scene.is_whole();
    scene.end();
}

#[test]
fn lists_that_have_other_folios_than_say_so_are_found() {
    let scene = Scene::new();
    let folio = scene.folio(scene.anon);
    let pfn = folio.pfn();
    folio.set_flags(FolioFlags::ACTIVE);
    assert_found!(scene, MmDiscrepancy::LruFolio(found) if *found == pfn);
    folio.clear_flags(FolioFlags::ACTIVE);
    folio.clear_flags(FolioFlags::LRU);
    assert_found!(scene, MmDiscrepancy::LruMembers);
    folio.set_flags(FolioFlags::LRU);
    folio.set_flags(FolioFlags::DEFERRED_SPLIT);
    assert_found!(scene, MmDiscrepancy::DeferredSplits { queued: 0, found: 1 });
    folio.clear_flags(FolioFlags::DEFERRED_SPLIT);
    scene.is_whole();

    // On no list, though it says so.
    let other = scene.mm().alloc_folio(Order::ZERO, Gfp::KERNEL, FolioKind::Anon).unwrap();
    other.set_flags(FolioFlags::LRU);
    assert_found!(scene, MmDiscrepancy::LruMembers);
    other.clear_flags(FolioFlags::LRU);
    scene.mm().put(other);
    scene.end();
}

#[test]
fn descriptors_that_no_word_names_are_found() {
    let scene = Scene::new();
    let mm = scene.mm();
    let (caches, memory) = (&mm.base().caches, mm.memory());
    let lost = mm.alloc_descriptor(Gfp::KERNEL).unwrap();
    assert_found!(scene, MmDiscrepancy::Objects { cache: "folio", counted: 4, found: 3 });
    mm.free_descriptor(lost);
    for cache in [&caches.ptdesc, &caches.file, caches.zpdesc.kmem(), caches.movable.kmem()] {
        let lost = cache.alloc(memory, Gfp::KERNEL).unwrap();
        assert_found!(scene, MmDiscrepancy::Objects { cache: name, .. } if *name == cache.name());
        // SAFETY: from this cache, and nobody else uses it.
        assert_eq!(unsafe { cache.free(memory, lost) }, Ok(()));
    }
    scene.end();
}

#[test]
fn caches_that_do_not_have_what_their_folios_say_are_found() {
    let scene = Scene::new();
    let (folio, id) = (scene.folio(scene.shared), scene.file.id());
    folio.index.fetch_add(1, Ordering::Relaxed);
    assert_found!(scene, MmDiscrepancy::Cached { file, index: 0 } if *file == id);
    folio.index.fetch_sub(1, Ordering::Relaxed);
    let mapping = folio.mapping();
    folio.unplace();
    assert_found!(scene, MmDiscrepancy::Cached { file, index: 0 } if *file == id);
    folio.place(mapping, 0);
    scene.file.pages.erase(0);
    assert_found!(scene, MmDiscrepancy::CachedPages { counted: 1, found: 0, .. });
    assert_found!(scene, MmDiscrepancy::CacheMembers);
    scene.file.pages.store(0, XEntry::Pointer(core::ptr::NonNull::from(folio))).unwrap();
    scene.end();
}

#[test]
fn vmas_and_their_reverse_maps_are_checked() {
    let scene = Scene::new();
    let change = |to: *mut _| {
        let vmas = scene.space.read();
        vmas.lookup(va(scene.anon)).unwrap().anon_vma.swap(to, Ordering::Relaxed)
    };
    let good = change(core::ptr::null_mut());
    assert_found!(scene, MmDiscrepancy::Vmas { found: SpaceDiscrepancy::AnonVma(_), .. });
    assert_found!(scene, MmDiscrepancy::Rmap(RmapDiscrepancy::Chain { .. }));
    change(good);
    scene.end();
}

#[test]
fn tables_that_are_not_where_they_should_be_are_found() {
    let scene = Scene::new();
    let table = scene.space.tables().lock_pte(va(scene.anon)).unwrap().frame();
    let slot = scene.slot(table, va(scene.anon).table_index(0));
    let good = slot.swap(0, Ordering::Relaxed);
    assert_found!(
        scene,
        MmDiscrepancy::Tables { found: TableDiscrepancy::Live { level: 0, .. }, .. }
    );
    slot.store(good, Ordering::Relaxed);

    let slot = scene.slot(scene.space.tables().root(), va(scene.anon).table_index(3));
    let good = slot.swap(0, Ordering::Relaxed);
    assert_found!(scene, MmDiscrepancy::LostTables { .. });
    slot.store(good, Ordering::Relaxed);
    scene.is_whole();

    // A table that nobody has made.
    let (mm, caches) = (scene.mm(), &scene.mm().base().caches);
    let object = caches.ptdesc.alloc(mm.memory(), Gfp::KERNEL).unwrap();
    let address = object.as_ptr().expose_provenance() as u64;
    let word = Descriptor::new(DescriptorKind::PtDesc, address).unwrap();
    let word = Memdesc::Descriptor(word).encode();
    let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
    mm.memory().describe(&frames, word).unwrap();
    assert_found!(scene, MmDiscrepancy::TableFrames { .. });
    mm.memory().undescribe(&frames, word).unwrap();
    mm.memory().free_frozen(frames);
    // SAFETY: from this cache, and no word names it any more.
    assert_eq!(unsafe { caches.ptdesc.free(mm.memory(), object) }, Ok(()));
    scene.end();
}

#[test]
fn swap_slots_that_do_not_fit_leaves_and_folios_are_found() {
    let scene = Scene::new();
    let mm = scene.mm();
    mm.swapon_ram(16).unwrap();
    let folio = scene.folio(scene.anon);
    let other = scene.folio(scene.anon + PAGE_SIZE);
    let slot = mm.swap_alloc(&folio.lock(mm.platform())).unwrap();
    scene.is_whole();
    mm.swap_dup(slot).unwrap();
    assert_found!(scene, MmDiscrepancy::SwapLeaves { counted: 1, leaves: 0 });
    // The last leaf takes it out of the cache.
    mm.swap_put(slot).unwrap();
    scene.is_whole();

    mm.swap_alloc(&folio.lock(mm.platform())).unwrap();
    folio.private.fetch_add(1, Ordering::Relaxed);
    assert_found!(scene, MmDiscrepancy::Swap(SwapDiscrepancy::NotCached(..)));
    folio.private.fetch_sub(1, Ordering::Relaxed);
    other.set_flags(FolioFlags::SWAPCACHE);
    assert_found!(scene, MmDiscrepancy::SwapCached { slots: 1, folios: 2 });
    other.clear_flags(FolioFlags::SWAPCACHE);
    assert!(mm.free_swap(&folio.lock(mm.platform())));
    mm.swapoff().unwrap();
    scene.end();
}

#[test]
fn damage_to_frames_is_taken_over() {
    let scene = Scene::new();
    let mm = scene.mm();
    let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
    let cell = mm.memory().words().cell(frames.head()).unwrap();
    let word = cell.load();
    // A slab without a descriptor.
    let slab = Descriptor::new(DescriptorKind::Slab, 0x40).unwrap();
    let slab = Memdesc::Descriptor(slab).encode();
    mm.memory().describe(&frames, slab).unwrap();
    assert_found!(scene, MmDiscrepancy::Memory(crate::census::Discrepancy::BadSlab(_)));
    mm.memory().undescribe(&frames, slab).unwrap();
    assert_eq!(cell.load(), word);
    mm.memory().free_frozen(frames);
    scene.end();
}
