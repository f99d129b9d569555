//! Per-CPU lists: the small orders and the pageblock order, without the zone lock.

use super::Memory;
use super::alloc::FreeError;
use super::frames::FrozenFrames;
use crate::buddy::{FrameMap, FreeBlock, Gfp};
use crate::memdesc::{Link, MigrateType, Order, Pcp};
use crate::platform::Platform;

/// The orders that have per-CPU lists.
pub const PCP_ORDERS: [Order; 5] = [
    Order::saturating(0),
    Order::saturating(1),
    Order::saturating(2),
    Order::saturating(3),
    Order::PAGEBLOCK,
];

const _: () = assert!(crate::platform::MAX_CPUS <= 4, "a PCP word has two bits for the CPU");

/// Migratetypes with per-CPU lists; the others go straight to the zone.
const PCP_TYPES: usize = 3;

/// The place of an order among [`PCP_ORDERS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PcpSlot {
    slot: usize,
    order: Order,
}

impl PcpSlot {
    pub(super) fn of(order: Order) -> Option<Self> {
        let slot = PCP_ORDERS.iter().position(|&listed| listed == order)?;
        Some(Self { slot, order })
    }

    /// Blocks moved between list and zone at once: 32 pages' worth, or one.
    fn batch(self) -> u32 {
        (32 >> self.order.get()).max(1)
    }

    /// Length above which a free gives a batch back.
    fn limit(self) -> u32 {
        if self.order < Order::PAGEBLOCK { 4 * self.batch() } else { 1 }
    }
}

#[derive(Debug, Clone, Copy)]
struct List {
    head: Link,
    blocks: u32,
}

/// One CPU's lists; behind that CPU's lock.
#[derive(Debug)]
pub(crate) struct CpuLists {
    cpu: u8,
    lists: [[List; PCP_TYPES]; PCP_ORDERS.len()],
    pages: u64,
}

impl CpuLists {
    pub(super) const fn new(cpu: u8) -> Self {
        let empty = List { head: Link::NONE, blocks: 0 };
        Self { cpu, lists: [[empty; PCP_TYPES]; PCP_ORDERS.len()], pages: 0 }
    }

    /// Whose lists these are.
    pub(crate) const fn cpu(&self) -> u8 {
        self.cpu
    }

    /// Pages on the lists.
    pub(crate) const fn pages(&self) -> u64 {
        self.pages
    }

    /// First block and length of every list.
    pub(crate) fn lists(&self) -> impl Iterator<Item = (Order, MigrateType, Link, u32)> {
        PCP_ORDERS.iter().zip(&self.lists).flat_map(|(&order, types)| {
            let types = types.iter().zip(MigrateType::ALL);
            types.map(move |(list, migratetype)| (order, migratetype, list.head, list.blocks))
        })
    }

    fn list(&mut self, slot: PcpSlot, migratetype: MigrateType) -> &mut List {
        // A type without lists is never passed: `free_listed` and `take_listed` check.
        &mut self.lists[slot.slot][migratetype.index() % PCP_TYPES]
    }

    fn push(
        &mut self,
        map: &FrameMap,
        slot: PcpSlot,
        migratetype: MigrateType,
        block: FreeBlock,
    ) -> Result<(), FreeError> {
        let cpu = self.cpu;
        let list = self.list(slot, migratetype);
        let word =
            Pcp { order: block.order, migratetype, cpu, reported: block.reported, next: list.head };
        let cell = map.words.cell(block.pfn).map_err(FreeError::OutOfMap)?;
        // This swap decides between two frees of the same block.
        cell.transition(block.word, word.encode())
            .map_err(|_| FreeError::NotAllocated { found: cell.load() })?;
        list.head = map.words.link(block.pfn);
        list.blocks += 1;
        self.pages += block.order.pages().get();
        Ok(())
    }

    fn pop(
        &mut self,
        map: &FrameMap,
        slot: PcpSlot,
        migratetype: MigrateType,
    ) -> Option<FreeBlock> {
        let list = self.list(slot, migratetype);
        let pfn = map.words.follow(list.head)?;
        let word = map.words.load(pfn).ok()?;
        let Some(pcp) = word.as_pcp() else {
            debug_assert!(false, "per-CPU list corrupt at {pfn:?}");
            return None;
        };
        list.head = pcp.next;
        list.blocks -= 1;
        self.pages -= pcp.order.pages().get();
        Some(FreeBlock { pfn, order: pcp.order, reported: pcp.reported, word })
    }
}

impl<P: Platform> Memory<P> {
    /// Takes a block from this CPU's list, filling the list if it is empty.
    pub(super) fn take_listed(&self, slot: PcpSlot, gfp: Gfp) -> Option<FrozenFrames> {
        let migratetype = gfp.migratetype();
        let mut lists = self.cpus.get(self.platform.cpu())?.lock(&self.platform);
        let block = match lists.pop(&self.map, slot, migratetype) {
            Some(block) => block,
            None => {
                let mut zone = self.zone.lock(&self.platform);
                for _ in 0..slot.batch() {
                    let Some(block) = zone.take(&self.map, slot.order, gfp) else { break };
                    if lists.push(&self.map, slot, migratetype, block).is_err() {
                        break;
                    }
                }
                self.counters.note_available(&zone);
                drop(zone);
                lists.pop(&self.map, slot, migratetype)?
            }
        };
        drop(lists);
        self.freeze(block)
    }

    /// Frees a block to this CPU's list, and a batch to the zone if the list is long.
    ///
    /// The pageblock's type is read under the list's lock: whoever isolates a
    /// pageblock sets the type and then empties the lists under the same lock, so
    /// either the type is seen here or the block is found there.
    pub(super) fn free_listed(&self, slot: PcpSlot, block: FreeBlock) -> Result<(), FreeError> {
        let Some(cpu) = self.cpus.get(self.platform.cpu()) else {
            return self.give_checked(&mut self.zone.lock(&self.platform), block);
        };
        let mut lists = cpu.lock(&self.platform);
        let migratetype = self.map.pageblocks.get(block.pfn);
        if !migratetype.is_mergeable() {
            drop(lists);
            return self.give_checked(&mut self.zone.lock(&self.platform), block);
        }
        lists.push(&self.map, slot, migratetype, block)?;
        if lists.list(slot, migratetype).blocks > slot.limit() {
            self.give_batch(&mut lists, slot, migratetype, slot.batch())?;
        }
        Ok(())
    }

    /// Gives the blocks on the calling CPU's lists back to the zone, where they merge.
    #[cfg(not(loom))]
    pub(crate) fn drain_this_cpu(&self) {
        self.drain_cpu(self.platform.cpu());
    }

    /// Empties one CPU's lists.
    pub(super) fn drain_cpu(&self, cpu: usize) {
        let Some(cpu) = self.cpus.get(cpu) else { return };
        let mut lists = cpu.lock(&self.platform);
        for slot in PCP_ORDERS.into_iter().filter_map(PcpSlot::of) {
            for migratetype in MigrateType::ALL.into_iter().take(PCP_TYPES) {
                let given = self.give_batch(&mut lists, slot, migratetype, u32::MAX);
                debug_assert!(given.is_ok(), "drain: {given:?}");
            }
        }
    }

    fn give_batch(
        &self,
        lists: &mut CpuLists,
        slot: PcpSlot,
        migratetype: MigrateType,
        blocks: u32,
    ) -> Result<(), FreeError> {
        if lists.list(slot, migratetype).blocks == 0 {
            return Ok(());
        }
        let mut zone = self.zone.lock(&self.platform);
        for _ in 0..blocks {
            let Some(block) = lists.pop(&self.map, slot, migratetype) else { break };
            self.give_checked(&mut zone, block)?;
        }
        Ok(())
    }
}
