use super::*;
use crate::virtio::testing::TestRam;
use std::vec::Vec;

fn queue(ram: &TestRam, entries: u16, buffers: u16) -> PfnQueue {
    let mut queue = PfnQueue::lend(ram, buffers).unwrap();
    let [a, b] = [ram.page(), ram.page()].map(|page| page.slice(0, 4096).unwrap());
    assert!(queue.attach(RingMemory::new(entries, a, b).unwrap()));
    queue
}

fn block(head: u64, order: u32) -> Block {
    Block::new(Pfn::new(head).unwrap(), order).unwrap()
}

#[test]
fn small_blocks_share_a_buffer_and_large_ones_have_their_own() {
    let ram = TestRam::new(32);
    let mut queue = queue(&ram, 16, 16);
    queue.push(block(8, 3), false).unwrap();
    queue.push(block(17, 0), false).unwrap();
    assert!(queue.is_filling() && !queue.is_outstanding());
    queue.push(block(1024, 10), false).unwrap();
    assert!(!queue.is_filling() && queue.is_outstanding());
    assert_eq!(queue.in_flight(), PageCount::new(8 + 1 + 1024));
    assert_eq!(queue.free_len, 16 - 5);
}

#[test]
fn room_counts_the_buffer_being_filled() {
    let ram = TestRam::new(32);
    let mut queue = queue(&ram, 4, 16);
    assert_eq!(queue.largest_with_room(10), Some(10));
    queue.push(block(0, 7), false).unwrap();
    assert_eq!(queue.largest_with_room(10), Some(9), "one of four entries is spoken for");
    queue.push(block(512, 9), false).unwrap();
    assert_eq!(queue.largest_with_room(10), Some(8));
    queue.push(block(2048, 8), false).unwrap();
    assert_eq!(queue.largest_with_room(10), None);
    assert!(!queue.has_room(0));
}

#[test]
fn a_refused_shared_buffer_returns_its_blocks_and_not_the_one_that_did_not_enter() {
    let ram = TestRam::new(32);
    let mut queue = queue(&ram, 4, 16);
    queue.push(block(4, 2), false).unwrap();
    let rejected = queue.push(block(1024, 10), true).unwrap_err();
    assert!(!rejected.entered);
    let pfns: Vec<_> =
        (0..).map_while(|at| queue.pfn(rejected.group, at)).map(Pfn::number).collect();
    assert_eq!(pfns, [4, 5, 6, 7]);
    assert_eq!(queue.recycle(rejected.group), PageCount::new(4));
    assert_eq!((queue.in_flight(), queue.free_len), (PageCount::ZERO, 16));
    assert!(!queue.publish());
}

#[test]
fn a_refused_large_block_frees_all_its_buffers() {
    let ram = TestRam::new(32);
    let mut queue = queue(&ram, 8, 16);
    let rejected = queue.push(block(2048, 10), true).unwrap_err();
    assert!(rejected.entered);
    assert_eq!(queue.recycle(rejected.group), PageCount::new(1024));
    assert_eq!((queue.in_flight(), queue.free_len), (PageCount::ZERO, 16));
}

#[test]
fn lending_fails_as_a_whole() {
    let ram = TestRam::new(8);
    assert!(PfnQueue::lend(&ram, 256).is_none());
    assert_eq!(ram.lent(), 0);
}
