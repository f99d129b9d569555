//! Where boot data lies below 1 MiB, and where kernels may lie.

use abi::PfnRange;

use super::error::FormError;

/// A kernel and its initrd lie at or above 1 MiB; everything else that boot writes lies below.
pub const KERNEL_FLOOR: u64 = 1 << 20;

/// Segment descriptors for an entry in long mode.
pub(crate) const GDT: u64 = 0x500;
/// PVH start info.
pub(super) const START_INFO: u64 = 0x6000;
/// PVH module list: one entry, the initrd.
pub(super) const MODULE_LIST: u64 = 0x6100;
/// PVH memory map.
pub(super) const MEMORY_MAP: u64 = 0x7000;
/// Linux's `boot_params`, one page.
pub(super) const ZERO_PAGE: u64 = 0x8000;
/// Page tables for an entry in long mode: one table of each upper level, then [`DIRECTORIES`] page directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Page directories, of 1 GiB each: everything below 4 GiB is mapped.
pub(super) const DIRECTORIES: u64 = 4;
/// Command line.
pub(super) const CMDLINE: u64 = 0x2_0000;
/// Room for it, its NUL included.
pub(super) const CMDLINE_ROOM: usize = 0x1_0000;

/// Ranges that a message lists: a hostile file has up to 65535 segments.
const LISTED: usize = 8;

/// One past what is mapped at a 64-bit entry, and one past what 32-bit protected mode can name.
pub(super) const ENTRY_END: u64 = DIRECTORIES << 30;

/// Where in `ram` a kernel may lie, as (start, end).
pub(super) fn kernel_ram(ram: &[PfnRange]) -> impl Iterator<Item = (u64, u64)> {
    ram.iter()
        .map(|range| (range.start().gpa().max(KERNEL_FLOOR), range.end().gpa()))
        .filter(|(start, end)| start < end)
}

/// The end of `bytes` at `start`, if they lie in RAM for kernels.
pub(super) fn fits(
    what: &'static str,
    start: u64,
    bytes: u64,
    ram: &[PfnRange],
) -> Result<u64, FormError> {
    let end = u128::from(start) + u128::from(bytes);
    let inside = |(low, high): (u64, u64)| start >= low && end <= u128::from(high);
    match u64::try_from(end) {
        Ok(end) if kernel_ram(ram).any(inside) => Ok(end),
        _ => Err(FormError::DoesNotFit { what, start, end, ram: list(kernel_ram(ram)) }),
    }
}

/// `entry`, if a vCPU can start there.
pub(super) fn reachable(entry: u64) -> Result<u64, FormError> {
    if entry < ENTRY_END { Ok(entry) } else { Err(FormError::EntryTooHigh { entry }) }
}

/// `ranges` for a message: the first [`LISTED`], and how many more.
pub(super) fn list(ranges: impl IntoIterator<Item = (u64, u64)>) -> String {
    let mut ranges = ranges.into_iter();
    let texts: Vec<_> =
        ranges.by_ref().take(LISTED).map(|(start, end)| format!("{start:#x}..{end:#x}")).collect();
    match (texts.join(", "), ranges.count()) {
        (texts, 0) => texts,
        (texts, more) => format!("{texts} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use abi::platform::LEGACY_AREA_START;

    use super::*;

    #[test]
    fn boot_data_lies_in_conventional_memory_and_nothing_overlaps() {
        let places = [
            (GDT, 32),
            (START_INFO, 56),
            (MODULE_LIST, 32),
            (MEMORY_MAP, 0x1000),
            (ZERO_PAGE, 0x1000),
            (PAGE_TABLES, (2 + DIRECTORIES) * 0x1000),
            (CMDLINE, CMDLINE_ROOM as u64),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        let (last, bytes) = places[places.len() - 1];
        assert!(last + bytes <= LEGACY_AREA_START);
    }
}
