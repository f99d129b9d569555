//! Offline blocks: typestate, claims, isolation.

use abi::Pfn;

use super::assert_consistent;
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Hold, LookupError, Order};
use crate::memory::{ClaimError, FreeError, FrozenFrames, IsolateError, Memory};
use crate::testing::{TestPlatform, memory};

const BALLOON: DriverId = DriverId::BALLOON;

/// A parked block of this order.
fn parked(memory: &Memory<TestPlatform>, order: u8) -> Pfn {
    let frames = memory.alloc_frozen(Order::new(order).unwrap(), Gfp::BALLOON).unwrap();
    let block = memory.make_offline(frames, BALLOON).unwrap();
    memory.park(block).unwrap()
}

fn deflate(memory: &Memory<TestPlatform>, pfn: Pfn) {
    let block = memory.claim_offline(pfn, BALLOON).unwrap();
    let frames = memory.online(block).unwrap();
    memory.free_reported(frames);
}

#[test]
fn a_claim_succeeds_once() {
    let memory = memory(4096);
    let pfn = parked(&memory, 4);
    let block = memory.claim_offline(pfn, BALLOON).unwrap();
    assert_eq!(memory.claim_offline(pfn, BALLOON), Err(ClaimError::Held));
    assert_eq!(memory.set_movable(pfn, BALLOON), Err(ClaimError::Held));
    let pfn = memory.park(block).unwrap();
    deflate(&memory, pfn);
    assert!(matches!(memory.claim_offline(pfn, BALLOON), Err(ClaimError::NotOffline(_))));
    assert_consistent(&memory);
}

#[test]
fn claims_on_wrong_frames_name_the_reason() {
    let memory = memory(4096);
    let pfn = parked(&memory, 4);
    let tail = pfn.checked_add(abi::PageCount::ONE).unwrap();
    assert!(matches!(memory.claim_offline(tail, BALLOON), Err(ClaimError::NotOffline(_))));
    let foreign = memory.claim_offline(pfn, DriverId::HOTPLUG);
    assert_eq!(foreign, Err(ClaimError::ForeignDriver(BALLOON)));
    let outside = memory.claim_offline(Pfn::from_u32(u32::MAX), BALLOON);
    assert!(matches!(outside, Err(ClaimError::Lookup(LookupError::OutOfMap(_)))));
    assert_eq!(memory.offline_order(pfn, BALLOON), Ok(Order::new(4).unwrap()));
    deflate(&memory, pfn);
}

#[test]
fn only_a_movable_block_can_be_isolated_and_only_once() {
    let memory = memory(4096);
    let pfn = parked(&memory, 0);
    assert_eq!(memory.isolate(pfn, BALLOON), Err(IsolateError::NotMovable));
    memory.set_movable(pfn, BALLOON).unwrap();
    assert_eq!(memory.set_movable(pfn, BALLOON), Err(ClaimError::Movable));
    let isolated = memory.isolate(pfn, BALLOON).unwrap();
    assert_eq!(memory.isolate(pfn, BALLOON), Err(IsolateError::NotMovable));
    assert_eq!(memory.claim_offline(pfn, BALLOON), Err(ClaimError::Isolated));
    let census = memory.census();
    assert_eq!(census.offline_pages(BALLOON, Hold::Isolated).get(), 1);
    memory.putback(isolated).unwrap();
    deflate(&memory, pfn);
    assert_consistent(&memory);
}

#[test]
fn an_isolated_block_is_cut_to_a_page_and_the_rest_is_its_drivers() {
    let memory = memory(4096);
    let pfn = parked(&memory, 2);
    assert_eq!(memory.split_isolated(pfn, BALLOON), Err(ClaimError::Held));
    memory.set_movable(pfn, BALLOON).unwrap();
    assert_eq!(memory.split_isolated(pfn, BALLOON), Err(ClaimError::Movable));
    let _whole = memory.isolate(pfn, BALLOON).unwrap();
    let pieces = [2, 1].map(|pages| pfn.checked_add(abi::PageCount::new(pages)).unwrap());
    for piece in pieces {
        assert_eq!(memory.split_isolated(pfn, BALLOON), Ok(piece));
        assert_consistent(&memory);
    }
    assert_eq!(memory.split_isolated(pfn, BALLOON), Err(ClaimError::Held), "a single page");
    let census = memory.census();
    assert_eq!(census.offline_pages(BALLOON, Hold::Isolated).get(), 1);
    assert_eq!(census.offline_pages(BALLOON, Hold::Parked).get(), 3);
    memory.park_isolated(pfn, BALLOON).unwrap();
    assert_eq!(memory.park_isolated(pfn, BALLOON), Err(ClaimError::Held));
    for pfn in [pfn].into_iter().chain(pieces) {
        deflate(&memory, pfn);
    }
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn a_destination_remembers_that_it_was_taken_whatever_became_of_it() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
    let transit = memory.put_in_transit(frames).unwrap();
    let pfn = memory.adopt_offline(&transit, BALLOON).unwrap();
    memory.disown_offline(&transit, BALLOON).unwrap();
    assert!(!transit.is_taken());
    memory.adopt_offline(&transit, BALLOON).unwrap();
    assert!(transit.is_taken() && !memory.is_in_transit(&transit));
    // It moves on, is freed, and becomes a destination again: somebody else's.
    memory.set_movable(pfn, BALLOON).unwrap();
    let frames = memory.retire(memory.isolate(pfn, BALLOON).unwrap()).unwrap();
    let again = memory.put_in_transit(frames).unwrap();
    assert!(memory.is_in_transit(&transit) && transit.is_taken() && !again.is_taken());
    memory.free_frozen(memory.take_out_of_transit(again).unwrap());
}

#[test]
fn the_owner_cannot_free_an_isolated_block() {
    let memory = memory(4096);
    let pfn = parked(&memory, 0);
    memory.set_movable(pfn, BALLOON).unwrap();
    let isolated = memory.isolate(pfn, BALLOON).unwrap();
    // SAFETY: none; the test shows that the free is refused.
    let forged = unsafe { FrozenFrames::from_raw(pfn, Order::ZERO) };
    assert!(matches!(memory.try_free(forged), Err(FreeError::NotAllocated { .. })));
    let frames = memory.retire(isolated).unwrap();
    memory.free_frozen(frames);
    assert_eq!(memory.free_pages(), memory.managed_pages());
    assert_consistent(&memory);
}

#[test]
fn an_offline_block_splits_and_its_parts_deflate_alone() {
    let memory = memory(4096);
    let pfn = parked(&memory, 10);
    let block = memory.claim_offline(pfn, BALLOON).unwrap();
    let (lower, upper) = memory.split_offline(block).unwrap();
    assert_consistent(&memory);
    let upper = memory.park(upper).unwrap();
    memory.set_movable(upper, BALLOON).unwrap();
    let frames = memory.online(lower).unwrap();
    memory.free_reported(frames);
    assert_eq!(memory.census().offline_pages(BALLOON, Hold::Movable).get(), 512);
    deflate(&memory, upper);
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn reported_survives_a_merge_only_if_both_halves_are_reported() {
    let memory = memory(4096);
    let reported = || memory.census().reported_pages().get();
    let halves = || {
        let frames = memory.alloc_frozen(Order::MAX, Gfp::USER).unwrap();
        memory.split_frozen(frames).unwrap()
    };
    let (lower, upper) = halves();
    memory.free_reported(lower);
    assert_eq!(reported(), 512);
    memory.free_frozen(upper);
    memory.drain();
    assert_eq!(reported(), 0);
    let (lower, upper) = halves();
    memory.free_reported(lower);
    memory.free_reported(upper);
    assert_eq!(reported(), 1024);
    assert_consistent(&memory);
}

#[test]
fn a_reported_block_says_so_when_handed_out_and_forgets_it_when_freed() {
    let memory = memory(2048);
    let mut all = Vec::new();
    let everything = memory.free_pages();
    memory.alloc_many(everything, Order::MAX, Gfp::MEMALLOC, &mut |frames| all.push(frames));
    let reported = all.iter().position(|frames| frames.order() == Order::MAX).unwrap();
    memory.free_reported(all.swap_remove(reported));
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::MEMALLOC).unwrap();
    assert!(frames.was_reported());
    memory.free_frozen(frames);
    assert_eq!(memory.census().reported_pages().get(), 1023);
    all.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_consistent(&memory);
}

#[test]
fn memory_that_the_host_still_holds_is_handed_out_first() {
    let memory = memory(8192);
    let pfn = parked(&memory, 10);
    deflate(&memory, pfn);
    let next = memory.alloc_frozen(Order::MAX, Gfp::USER).unwrap();
    assert_ne!(next.head(), pfn);
    assert!(!next.was_reported());
    memory.free_frozen(next);
}
