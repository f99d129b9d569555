//! Free memory by place: pageblocks set aside, and blocks taken at a given frame.

use abi::Pfn;

use super::free_list::Corrupt;
use super::zone::{FreeBlock, tail_word};
use super::{FrameMap, Zone};
use crate::memdesc::{MigrateType, Order, Tail};

impl Zone {
    /// Sets the pageblock around `pfn` aside. Returns `false` if somebody has
    /// done so before; nothing has changed then.
    ///
    /// # Errors
    /// A free list is corrupt.
    pub(crate) fn isolate(&mut self, map: &FrameMap, pfn: Pfn) -> Result<bool, Corrupt> {
        match map.pageblocks.get(pfn) {
            MigrateType::Isolate => return Ok(false),
            MigrateType::HighAtomic => {
                // The reserve shrinks by it, and it returns to ordinary use: nobody counts it in again.
                self.note_reserve_left();
                map.pageblocks.set(pfn, MigrateType::Movable);
            }
            MigrateType::Unmovable
            | MigrateType::Movable
            | MigrateType::Reclaimable
            | MigrateType::Cma => {}
        }
        self.set_pageblock(map, pfn, MigrateType::Isolate)?;
        Ok(true)
    }

    /// Gives the isolated pageblock around `pfn` the type back that it had.
    ///
    /// # Errors
    /// A free list is corrupt.
    pub(crate) fn unisolate(&mut self, map: &FrameMap, pfn: Pfn) -> Result<(), Corrupt> {
        self.set_pageblock(map, pfn, map.pageblocks.beneath(pfn))
    }

    /// Takes the block of `order` at `pfn` out of the free block that covers it
    /// and leaves the rest on its list; `None` if it is not free as a whole.
    ///
    /// # Errors
    /// A free list is corrupt.
    pub(crate) fn take_at(
        &mut self,
        map: &FrameMap,
        pfn: Pfn,
        order: Order,
    ) -> Result<Option<FreeBlock>, Corrupt> {
        let Some((head, found)) = free_block_around(map, pfn) else { return Ok(None) };
        if found < order || !pfn.is_aligned(order.get()) {
            return Ok(None);
        }
        let (block, mut word) = self.unlink(map, head)?;
        let (mut at, mut current) = (head, block.order);
        while current > order
            && let Some(half) = current.down()
        {
            let upper = at.checked_add(half.pages()).ok_or(Corrupt(at))?;
            self.counters.splits += 1;
            let (rest, rest_word) = if pfn < upper {
                (upper, tail_word(upper))
            } else {
                let lower = (at, word);
                (at, word) = (upper, tail_word(upper));
                lower
            };
            self.link(map, rest, rest_word, half, block.migratetype, block.reported)?;
            current = half;
        }
        debug_assert_eq!(at, pfn);
        Ok(Some(FreeBlock { pfn, order, reported: block.reported, word }))
    }
}

/// First frame and order of the free block that holds `pfn`. The zone lock is held.
pub(crate) fn free_block_around(map: &FrameMap, pfn: Pfn) -> Option<(Pfn, Order)> {
    let mut at = pfn;
    // Each step clears the lowest set bit, so a block needs at most one per order.
    for _ in 0..=Order::COUNT {
        let word = map.words.load(at).ok()?;
        if let Some(buddy) = word.as_buddy() {
            let offset = pfn.offset_from(at)?.get();
            return (offset < buddy.order.pages().get()).then_some((at, buddy.order));
        }
        if word != tail_word(at) {
            return None;
        }
        at = at.number().checked_sub(u64::from(Tail::of(at).distance)).and_then(Pfn::new)?;
    }
    None
}
