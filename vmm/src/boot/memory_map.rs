//! The memory map that a guest is given.
//!
//! All RAM but the legacy area below 1 MiB, which is reserved: firmware tables
//! lie in it, and a kernel expects no RAM of its own there anyway.

use abi::PfnRange;
use abi::platform::{LEGACY_AREA_END, LEGACY_AREA_START};

/// What a guest may do with a range. Values: e820 and Xen's XEN_HVM_MEMMAP_TYPE_* alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Use it.
    Ram = 1,
    /// Keep away from it.
    Reserved = 2,
}

/// A range of guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First byte.
    pub start: u64,
    /// Length; never 0.
    pub len_bytes: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// The map over `ram`, in ascending order if `ram` is.
pub fn memory_map(ram: &[PfnRange]) -> Vec<MemoryMapEntry> {
    let mut map = Vec::with_capacity(ram.len() + 2);
    for range in ram {
        let (start, end) = (range.start().gpa(), range.end().gpa());
        let (hole, after) =
            (LEGACY_AREA_START.clamp(start, end), LEGACY_AREA_END.clamp(start, end));
        let pieces = [
            (start, hole, MemoryKind::Ram),
            (hole, after, MemoryKind::Reserved),
            (after, end, MemoryKind::Ram),
        ];
        map.extend(
            pieces
                .into_iter()
                .filter(|(start, end, _)| start < end)
                .map(|(start, end, kind)| MemoryMapEntry { start, len_bytes: end - start, kind }),
        );
    }
    map
}

#[cfg(test)]
mod tests {
    use abi::{PageCount, Pfn};
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, pages: u64) -> PfnRange {
        PfnRange::from_start(Pfn::containing(start), PageCount::new(pages)).expect("in range")
    }

    fn plain(map: &[MemoryMapEntry]) -> Vec<(u64, u64, u32)> {
        map.iter().map(|entry| (entry.start, entry.len_bytes, entry.kind as u32)).collect()
    }

    #[test]
    fn the_legacy_area_is_reserved_and_all_else_is_ram() {
        let ram = [range(0, 0xc_0000), range(4 << 30, 0x100)];
        assert_eq!(
            plain(&memory_map(&ram)),
            [
                (0, 0xa_0000, 1),
                (0xa_0000, 0x6_0000, 2),
                (0x10_0000, 0xbff0_0000, 1),
                (4 << 30, 0x10_0000, 1)
            ]
        );
    }

    #[test]
    fn ram_that_ends_within_the_legacy_area_has_nothing_above_it() {
        assert_eq!(
            plain(&memory_map(&[range(0, 0xb0)])),
            [(0, 0xa_0000, 1), (0xa_0000, 0x1_0000, 2)]
        );
        assert_eq!(plain(&memory_map(&[range(0, 0x10)])), [(0, 0x1_0000, 1)]);
        assert_eq!(plain(&memory_map(&[range(0, 0)])), []);
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_range_and_only_the_legacy_area_is_reserved(
            start in 0u64..0x200, pages in 0u64..0x200
        ) {
            let ram = range(start << 12, pages);
            let map = memory_map(&[ram]);
            let mut at = ram.start().gpa();
            for entry in &map {
                prop_assert_eq!(entry.start, at);
                prop_assert!(entry.len_bytes > 0);
                at += entry.len_bytes;
                let legacy = entry.start >= LEGACY_AREA_START && at <= LEGACY_AREA_END;
                prop_assert_eq!(entry.kind == MemoryKind::Reserved, legacy);
            }
            prop_assert_eq!(at, ram.end().gpa());
        }
    }
}
