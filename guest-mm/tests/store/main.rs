//! The PFN stores against a map of blocks, and what failure leaves behind.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod baselines;
mod failure;
mod model;
#[path = "../support/mod.rs"]
mod support;

use abi::{Pfn, PfnRange};
use guest_mm::store::{Block, PfnStore, Reservation};

fn pfn(n: u64) -> Pfn {
    Pfn::new(n).unwrap()
}

fn range(start: u64, end: u64) -> PfnRange {
    PfnRange::new(pfn(start), pfn(end)).unwrap()
}

fn block(head: u64, order: u32) -> Block {
    Block::new(pfn(head), order).unwrap()
}

fn put(store: &impl PfnStore, block: Block) {
    store.reserve().unwrap().commit(block).unwrap();
}
