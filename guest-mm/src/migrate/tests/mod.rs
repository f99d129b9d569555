//! Pages that are no folios, on their way.

mod batches;
mod driver;
mod faults;
mod isolation;
mod model;
mod outcomes;
mod registry;

use std::boxed::Box;
use std::sync::Mutex;
use std::vec::Vec;

use abi::Pfn;

use super::*;
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Order};
use crate::memory::TransitFrames;
use crate::mm::{Base, Mm, MmDiscrepancy};
use crate::objects::{FrameObject, MovableDesc, ZpDesc};
use crate::sync::shim::Ordering;
use crate::testing::{self, TestPlatform};

type TestMm<'m> = Mm<'m, TestPlatform>;

/// What an owner does when one of its pages is to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Goes over.
    Move,
    /// Gives the page up.
    Release,
    /// Takes the page back, and the destination.
    Keep,
    /// Says why not.
    Fail(MigrateError),
    /// Says that it moved, and did not.
    ClaimMoved,
    /// Goes over, and says that it failed.
    DenyWithError,
    /// Goes over, and says that it gave the page up.
    DenyWithRelease,
    /// Frees the page, as on another CPU, before it tries to go over.
    FreeMeanwhile,
}

/// What the core told an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Isolate(Pfn),
    Migrate(Pfn, MigrateMode),
    Putback(Pfn),
}

/// Operations that do as they are told, for all kinds.
#[derive(Debug, Default)]
struct Script {
    kind: Option<MovableKind>,
    refuses: Mutex<bool>,
    acts: Mutex<Vec<Act>>,
    told: Mutex<Vec<Told>>,
}

impl Script {
    /// The operations of `kind`, which do `acts` in turn, then move.
    fn register(mm: &TestMm<'_>, kind: MovableKind, acts: &[Act]) -> &'static Self {
        let acts = Mutex::new(acts.iter().rev().copied().collect());
        let script = Self { kind: Some(kind), acts, ..Self::default() };
        let script: &'static Self = Box::leak(Box::new(script));
        mm.set_movable_ops(kind.kind(), script).unwrap();
        script
    }

    fn told(&self) -> Vec<Told> {
        core::mem::take(&mut *self.told.lock().unwrap())
    }

    fn note(&self, told: Told) {
        self.told.lock().unwrap().push(told);
    }

    fn take<D: FrameObject>(&self, mm: &TestMm<'_>, dst: &TransitFrames, src: Pfn) {
        let page = mm.adopt_object::<D>(dst, src).unwrap();
        mm.let_migrate(page).unwrap();
    }

    fn go_over(&self, mm: &TestMm<'_>, dst: &TransitFrames, src: Pfn) {
        match self.kind {
            Some(MovableKind::Offline) => {
                mm.memory().adopt_offline(dst, DriverId::BALLOON).unwrap();
            }
            Some(MovableKind::ZpDesc) => self.take::<ZpDesc>(mm, dst, src),
            Some(MovableKind::Movable) => self.take::<MovableDesc>(mm, dst, src),
            None => panic!("not registered"),
        }
    }

    fn free_meanwhile(&self, mm: &TestMm<'_>, dst: &TransitFrames, src: Pfn) -> MigrateError {
        let page = mm.isolated_object::<MovableDesc>(src).unwrap();
        // SAFETY: lives until the core frees it.
        let descriptor = unsafe { &*core::ptr::from_ref(page.descriptor()) };
        assert_eq!(mm.free_object(src, descriptor), Ok(crate::objects::Freed::ByMigration));
        mm.adopt_object::<MovableDesc>(dst, src).map(drop).unwrap_err().into()
    }
}

impl MovableOps<TestPlatform> for Script {
    fn isolate(&self, _mm: &TestMm<'_>, src: Pfn) -> bool {
        self.note(Told::Isolate(src));
        !*self.refuses.lock().unwrap()
    }

    fn migrate(
        &self,
        mm: &TestMm<'_>,
        dst: &TransitFrames,
        src: Pfn,
        mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        self.note(Told::Migrate(src, mode));
        let behind = SourceMemory::Present;
        match self.acts.lock().unwrap().pop().unwrap_or(Act::Move) {
            Act::Fail(error) => return Err(error),
            Act::Release => return Ok(Migrated::Released(behind)),
            Act::ClaimMoved => return Ok(Migrated::Moved(behind)),
            Act::FreeMeanwhile => return Err(self.free_meanwhile(mm, dst, src)),
            Act::Keep => {
                mm.memory().unisolate(src, DriverId::BALLOON).unwrap();
                self.go_over(mm, dst, src);
                return Ok(Migrated::Kept);
            }
            Act::Move => {
                self.go_over(mm, dst, src);
                return Ok(Migrated::Moved(behind));
            }
            Act::DenyWithError => self.go_over(mm, dst, src),
            Act::DenyWithRelease => {
                self.go_over(mm, dst, src);
                return Ok(Migrated::Released(behind));
            }
        }
        Err(MigrateError::Again)
    }

    fn putback(&self, _mm: &TestMm<'_>, src: Pfn) {
        self.note(Told::Putback(src));
    }
}

/// A machine of 4 MiB, which must be as before when `test` has ended.
fn with_mm(test: impl for<'m> FnOnce(&TestMm<'m>)) {
    let base = Base::new(testing::memory(1024)).unwrap();
    let mm = Mm::new(&base);
    base.settle();
    let before = mm.memory().free_pages();
    test(&mm);
    assert_sound(&mm);
    base.settle();
    assert_eq!(mm.memory().free_pages(), before, "pages were lost");
    assert_eq!(mm.isolated_blocks(), 0);
}

fn assert_sound(mm: &TestMm<'_>) {
    let census = mm.census(&[]);
    // Pages of that kind are here without a pool.
    let is_wrong = |found: &&MmDiscrepancy| !matches!(found, MmDiscrepancy::ZsPages { .. });
    let wrong: Vec<_> = census.discrepancies().iter().filter(is_wrong).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A movable page with a descriptor.
fn described<D: FrameObject>(mm: &TestMm<'_>) -> Pfn {
    let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::MOVABLE).unwrap();
    mm.let_migrate(mm.describe_frames::<D>(frames, |_| ()).unwrap()).unwrap()
}

/// A movable Offline block.
fn offline(mm: &TestMm<'_>, order: u8) -> Pfn {
    let frames = mm.memory().alloc_frozen(Order::new(order).unwrap(), Gfp::MOVABLE).unwrap();
    let block = mm.memory().make_offline(frames, DriverId::BALLOON).unwrap();
    let head = mm.memory().park(block).unwrap();
    mm.memory().set_movable(head, DriverId::BALLOON).unwrap();
    head
}

/// A movable page of `kind`.
fn page(mm: &TestMm<'_>, kind: MovableKind) -> Pfn {
    match kind {
        MovableKind::Offline => offline(mm, 0),
        MovableKind::ZpDesc => described::<ZpDesc>(mm),
        MovableKind::Movable => described::<MovableDesc>(mm),
    }
}

/// Its owner frees it.
fn free(mm: &TestMm<'_>, kind: MovableKind, pfn: Pfn) {
    let frames = match kind {
        MovableKind::Offline => {
            let block = mm.memory().claim_offline(pfn, DriverId::BALLOON).unwrap();
            mm.memory().online(block).unwrap()
        }
        MovableKind::ZpDesc => {
            mm.undescribe_frames(mm.claim_object::<ZpDesc>(pfn).unwrap()).unwrap()
        }
        MovableKind::Movable => {
            mm.undescribe_frames(mm.claim_object::<MovableDesc>(pfn).unwrap()).unwrap()
        }
    };
    mm.memory().free_frozen(frames);
}

/// Destinations that note where they sent pages.
struct Noted<'a> {
    from: Allocated<'a, TestPlatform>,
    sent: Vec<(Pfn, Pfn)>,
    back: usize,
}

impl<'a> Noted<'a> {
    fn new(mm: &TestMm<'a>) -> Self {
        Self { from: Allocated::new(mm.memory()), sent: Vec::new(), back: 0 }
    }

    /// Where `src` was last sent.
    fn of(&self, src: Pfn) -> Pfn {
        self.sent.iter().rev().find(|(from, _)| *from == src).unwrap().1
    }
}

impl Destinations for Noted<'_> {
    fn take(&mut self, order: Order, src: Pfn) -> Option<crate::memory::FrozenFrames> {
        let frames = self.from.take(order, src)?;
        self.sent.push((src, frames.head()));
        Some(frames)
    }

    fn give_back(&mut self, frames: crate::memory::FrozenFrames) {
        self.back += 1;
        self.sent.retain(|(_, dst)| *dst != frames.head());
        self.from.give_back(frames);
    }
}

/// Isolates `pages`, which must go.
fn batch_of<'a, 'm>(mm: &'a TestMm<'m>, pages: &[Pfn]) -> MigrateBatch<'a, 'm, TestPlatform> {
    let mut batch = MigrateBatch::new(mm);
    for &pfn in pages {
        mm.isolate_for_migration(pfn, &mut batch).unwrap();
    }
    batch
}

fn owner_of(mm: &TestMm<'_>, pfn: Pfn) -> Option<u64> {
    let page = mm.claim_object::<MovableDesc>(pfn).ok()?;
    let owner = page.descriptor().owner.load(Ordering::Relaxed);
    mm.let_migrate(page).unwrap();
    Some(owner)
}
