//! A machine whose memory is full of pages that can move, and of some that cannot.

use std::collections::BTreeMap;
use std::sync::Mutex;

use abi::Pfn;

use crate::buddy::Gfp;
use crate::memdesc::{Kind, Order};
use crate::memory::{FrozenFrames, TransitFrames};
use crate::migrate::{MigrateError, MigrateMode, Migrated, MovableOps, SourceMemory};
use crate::mm::{Base, Mm};
use crate::objects::MovableDesc;
use crate::platform::Platform;
use crate::testing::{TestPlatform, memory, set_cpu};

type Hook = Box<dyn FnMut(&Mm<'_, TestPlatform>, Pfn) + Send>;

/// Owns the movable pages: each has a stamp, in its contents and here.
#[derive(Default)]
pub(super) struct Owner {
    /// Stamps by frame.
    pub(super) pages: Mutex<BTreeMap<u64, u64>>,
    /// Where each page was moved from and to, in order.
    pub(super) moves: Mutex<Vec<(u64, u64)>>,
    /// Called before a page moves.
    pub(super) hook: Mutex<Option<Hook>>,
}

impl MovableOps<TestPlatform> for Owner {
    fn migrate(
        &self,
        mm: &Mm<'_, TestPlatform>,
        dst: &TransitFrames,
        src: Pfn,
        _mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        let hook = self.hook.lock().unwrap().take();
        if let Some(mut hook) = hook {
            hook(mm, src);
            *self.hook.lock().unwrap() = Some(hook);
        }
        let stamp = read_stamp(mm, src);
        let object = mm.adopt_object::<MovableDesc>(dst, src)?;
        write_stamp(mm, object.frame(), stamp);
        let to = mm.let_migrate(object).unwrap();
        let mut pages = self.pages.lock().unwrap();
        assert_eq!(pages.remove(&src.number()), Some(stamp));
        pages.insert(to.number(), stamp);
        self.moves.lock().unwrap().push((src.number(), to.number()));
        Ok(Migrated::Moved(SourceMemory::Present))
    }
}

fn read_stamp(mm: &Mm<'_, TestPlatform>, pfn: Pfn) -> u64 {
    // SAFETY: a frame of RAM whose owner is the caller; aligned.
    unsafe { mm.platform().frame_ptr(pfn).cast::<u64>().read() }
}

fn write_stamp(mm: &Mm<'_, TestPlatform>, pfn: Pfn, stamp: u64) {
    // SAFETY: as above.
    unsafe { mm.platform().frame_ptr(pfn).cast::<u64>().write(stamp) }
}

/// A manager and the pages in its memory.
pub(super) struct World<'w, 'm> {
    pub(super) mm: &'w Mm<'m, TestPlatform>,
    pub(super) owner: &'m Owner,
    /// Pages that cannot move.
    pub(super) pinned: Vec<FrozenFrames>,
    free_at_start: u64,
}

/// Runs `test` on a machine of `pages` frames, and frees what it leaves.
pub(super) fn with_world(pages: u64, test: impl for<'m> FnOnce(&mut World<'_, 'm>)) {
    set_cpu(0);
    let base = Base::new(memory(pages)).unwrap();
    let owner = Owner::default();
    let mm = Mm::new(&base);
    mm.set_movable_ops(Kind::Movable, &owner).unwrap();
    let mut world = World { mm: &mm, owner: &owner, pinned: Vec::new(), free_at_start: 0 };
    world.free_at_start = world.settled_free_pages();
    test(&mut world);
    world.finish();
}

impl World<'_, '_> {
    pub(super) fn settled_free_pages(&self) -> u64 {
        self.mm.base().settle();
        for cache in self.mm.base().caches.all() {
            cache.shrink(self.mm.memory());
        }
        self.mm.base().settle();
        self.mm.memory().free_pages().get()
    }

    /// Fills memory with movable pages until `left` are free.
    pub(super) fn fill(&self, left: u64) {
        while self.mm.memory().free_pages().get() > left && self.add() {}
    }

    /// A movable page wherever the allocator likes.
    pub(super) fn add(&self) -> bool {
        let gfp = Gfp::USER | Gfp::MEMALLOC;
        let Ok(frames) = self.mm.memory().alloc_frozen(Order::ZERO, gfp) else { return false };
        let object = match self.mm.describe_frames::<MovableDesc>(frames, |_| ()) {
            Ok(object) => object,
            Err(error) => {
                self.mm.memory().free_frozen(error.frames);
                return false;
            }
        };
        let pfn = object.frame();
        let stamp = pfn.number() ^ 0x5eed_0000_0000;
        write_stamp(self.mm, pfn, stamp);
        self.mm.let_migrate(object).unwrap();
        assert_eq!(self.owner.pages.lock().unwrap().insert(pfn.number(), stamp), None);
        true
    }

    /// The owner lets its page at `pfn` go.
    pub(super) fn remove(&self, pfn: u64) -> FrozenFrames {
        assert!(self.owner.pages.lock().unwrap().remove(&pfn).is_some());
        let object = self.mm.claim_object::<MovableDesc>(Pfn::new(pfn).unwrap()).unwrap();
        self.mm.undescribe_frames(object).unwrap()
    }

    /// Frames of the movable pages.
    pub(super) fn movable(&self) -> Vec<u64> {
        self.owner.pages.lock().unwrap().keys().copied().collect()
    }

    /// Decides about each movable page by its frame.
    pub(super) fn sort(&mut self, decide: impl Fn(u64) -> Fate) {
        for pfn in self.movable() {
            match decide(pfn) {
                Fate::Stays => {}
                Fate::Freed => self.mm.memory().free_frozen(self.remove(pfn)),
                Fate::Pinned => {
                    let frames = self.remove(pfn);
                    self.pinned.push(frames);
                }
            }
        }
        self.mm.memory().drain();
    }

    /// Movable pages everywhere, every other one freed.
    pub(super) fn checker(&mut self) {
        self.fill(64);
        self.sort(|pfn| if pfn % 2 == 0 { Fate::Freed } else { Fate::Stays });
        // Slabs of descriptors that the fill needed.
        self.settled_free_pages();
    }

    /// Every page has its contents, and all books agree.
    pub(super) fn check(&self) {
        for (&pfn, &stamp) in self.owner.pages.lock().unwrap().iter() {
            assert_eq!(read_stamp(self.mm, Pfn::new(pfn).unwrap()), stamp, "page {pfn:x}");
        }
        let census = self.mm.memory().census();
        let found: Vec<_> = census.discrepancies().iter().collect();
        assert!(census.is_consistent(), "{found:#?}");
        assert_eq!(census.pages(Kind::Transit).get(), 0);
        let movable = self.owner.pages.lock().unwrap().len() as u64;
        assert_eq!(census.pages(Kind::Movable).get(), movable);
        let pinned: u64 = self.pinned.iter().map(|frames| frames.pages().get()).sum();
        assert_eq!(census.pages(Kind::Frozen).get(), pinned, "frozen frames that nobody has");
        assert_eq!(self.mm.isolated_blocks(), 0);
    }

    /// Free pages and movable pages by pageblock.
    pub(super) fn by_pageblock(&self) -> Vec<(u64, u64)> {
        let span = self.mm.zone_span();
        let blocks = usize::try_from(span.end().number().div_ceil(512)).unwrap();
        let mut counts = vec![(0, 0); blocks];
        let block_of = |pfn: u64| usize::try_from(pfn / 512).unwrap();
        self.mm.memory().for_each_free(&mut |pfn, order, _| {
            for pfn in pfn.number()..pfn.number() + order.pages().get() {
                counts[block_of(pfn)].0 += 1;
            }
        });
        for pfn in self.movable() {
            counts[block_of(pfn)].1 += 1;
        }
        counts
    }

    fn finish(&mut self) {
        self.check();
        for pfn in self.movable() {
            self.mm.memory().free_frozen(self.remove(pfn));
        }
        for frames in self.pinned.drain(..) {
            self.mm.memory().free_frozen(frames);
        }
        assert_eq!(self.settled_free_pages(), self.free_at_start, "pages lost");
        self.check();
    }
}

/// What becomes of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Freed,
    Pinned,
}
