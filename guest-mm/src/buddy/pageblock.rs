//! What is kept per pageblock: its migratetype, and whether it is set aside or not worth a scan.

use core::ptr::NonNull;

use abi::{PageCount, Pfn};

use crate::memdesc::{HotBlock, MigrateType, Order, Sections};
use crate::sync::shim::{AtomicU8, Ordering};

/// Bits 0–2: the migratetype.
const TYPE: u8 = 0b0111;
/// Bit 3: compaction found nothing here the last time.
const SKIP: u8 = 1 << 3;
/// Bit 4: set aside. The type beneath stays, so that the end of an isolation needs no memory of it.
const ISOLATED: u8 = 1 << 4;

/// One byte per pageblock (2 MiB) of the zone's span at the start, gaps included;
/// blocks of memory that come to life later bring their own.
///
/// Read by anybody. Types are written under the zone lock; the skip bit by
/// anybody, as a hint to other scans that orders nothing.
#[derive(Debug)]
pub struct PageblockTable {
    base: Pfn,
    blocks: NonNull<AtomicU8>,
    len: usize,
    added: Sections,
}

// SAFETY: the pointer leads to atomics that any thread may use.
unsafe impl Send for PageblockTable {}
// SAFETY: as for `Send`.
unsafe impl Sync for PageblockTable {}

impl PageblockTable {
    /// Pageblocks that `pages` pages from an aligned base touch.
    pub const fn len_for(pages: PageCount) -> u64 {
        pages.get().div_ceil(Order::PAGEBLOCK.pages().get())
    }

    /// The table of `len` pageblocks from `base`, which is a multiple of one.
    ///
    /// # Safety
    /// `blocks` points to `len` initialised cells that live as long as the
    /// table and are reached through it only.
    pub const unsafe fn new(base: Pfn, blocks: NonNull<AtomicU8>, len: usize) -> Self {
        Self { base, blocks, len, added: Sections::new(base) }
    }

    /// The type of the pageblock that holds `pfn`; a frame outside the zone is
    /// isolated: nobody allocates it.
    pub fn get(&self, pfn: Pfn) -> MigrateType {
        let bits = self.cell(pfn).map_or(ISOLATED, |cell| cell.load(Ordering::Relaxed));
        if bits & ISOLATED != 0 { MigrateType::Isolate } else { type_in(bits) }
    }

    /// The type that the pageblock has when it is not isolated.
    pub fn beneath(&self, pfn: Pfn) -> MigrateType {
        self.cell(pfn).map_or(MigrateType::Isolate, |cell| type_in(cell.load(Ordering::Relaxed)))
    }

    /// Sets the type of the pageblock that holds `pfn`. The zone lock is held.
    ///
    /// [`MigrateType::Isolate`] keeps the type beneath; any other ends an isolation.
    pub fn set(&self, pfn: Pfn, migratetype: MigrateType) {
        let Some(cell) = self.cell(pfn) else { return };
        if migratetype == MigrateType::Isolate {
            cell.fetch_or(ISOLATED, Ordering::Relaxed);
            return;
        }
        let change = |bits| Some(bits & SKIP | migratetype as u8);
        // The skip bit is others' to change meanwhile. The closure never refuses.
        let changed = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        debug_assert!(changed.is_ok());
    }

    /// Sets the type that the pageblock has beneath an isolation. The zone lock is held.
    pub(crate) fn set_beneath(&self, pfn: Pfn, migratetype: MigrateType) {
        let Some(cell) = self.cell(pfn) else { return };
        let change = |bits| Some(bits & !TYPE | migratetype as u8);
        // As in `set`.
        let changed = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        debug_assert!(changed.is_ok());
    }

    /// Whether a scan of the pageblock found nothing since [`Self::forget_skips`].
    pub fn is_skipped(&self, pfn: Pfn) -> bool {
        self.cell(pfn).is_some_and(|cell| cell.load(Ordering::Relaxed) & SKIP != 0)
    }

    /// Notes that a scan of the pageblock found nothing.
    pub fn set_skipped(&self, pfn: Pfn) {
        if let Some(cell) = self.cell(pfn) {
            cell.fetch_or(SKIP, Ordering::Relaxed);
        }
    }

    /// Forgets what scans did not find.
    pub fn forget_skips(&self) {
        let added = self.added.blocks().flat_map(HotBlock::pageblocks);
        for cell in (0..self.len).filter_map(|index| self.cell_at(index)).chain(added) {
            cell.fetch_and(!SKIP, Ordering::Relaxed);
        }
    }

    /// The types of blocks that came to life after the start.
    #[cfg(not(loom))]
    pub(crate) const fn added(&self) -> &Sections {
        &self.added
    }

    fn cell(&self, pfn: Pfn) -> Option<&AtomicU8> {
        let block = pfn.offset_from(self.base)?.get() >> Order::PAGEBLOCK.get();
        let index = usize::try_from(block).ok()?;
        if index < self.len { self.cell_at(index) } else { self.added.pageblock(pfn) }
    }

    fn cell_at(&self, index: usize) -> Option<&AtomicU8> {
        if index >= self.len {
            return None;
        }
        // SAFETY: `index` is below `len`, and `blocks` has `len` cells (`Self::new`).
        let cell = unsafe { self.blocks.add(index) };
        // SAFETY: the cell is initialised and lives as long as `self` (`Self::new`).
        Some(unsafe { cell.as_ref() })
    }
}

fn type_in(bits: u8) -> MigrateType {
    MigrateType::from_index(usize::from(bits & TYPE)).unwrap_or(MigrateType::Isolate)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn with_table(test: impl FnOnce(&PageblockTable)) {
        let cells: Vec<_> = (0..4).map(|_| AtomicU8::new(MigrateType::Movable as u8)).collect();
        // SAFETY: the cells outlive the table and nobody else uses them.
        let table =
            unsafe { PageblockTable::new(Pfn::ZERO, NonNull::from(&cells[0]), cells.len()) };
        test(&table);
    }

    #[test]
    fn the_type_beneath_survives_an_isolation_and_the_skip_bit_both() {
        with_table(|table| {
            let pfn = Pfn::new(512).unwrap();
            table.set(pfn, MigrateType::Cma);
            table.set_skipped(pfn);
            table.set(pfn, MigrateType::Isolate);
            assert_eq!(table.get(pfn), MigrateType::Isolate);
            assert_eq!(table.beneath(pfn), MigrateType::Cma);
            assert!(table.is_skipped(pfn));
            table.set(pfn, MigrateType::Cma);
            assert_eq!(table.get(pfn), MigrateType::Cma);
            assert!(table.is_skipped(pfn));
            assert!(!table.is_skipped(Pfn::ZERO));
            table.forget_skips();
            assert!(!table.is_skipped(pfn));
            assert_eq!(table.get(pfn), MigrateType::Cma);
        });
    }

    #[test]
    fn a_frame_beyond_the_table_is_isolated_and_never_skipped() {
        with_table(|table| {
            let beyond = Pfn::new(4 * 512).unwrap();
            table.set(beyond, MigrateType::Movable);
            table.set_skipped(beyond);
            assert_eq!(table.get(beyond), MigrateType::Isolate);
            assert!(!table.is_skipped(beyond));
        });
    }
}
