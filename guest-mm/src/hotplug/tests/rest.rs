//! Frames are laid to rest, and blocks that were alive are removed.

use std::sync::atomic::{AtomicBool, Ordering};

use abi::{Pfn, PfnRange};

use super::blocks::{UNIT, assert_consistent, block, machine, section};
use crate::buddy::Gfp;
use crate::hotplug::HotplugError;
use crate::memdesc::{DriverId, Order};
use crate::memory::{ContigFrames, Memory, Pass};
use crate::migrate::{Allocated, Destinations, MigrateBatch};
use crate::mm::{Base, Mm};
use crate::testing::{TestPlatform, range, set_cpu};

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

/// Isolation, and the search for destinations in a range, once looked frames up with nothing that
/// keeps their words there.
#[test]
fn who_isolates_or_seeks_frames_meets_no_words_of_a_block_that_is_gone() {
    let base = Base::new(machine(1)).unwrap();
    let (mm, memory) = (&Mm::new(&base), &base.memory);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            set_cpu(1);
            while !is_over.load(Ordering::Relaxed) {
                let mut batch: MigrateBatch<'_, '_, _> = MigrateBatch::new(mm);
                for pfn in section(0).iter().step_by(97) {
                    // Free or offline: nothing of it moves.
                    mm.isolate_for_migration(pfn, &mut batch).unwrap_err();
                }
            }
        });
        scope.spawn(|| {
            set_cpu(2);
            let mut places = Allocated::new(memory).within(section(0));
            while !is_over.load(Ordering::Relaxed) {
                if let Some(frames) = places.take(Order::MAX, Pfn::ZERO) {
                    assert!(section(0).contains_range(frames.range()), "{frames:?}");
                    places.give_back(frames);
                }
            }
        });
        for _ in 0..12 {
            let layout = memory.add_block(block(section(0))).unwrap();
            memory.bring_to_life(layout.payload()).unwrap();
            let taken = loop {
                match take(memory, layout.payload()) {
                    Ok(taken) => break taken,
                    // The other thread has it for a moment.
                    Err(_) => std::thread::yield_now(),
                }
            };
            memory.lay_to_rest(taken, Order::PAGEBLOCK).unwrap();
            let dying = memory.take_block_out(section(0)).unwrap();
            base.rcu.synchronize(base.platform());
            for pfn in layout.metadata().iter().filter(|pfn| *pfn != layout.table()) {
                let page = memory.platform().spare_ptr(pfn);
                // SAFETY: spare RAM, and nobody finds or uses the block any more.
                unsafe { page.as_ptr().write_bytes(0xdb, 4096) };
            }
            // SAFETY: the grace period is over.
            unsafe { dying.bury() };
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(memory.words().unknown_words(), 0);
    assert_consistent(memory);
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
