//! Allocated blocks: frees that must fail, contents, splits.

use abi::Pfn;

use super::assert_consistent;
use crate::buddy::Gfp;
use crate::memdesc::{BlockKind, Kind, Order, TransitionError};
use crate::memory::{FreeError, FrozenFrames};
use crate::testing::{memory, memory_of, range};

fn order(n: u8) -> Order {
    Order::new(n).unwrap()
}

/// A second handle of the same block, as a buggy owner might have.
fn forge(frames: &FrozenFrames, order: Order) -> FrozenFrames {
    // SAFETY: none; the test shows that the free is refused. It touches no byte of the frames.
    unsafe { FrozenFrames::from_raw(frames.head(), order) }
}

#[test]
fn a_second_free_is_refused_on_every_path() {
    let memory = memory(4096);
    for (n, reported) in [(0, false), (3, false), (5, false), (9, false), (10, false), (0, true)] {
        let frames = memory.alloc_frozen(order(n), Gfp::USER).unwrap();
        let again = forge(&frames, order(n));
        if reported {
            memory.free_reported(frames);
        } else {
            memory.free_frozen(frames);
        }
        assert!(matches!(memory.try_free(again), Err(FreeError::NotAllocated { .. })), "{n}");
        assert_consistent(&memory);
    }
    assert_eq!(memory.counters().refused_frees, 6);
}

#[test]
fn a_free_of_another_order_is_refused() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(order(4), Gfp::USER).unwrap();
    let smaller = forge(&frames, order(3));
    let larger = forge(&frames, order(5));
    let found = order(4);
    assert_eq!(memory.try_free(smaller), Err(FreeError::WrongOrder { found }));
    assert_eq!(memory.try_free(larger), Err(FreeError::WrongOrder { found }));
    memory.free_frozen(frames);
    assert_consistent(&memory);
}

#[test]
fn a_free_of_a_tail_a_reserved_frame_or_no_frame_is_refused() {
    let memory = memory_of(&[range(0, 4096)], &[range(0, 1)]);
    let frames = memory.alloc_frozen(order(4), Gfp::USER).unwrap();
    let tail = frames.head().checked_add(abi::PageCount::ONE).unwrap();
    for pfn in [tail, Pfn::ZERO] {
        // SAFETY: none, as in `forge`.
        let forged = unsafe { FrozenFrames::from_raw(pfn, Order::ZERO) };
        assert!(memory.try_free(forged).is_err(), "{pfn:?}");
    }
    // SAFETY: none, as in `forge`.
    let outside = unsafe { FrozenFrames::from_raw(Pfn::new(5000).unwrap(), Order::ZERO) };
    assert!(matches!(memory.try_free(outside), Err(FreeError::OutOfMap(_))));
    memory.free_frozen(frames);
    assert_consistent(&memory);
}

#[test]
fn zeroed_frames_are_zero_and_bytes_are_the_owners() {
    let memory = memory(4096);
    let mut frames = memory.alloc_frozen(order(2), Gfp::USER).unwrap();
    let head = frames.head();
    memory.bytes_mut(&mut frames).fill(0x5a);
    assert!(memory.bytes(&frames).iter().all(|&byte| byte == 0x5a));
    memory.free_frozen(frames);
    let frames = memory.alloc_frozen(order(2), Gfp::USER | Gfp::ZERO).unwrap();
    assert_eq!(frames.head(), head, "the per-CPU list is last in, first out");
    assert!(memory.bytes(&frames).iter().all(|&byte| byte == 0));
    memory.free_frozen(frames);
}

#[test]
fn a_block_splits_down_to_single_pages() {
    let memory = memory(4096);
    let mut blocks = vec![memory.alloc_frozen(order(4), Gfp::USER).unwrap()];
    while let Some(at) = blocks.iter().position(|frames| frames.order() > Order::ZERO) {
        let (lower, upper) = memory.split_frozen(blocks.swap_remove(at)).unwrap();
        assert_eq!(lower.range().end(), upper.head());
        blocks.extend([lower, upper]);
        assert_consistent(&memory);
    }
    assert_eq!(blocks.len(), 16);
    let single = blocks.pop().unwrap();
    let refused = memory.split_frozen(single).unwrap_err();
    assert!(refused.cause.is_none());
    blocks.push(refused.block);
    blocks.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_eq!(memory.free_pages(), memory.managed_pages());
    assert_consistent(&memory);
}

#[test]
fn a_typed_block_shows_in_the_census_and_is_freed_as_any_other() {
    let memory = memory(4096);
    let mut frames = memory.alloc_frozen(order(1), Gfp::KERNEL).unwrap();
    memory.retype(&mut frames, BlockKind::Driver).unwrap();
    memory.retype(&mut frames, BlockKind::Vmalloc).unwrap();
    assert_eq!(memory.census().pages(Kind::Vmalloc).get(), 2);
    let refused = memory.split_frozen(frames).unwrap_err();
    assert!(matches!(refused.cause, Some(TransitionError::Illegal { .. })));
    let mut frames = refused.block;
    for kind in [BlockKind::Reserved, BlockKind::Report, BlockKind::Empty] {
        let refused = memory.retype(&mut frames, kind);
        assert!(matches!(refused, Err(TransitionError::Illegal { .. })), "{kind:?}");
    }
    memory.free_frozen(frames);
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
}

#[test]
fn many_blocks_are_taken_largest_first_and_the_shortfall_is_told() {
    let memory = memory(4096);
    let mut orders = Vec::new();
    let mut blocks = Vec::new();
    let wanted = abi::PageCount::new(1024 + 512 + 3);
    let left = memory.alloc_many(wanted, Order::MAX, Gfp::USER, &mut |frames| {
        orders.push(frames.order().get());
        blocks.push(frames);
    });
    assert!(left.is_zero());
    assert_eq!(orders, [10, 9, 1, 0]);
    let all = abi::PageCount::new(1 << 20);
    let left = memory.alloc_many(all, Order::MAX, Gfp::USER, &mut |frames| blocks.push(frames));
    assert_eq!(
        left.get(),
        (1 << 20) - (memory.managed_pages().get() - wanted.get() - memory.watermarks().min)
    );
    blocks.into_iter().for_each(|frames| memory.free_frozen(frames));
    assert_consistent(&memory);
}
