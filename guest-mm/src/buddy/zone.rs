//! The free lists of a zone: split, merge, take, give back.

use abi::Pfn;

use super::free_list::{Corrupt, End, FreeList};
use super::{FrameMap, Gfp, Watermarks};
use crate::memdesc::{Block, BlockKind, Buddy, Link, MigrateType, Order, Tail, Word};

/// What happened in a zone since start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BuddyCounters {
    /// Blocks split in two.
    pub splits: u64,
    /// Pairs of buddies merged.
    pub merges: u64,
    /// Pageblocks that changed their type to serve another type's request.
    pub claims: u64,
    /// Blocks taken from a pageblock of another type, which kept its type.
    pub steals: u64,
    /// Lists found corrupt; should stay 0.
    pub corrupt: u64,
}

/// A block just taken off the lists. Its word is still a Buddy word, unlinked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeBlock {
    /// First frame.
    pub pfn: Pfn,
    /// Order.
    pub order: Order,
    /// Whether the host holds no memory for it.
    pub reported: bool,
    /// The word at `pfn`, from which the taker goes on.
    pub word: Word,
}

/// List heads and counts of a zone; lives behind the zone lock.
#[derive(Debug)]
pub struct Zone {
    lists: [[FreeList; MigrateType::COUNT]; Order::COUNT],
    /// Free pages by migratetype.
    free: [u64; MigrateType::COUNT],
    /// Pages in pageblocks of type HighAtomic, free or not.
    pub(super) high_atomic_pages: u64,
    pub(super) managed: u64,
    watermarks: Watermarks,
    pub(super) counters: BuddyCounters,
}

impl Zone {
    /// A zone without memory.
    pub(crate) const fn new() -> Self {
        Self {
            lists: [[FreeList::EMPTY; MigrateType::COUNT]; Order::COUNT],
            free: [0; MigrateType::COUNT],
            high_atomic_pages: 0,
            managed: 0,
            watermarks: Watermarks { min: 0, low: 0, high: 0 },
            counters: BuddyCounters { splits: 0, merges: 0, claims: 0, steals: 0, corrupt: 0 },
        }
    }

    /// Says how many pages the zone owns, and sets the watermarks from it.
    pub(crate) const fn set_managed(&mut self, managed: u64) {
        self.managed = managed;
        self.watermarks = Watermarks::of_zone(managed);
    }

    /// The watermarks.
    pub const fn watermarks(&self) -> Watermarks {
        self.watermarks
    }

    /// What happened so far.
    pub const fn counters(&self) -> BuddyCounters {
        self.counters
    }

    /// Free pages of one type.
    pub const fn free_of(&self, migratetype: MigrateType) -> u64 {
        self.free[migratetype.index()]
    }

    /// Free pages of all types.
    pub fn free_total(&self) -> u64 {
        self.free.iter().sum()
    }

    /// Free pages that every allocation may use.
    pub const fn available(&self) -> u64 {
        self.free_of(MigrateType::Unmovable)
            + self.free_of(MigrateType::Movable)
            + self.free_of(MigrateType::Reclaimable)
    }

    /// The list of one order and type.
    pub const fn list(&self, order: Order, migratetype: MigrateType) -> &FreeList {
        &self.lists[order.index()][migratetype.index()]
    }

    /// Takes a block of exactly `order` off the lists.
    ///
    /// Returns `None` if the watermarks forbid it or no list has one.
    pub(crate) fn take(&mut self, map: &FrameMap, order: Order, gfp: Gfp) -> Option<FreeBlock> {
        if !self.watermark_allows(order, gfp) {
            return None;
        }
        let wanted = gfp.migratetype();
        if gfp.contains(Gfp::HIGH)
            && let Some(block) = self.take_from(map, order, MigrateType::HighAtomic)
        {
            return Some(block);
        }
        if let Some(block) = self.take_from(map, order, wanted) {
            return Some(block);
        }
        if gfp.contains(Gfp::CMA | Gfp::MOVABLE)
            && let Some(block) = self.take_from(map, order, MigrateType::Cma)
        {
            return Some(block);
        }
        self.take_fallback(map, order, wanted)
    }

    fn watermark_allows(&self, order: Order, gfp: Gfp) -> bool {
        let mut usable = self.available();
        if gfp.contains(Gfp::HIGH) {
            usable += self.free_of(MigrateType::HighAtomic);
        }
        if gfp.contains(Gfp::CMA | Gfp::MOVABLE) {
            usable += self.free_of(MigrateType::Cma);
        }
        usable >= order.pages().get() + gfp.reserve(self.watermarks)
    }

    /// Takes the smallest sufficient block of one type and splits it down.
    pub(super) fn take_from(
        &mut self,
        map: &FrameMap,
        order: Order,
        migratetype: MigrateType,
    ) -> Option<FreeBlock> {
        let found = order.and_above().find(|&o| !self.list(o, migratetype).is_empty())?;
        let taken = self.take_first(map, found, migratetype, order, migratetype);
        self.note_corruption(taken)
    }

    /// Takes the first block of a list, splits it down to `order` and leaves the
    /// rest on the lists of `rest`.
    pub(super) fn take_first(
        &mut self,
        map: &FrameMap,
        from: Order,
        migratetype: MigrateType,
        order: Order,
        rest: MigrateType,
    ) -> Result<FreeBlock, Corrupt> {
        let pfn = self.list(from, migratetype).first(&map.words);
        let pfn = pfn.ok_or(Corrupt(map.words.base()))?;
        let (block, word) = self.unlink(map, pfn)?;
        if block.order != from || block.migratetype != migratetype {
            return Err(Corrupt(pfn));
        }
        self.split_down(map, pfn, block, order, rest)?;
        Ok(FreeBlock { pfn, order, reported: block.reported, word })
    }

    pub(crate) fn note_corruption<T>(&mut self, result: Result<T, Corrupt>) -> Option<T> {
        debug_assert!(result.is_ok(), "free list corrupt");
        if result.is_err() {
            self.counters.corrupt += 1;
        }
        result.ok()
    }

    /// Takes the free block that starts at `pfn` off its list.
    pub(crate) fn unlink(&mut self, map: &FrameMap, pfn: Pfn) -> Result<(Buddy, Word), Corrupt> {
        let word = map.words.load(pfn).map_err(|_| Corrupt(pfn))?;
        let block = word.as_buddy().ok_or(Corrupt(pfn))?;
        self.lists[block.order.index()][block.migratetype.index()]
            .remove(&map.words, pfn, block)?;
        self.free[block.migratetype.index()] -= block.order.pages().get();
        Ok((block, word))
    }

    /// Puts a block on a list. `from` is the word at `pfn`.
    pub(super) fn link(
        &mut self,
        map: &FrameMap,
        pfn: Pfn,
        from: Word,
        order: Order,
        migratetype: MigrateType,
        reported: bool,
    ) -> Result<(), Corrupt> {
        let end = if reported { End::Back } else { End::Front };
        self.link_at(map, pfn, from, free_word(order, migratetype, reported), end)
    }

    fn link_at(
        &mut self,
        map: &FrameMap,
        pfn: Pfn,
        from: Word,
        block: Buddy,
        end: End,
    ) -> Result<(), Corrupt> {
        self.lists[block.order.index()][block.migratetype.index()]
            .push(&map.words, pfn, from, block, end)?;
        self.free[block.migratetype.index()] += block.order.pages().get();
        Ok(())
    }

    /// Adds a block of a fresh zone, whose words are empty and whose neighbours
    /// are not its buddies. Low addresses are handed out first.
    pub(crate) fn add_initial(
        &mut self,
        map: &FrameMap,
        pfn: Pfn,
        order: Order,
    ) -> Result<(), Corrupt> {
        let block = free_word(order, map.pageblocks.get(pfn), false);
        self.link_at(map, pfn, Word::EMPTY, block, End::Back)
    }

    /// Cuts the upper halves off an unlinked block until it has `order`.
    fn split_down(
        &mut self,
        map: &FrameMap,
        pfn: Pfn,
        block: Buddy,
        order: Order,
        rest: MigrateType,
    ) -> Result<(), Corrupt> {
        let mut current = block.order;
        while current > order
            && let Some(half) = current.down()
        {
            let upper = pfn.checked_add(half.pages()).ok_or(Corrupt(pfn))?;
            self.link(map, upper, tail_word(upper), half, rest, block.reported)?;
            self.counters.splits += 1;
            current = half;
        }
        Ok(())
    }

    /// Gives a block back and merges it with its free buddies. If the block's
    /// word has changed meanwhile, nothing is done.
    ///
    /// # Errors
    /// The word changed, or a list is corrupt.
    pub(crate) fn give(&mut self, map: &FrameMap, block: FreeBlock) -> Result<(), Corrupt> {
        if let Some(half) = block.order.down().filter(|&half| half >= Order::PAGEBLOCK) {
            return self.give_pageblocks(map, block, half);
        }
        self.give_one(map, block)
    }

    /// Gives a block of several pageblocks back, in halves if their types differ.
    fn give_pageblocks(
        &mut self,
        map: &FrameMap,
        block: FreeBlock,
        half: Order,
    ) -> Result<(), Corrupt> {
        let middle = block.pfn.checked_add(half.pages()).ok_or(Corrupt(block.pfn))?;
        if map.pageblocks.get(block.pfn) == map.pageblocks.get(middle) {
            return self.give_one(map, block);
        }
        let upper = FreeBlock { pfn: middle, order: half, word: tail_word(middle), ..block };
        // The lower half holds the head word, so it decides whether this is a double free.
        self.give_one(map, FreeBlock { order: half, ..block })?;
        self.give_one(map, upper)
    }

    fn give_one(&mut self, map: &FrameMap, block: FreeBlock) -> Result<(), Corrupt> {
        let migratetype = map.pageblocks.get(block.pfn);
        let FreeBlock { mut pfn, mut order, mut reported, word: from } = block;
        // The claim: from here on a second free of the block fails at its word.
        let mut word = free_word(order, migratetype, reported).encode();
        let cell = map.words.cell(pfn).map_err(|_| Corrupt(pfn))?;
        cell.transition(from, word).map_err(|_| Corrupt(pfn))?;

        while let Some((buddy_pfn, buddy)) = mergeable_buddy(map, pfn, order, migratetype) {
            let Some(merged) = order.up() else { break };
            let (_, buddy_word) = self.unlink(map, buddy_pfn)?;
            if order >= Order::PAGEBLOCK {
                map.pageblocks.set(buddy_pfn, migratetype);
            }
            let (lower, upper) = if buddy_pfn < pfn {
                (buddy_word, (pfn, word))
            } else {
                (word, (buddy_pfn, buddy_word))
            };
            let upper_cell = map.words.cell(upper.0).map_err(|_| Corrupt(upper.0))?;
            upper_cell.transition(upper.1, tail_word(upper.0)).map_err(|_| Corrupt(upper.0))?;
            word = lower;
            pfn = pfn.min(buddy_pfn);
            reported &= buddy.reported;
            order = merged;
            self.counters.merges += 1;
        }
        self.link(map, pfn, word, order, migratetype, reported)
    }

    /// Splits the free block that covers the whole pageblock at `start` and its
    /// neighbour, so that the pageblock has free blocks of its own only.
    pub(super) fn split_above_pageblock(
        &mut self,
        map: &FrameMap,
        start: Pfn,
    ) -> Result<(), Corrupt> {
        let head = start.align_down(Order::MAX.get());
        let covering = map.words.load(head).ok().and_then(Word::as_buddy);
        let Some(covering) = covering.filter(|buddy| buddy.order == Order::MAX) else {
            return Ok(());
        };
        let (block, word) = self.unlink(map, head)?;
        debug_assert_eq!(block, covering);
        self.split_down(map, head, block, Order::PAGEBLOCK, block.migratetype)?;
        self.link(map, head, word, Order::PAGEBLOCK, block.migratetype, block.reported)
    }

    /// Calls `visit` with every free block: first frame, order, reported.
    pub(crate) fn for_each(
        &self,
        map: &FrameMap,
        visit: &mut dyn FnMut(Pfn, Order, bool),
    ) -> Result<(), Corrupt> {
        for order in Order::all() {
            for migratetype in MigrateType::ALL {
                let list = self.list(order, migratetype);
                let mut next = list.first(&map.words);
                for _ in 0..list.len() {
                    let pfn = next.ok_or(Corrupt(map.words.base()))?;
                    let word = map.words.load(pfn).map_err(|_| Corrupt(pfn))?;
                    let buddy = word.as_buddy().ok_or(Corrupt(pfn))?;
                    visit(pfn, order, buddy.reported);
                    next = map.words.follow(buddy.next);
                }
            }
        }
        Ok(())
    }
}

/// A free block's word without links.
const fn free_word(order: Order, migratetype: MigrateType, reported: bool) -> Buddy {
    Buddy { order, migratetype, reported, prev: Link::NONE, next: Link::NONE }
}

pub(crate) const fn tail_word(pfn: Pfn) -> Word {
    Tail::of(pfn).encode()
}

/// The word of an allocated block that a handle owns.
pub(crate) const fn frozen_word(order: Order) -> Word {
    Block::new(BlockKind::Frozen, order).encode()
}

/// The other half of the next larger block, if `block` may merge with it.
pub(crate) fn mergeable_buddy(
    map: &FrameMap,
    pfn: Pfn,
    order: Order,
    migratetype: MigrateType,
) -> Option<(Pfn, Buddy)> {
    order.up()?;
    let buddy_pfn = Pfn::new(pfn.number() ^ order.pages().get())?;
    // Beyond the map, below the zone, or in the gap: no buddy.
    let buddy = map.words.load(buddy_pfn).ok()?.as_buddy()?;
    let types_agree = buddy.migratetype == migratetype
        || (order >= Order::PAGEBLOCK
            && buddy.migratetype.is_mergeable()
            && migratetype.is_mergeable());
    (buddy.order == order && types_agree).then_some((buddy_pfn, buddy))
}
