//! A walk through the tables in RAM.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PAGE_SHIFT, PageCount, Pfn};

use super::tlb::{DirectoryEntry, Tlb, TlbEntry};
use super::{MmuAccess, PageFault};
use crate::memdesc::{Tag, Word};
use crate::memory::Memory;
use crate::platform::Platform;

// Bits by the SDM.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Address bits that a 2 MiB leaf must not have.
const LARGE_RESERVED: u64 = 0x001f_e000;

/// What the entries on the way allow together.
#[derive(Clone, Copy)]
struct Rights {
    user: bool,
    writable: bool,
    executable: bool,
}

impl Rights {
    const ALL: Self = Self { user: true, writable: true, executable: true };

    const fn under(self, entry: u64) -> Self {
        Self {
            user: self.user && entry & USER != 0,
            writable: self.writable && entry & WRITABLE != 0,
            executable: self.executable && entry & NO_EXECUTE == 0,
        }
    }

    const fn allow(self, access: MmuAccess) -> bool {
        match access {
            MmuAccess::Read => self.user,
            MmuAccess::Write => self.user && self.writable,
            MmuAccess::Exec => self.user && self.executable,
        }
    }
}

/// Walks from `root`, sets A (and D for a store) in the leaf, and returns the
/// translation.
pub(super) fn walk<P: Platform>(
    tlb: &mut Tlb,
    memory: &Memory<P>,
    root: Pfn,
    va: u64,
    access: MmuAccess,
) -> Result<TlbEntry, PageFault> {
    loop {
        let (slot, level, rights) = find_leaf(tlb, memory, root, va, access)?;
        let seen = slot.load(Ordering::Acquire);
        if seen & PRESENT == 0 {
            return Err(PageFault::new(access, false));
        }
        let rights = rights.under(seen);
        if !rights.allow(access) {
            return Err(PageFault::new(access, true));
        }
        let pfn = Pfn::containing(seen & ADDRESS);
        let pages = 1u64 << (9 * level);
        let last = pfn.checked_add(PageCount::new(pages - 1)).unwrap_or(pfn);
        let beyond = memory.words().load(pfn).is_err() || memory.words().load(last).is_err();
        if beyond || (level == 1 && seen & LARGE_RESERVED != 0) {
            return Err(PageFault { reserved: true, ..PageFault::new(access, true) });
        }
        let dirty = if access == MmuAccess::Write { DIRTY } else { 0 };
        let marked = seen | ACCESSED | dirty;
        // As the CPU does: A and D go into the entry that was checked, or it looks again.
        if slot.compare_exchange(seen, marked, Ordering::AcqRel, Ordering::Acquire).is_err() {
            continue;
        }
        return Ok(TlbEntry {
            root,
            page: va >> PAGE_SHIFT & !(pages - 1),
            order: 9 * level,
            pfn,
            readable: rights.user,
            writable: rights.writable,
            executable: rights.executable,
            dirty: marked & DIRTY != 0,
            word: memory.words().load(pfn).unwrap_or(Word::EMPTY),
        });
    }
}

/// The slot of the leaf for `va`, its level, and what the tables above allow.
fn find_leaf<'m, P: Platform>(
    tlb: &mut Tlb,
    memory: &'m Memory<P>,
    root: Pfn,
    va: u64,
    access: MmuAccess,
) -> Result<(&'m AtomicU64, u32, Rights), PageFault> {
    let block = va >> 21;
    // Paging-structure caches are used or not as the CPU likes.
    if let Some(table) = tlb.table(root, block)
        && !tlb.random().is_multiple_of(4)
    {
        return Ok((slot(memory, table, va, 0), 0, Rights::ALL));
    }
    let (mut table, mut rights) = (root, Rights::ALL);
    for level in (1..4).rev() {
        let slot = slot(memory, table, va, level);
        let entry = slot.load(Ordering::Acquire);
        if level == 1 && entry & (PRESENT | LARGE) != PRESENT {
            return Ok((slot, 1, rights));
        }
        if entry & PRESENT == 0 {
            return Err(PageFault::new(access, false));
        }
        table = Pfn::containing(entry & ADDRESS);
        if entry & LARGE != 0 || memory.words().load(table).is_err() {
            return Err(PageFault { reserved: true, ..PageFault::new(access, true) });
        }
        if entry & ACCESSED == 0 {
            slot.fetch_or(ACCESSED, Ordering::AcqRel);
        }
        rights = rights.under(entry);
    }
    // The whole way must allow everything for its end to be enough to remember.
    if rights.user && rights.writable && rights.executable {
        tlb.remember(DirectoryEntry { root, block, table });
    }
    Ok((slot(memory, table, va, 0), 0, rights))
}

/// Slot of a table for `va`.
///
/// # Panics
/// If the frame is no page table: it was freed while an MMU could still get there.
fn slot<P: Platform>(memory: &Memory<P>, table: Pfn, va: u64, level: u32) -> &AtomicU64 {
    let word = memory.words().load(table).unwrap_or(Word::EMPTY);
    assert!(word.tag() == Tag::PtDesc, "walk of {va:#x} uses {table:?} as a table: {word:?}");
    let index = usize::try_from(va >> (PAGE_SHIFT + 9 * level) & 511)
        .unwrap_or_else(|_| unreachable!("nine bits"));
    let frame = memory.platform().frame_ptr(table).cast::<AtomicU64>();
    // SAFETY: below 512 entries of 8 bytes, so inside the frame.
    let slot = unsafe { frame.add(index) };
    // SAFETY: a page table's words are reached as atomics only, and the frame is one.
    unsafe { slot.as_ref() }
}
