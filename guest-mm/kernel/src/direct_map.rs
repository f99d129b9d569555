//! Builds the page tables of the direct map: 2 MiB leaves, 4 KiB ones where RAM does not fill a large page.

use abi::{Pfn, PfnRange};
use guest_mm::platform::MapError;

use crate::layout::{DIRECT_MAP_LIMIT, IMAGE_GPA, LARGE_PAGE, PAGE};

/// Page table entry bits.
pub mod entry {
    /// The entry maps something.
    pub const PRESENT: u64 = 1;
    /// Writes are allowed.
    pub const WRITABLE: u64 = 1 << 1;
    /// Ring 3 may use it.
    pub const USER: u64 = 1 << 2;
    /// Write-through.
    pub const WRITE_THROUGH: u64 = 1 << 3;
    /// Uncached.
    pub const CACHE_DISABLE: u64 = 1 << 4;
    /// Accessed: set beforehand, so that the CPU need not.
    pub const ACCESSED: u64 = 1 << 5;
    /// Dirty: likewise.
    pub const DIRTY: u64 = 1 << 6;
    /// A leaf of a page directory.
    pub const LARGE: u64 = 1 << 7;
    /// No instruction is fetched from it.
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// A lower table, ring 3 allowed.
    pub const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED;
    /// Ordinary data.
    pub const DATA: u64 = TABLE | DIRTY | NO_EXECUTE;
    /// Data that nobody writes.
    pub const READ_ONLY: u64 = PRESENT | USER | ACCESSED | NO_EXECUTE;
    /// Code.
    pub const CODE: u64 = PRESENT | USER | ACCESSED;
    /// Device registers in a large page.
    pub const DEVICE: u64 = DATA | LARGE | CACHE_DISABLE | WRITE_THROUGH;
    /// The bits that hold an address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Entries of a table.
pub const ENTRIES: usize = 512;
/// Pages of a large page.
const LARGE_PAGES: u64 = LARGE_PAGE / PAGE;

/// Where tables live; addresses are GPAs.
pub trait TableMemory {
    /// A zeroed table, or `None` when there is no more room.
    fn allocate(&mut self) -> Option<u64>;
    /// Reads an entry.
    fn read(&self, table: u64, index: usize) -> u64;
    /// Writes an entry.
    fn write(&mut self, table: u64, index: usize, value: u64);
    /// Writes all entries of a table that nobody walks and that need not be mapped.
    fn fill(&mut self, table: u64, entries: &dyn Fn(usize) -> u64);
}

/// Makes a block of memory that came after the start part of the map below `pdpt`. If its GiB has no
/// directory, `table`, a page of the block, becomes it.
///
/// # Errors
/// [`MapError`]; nothing has changed.
pub fn map_block<M: TableMemory>(
    memory: &mut M,
    pdpt: u64,
    block: PfnRange,
    table: Pfn,
) -> Result<(), MapError> {
    let leaves = Leaves::of(block)?;
    let found = memory.read(pdpt, leaves.gib);
    if found & entry::PRESENT == 0 {
        // Filled first, linked afterwards: whoever walks sees all of it or nothing.
        memory.fill(table.gpa(), &|index| leaves.at(index).unwrap_or(0));
        memory.write(pdpt, leaves.gib, table.gpa() | entry::TABLE);
        return Ok(());
    }
    let directory = found & entry::ADDRESS;
    if let Some(taken) = leaves.indices().find(|index| memory.read(directory, *index) != 0) {
        return Err(MapError::Taken(leaves.frame(taken)));
    }
    for index in leaves.indices() {
        memory.write(directory, index, leaves.at(index).unwrap_or(0));
    }
    Ok(())
}

/// Undoes [`map_block`]. If the block's page is the directory of its GiB, what is left of that moves to `heir`,
/// the page of another block there. Every CPU must drop its translations before the memory is anything else.
pub fn unmap_block<M: TableMemory>(
    memory: &mut M,
    pdpt: u64,
    block: PfnRange,
    table: Pfn,
    heir: Option<Pfn>,
) {
    let Ok(leaves) = Leaves::of(block) else { return };
    let directory = memory.read(pdpt, leaves.gib) & entry::ADDRESS;
    if directory != table.gpa() {
        leaves.indices().for_each(|index| memory.write(directory, index, 0));
        return;
    }
    let Some(heir) = heir else {
        memory.write(pdpt, leaves.gib, 0);
        return;
    };
    for index in 0..ENTRIES {
        let kept = if leaves.at(index).is_some() { 0 } else { memory.read(directory, index) };
        memory.write(heir.gpa(), index, kept);
    }
    memory.write(pdpt, leaves.gib, heir.gpa() | entry::TABLE);
}

/// The directory entries of a block.
struct Leaves {
    block: PfnRange,
    gib: usize,
}

impl Leaves {
    fn of(block: PfnRange) -> Result<Self, MapError> {
        let (start, end) = (block.start().gpa(), block.end().gpa());
        if end > DIRECT_MAP_LIMIT {
            return Err(MapError::OutOfReach(block));
        }
        let is_whole = start.is_multiple_of(LARGE_PAGE) && end.is_multiple_of(LARGE_PAGE);
        if !is_whole || block.is_empty() || start >> 30 != (end - 1) >> 30 {
            return Err(MapError::Misplaced(block));
        }
        Ok(Self { block, gib: index(start, 30) })
    }

    fn indices(&self) -> core::ops::RangeInclusive<usize> {
        index(self.block.start().gpa(), 21)..=index(self.block.end().gpa() - 1, 21)
    }

    fn frame(&self, at: usize) -> Pfn {
        let gib = self.block.start().gpa() >> 30 << 30;
        Pfn::containing(gib + at as u64 * LARGE_PAGE)
    }

    /// The entry number `at`, if it is one of the block's.
    fn at(&self, at: usize) -> Option<u64> {
        let leaf = self.frame(at).gpa() | entry::DATA | entry::LARGE;
        self.indices().contains(&at).then_some(leaf)
    }
}

/// There was no room for another table; what was mapped stays mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfTables {
    /// The first frame without a mapping.
    pub unmapped: Pfn,
}

/// The index of `gpa` in a table whose entries map `1 << shift` bytes.
fn index(gpa: u64, shift: u32) -> usize {
    usize::try_from(gpa >> shift).unwrap_or(usize::MAX) % ENTRIES
}

/// The tables under construction.
#[derive(Debug)]
pub struct DirectMap<M> {
    /// Where the tables live.
    pub memory: M,
    /// The page directory pointer table, one entry a GiB.
    pub pdpt: u64,
}

impl<M: TableMemory> DirectMap<M> {
    /// Begins a map with `image_table` for the large page at [`IMAGE_GPA`]; `None` without room for two tables.
    ///
    /// All tables are new ones. Where the host shadows page tables, a store to one that the MMU already walks costs
    /// microseconds, one to an ordinary page nothing: so they are filled first and linked afterwards.
    pub fn new(mut memory: M, image_table: u64) -> Option<Self> {
        let pdpt = memory.allocate()?;
        let directory = memory.allocate()?;
        memory.write(pdpt, index(IMAGE_GPA, 30), directory | entry::TABLE);
        memory.write(directory, index(IMAGE_GPA, 21), image_table | entry::TABLE);
        Some(Self { memory, pdpt })
    }

    /// Maps one range of RAM. The large page at [`IMAGE_GPA`] has a table of its own, which stays as it is.
    ///
    /// # Errors
    /// [`OutOfTables`].
    pub fn map(&mut self, ram: PfnRange) -> Result<(), OutOfTables> {
        let mut pfn = ram.start().number();
        let end = ram.end().number();
        while pfn < end {
            let gpa = pfn << 12;
            let whole = gpa.is_multiple_of(LARGE_PAGE) && end - pfn >= LARGE_PAGES;
            let step = if whole { LARGE_PAGES } else { 1 };
            if gpa & !(LARGE_PAGE - 1) != IMAGE_GPA {
                self.map_one(gpa, whole).ok_or(OutOfTables { unmapped: Pfn::containing(gpa) })?;
            }
            pfn += step;
        }
        Ok(())
    }

    /// Maps a large or a small page.
    fn map_one(&mut self, gpa: u64, whole: bool) -> Option<()> {
        let directory = self.descend(self.pdpt, index(gpa, 30))?;
        if whole {
            self.memory.write(directory, index(gpa, 21), gpa | entry::DATA | entry::LARGE);
        } else {
            let table = self.descend(directory, index(gpa, 21))?;
            self.memory.write(table, index(gpa, 12), gpa | entry::DATA);
        }
        Some(())
    }

    /// The table below an entry, made if there is none.
    fn descend(&mut self, table: u64, index: usize) -> Option<u64> {
        let found = self.memory.read(table, index);
        if found & entry::PRESENT != 0 && found & entry::LARGE == 0 {
            return Some(found & entry::ADDRESS);
        }
        let lower = self.memory.allocate()?;
        self.memory.write(table, index, lower | entry::TABLE);
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_map::RamMap;
    use crate::start_info::{MapEntry, TYPE_RAM};
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Tables at made-up addresses; the image's is 0x1000.
    struct Fake {
        tables: HashMap<u64, [u64; ENTRIES]>,
        room: usize,
    }

    impl TableMemory for Fake {
        fn allocate(&mut self) -> Option<u64> {
            self.room = self.room.checked_sub(1)?;
            let gpa = (self.tables.len() as u64 + 1) << 12;
            self.tables.insert(gpa, [0; ENTRIES]);
            Some(gpa)
        }
        fn read(&self, table: u64, index: usize) -> u64 {
            self.tables[&table][index]
        }
        fn write(&mut self, table: u64, index: usize, value: u64) {
            self.tables.get_mut(&table).unwrap()[index] = value;
        }
        fn fill(&mut self, table: u64, entries: &dyn Fn(usize) -> u64) {
            self.tables.insert(table, core::array::from_fn(entries));
        }
    }

    const IMAGE_TABLE: u64 = 0x1000;

    /// A map that may allocate `room` tables beyond its first two.
    fn new(room: usize) -> DirectMap<Fake> {
        let tables = HashMap::from([(IMAGE_TABLE, [7; ENTRIES])]);
        DirectMap::new(Fake { tables, room: room + 2 }, IMAGE_TABLE).unwrap()
    }

    /// What the MMU finds at `gpa`: its translation, without the image's table.
    fn walk(map: &DirectMap<Fake>, gpa: u64) -> Option<u64> {
        let present = |entry: u64| (entry & entry::PRESENT != 0).then_some(entry);
        let directory = present(map.memory.read(map.pdpt, index(gpa, 30)))? & entry::ADDRESS;
        let found = present(map.memory.read(directory, index(gpa, 21)))?;
        if found & entry::LARGE != 0 {
            return Some((found & entry::ADDRESS & !(LARGE_PAGE - 1)) | (gpa & (LARGE_PAGE - 1)));
        }
        let leaf = present(map.memory.read(found & entry::ADDRESS, index(gpa, 12)))?;
        Some((leaf & entry::ADDRESS) | (gpa & (PAGE - 1)))
    }

    fn range(start: u64, end: u64) -> PfnRange {
        PfnRange::new(Pfn::containing(start << 12), Pfn::containing(end << 12)).unwrap()
    }

    #[test]
    fn a_gib_of_whole_large_pages_needs_no_table_but_its_directory() {
        let mut map = new(1);
        assert_eq!(map.map(range(0x10_0000, 0x14_0000)), Ok(()));
        assert_eq!(walk(&map, (1 << 32) + 12345), Some((1 << 32) + 12345));
        assert_eq!(walk(&map, 5 << 30), None);
    }

    #[test]
    fn the_table_of_the_image_stays_as_it_was() {
        let mut map = new(4);
        assert_eq!(map.map(range(0x100, 0x10_000)), Ok(()));
        assert_eq!(map.memory.tables[&IMAGE_TABLE], [7; ENTRIES]);
        let directory = map.memory.read(map.pdpt, 0) & entry::ADDRESS;
        assert_eq!(map.memory.read(directory, 1), IMAGE_TABLE | entry::TABLE);
    }

    #[test]
    fn running_out_of_tables_says_where() {
        let mut map = new(1);
        let error = map.map(range(0x3_ff00, 0x8_0100)).unwrap_err();
        assert_eq!(error.unmapped.number(), 0x4_0000);
        assert_eq!(walk(&map, 0x3_ff00 << 12), Some(0x3_ff00 << 12));
    }

    /// 128 MiB, number `n`; its page for tables is the second.
    fn block(n: u64) -> (PfnRange, Pfn) {
        (range(n << 15, (n + 1) << 15), Pfn::containing(((n << 15) + 1) << 12))
    }

    #[test]
    fn blocks_that_come_later_bring_the_directory_of_their_gib_and_pass_it_on() {
        let mut map = new(0);
        let pdpt = map.pdpt;
        // Of one GiB: they come in this order and go in that.
        for (come, go) in [([8, 9, 11], [8, 9, 11]), ([9, 8, 11], [11, 9, 8])] {
            for n in come {
                let (block, table) = block(n);
                // Every block has a page in reserve.
                map.memory.tables.entry(table.gpa()).or_insert([0xbad; ENTRIES]);
                assert_eq!(map_block(&mut map.memory, pdpt, block, table), Ok(()));
            }
            let mut left = come.to_vec();
            for n in go {
                left.retain(|other| *other != n);
                let (gone, table) = block(n);
                let heir = left.first().map(|n| block(*n).1);
                unmap_block(&mut map.memory, pdpt, gone, table, heir);
                // Its page is anything from now on.
                map.memory.tables.insert(table.gpa(), [0xbad; ENTRIES]);
                for n in 8..16 {
                    let gpa = (n << 27) + 4711;
                    assert_eq!(walk(&map, gpa), left.contains(&n).then_some(gpa), "block {n}");
                }
            }
            assert_eq!(map.memory.read(pdpt, 1), 0);
        }
    }

    #[test]
    fn a_block_beside_ram_uses_the_directory_that_is_there() {
        let mut map = new(1);
        let (ram, (block, table)) = (range(0x4_0000, 0x4_8000), block(9));
        assert_eq!(map.map(ram), Ok(()));
        let pdpt = map.pdpt;
        assert_eq!(map_block(&mut map.memory, pdpt, block, table), Ok(()));
        let taken = Err(MapError::Taken(block.start()));
        assert_eq!(map_block(&mut map.memory, pdpt, block, table), taken);
        assert_eq!(map_block(&mut map.memory, pdpt, ram, table), Err(MapError::Taken(ram.start())));
        assert_eq!(walk(&map, block.start().gpa()), Some(block.start().gpa()));
        unmap_block(&mut map.memory, pdpt, block, table, None);
        assert_eq!(walk(&map, block.start().gpa()), None);
        assert_eq!(walk(&map, ram.start().gpa()), Some(ram.start().gpa()));
    }

    #[test]
    fn blocks_out_of_place_are_refused() {
        let mut map = new(0);
        let pdpt = map.pdpt;
        let mut refused =
            |block| map_block(&mut map.memory, pdpt, block, block.start()).unwrap_err();
        let beyond = range(DIRECT_MAP_LIMIT >> 12, (DIRECT_MAP_LIMIT >> 12) + 1024);
        assert_eq!(refused(beyond), MapError::OutOfReach(beyond));
        for misplaced in [range(0x4_0100, 0x4_0400), range(0x7_fc00, 0x8_0400), range(512, 512)] {
            assert_eq!(refused(misplaced), MapError::Misplaced(misplaced));
        }
    }

    proptest! {
        #[test]
        fn exactly_ram_is_mapped_and_to_itself(
            starts in prop::collection::vec((0u64..0x9_0000, 1u64..0x1000), 1..6)
        ) {
            let mut map = new(100);
            let entries = starts.iter().map(|(start, len)| MapEntry {
                gpa: start << 12,
                bytes: len << 12,
                kind: TYPE_RAM,
            });
            for range in RamMap::new(entries).ranges() {
                prop_assert_eq!(map.map(*range), Ok(()));
            }
            let ram = |pfn: u64| starts.iter().any(|(start, len)| (*start..start + len).contains(&pfn));
            let edges = starts.iter().flat_map(|(start, len)| [*start, start + len]);
            for pfn in edges.flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1, edge ^ 0x1ff]) {
                if !(0x200..0x400).contains(&pfn) {
                    prop_assert_eq!(walk(&map, (pfn << 12) + 5), ram(pfn).then_some((pfn << 12) + 5));
                }
            }
        }
    }
}
