//! The migratetype of each pageblock.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

use abi::{PageCount, Pfn};

use crate::memdesc::{MigrateType, Order};

/// One byte per pageblock (2 MiB) of the zone's span, gaps included.
///
/// Read by anybody; written under the zone lock.
#[derive(Debug)]
pub struct PageblockTable {
    base: Pfn,
    types: NonNull<AtomicU8>,
    len: usize,
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
    /// `types` points to `len` initialised cells that live as long as the
    /// table and are reached through it only.
    pub const unsafe fn new(base: Pfn, types: NonNull<AtomicU8>, len: usize) -> Self {
        Self { base, types, len }
    }

    /// The type of the pageblock that holds `pfn`; a frame outside the zone is
    /// isolated: nobody allocates it.
    pub fn get(&self, pfn: Pfn) -> MigrateType {
        let number = self.cell(pfn).map_or(u8::MAX, |cell| cell.load(Ordering::Relaxed));
        MigrateType::from_index(usize::from(number)).unwrap_or(MigrateType::Isolate)
    }

    /// Sets the type of the pageblock that holds `pfn`. The zone lock is held.
    pub(crate) fn set(&self, pfn: Pfn, migratetype: MigrateType) {
        if let Some(cell) = self.cell(pfn) {
            cell.store(migratetype as u8, Ordering::Relaxed);
        }
    }

    fn cell(&self, pfn: Pfn) -> Option<&AtomicU8> {
        let block = pfn.offset_from(self.base)?.get() >> Order::PAGEBLOCK.get();
        let index = usize::try_from(block).ok().filter(|&index| index < self.len)?;
        // SAFETY: `index` is below `len`, and `types` has `len` cells (`Self::new`).
        let cell = unsafe { self.types.add(index) };
        // SAFETY: the cell is initialised and lives as long as `self` (`Self::new`).
        Some(unsafe { cell.as_ref() })
    }
}
