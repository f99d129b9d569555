//! Spaces, VMAs and the calls on them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::vec::Vec;

use super::*;
use crate::addr::{PMD_SIZE, USER_END, USER_START, VirtAddr};
use crate::errno::Errno;
use crate::memory::Memory;
use crate::mm::{Base, Mm};
use crate::pgtable::PageProt;
use crate::testing::{self, TestPlatform};

mod map;
mod vma_locks;

type Args<'m> = MmapArgs<'m, 'm, TestPlatform>;
type Space<'m> = AddressSpace<'m, TestPlatform>;

const PAGE: u64 = abi::PAGE_SIZE;
/// Where tests map at fixed addresses.
const HERE: u64 = 0x10_0000_0000;

fn va(address: u64) -> VirtAddr {
    VirtAddr::new(address).unwrap()
}

fn base() -> Base<TestPlatform> {
    let memory: Memory<TestPlatform> = testing::memory(4096);
    Base::new(memory).unwrap()
}

/// Runs a test with a memory manager and checks that nothing of it is left.
fn with_mm(test: impl for<'m> FnOnce(&Mm<'m, TestPlatform>)) {
    let base = base();
    let mm = Mm::new(&base);
    mm.settle();
    let free = base.memory.free_pages();
    test(&mm);
    mm.settle();
    for cache in base.caches.all() {
        assert_eq!(cache.stats(&base.memory).in_use, 0, "{}", cache.name());
    }
    assert_eq!(base.memory.free_pages(), free);
    assert!(base.memory.census().is_consistent());
}

/// Runs a test with one space.
fn with_space(test: impl for<'m> FnOnce(&Mm<'m, TestPlatform>, &Space<'m>)) {
    with_mm(|mm| {
        let space = mm.new_space().unwrap();
        test(mm, &space);
        mm.exit_space(space);
    });
}

/// Start and length in pages of each VMA, relative to `HERE`.
fn layout(space: &Space<'_>) -> Vec<(u64, u64)> {
    let guard = space.read();
    let all = guard.iter().map(|vma| {
        let range = vma.range();
        ((range.start().get() - HERE) / PAGE, range.pages().get())
    });
    all.collect()
}
