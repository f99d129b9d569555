//! 32 and 64 bytes: page structures with links of their own.

use core::ptr::NonNull;

use super::{Free, Layout, Use};
use crate::sync::shim::{AtomicU32, Ordering};

/// In the flags: the page heads a free block.
const BUDDY: u64 = 1;
/// In the flags: where its use stands.
const USE_SHIFT: u64 = 1;
/// In the flags of a 32-byte page: where the order stands.
const ORDER_SHIFT: u32 = 8;
/// In a link: none.
const NONE: u64 = u64::MAX;

fn link(to: Option<u32>) -> u64 {
    to.map_or(NONE, u64::from)
}

fn unlink(link: u64) -> Option<u32> {
    u32::try_from(link).ok()
}

const fn flag(what: Use) -> u64 {
    1 << (what as u64 + USE_SHIFT)
}

#[derive(Debug)]
pub(super) enum Pages32 {}

/// Four words.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Page32 {
    flags: u64,
    /// The folio or page-table descriptor.
    descriptor: Option<NonNull<u8>>,
    links: [u64; 2],
}

const _: () = assert!(size_of::<Page32>() == 32);

impl Layout for Pages32 {
    const NAME: &'static str = "32 B";
    const FOLIO_BYTES: usize = 80;
    const TABLE_BYTES: usize = 32;
    type Entry = Page32;

    fn init(table: &mut [Page32], at: u32) {
        table[at as usize] = Page32 { flags: 0, descriptor: None, links: [NONE; 2] };
    }

    fn free(table: &[Page32], at: u32) -> Option<Free> {
        let page = &table[at as usize];
        let order = u32::try_from(page.flags >> ORDER_SHIFT).ok()?;
        let [prev, next] = page.links.map(unlink);
        (page.flags & BUDDY != 0).then_some(Free { order, prev, next })
    }

    fn set_free(table: &mut [Page32], at: u32, free: Free) {
        let page = &mut table[at as usize];
        page.flags = BUDDY | u64::from(free.order) << ORDER_SHIFT;
        page.links = [link(free.prev), link(free.next)];
    }

    fn set_tail(table: &mut [Page32], at: u32) {
        table[at as usize].flags = 0;
    }

    fn take(table: &mut [Page32], at: u32, _order: u32) {
        table[at as usize].flags = 0;
    }

    fn begin(
        table: &mut [Page32],
        at: u32,
        order: u32,
        what: Use,
        descriptor: Option<NonNull<u8>>,
    ) {
        for page in &mut table[at as usize..(at + (1 << order)) as usize] {
            page.flags = flag(what);
            page.descriptor = descriptor;
        }
    }

    fn end(table: &mut [Page32], at: u32, order: u32) {
        for page in &mut table[at as usize..(at + (1 << order)) as usize] {
            page.flags = 0;
            page.descriptor = None;
        }
    }

    fn count(table: &[Page32], at: u32) -> Option<&AtomicU32> {
        let page = &table[at as usize];
        let descriptor = page.descriptor.filter(|_| page.flags & flag(Use::Folio) != 0)?;
        // SAFETY: a live descriptor, which begins with its count.
        Some(unsafe { descriptor.cast::<AtomicU32>().as_ref() })
    }
}

#[derive(Debug)]
pub(super) enum Pages64 {}

/// In a link of a 64-byte page: none. Its links are even: odd is a tail's.
const NO_PAGE: u64 = u64::MAX - 1;

fn even_link(to: Option<u32>) -> u64 {
    to.map_or(NO_PAGE, |at| u64::from(at) << 1)
}

fn even_unlink(link: u64) -> Option<u32> {
    u32::try_from(link >> 1).ok()
}

/// The size and the fields of today's `struct page`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Page64 {
    flags: u64,
    /// On a free list: previous and next. In a tail: twice the head and 1, 0.
    links: [u64; 2],
    mapping: u64,
    index: u64,
    /// Order of a free block.
    private: u64,
    refcount: AtomicU32,
    mapcount: AtomicU32,
    owner: u64,
}

const _: () = assert!(size_of::<Page64>() == 64);

impl Layout for Pages64 {
    const NAME: &'static str = "64 B";
    const FOLIO_BYTES: usize = 0;
    const TABLE_BYTES: usize = 0;
    type Entry = Page64;

    fn init(table: &mut [Page64], at: u32) {
        table[at as usize] = Page64 {
            flags: 0,
            links: [NO_PAGE; 2],
            mapping: 0,
            index: 0,
            private: 0,
            refcount: AtomicU32::new(0),
            mapcount: AtomicU32::new(0),
            owner: 0,
        };
    }

    fn free(table: &[Page64], at: u32) -> Option<Free> {
        let page = &table[at as usize];
        let order = u32::try_from(page.private).ok()?;
        let [prev, next] = page.links.map(even_unlink);
        (page.flags & BUDDY != 0).then_some(Free { order, prev, next })
    }

    fn set_free(table: &mut [Page64], at: u32, free: Free) {
        let page = &mut table[at as usize];
        page.flags = BUDDY;
        page.private = u64::from(free.order);
        page.links = [even_link(free.prev), even_link(free.next)];
    }

    fn set_tail(table: &mut [Page64], at: u32) {
        let page = &mut table[at as usize];
        page.flags = 0;
        page.private = 0;
    }

    fn take(table: &mut [Page64], at: u32, _order: u32) {
        let page = &mut table[at as usize];
        page.flags = 0;
        page.private = 0;
    }

    fn begin(table: &mut [Page64], at: u32, order: u32, what: Use, _: Option<NonNull<u8>>) {
        let head = &mut table[at as usize];
        head.flags = flag(what) | u64::from(order) << ORDER_SHIFT;
        head.links = [NO_PAGE; 2];
        head.mapping = u64::from(at) | 1;
        head.index = u64::from(at);
        head.mapcount.store(0, Ordering::Relaxed);
        head.refcount.store(1, Ordering::Release);
        for tail in &mut table[at as usize + 1..(at + (1 << order)) as usize] {
            tail.links[0] = u64::from(at) << 1 | 1;
        }
    }

    fn end(table: &mut [Page64], at: u32, order: u32) {
        let head = &mut table[at as usize];
        head.flags = 0;
        head.mapping = 0;
        head.refcount.store(0, Ordering::Relaxed);
        for tail in &mut table[at as usize + 1..(at + (1 << order)) as usize] {
            tail.links[0] = NO_PAGE;
        }
    }

    fn count(table: &[Page64], at: u32) -> Option<&AtomicU32> {
        let page = &table[at as usize];
        let head = if page.links[0] & 1 == 1 {
            &table[usize::try_from(page.links[0] >> 1).ok()?]
        } else {
            page
        };
        (head.flags & flag(Use::Folio) != 0 && head.flags & BUDDY == 0).then_some(&head.refcount)
    }
}
