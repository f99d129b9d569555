//! Where guest RAM lies in guest-physical memory.

use abi::platform::{
    HOTPLUG_ALIGN_BYTES, MAX_HOTPLUG_BYTES, MAX_RAM_BYTES, MMIO_GAP_END, MMIO_GAP_START,
};
use abi::{PageCount, Pfn, PfnRange};

use crate::error::HostRamError;

/// The guest-physical ranges of `ram_bytes` of RAM: from 0 to the MMIO gap, the rest above it.
///
/// # Errors
/// [`HostRamError::BadSize`] unless `ram_bytes` is a positive multiple of
/// 4 KiB of at most [`MAX_RAM_BYTES`].
pub fn ram_ranges(ram_bytes: u64) -> Result<Vec<PfnRange>, HostRamError> {
    let refused = || HostRamError::BadSize { bytes: ram_bytes, max_bytes: MAX_RAM_BYTES };
    let pages = PageCount::from_bytes_exact(ram_bytes).ok_or_else(refused)?;
    if pages.is_zero() || ram_bytes > MAX_RAM_BYTES {
        return Err(refused());
    }
    let below = PageCount::new(pages.get().min(Pfn::containing(MMIO_GAP_START).number()));
    let above = pages.saturating_sub(below);
    let low = PfnRange::from_start(Pfn::ZERO, below);
    let high = PfnRange::from_start(Pfn::containing(MMIO_GAP_END), above);
    Ok(low.into_iter().chain(high).filter(|range| !range.is_empty()).collect())
}

/// Where `hotplug_bytes` of hotplug memory lie beside `ram_bytes` of RAM: above it, at a multiple of
/// [`HOTPLUG_ALIGN_BYTES`].
///
/// # Errors
/// [`HostRamError::BadSize`] for RAM that cannot be, [`HostRamError::BadHotplugSize`] unless
/// `hotplug_bytes` is a positive multiple of 4 KiB of at most [`MAX_HOTPLUG_BYTES`].
pub fn hotplug_range(ram_bytes: u64, hotplug_bytes: u64) -> Result<PfnRange, HostRamError> {
    let refused =
        || HostRamError::BadHotplugSize { bytes: hotplug_bytes, max_bytes: MAX_HOTPLUG_BYTES };
    let ram = ram_ranges(ram_bytes)?;
    let pages = PageCount::from_bytes_exact(hotplug_bytes).ok_or_else(refused)?;
    if pages.is_zero() || hotplug_bytes > MAX_HOTPLUG_BYTES {
        return Err(refused());
    }
    let ram_end = ram.last().map_or(0, |range| range.end().gpa()).max(MMIO_GAP_END);
    let start = Pfn::containing(ram_end.next_multiple_of(HOTPLUG_ALIGN_BYTES));
    PfnRange::from_start(start, pages).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(ram_bytes: u64) -> Vec<(u64, u64)> {
        let ranges = ram_ranges(ram_bytes).expect("a valid size");
        ranges.iter().map(|range| (range.start().gpa(), range.end().gpa())).collect()
    }

    #[test]
    fn ram_below_the_gap_is_one_range() {
        assert_eq!(bounds(4096), [(0, 4096)]);
        assert_eq!(bounds(3 << 30), [(0, 3 << 30)]);
    }

    #[test]
    fn ram_above_the_gap_continues_at_four_gib() {
        assert_eq!(bounds((3 << 30) + 4096), [(0, 3 << 30), (4 << 30, (4 << 30) + 4096)]);
        assert_eq!(bounds(64 << 30), [(0, 3 << 30), (4 << 30, 65 << 30)]);
    }

    #[test]
    fn hotplug_memory_starts_above_ram_and_the_gap_at_a_multiple_of_two_gib() {
        for (ram, start) in [
            (4096, 4),
            (3 << 30, 4),
            ((3 << 30) + 4096, 6),
            (5 << 30, 6),
            ((5 << 30) + 4096, 8),
            (64 << 30, 66),
        ] {
            let range = hotplug_range(ram, 64 << 30).expect("a valid size");
            assert_eq!(
                (range.start().gpa() >> 30, range.len().bytes() >> 30),
                (start, 64),
                "{ram}"
            );
        }
    }

    #[test]
    fn impossible_sizes_of_hotplug_memory_are_refused() {
        for bytes in [0, 4095, (64 << 30) + 4096, u64::MAX] {
            let refused = hotplug_range(4096, bytes);
            assert!(matches!(refused, Err(HostRamError::BadHotplugSize { .. })), "{bytes}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for bytes in [0, 1, 4095, 4097, (64 << 30) + 4096, (1 << 44) + 4096, u64::MAX] {
            assert!(matches!(ram_ranges(bytes), Err(HostRamError::BadSize { .. })), "{bytes}");
        }
    }
}
