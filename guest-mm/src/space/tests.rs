//! Spaces, VMAs and the calls on them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::vec::Vec;

use super::*;
use crate::addr::{PMD_SIZE, USER_END, USER_START, VirtAddr};
use crate::errno::Errno;
use crate::mm::{Base, Mm};
use crate::pagecache::FileRef;
use crate::pgtable::PageProt;
use crate::platform::FaultSite;
use crate::scenario::{Access, Machine, Signal};
use crate::testing::{self, TestPlatform};

mod advice;
mod exhaustion;
mod forks;
mod huge;
mod map;
mod model;
mod protect;
mod remap;
mod vma_locks;

type Args<'m> = MmapArgs<'m, 'm, TestPlatform>;
type Space<'m> = AddressSpace<'m, TestPlatform>;
type TestMm<'m> = Mm<'m, TestPlatform>;

const PAGE: u64 = abi::PAGE_SIZE;
/// Where tests map at fixed addresses.
const HERE: u64 = 0x10_0000_0000;
const RW: PageProt = PageProt::READ.union(PageProt::WRITE);

fn va(address: u64) -> VirtAddr {
    VirtAddr::new(address).unwrap()
}

/// The address of page `page` of the place where tests map.
const fn at(page: u64) -> u64 {
    HERE + page * PAGE
}

#[track_caller]
fn check(mm: &TestMm<'_>) {
    let census = mm.census(&[]);
    let found: Vec<_> = census.discrepancies().iter().map(|one| one.to_string()).collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// Runs a test with a memory manager over `pages` pages, and checks that nothing of it is left.
fn with_pages(pages: u64, test: impl for<'m> FnOnce(&TestMm<'m>)) {
    let base = Base::new(testing::memory(pages)).unwrap();
    let mm = Mm::new(&base);
    mm.settle();
    let free = base.memory.free_pages();
    test(&mm);
    mm.platform().leave();
    mm.settle();
    check(&mm);
    for cache in base.caches.all() {
        assert_eq!(cache.stats(&base.memory).in_use, 0, "{}", cache.name());
    }
    assert_eq!(base.memory.free_pages(), free);
}

fn with_mm(test: impl for<'m> FnOnce(&TestMm<'m>)) {
    with_pages(4096, test);
}

/// Ends a space, and checks all books before.
#[track_caller]
fn exit<'m>(mm: &TestMm<'m>, space: SpaceRef<'m, TestPlatform>) {
    mm.platform().leave();
    check(mm);
    mm.exit_space(space);
}

/// Runs a test with one space.
fn with_space(test: impl for<'m> FnOnce(&TestMm<'m>, &Space<'m>)) {
    with_mm(|mm| {
        let space = mm.new_space().unwrap();
        test(mm, &space);
        exit(mm, space);
    });
}

fn load<'m>(mm: &TestMm<'m>, space: &Space<'m>, address: u64) -> Result<u64, Signal> {
    mm.platform().access(mm, space, address, Access::LoadU64)
}

fn store<'m>(mm: &TestMm<'m>, space: &Space<'m>, address: u64, value: u64) -> Result<(), Signal> {
    mm.platform().access(mm, space, address, Access::StoreU64(value)).map(drop)
}

/// Maps pages `first..first + pages`, private and anonymous, and writes its number into each.
fn filled<'m>(mm: &TestMm<'m>, space: &Space<'m>, first: u64, pages: u64) {
    mm.mmap(space, Args::anonymous(pages * PAGE).fixed(at(first))).unwrap();
    for page in first..first + pages {
        store(mm, space, at(page), page + 1).unwrap();
    }
}

/// A file of `pages` pages, each with its number plus 1000.
fn file<'m>(mm: &TestMm<'m>, pages: u64) -> FileRef<'m, TestPlatform> {
    let file = mm.create_file(b"file").unwrap();
    for page in 0..pages {
        mm.write_file(&file, page * PAGE, &(1000 + page).to_ne_bytes()).unwrap();
    }
    mm.truncate_file(&file, pages * PAGE).unwrap();
    file
}

fn end_file<'m>(mm: &TestMm<'m>, file: FileRef<'m, TestPlatform>) {
    mm.unlink_file(b"file").unwrap();
    mm.file_put(file);
}

/// A mapping of `pages` pages of `file` from page `offset`, at page `first`.
fn map_file<'m>(
    mm: &TestMm<'m>,
    space: &Space<'m>,
    file: &FileRef<'m, TestPlatform>,
    (first, pages, offset): (u64, u64, u64),
    flags: MapFlags,
) {
    let source = MapSource { file, offset: offset * PAGE, readable: true, writable: true };
    let args = MmapArgs {
        addr: at(first),
        bytes: pages * PAGE,
        prot: RW,
        flags: flags | MapFlags::FIXED,
        source: Some(source),
    };
    mm.mmap(space, args).unwrap();
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
