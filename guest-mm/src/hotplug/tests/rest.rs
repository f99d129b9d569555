//! Frames are laid to rest, and blocks that were alive are removed.

use std::sync::atomic::{AtomicBool, Ordering};

use abi::{Pfn, PfnRange};

use super::blocks::{UNIT, assert_consistent, block, machine, section};
use crate::buddy::Gfp;
use crate::hotplug::HotplugError;
use crate::memdesc::Kind;
use crate::memdesc::{DriverId, Order};
use crate::memory::{ContigFrames, Memory, Pass, TransitFrames};
use crate::migrate::{
    Allocated, Destinations, IsolateError, MigrateBatch, MigrateError, MigrateMode, Migrated,
    MovableKind, MovableOps,
};
use crate::mm::{Base, Mm};
use crate::objects::MovableDesc;
use crate::testing::{TestPlatform, range};

/// Takes `range`, all of it free or skippable.
fn take(memory: &Memory<TestPlatform>, range: PfnRange) -> Result<ContigFrames, Pfn> {
    let isolated = memory.isolate_range(range).unwrap();
    let taken = memory.take_isolated(&isolated, range, Pass::Skippable);
    memory.unisolate_range(isolated);
    taken
}

#[test]
fn a_block_that_was_alive_goes_and_takes_its_pages_along() {
    let memory = machine(1);
    let (free, managed) = (memory.free_pages(), memory.managed_pages());
    for _ in 0..3 {
        let layout = memory.add_block(block(section(0))).unwrap();
        let payload = layout.payload();
        memory.bring_to_life(payload).unwrap();
        let first = PfnRange::new(
            payload.start(),
            layout.header().checked_add(Order::PAGEBLOCK.pages()).unwrap(),
        )
        .unwrap();
        let second = range(first.end().number(), UNIT);
        let rest = PfnRange::new(second.end(), payload.end()).unwrap();
        for part in [second, rest, first] {
            let taken = take(&memory, part).unwrap();
            assert_eq!(memory.lay_to_rest(taken, Order::PAGEBLOCK).unwrap(), part.len());
            assert_consistent(&memory);
        }
        let offline = memory.census().offline_total(DriverId::HOTPLUG);
        assert_eq!(offline, payload.len());
        assert_eq!((memory.free_pages(), memory.managed_pages()), (free, managed));
        // What was laid to rest comes to life in the same pieces.
        memory.bring_to_life(second).unwrap();
        let taken = take(&memory, second).unwrap();
        memory.lay_to_rest(taken, Order::PAGEBLOCK).unwrap();
        let dying = memory.take_block_out(section(0)).unwrap();
        // SAFETY: this thread alone looks frames up.
        unsafe { dying.bury() };
        assert_eq!((memory.free_pages(), memory.managed_pages()), (free, managed));
        assert_consistent(&memory);
    }
}

#[test]
fn offline_parts_of_a_range_are_passed_over() {
    let memory = machine(1);
    let layout = memory.add_block(block(section(0))).unwrap();
    let start = section(0).start().number();
    // Alive: the second and the fourth piece.
    for n in [1, 3] {
        memory.bring_to_life(range(start + n * UNIT, UNIT)).unwrap();
    }
    let taken = take(&memory, range(start + UNIT, 4 * UNIT)).unwrap();
    assert_eq!(taken.pages().get(), 2 * UNIT);
    assert_eq!(memory.lay_to_rest(taken, Order::PAGEBLOCK).unwrap().get(), 2 * UNIT);
    assert_consistent(&memory);
    drop(memory.take_block_out(layout.range()).unwrap());
}

#[test]
fn a_page_in_use_keeps_its_piece_alive() {
    let memory = machine(1);
    memory.add_block(block(section(0))).unwrap();
    let piece = range(section(0).start().number() + UNIT, UNIT);
    memory.bring_to_life(piece).unwrap();
    let mut held = Vec::new();
    while let Ok(frames) = memory.alloc_frozen(Order::ZERO, Gfp::USER) {
        held.push(frames);
        if held.last().is_some_and(|frames| piece.contains(frames.head())) {
            break;
        }
    }
    let busy = held.last().unwrap().head();
    let before = memory.free_pages();
    assert_eq!(take(&memory, piece).unwrap_err(), busy);
    assert!(matches!(memory.take_block_out(section(0)).unwrap_err(), HotplugError::InUse(..)));
    assert_eq!(memory.free_pages(), before);
    assert_consistent(&memory);
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    let taken = take(&memory, piece).unwrap();
    memory.lay_to_rest(taken, Order::PAGEBLOCK).unwrap();
    assert_consistent(&memory);
}

/// A block once went while somebody was about to take frames of it, who ended an isolation
/// afterwards that was not there, or another's.
#[test]
fn a_block_of_which_a_pageblock_is_set_aside_stays() {
    let memory = machine(1);
    memory.add_block(block(section(0))).unwrap();
    let piece = range(section(0).start().number() + 5 * UNIT, UNIT);
    let isolated = memory.isolate_range(piece).unwrap();
    let refused = memory.take_block_out(section(0)).map(drop);
    assert_eq!(refused, Err(HotplugError::SetAside(piece.start())));
    assert_consistent(&memory);
    memory.unisolate_range(isolated);
    drop(memory.take_block_out(section(0)).unwrap());
    assert_consistent(&memory);
}

/// Sees whether a grace period can pass while a page is isolated.
struct Watcher(AtomicBool);

impl MovableOps<TestPlatform> for Watcher {
    fn isolate(&self, mm: &Mm<'_, TestPlatform>, _src: Pfn) -> bool {
        let rcu = &mm.base().rcu;
        let stamp = rcu.stamp();
        let has_passed = (0..8).any(|_| rcu.is_over(stamp));
        self.0.store(has_passed, Ordering::Relaxed);
        false
    }

    fn migrate(
        &self,
        _mm: &Mm<'_, TestPlatform>,
        _dst: &TransitFrames,
        _src: Pfn,
        _mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        Err(MigrateError::Busy)
    }
}

/// Isolation by frame number once looked the frame up with nothing that keeps its word there.
#[test]
fn no_block_goes_while_a_frame_of_it_is_being_isolated() {
    let watcher = Watcher(AtomicBool::new(true));
    let base = Base::new(machine(1)).unwrap();
    let mm = Mm::new(&base);
    mm.set_movable_ops(Kind::Movable, &watcher).unwrap();
    let frames = mm.memory().alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    let page = mm.describe_frames::<MovableDesc>(frames, |_| ()).unwrap();
    let pfn = mm.let_migrate(page).unwrap();
    let mut batch: MigrateBatch<'_, '_, _> = MigrateBatch::new(&mm);
    let refused = mm.isolate_for_migration(pfn, &mut batch).unwrap_err();
    assert_eq!(refused, IsolateError::Refused(MovableKind::Movable));
    assert!(!watcher.0.load(Ordering::Relaxed), "a grace period passed meanwhile");
    let page = mm.claim_object::<MovableDesc>(pfn).unwrap();
    mm.memory().free_frozen(mm.undescribe_frames(page).unwrap());
}

#[test]
fn destinations_are_found_in_a_block_that_was_added_and_only_there() {
    let memory = machine(1);
    let layout = memory.add_block(block(section(0))).unwrap();
    let mut places = Allocated::new(&memory).within(section(0));
    assert!(places.take(Order::ZERO, Pfn::ZERO).is_none(), "nothing is alive there");
    memory.bring_to_life(layout.payload()).unwrap();
    let found = places.take(Order::PAGEBLOCK, Pfn::ZERO).unwrap();
    assert!(section(0).contains_range(found.range()), "{found:?}");
    let mut outside = Allocated::new(&memory).outside(section(0));
    let other = outside.take(Order::PAGEBLOCK, Pfn::ZERO).unwrap();
    assert_eq!(section(0).intersection(other.range()), None);
    places.give_back(found);
    outside.give_back(other);
    assert_consistent(&memory);
}

#[test]
fn frames_of_no_added_block_are_not_laid_to_rest() {
    let memory = machine(1);
    let free = memory.free_pages();
    let taken = take(&memory, range(1024, 1024)).unwrap();
    let (error, taken) = memory.lay_to_rest(taken, Order::PAGEBLOCK).unwrap_err();
    assert_eq!(error, HotplugError::NotAdded(range(1024, 1024)));
    memory.free_contig(taken);
    assert_eq!(memory.free_pages(), free);
    assert_consistent(&memory);
}

#[test]
fn pieces_may_be_as_small_as_a_page() {
    let memory = machine(1);
    let new = crate::hotplug::NewBlock { unit: Order::ZERO, ..block(section(0)) };
    let layout = memory.add_block(new).unwrap();
    let start = layout.payload().start().number();
    for n in (0..64).step_by(2) {
        memory.bring_to_life(range(start + n, 1)).unwrap();
    }
    assert_consistent(&memory);
    let taken = take(&memory, range(start, 64)).unwrap();
    assert_eq!(memory.lay_to_rest(taken, Order::ZERO).unwrap().get(), 32);
    memory.bring_to_life(range(start + 3, 9)).unwrap();
    let taken = take(&memory, range(start, 64)).unwrap();
    memory.lay_to_rest(taken, Order::ZERO).unwrap();
    assert_consistent(&memory);
}
