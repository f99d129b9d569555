//! Whole-memory tests.

use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Order};
use crate::testing::memory;

#[test]
fn all_memory_comes_back_after_a_round_of_allocations() {
    let memory = memory(4096);
    let before = memory.free_pages();
    assert_eq!(before, memory.managed_pages());
    let mut blocks = Vec::new();
    memory.alloc_many(before, Order::MAX, Gfp::MEMALLOC, &mut |frames| blocks.push(frames));
    assert_eq!(memory.free_pages().get(), 0);
    for frames in blocks {
        memory.free_frozen(frames);
    }
    assert_eq!(memory.free_pages(), before);
}

#[test]
fn an_offline_block_goes_out_and_comes_back_reported() {
    let memory = memory(4096);
    let frames = memory.alloc_frozen(Order::MAX, Gfp::BALLOON).unwrap();
    let block = memory.make_offline(frames, DriverId::BALLOON).unwrap();
    let pfn = memory.park(block).unwrap();
    memory.set_movable(pfn, DriverId::BALLOON).unwrap();
    let block = memory.claim_offline(pfn, DriverId::BALLOON).unwrap();
    let frames = memory.online(block).unwrap();
    memory.free_reported(frames);
}
