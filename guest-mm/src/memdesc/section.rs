//! Blocks of memory that came to life after the start, found by frame number.
//!
//! What the boot map names is in [`WordTable`](super::WordTable)'s own regions, which never change. Memory
//! that is added later lies in *sections*, 128 MiB of address space each, at most one block in each;
//! a section's slot points to the block's header, which lies in the block itself like its words.
//!
//! # Readers without a lock
//! A slot is published with Release after words and header were written, and read with Acquire.
//! A block is taken out of its slot under the zone lock, and its memory goes only after a grace
//! period. So whoever looks a frame up holds the zone lock, is in a read section, or owns a frame
//! of the block (with a frame that is not offline the block cannot be removed).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

use abi::{PageCount, Pfn, PfnRange};

use super::cell::WordCell;
use super::order::Order;
use super::table::Region;
use super::word::ZONE_MAX_PAGES;
use crate::sync::shim::AtomicU8;

/// log2 of a section's pages: 128 MiB, as Linux's on x86-64.
pub const SECTION_ORDER: u32 = 15;
/// Pages of a section.
pub const SECTION_PAGES: PageCount = PageCount::new(1 << SECTION_ORDER);
/// Sections that a zone may touch.
const SECTIONS: usize = (ZONE_MAX_PAGES >> SECTION_ORDER) as usize + 1;

/// Where the tables of one block are. Lies in the block, before everything else.
#[derive(Debug)]
pub struct HotBlock {
    range: PfnRange,
    words: NonNull<WordCell>,
    types: NonNull<AtomicU8>,
}

// SAFETY: the pointers lead to atomic cells that any thread may use (`HotBlock::new`).
unsafe impl Send for HotBlock {}
// SAFETY: as for `Send`.
unsafe impl Sync for HotBlock {}

impl HotBlock {
    /// The block `range`, with its words and the types of its pageblocks.
    ///
    /// # Safety
    /// `words` points to an initialised cell per frame and `types` to one per pageblock of
    /// `range`, alive and reached through cells only for as long as the header is published, and
    /// for a grace period more.
    pub(crate) const unsafe fn new(
        range: PfnRange,
        words: NonNull<WordCell>,
        types: NonNull<AtomicU8>,
    ) -> Self {
        Self { range, words, types }
    }

    /// Its frames.
    pub const fn range(&self) -> PfnRange {
        self.range
    }

    pub(super) const fn region(&self) -> Region {
        // SAFETY: what `Region::new` asks for is what `Self::new` was promised.
        unsafe { Region::new(self.range, self.words) }
    }

    /// The cell of `pfn`; `None` outside the block.
    #[inline]
    fn cell(&self, pfn: Pfn) -> Option<&WordCell> {
        if !self.range.contains(pfn) {
            return None;
        }
        let offset = usize::try_from(pfn.offset_from(self.range.start())?.get()).ok()?;
        // SAFETY: `offset` is below the block's length, for which there are cells (`Self::new`).
        let cell = unsafe { self.words.add(offset) };
        // SAFETY: initialised and alive while the header can be reached (`Self::new`).
        Some(unsafe { cell.as_ref() })
    }

    /// The cells of all its pageblocks.
    pub(crate) fn pageblocks(&self) -> impl Iterator<Item = &AtomicU8> {
        let starts = self.range.iter().step_by(1 << Order::PAGEBLOCK.get());
        starts.filter_map(|start| self.pageblock(start))
    }

    /// The cell of the pageblock that holds `pfn`.
    fn pageblock(&self, pfn: Pfn) -> Option<&AtomicU8> {
        if !self.range.contains(pfn) {
            return None;
        }
        let pages = pfn.offset_from(self.range.start())?.get();
        let index = usize::try_from(pages >> Order::PAGEBLOCK.get()).ok()?;
        // SAFETY: blocks consist of whole pageblocks, each with a cell (`Self::new`).
        let cell = unsafe { self.types.add(index) };
        // SAFETY: as in `cell`.
        Some(unsafe { cell.as_ref() })
    }
}

/// The slots of a zone's sections.
pub(crate) struct Sections {
    /// Number of the section that holds the zone's frame 0.
    first: u64,
    slots: [AtomicPtr<HotBlock>; SECTIONS],
}

impl core::fmt::Debug for Sections {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.blocks().map(HotBlock::range)).finish()
    }
}

impl Sections {
    /// No block in a zone that begins at `base`.
    pub(crate) const fn new(base: Pfn) -> Self {
        Self {
            first: base.number() >> SECTION_ORDER,
            slots: [const { AtomicPtr::new(core::ptr::null_mut()) }; SECTIONS],
        }
    }

    fn slot(&self, pfn: Pfn) -> Option<&AtomicPtr<HotBlock>> {
        let section = (pfn.number() >> SECTION_ORDER).checked_sub(self.first)?;
        self.slots.get(usize::try_from(section).ok()?)
    }

    /// The block in the section that holds `pfn`, which need not be one of its frames.
    #[inline]
    pub(crate) fn in_section_of(&self, pfn: Pfn) -> Option<&HotBlock> {
        // Acquire: pairs with the Release in `publish`; the header and the words were written before.
        let block = self.slot(pfn)?.load(Ordering::Acquire);
        // SAFETY: null, or a header that stays until nobody can hold it (the module's rule).
        unsafe { block.as_ref() }
    }

    /// The cell of `pfn`, if a block holds it.
    #[inline]
    pub(super) fn cell(&self, pfn: Pfn) -> Option<&WordCell> {
        self.in_section_of(pfn)?.cell(pfn)
    }

    /// All blocks, ascending.
    pub(crate) fn blocks(&self) -> impl DoubleEndedIterator<Item = &HotBlock> {
        self.slots.iter().filter_map(|slot| {
            // Acquire: as in `in_section_of`.
            let block = slot.load(Ordering::Acquire);
            // SAFETY: as in `in_section_of`.
            unsafe { block.as_ref() }
        })
    }

    /// The cell of the pageblock that holds `pfn`, if a block holds it.
    pub(crate) fn pageblock(&self, pfn: Pfn) -> Option<&AtomicU8> {
        self.in_section_of(pfn)?.pageblock(pfn)
    }

    /// Whether the zone has a slot for `pfn`.
    #[cfg(not(loom))]
    pub(crate) fn reaches(&self, pfn: Pfn) -> bool {
        self.slot(pfn).is_some()
    }

    /// Lets everybody find `block`; `false` if its section has one already. Under the zone lock.
    ///
    /// # Safety
    /// The header stays where it is, unchanged, until it was [taken out](Self::take_out) and a
    /// grace period has passed.
    #[cfg(not(loom))]
    pub(crate) unsafe fn publish(&self, block: NonNull<HotBlock>) -> bool {
        // SAFETY: the header was written by the caller, who alone knows it.
        let start = unsafe { block.as_ref() }.range.start();
        let null = core::ptr::null_mut();
        self.slot(start).is_some_and(|slot| {
            // Release: pairs with the Acquire of readers.
            slot.compare_exchange(null, block.as_ptr(), Ordering::Release, Ordering::Relaxed)
                .is_ok()
        })
    }

    /// Takes the block that begins at `start` out: nobody finds it any more, those who have found
    /// it may still use it. Under the zone lock.
    #[cfg(not(loom))]
    pub(crate) fn take_out(&self, start: Pfn) -> Option<NonNull<HotBlock>> {
        self.in_section_of(start).filter(|block| block.range.start() == start)?;
        // Relaxed: the grace period that follows orders what readers did before what happens to the memory.
        NonNull::new(self.slot(start)?.swap(core::ptr::null_mut(), Ordering::Relaxed))
    }
}
