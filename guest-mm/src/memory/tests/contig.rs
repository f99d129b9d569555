//! Runs of frames at a given place.

use abi::Pfn;

use super::assert_consistent;
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Kind, MigrateType, Order};
use crate::memory::{PageblockError, Pass};
use crate::testing::{memory, memory_of, range};

fn pfn(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

#[test]
fn a_free_range_is_taken_as_one_block_and_freed_without_a_trace() {
    let memory = memory(4096);
    for (start, pages) in [(512, 512), (1024, 1024), (1536, 8), (2, 2), (7, 1)] {
        let wanted = range(start, pages);
        let isolated = memory.isolate_range(wanted).unwrap();
        let taken = memory.take_isolated(&isolated, wanted, Pass::Nothing).unwrap();
        memory.unisolate_range(isolated);
        assert_consistent(&memory);
        assert_eq!((taken.range(), taken.pages().get()), (wanted, pages));
        let block = memory.contig_into_block(taken).unwrap();
        assert_eq!(block.range(), wanted);
        assert_eq!(memory.free_pages().get(), memory.managed_pages().get() - pages);
        memory.free_frozen(block);
        assert_consistent(&memory);
        assert_eq!(memory.free_pages(), memory.managed_pages());
    }
}

#[test]
fn an_odd_range_across_pageblocks_comes_in_aligned_blocks() {
    let memory = memory(4096);
    let wanted = range(509, 1030);
    let isolated = memory.isolate_range(wanted).unwrap();
    assert_eq!(isolated.pageblocks(), range(0, 2048));
    let taken = memory.take_isolated(&isolated, wanted, Pass::Nothing).unwrap();
    memory.unisolate_range(isolated);
    assert_consistent(&memory);
    let taken = memory.contig_into_block(taken).unwrap_err();
    let mut orders = Vec::new();
    memory.split_contig(taken, &mut |block| {
        orders.push(block.order().get());
        memory.free_frozen(block);
    });
    assert_eq!(orders, [0, 1, 9, 9, 1, 0]);
    memory.drain();
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn a_range_with_an_allocated_frame_is_refused_by_that_frame_and_left_alone() {
    let memory = memory(4096);
    let held = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    let wanted = range(held.head().number() & !511, 512);
    let isolated = memory.isolate_range(wanted).unwrap();
    let refused = memory.take_isolated(&isolated, wanted, Pass::Skippable);
    assert_eq!(refused, Err(held.head()));
    memory.unisolate_range(isolated);
    assert_eq!(memory.map().pageblocks.get(held.head()), MigrateType::Movable);
    assert_consistent(&memory);
    memory.free_frozen(held);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn of_two_overlapping_isolations_the_second_is_refused_and_sets_nothing_aside() {
    let memory = memory(4096);
    let first = memory.isolate_range(range(1000, 100)).unwrap();
    let second = memory.isolate_range(range(0, 1025));
    assert_eq!(second, Err(PageblockError::Isolated(pfn(512))));
    assert_eq!(memory.map().pageblocks.get(pfn(0)), MigrateType::Movable);
    let apart = memory.isolate_range(range(0, 512)).unwrap();
    assert_consistent(&memory);
    memory.unisolate_range(first);
    memory.unisolate_range(apart);
    assert_consistent(&memory);
}

/// A change of the type once ended the isolation, and what was free in it went to others.
#[test]
fn a_pageblock_that_is_set_aside_changes_its_type_beneath() {
    let memory = memory(4096);
    let isolated = memory.isolate_range(range(512, 512)).unwrap();
    memory.set_pageblock(pfn(600), MigrateType::Cma).unwrap();
    assert_eq!(memory.map().pageblocks.get(pfn(600)), MigrateType::Isolate);
    assert_eq!(memory.isolate_range(range(512, 1)), Err(PageblockError::Isolated(pfn(512))));
    assert_consistent(&memory);
    let taken = memory.take_isolated(&isolated, range(512, 512), Pass::Nothing).unwrap();
    memory.unisolate_range(isolated);
    assert_eq!(memory.map().pageblocks.get(pfn(600)), MigrateType::Cma);
    memory.free_contig(taken);
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn ranges_that_are_empty_or_beyond_ram_are_refused() {
    let memory = memory_of(&[range(3, 1500), range(2048, 512)], &[]);
    assert_eq!(memory.isolate_range(range(512, 0)), Err(PageblockError::Empty));
    for (start, pages, hole) in [(0, 4, 0), (1400, 200, 1503), (1503, 600, 1503), (2559, 2, 2560)] {
        match memory.isolate_range(range(start, pages)) {
            Err(PageblockError::OutOfMap(out)) => assert_eq!(out.0, pfn(hole)),
            other => panic!("{start}+{pages}: {other:?}"),
        }
    }
    assert_consistent(&memory);
}

#[test]
fn a_pageblock_that_ram_covers_in_part_can_be_set_aside() {
    let memory = memory_of(&[range(3, 1500)], &[]);
    let isolated = memory.isolate_range(range(1400, 100)).unwrap();
    let taken = memory.take_isolated(&isolated, range(1400, 100), Pass::Nothing).unwrap();
    memory.unisolate_range(isolated);
    memory.free_contig(taken);
    memory.drain();
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn what_is_on_cpu_lists_is_found_by_whoever_isolates() {
    let memory = memory(4096);
    let held: Vec<_> =
        (0..32).map(|_| memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap()).collect();
    let wanted = held[0].range();
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert!(memory.census().pages(Kind::Pcp).get() > 0);
    let isolated = memory.isolate_range(wanted).unwrap();
    let taken = memory.take_isolated(&isolated, wanted, Pass::Nothing).unwrap();
    memory.unisolate_range(isolated);
    memory.free_contig(taken);
    assert_consistent(&memory);
}

#[test]
fn the_high_order_reserve_is_counted_once_when_its_pageblock_is_isolated() {
    let memory = memory(65_536);
    let atomic = memory.alloc_frozen(Order::new(4).unwrap(), Gfp::ATOMIC).unwrap();
    let block = atomic.head();
    assert_eq!(memory.map().pageblocks.get(block), MigrateType::HighAtomic);
    for _ in 0..2 {
        let isolated = memory.isolate_range(range(block.number(), 1)).unwrap();
        memory.unisolate_range(isolated);
        assert_eq!(memory.map().pageblocks.get(block), MigrateType::Movable);
    }
    // There is room for a new reserve: 1 % of 256 MiB is one pageblock.
    let again = memory.alloc_frozen(Order::new(4).unwrap(), Gfp::ATOMIC).unwrap();
    assert_eq!(memory.map().pageblocks.get(again.head()), MigrateType::HighAtomic);
    memory.free_frozen(again);
    memory.free_frozen(atomic);
    assert_consistent(&memory);
}

#[test]
fn offline_blocks_that_are_not_skippable_are_not_passed_over() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::new(3).unwrap(), Gfp::USER).unwrap();
    let wanted = range(frames.head().number() & !511, 512);
    let head = frames.head();
    let block = memory.make_offline(frames, DriverId::HOTPLUG).unwrap();
    let isolated = memory.isolate_range(wanted).unwrap();
    for pass in [Pass::Nothing, Pass::Skippable] {
        assert_eq!(memory.take_isolated(&isolated, wanted, pass), Err(head));
    }
    memory.unisolate_range(isolated);
    let frames = memory.online(block).unwrap();
    memory.free_frozen(frames);
    assert_consistent(&memory);
}
