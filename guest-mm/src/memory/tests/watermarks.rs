//! Who may take the last pages, and memory of other types.

use abi::{PageCount, Pfn};

use super::assert_consistent;
use crate::buddy::Gfp;
use crate::memdesc::{MigrateType, Order};
use crate::memory::{FrozenFrames, Memory};
use crate::platform::FaultSite;
use crate::testing::{TestPlatform, memory, range};

fn take_all(memory: &Memory<TestPlatform>, largest: Order, gfp: Gfp) -> Vec<FrozenFrames> {
    let mut blocks = Vec::new();
    let all = PageCount::new(u64::MAX >> 16);
    memory.alloc_many(all, largest, gfp, &mut |frames| blocks.push(frames));
    blocks
}

#[test]
fn each_class_of_request_stops_at_its_own_reserve() {
    let memory = memory(8192);
    let marks = memory.watermarks();
    let mut held = Vec::new();
    for (gfp, reserve) in [
        (Gfp::BALLOON, marks.low),
        (Gfp::USER, marks.min),
        (Gfp::KERNEL, marks.min),
        (Gfp::ATOMIC, marks.min / 2),
        (Gfp::MEMALLOC, 0),
    ] {
        held.extend(take_all(&memory, Order::MAX, gfp));
        assert_eq!(memory.free_pages().get(), reserve, "{gfp:?}");
        assert_consistent(&memory);
    }
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn single_pages_reach_the_same_reserve_as_large_blocks() {
    let memory = memory(4096);
    let held = take_all(&memory, Order::ZERO, Gfp::BALLOON);
    assert_eq!(memory.free_pages().get(), memory.watermarks().low);
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_consistent(&memory);
    // Everything merges again: nothing is stuck on a per-CPU list.
    memory.drain();
    let frames = memory.alloc_frozen(Order::MAX, Gfp::USER).unwrap();
    memory.free_frozen(frames);
}

#[test]
fn pages_on_another_cpus_list_are_found_before_giving_up() {
    let memory = memory(2048);
    let held = take_all(&memory, Order::ZERO, Gfp::MEMALLOC);
    crate::testing::set_cpu(3);
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    crate::testing::set_cpu(0);
    let held = take_all(&memory, Order::ZERO, Gfp::MEMALLOC);
    assert_eq!(held.len() as u64, memory.managed_pages().get());
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
}

#[test]
fn unmovable_requests_claim_a_whole_pageblock_not_single_pages() {
    let memory = memory(8192);
    let mut held: Vec<_> =
        (0..100).map(|_| memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap()).collect();
    let pageblocks: std::collections::BTreeSet<u64> =
        held.iter().map(|frames| frames.head().number() >> 9).collect();
    assert_eq!(pageblocks.len(), 1, "one pageblock holds all of them");
    assert_eq!(memory.map().pageblocks.get(held[0].head()), MigrateType::Unmovable);
    assert!(memory.counters().buddy.claims > 0);
    let movable = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    assert!(!pageblocks.contains(&(movable.head().number() >> 9)));
    held.push(movable);
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_consistent(&memory);
}

#[test]
fn movable_requests_take_what_is_left_in_other_pageblocks() {
    let memory = memory(4096);
    let kernel = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
    let held = take_all(&memory, Order::ZERO, Gfp::USER | Gfp::MEMALLOC);
    assert_eq!(memory.free_pages().get(), 0);
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    memory.free_frozen(kernel);
    assert_consistent(&memory);
    memory.drain();
    assert_consistent(&memory);
}

#[test]
fn cma_memory_serves_movable_requests_that_say_so_only() {
    let memory = memory(4096);
    for block in 0..8 {
        memory.set_pageblock(Pfn::new(block * 512).unwrap(), MigrateType::Cma).unwrap();
    }
    assert_consistent(&memory);
    assert!(memory.alloc_frozen(Order::ZERO, Gfp::USER | Gfp::MEMALLOC).is_err());
    assert!(memory.alloc_frozen(Order::ZERO, Gfp::CMA | Gfp::MEMALLOC).is_err());
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::USER | Gfp::CMA).unwrap();
    memory.free_frozen(frames);
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn the_high_order_reserve_is_set_aside_and_given_up_under_pressure() {
    // 1 % of 256 MiB is one pageblock.
    let memory = memory(65_536);
    let atomic = memory.alloc_frozen(Order::new(4).unwrap(), Gfp::ATOMIC).unwrap();
    let kind = memory.map().pageblocks.get(atomic.head());
    assert_eq!(kind, MigrateType::HighAtomic);
    assert_consistent(&memory);
    let held = take_all(&memory, Order::MAX, Gfp::USER | Gfp::MEMALLOC);
    assert_eq!(memory.free_pages().get(), 0);
    assert_consistent(&memory);
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    memory.free_frozen(atomic);
    assert_consistent(&memory);
}

#[test]
fn an_isolated_pageblock_keeps_what_is_freed_in_it() {
    let memory = memory(4096);
    // Its other pageblock is not isolated: the free must tell them apart.
    let inside = memory.alloc_frozen(Order::MAX, Gfp::USER).unwrap();
    let block = inside.head();
    let isolated = memory.isolate_range(range(block.number(), 512)).unwrap();
    memory.free_frozen(inside);
    let held = take_all(&memory, Order::MAX, Gfp::USER | Gfp::MEMALLOC);
    assert_eq!(memory.free_pages().get(), 512);
    assert!(held.iter().all(|frames| frames.head().number() >> 9 != block.number() >> 9));
    assert_consistent(&memory);
    memory.unisolate_range(isolated);
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_eq!(memory.free_pages(), memory.managed_pages());
    assert_consistent(&memory);
}

#[test]
fn an_injected_fault_fails_one_allocation_and_changes_nothing() {
    let memory = memory(2048);
    memory.platform().faults().fail_nth(FaultSite::BuddyAlloc, 2);
    let first = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    assert!(memory.alloc_frozen(Order::ZERO, Gfp::USER).is_err());
    assert_eq!(memory.counters().failed_allocations, 1);
    memory.free_frozen(first);
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}
