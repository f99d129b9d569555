//! Whether scattered free memory is what an allocation fails for.

use crate::buddy::Gfp;
use crate::memdesc::{MigrateType, Order};
use crate::mm::Mm;
use crate::platform::Platform;

/// Below, an allocation fails for want of memory rather than for want of order
/// (Linux `sysctl_extfrag_threshold`), in thousandths.
const THRESHOLD: u64 = 500;
/// Orders above are given up when memory, not order, is lacking (Linux `PAGE_ALLOC_COSTLY_ORDER`).
const COSTLY_ORDER: u32 = 3;

/// How free memory is spread, as seen from one order. A snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragmentation {
    /// The order.
    pub order: Order,
    /// Free pages.
    pub free_pages: u64,
    /// Free blocks of any order.
    pub free_blocks: u64,
    /// Blocks of the order that the free blocks contain.
    pub suitable_blocks: u64,
}

impl Fragmentation {
    /// Why an allocation fails, from 0, want of memory, to 1000, want of order;
    /// `None`: it does not.
    ///
    /// Linux's index: 1 − (1 + free pages / requested pages) / free blocks.
    pub fn index(&self) -> Option<u32> {
        if self.suitable_blocks > 0 {
            return None;
        }
        if self.free_blocks == 0 {
            return Some(0);
        }
        let missing = 1000 + self.free_pages * 1000 / self.order.pages().get();
        u32::try_from(1000_u64.saturating_sub(missing / self.free_blocks)).ok()
    }

    /// Free memory, in percent, that blocks of the order cannot use: how scattered it
    /// is (Linux `fragmentation_score_zone`).
    pub fn score(&self) -> u32 {
        let usable = self.suitable_blocks * self.order.pages().get();
        let unusable = self.free_pages.saturating_sub(usable) * 100;
        u32::try_from(unusable.checked_div(self.free_pages).unwrap_or(0)).unwrap_or(100)
    }
}

/// Whether compaction can help an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suitability {
    /// It can.
    Suitable,
    /// A block is free: there is nothing to do.
    Available,
    /// Too little memory is free to move pages to.
    NoMemory,
    /// Memory is lacking, not order.
    NotFragmented,
}

impl<P: Platform> Mm<'_, P> {
    /// How free memory is spread. Empties no CPU's list: what is there counts as used.
    pub fn fragmentation(&self, order: Order) -> Fragmentation {
        let zone = self.memory().zone().lock(self.platform());
        let mut found = Fragmentation { order, free_pages: 0, free_blocks: 0, suitable_blocks: 0 };
        for migratetype in MigrateType::ALL.into_iter().filter(|t| t.is_mergeable()) {
            for of in Order::all() {
                let blocks = zone.list(of, migratetype).len();
                found.free_blocks += blocks;
                found.free_pages += blocks * of.pages().get();
                if of >= order {
                    found.suitable_blocks += blocks << (of.get() - order.get());
                }
            }
        }
        found
    }

    /// Whether compaction can help an allocation of `order` with these flags
    /// (Linux `compaction_suitable`).
    pub fn compaction_suitable(&self, order: Order, gfp: Gfp) -> Suitability {
        let found = self.fragmentation(order);
        let marks = self.memory().watermarks();
        let pages = order.pages().get();
        if found.suitable_blocks > 0 && found.free_pages >= gfp.reserve(marks) + pages {
            return Suitability::Available;
        }
        // Pages are in two frames while they move, and the block itself is to be had.
        let costly = order.get() > COSTLY_ORDER;
        let floor = if costly { marks.low } else { marks.min };
        if found.free_pages < floor + 2 * pages {
            return Suitability::NoMemory;
        }
        match found.index() {
            Some(index) if costly && u64::from(index) <= THRESHOLD => Suitability::NotFragmented,
            _ => Suitability::Suitable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(order: u8, free_pages: u64, free_blocks: u64, suitable_blocks: u64) -> Fragmentation {
        let order = Order::new(order).unwrap();
        Fragmentation { order, free_pages, free_blocks, suitable_blocks }
    }

    #[test]
    fn the_index_tells_want_of_order_from_want_of_memory() {
        assert_eq!(of(9, 4096, 4096, 0).index(), Some(998), "single pages: all of it is order");
        assert_eq!(of(9, 8, 8, 0).index(), Some(874));
        assert_eq!(of(9, 256, 1, 0).index(), Some(0), "half a block: memory is lacking");
        assert_eq!(of(9, 0, 0, 0).index(), Some(0));
        assert_eq!(of(9, 512, 1, 1).index(), None);
    }

    #[test]
    fn the_score_is_the_share_of_memory_that_blocks_cannot_use() {
        assert_eq!(of(9, 1024, 2, 2).score(), 0);
        assert_eq!(of(9, 1024, 513, 1).score(), 50);
        assert_eq!(of(9, 1024, 1024, 0).score(), 100);
        assert_eq!(of(9, 0, 0, 0).score(), 0);
    }
}
