//! RAM that no boot map names: what a hot-plug device has to give.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::{Pfn, PfnRange};

use super::Arena;
use crate::memdesc::Order;
use crate::platform::MapError;

/// Bytes that a page-table page is filled with, instead of entries.
const TABLE: u8 = 0xee;
/// Pages that one page directory maps.
const DIRECTORY_ORDER: u32 = 18;

/// A region of RAM whose frames are in the direct map only while they are mapped.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) arena: Arena,
    map: Mutex<Map>,
}

#[derive(Debug, Default)]
struct Map {
    /// Blocks by their first frame: their ranges and the pages that they gave for tables.
    blocks: BTreeMap<Pfn, (PfnRange, Pfn)>,
    /// Which page serves as the directory of a GiB, by its first frame.
    directories: BTreeMap<Pfn, Pfn>,
}

impl Spare {
    pub(super) fn new(range: PfnRange) -> Self {
        Self { arena: Arena::new(range), map: Mutex::default() }
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_mapped(&self, pfn: Pfn) -> bool {
        let map = self.map();
        map.blocks.range(..=pfn).next_back().is_some_and(|(_, (range, _))| range.contains(pfn))
    }

    pub(super) fn map_block(&self, block: PfnRange, table: Pfn) -> Result<(), MapError> {
        if !self.arena.range.contains_range(block) {
            return Err(MapError::OutOfReach(block));
        }
        let last = block.end().number().checked_sub(1).and_then(Pfn::new);
        let gib = block.start().align_down(DIRECTORY_ORDER);
        let is_placed = block.start().is_aligned(Order::MAX.get())
            && block.end().is_aligned(Order::MAX.get())
            && last.is_some_and(|last| last.align_down(DIRECTORY_ORDER) == gib);
        if !is_placed || !block.contains(table) {
            return Err(MapError::Misplaced(block));
        }
        let mut map = self.map();
        let taken = map.blocks.values().find_map(|(range, _)| range.intersection(block));
        if let Some(taken) = taken {
            return Err(MapError::Taken(taken.start()));
        }
        map.blocks.insert(block.start(), (block, table));
        if let Entry::Vacant(directory) = map.directories.entry(gib) {
            directory.insert(table);
            self.fill(table);
        }
        Ok(())
    }

    /// # Panics
    /// If the caller breaks the contract, or somebody wrote to a page table.
    pub(super) fn unmap_block(&self, block: PfnRange, table: Pfn, heir: Option<Pfn>) {
        let mut map = self.map();
        let was = map.blocks.remove(&block.start());
        assert_eq!(was, Some((block, table)), "this block is not mapped");
        let gib = block.start().align_down(DIRECTORY_ORDER);
        let host = map.directories[&gib];
        assert!(self.is_intact(host), "somebody wrote to the page table {host:?}");
        let others: Vec<Pfn> = map
            .blocks
            .values()
            .filter(|(range, _)| range.start().align_down(DIRECTORY_ORDER) == gib)
            .map(|(_, table)| *table)
            .collect();
        match heir {
            Some(heir) => assert!(others.contains(&heir), "{heir:?} is no table page of {gib:?}"),
            None => assert!(others.is_empty(), "{others:?} lose their page tables"),
        }
        if host == table {
            map.directories.remove(&gib);
            if let Some(heir) = heir {
                map.directories.insert(gib, heir);
                self.fill(heir);
            }
        }
    }

    fn fill(&self, table: Pfn) {
        // SAFETY: a page of the arena, given to the machine for a page table.
        unsafe { self.arena.at(table).as_ptr().write_bytes(TABLE, 4096) };
    }

    fn is_intact(&self, table: Pfn) -> bool {
        // SAFETY: as in `fill`: only the machine writes to it.
        let bytes = unsafe { self.arena.at(table).cast::<[u8; 4096]>().as_ref() };
        bytes.iter().all(|byte| *byte == TABLE)
    }
}
