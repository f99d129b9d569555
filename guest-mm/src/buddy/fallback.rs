//! Memory of another type: fallback, claiming of pageblocks, isolation.

use abi::{Pfn, PfnRange};

use super::free_list::Corrupt;
use super::zone::FreeBlock;
use super::{FrameMap, Zone};
use crate::memdesc::{MigrateType, Order, Word};

/// Where to look when a type's own lists are empty, best first.
const fn fallbacks(wanted: MigrateType) -> [MigrateType; 2] {
    match wanted {
        MigrateType::Movable => [MigrateType::Reclaimable, MigrateType::Unmovable],
        MigrateType::Reclaimable => [MigrateType::Unmovable, MigrateType::Movable],
        MigrateType::Unmovable
        | MigrateType::HighAtomic
        | MigrateType::Cma
        | MigrateType::Isolate => [MigrateType::Reclaimable, MigrateType::Movable],
    }
}

/// Whether a request may change the type of the pageblock around a free block
/// of `found`: yes if the block is large, or if the request would otherwise
/// spread immobile pages over many pageblocks.
fn may_claim(found: Order, wanted: MigrateType) -> bool {
    found.get() >= Order::PAGEBLOCK.get() / 2 || wanted != MigrateType::Movable
}

impl Zone {
    /// Serves a request from another type's lists: by claiming a pageblock,
    /// largest block first; else by taking one small block and leaving the rest.
    pub(super) fn take_fallback(
        &mut self,
        map: &FrameMap,
        order: Order,
        wanted: MigrateType,
    ) -> Option<FreeBlock> {
        for found in order.and_above().rev() {
            for other in fallbacks(wanted) {
                if self.list(found, other).is_empty() || !may_claim(found, wanted) {
                    continue;
                }
                let claimed = self.claim(map, found, other, wanted);
                if self.note_corruption(claimed) == Some(true) {
                    self.counters.claims += 1;
                    return self.take_from(map, order, wanted);
                }
            }
        }
        for found in order.and_above() {
            for other in fallbacks(wanted) {
                if !self.list(found, other).is_empty() {
                    self.counters.steals += 1;
                    let taken = self.take_first(map, found, other, order, other);
                    return self.note_corruption(taken);
                }
            }
        }
        None
    }

    /// Turns the pageblock of the first block of a list into one of `wanted`,
    /// if at least half of it is free.
    fn claim(
        &mut self,
        map: &FrameMap,
        found: Order,
        other: MigrateType,
        wanted: MigrateType,
    ) -> Result<bool, Corrupt> {
        let first = self.list(found, other).first(&map.words);
        let pfn = first.ok_or(Corrupt(map.words.base()))?;
        if found < Order::PAGEBLOCK && free_pages_in(map, pfn) < Order::PAGEBLOCK.pages().get() / 2
        {
            return Ok(false);
        }
        self.retype(map, pageblocks_of(pfn, found), wanted)?;
        Ok(true)
    }

    /// Gives whole pageblocks a new type and moves their free blocks to its lists.
    fn retype(
        &mut self,
        map: &FrameMap,
        range: PfnRange,
        migratetype: MigrateType,
    ) -> Result<(), Corrupt> {
        let mut pfn = range.start();
        while range.contains(pfn) {
            map.pageblocks.set(pfn, migratetype);
            let step = match map.words.load(pfn).ok().and_then(Word::as_buddy) {
                Some(_) => {
                    let (block, word) = self.unlink(map, pfn)?;
                    self.link(map, pfn, word, block.order, migratetype, block.reported)?;
                    block.order
                }
                None => Order::ZERO,
            };
            let Some(next) = pfn.checked_add(step.pages()) else { break };
            pfn = next;
        }
        // A block of order 10 may end with a pageblock whose head the walk skipped.
        if let Some(last) = range.end().number().checked_sub(1).and_then(Pfn::new) {
            map.pageblocks.set(last, migratetype);
        }
        Ok(())
    }

    /// Sets the pageblock around `pfn` aside for high-order requests that
    /// cannot wait, up to 1 % of the zone.
    pub(crate) fn reserve_high_atomic(&mut self, map: &FrameMap, pfn: Pfn) {
        let pageblock = Order::PAGEBLOCK.pages().get();
        if !map.pageblocks.get(pfn).is_mergeable()
            || self.high_atomic_pages + pageblock > self.managed / 100
        {
            return;
        }
        let done = self.retype(map, pageblocks_of(pfn, Order::ZERO), MigrateType::HighAtomic);
        if self.note_corruption(done).is_some() {
            self.high_atomic_pages += pageblock;
        }
    }

    /// Returns pageblocks of the high-order reserve that have free memory to
    /// ordinary use. Returns whether there were any.
    pub(crate) fn unreserve_high_atomic(&mut self, map: &FrameMap) -> bool {
        let mut any = false;
        for order in Order::all() {
            while let Some(pfn) = self.list(order, MigrateType::HighAtomic).first(&map.words) {
                let range = pageblocks_of(pfn, order);
                let done = self.retype(map, range, MigrateType::Movable);
                if self.note_corruption(done).is_none() {
                    return any;
                }
                self.high_atomic_pages = self.high_atomic_pages.saturating_sub(range.len().get());
                any = true;
            }
        }
        any
    }

    /// Counts a pageblock out of the high-order reserve.
    pub(super) fn note_reserve_left(&mut self) {
        let pageblock = Order::PAGEBLOCK.pages().get();
        self.high_atomic_pages = self.high_atomic_pages.saturating_sub(pageblock);
    }

    /// Gives the pageblock around `pfn` the type `migratetype` (CMA, isolated,
    /// or back). Its free blocks move to that type's lists; a free block that
    /// covers its neighbour too is split first.
    ///
    /// # Errors
    /// A free list is corrupt.
    pub(crate) fn set_pageblock(
        &mut self,
        map: &FrameMap,
        pfn: Pfn,
        migratetype: MigrateType,
    ) -> Result<(), Corrupt> {
        if map.pageblocks.get(pfn) == MigrateType::HighAtomic {
            self.note_reserve_left();
        }
        let range = pageblocks_of(pfn, Order::ZERO);
        self.split_above_pageblock(map, range.start())?;
        self.retype(map, range, migratetype)?;
        self.merge_pageblock(map, range.start())
    }

    /// Merges a pageblock that is one free block with its neighbour if it can.
    fn merge_pageblock(&mut self, map: &FrameMap, start: Pfn) -> Result<(), Corrupt> {
        let block = map.words.load(start).ok().and_then(Word::as_buddy);
        if block.is_none_or(|buddy| buddy.order != Order::PAGEBLOCK) {
            return Ok(());
        }
        let (block, word) = self.unlink(map, start)?;
        let free = FreeBlock { pfn: start, order: block.order, reported: block.reported, word };
        self.give(map, free)
    }
}

/// The pageblocks that a block touches.
fn pageblocks_of(pfn: Pfn, order: Order) -> PfnRange {
    let order = order.max(Order::PAGEBLOCK);
    let start = pfn.align_down(order.get());
    PfnRange::from_start(start, order.pages())
        .unwrap_or_else(|| unreachable!("a pageblock in RAM ends below 2^64"))
}

/// Free pages in the pageblock around `pfn`.
fn free_pages_in(map: &FrameMap, pfn: Pfn) -> u64 {
    let range = pageblocks_of(pfn, Order::ZERO);
    let mut free = 0;
    let mut pfn = range.start();
    while range.contains(pfn) {
        let step = match map.words.load(pfn).ok().and_then(Word::as_buddy) {
            Some(block) => {
                free += block.order.pages().get();
                block.order
            }
            None => Order::ZERO,
        };
        let Some(next) = pfn.checked_add(step.pages()) else { break };
        pfn = next;
    }
    free
}
