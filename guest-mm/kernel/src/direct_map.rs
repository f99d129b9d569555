//! Builds the page tables of the direct map: 2 MiB leaves, 4 KiB ones where RAM does not fill a large page.

use abi::{Pfn, PfnRange};

use crate::layout::{IMAGE_GPA, LARGE_PAGE, PAGE};

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
