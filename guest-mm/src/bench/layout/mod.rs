//! Page descriptors of 8, 32 and 64 bytes, laid out and run: the experiment
//! that asks what a frame costs.
//!
//! Layouts describe the same frames for the same buddy allocator and
//! the same use: blocks are taken, become folios (with one descriptor in the
//! 32- and 8-byte layouts, none beside the page's in the 64-byte one), page
//! tables or slabs, are looked up by any of their frames, and freed. Tables and
//! descriptors are real memory of the machine; the frames they describe are
//! numbers, nobody touches their contents. Everything runs on one CPU, without locks.
//!
//! * Words: ours, once with the transition table's compare-and-swaps and once
//!   without; folios 64 bytes, page tables 32; tails of a folio repeat its word.
//! * 32 bytes: four words, as in Linux's plan between: flags, descriptor, two for links;
//!   folios 80 bytes, page tables 32; every page of a folio points to it.
//! * 64 bytes: `struct page` of today; tails point to their head and are cleared when freed.

mod pages;
mod region;
mod words;
mod workload;

pub use workload::run;

use pages::{Pages32, Pages64};
use region::Region;
use words::Words;

use core::ptr::NonNull;

use crate::sync::shim::AtomicU32;

/// What describes a free block: its order and its neighbours on the free list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Free {
    order: u32,
    prev: Option<u32>,
    next: Option<u32>,
}

/// What a block is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Anonymous or file memory.
    Folio,
    /// A page table.
    Table,
    /// Small objects: nothing beside the frame's own descriptor in any layout
    /// (ours has it at the frame's end).
    Slab,
}

/// How frames are described. `table` has one entry per frame, in order.
trait Layout {
    /// Its name in the figures.
    const NAME: &'static str;
    /// Bytes of a folio's own descriptor; 0: it lies in the pages'.
    const FOLIO_BYTES: usize;
    /// Bytes of a page table's own descriptor.
    const TABLE_BYTES: usize;
    /// What a frame costs. All bytes 0 is a valid value.
    type Entry;

    /// Writes the entry of a frame that belongs to nobody yet.
    fn init(table: &mut [Self::Entry], at: u32);
    /// The free block whose head is `at`.
    fn free(table: &[Self::Entry], at: u32) -> Option<Free>;
    /// Makes `at`, an allocated head, a tail or a free head, the head of a free block.
    fn set_free(table: &mut [Self::Entry], at: u32, free: Free);
    /// Makes the head of a free block a tail: it merges with the one below.
    fn set_tail(table: &mut [Self::Entry], at: u32);
    /// Makes the free block at `at` an allocated one of `order`.
    fn take(table: &mut [Self::Entry], at: u32, order: u32);
    /// Gives the allocated block a use, with its descriptor if it has one of its own.
    fn begin(
        table: &mut [Self::Entry],
        at: u32,
        order: u32,
        what: Use,
        descriptor: Option<NonNull<u8>>,
    );
    /// Takes the use away.
    fn end(table: &mut [Self::Entry], at: u32, order: u32);
    /// The reference count of the folio that frame `at` belongs to.
    fn count(table: &[Self::Entry], at: u32) -> Option<&AtomicU32>;
}
