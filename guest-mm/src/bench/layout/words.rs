//! 8 bytes: the words of this memory manager.

use core::ptr::NonNull;

use abi::Pfn;

use super::{Free, Layout, Use};
use crate::buddy::{frozen_word, tail_word};
use crate::memdesc::{
    Buddy, Descriptor, DescriptorKind, Link, Memdesc, MigrateType, Order, Word, WordCell,
};
use crate::sync::shim::AtomicU32;

/// With `CHECKED`, every word changes by a compare-and-swap that the transition
/// table allows, as everywhere in this memory manager; without, its owner just
/// writes it, which tells what the checks cost and what the layout.
#[derive(Debug)]
pub(super) struct Words<const CHECKED: bool>;

const fn link(to: Option<u32>) -> Link {
    match to {
        Some(at) => match Link::to(at as u64) {
            Some(link) => link,
            None => Link::NONE,
        },
        None => Link::NONE,
    }
}

fn unlink(link: Link) -> Option<u32> {
    link.index().and_then(|at| u32::try_from(at).ok())
}

fn order(order: u32) -> Order {
    Order::try_from(order).unwrap_or(Order::MAX)
}

fn tail(at: u32) -> Word {
    tail_word(Pfn::new(u64::from(at)).unwrap_or(Pfn::ZERO))
}

/// Gives frame `at` the word `to`.
fn step<const CHECKED: bool>(table: &mut [WordCell], at: u32, to: Word) {
    let cell = &mut table[at as usize];
    if CHECKED {
        let stepped = cell.transition(cell.load(), to);
        assert_eq!(stepped, Ok(()), "frame {at}");
    } else {
        *cell = WordCell::new(to);
    }
}

impl<const CHECKED: bool> Layout for Words<CHECKED> {
    const NAME: &'static str = if CHECKED { "8 B" } else { "8 B unchecked" };
    const FOLIO_BYTES: usize = 64;
    const TABLE_BYTES: usize = 32;
    type Entry = WordCell;

    fn init(table: &mut [WordCell], at: u32) {
        // The largest blocks have no block that they could be a tail of.
        let word = if at.is_multiple_of(1 << Order::MAX.get()) { Word::EMPTY } else { tail(at) };
        table[at as usize] = WordCell::new(word);
    }

    fn free(table: &[WordCell], at: u32) -> Option<Free> {
        let buddy = table[at as usize].load().as_buddy()?;
        Some(Free { order: buddy.order.get(), prev: unlink(buddy.prev), next: unlink(buddy.next) })
    }

    fn set_free(table: &mut [WordCell], at: u32, free: Free) {
        let buddy = Buddy {
            order: order(free.order),
            migratetype: MigrateType::Movable,
            reported: false,
            prev: link(free.prev),
            next: link(free.next),
        };
        step::<CHECKED>(table, at, Memdesc::Buddy(buddy).encode());
    }

    fn set_tail(table: &mut [WordCell], at: u32) {
        step::<CHECKED>(table, at, tail(at));
    }

    fn take(table: &mut [WordCell], at: u32, block: u32) {
        step::<CHECKED>(table, at, frozen_word(order(block)));
    }

    fn begin(
        table: &mut [WordCell],
        at: u32,
        order: u32,
        what: Use,
        descriptor: Option<NonNull<u8>>,
    ) {
        let kind = match what {
            Use::Folio => DescriptorKind::Anon,
            Use::Table => DescriptorKind::PtDesc,
            Use::Slab => DescriptorKind::Slab,
        };
        // A slab's descriptor lies in its frame; the word points to any place.
        let address = descriptor.map_or(FIRST_ADDRESS, |at| at.addr().get() as u64);
        let Some(descriptor) = Descriptor::new(kind, address) else { return };
        let word = Memdesc::Descriptor(descriptor).encode();
        for frame in (at..at + (1 << order)).rev() {
            step::<CHECKED>(table, frame, word);
        }
    }

    fn end(table: &mut [WordCell], at: u32, block: u32) {
        step::<CHECKED>(table, at, frozen_word(order(block)));
        for frame in at + 1..at + (1 << block) {
            step::<CHECKED>(table, frame, tail(frame));
        }
    }

    fn count(table: &[WordCell], at: u32) -> Option<&AtomicU32> {
        let Ok(Memdesc::Descriptor(descriptor)) = table[at as usize].load().decode() else {
            return None;
        };
        if descriptor.kind != DescriptorKind::Anon {
            return None;
        }
        let address = usize::try_from(descriptor.address()).ok()?;
        let count = core::ptr::with_exposed_provenance::<AtomicU32>(address);
        // SAFETY: the word holds the address of a live descriptor, exposed in
        // `Region::describe`, which begins with its count.
        unsafe { count.as_ref() }
    }
}

/// Where no descriptor is, in the upper half and aligned.
const FIRST_ADDRESS: u64 = 0xffff_8000_0000_0000;
