//! Where guest RAM lies in guest-physical memory.

use abi::platform::{MAX_RAM_BYTES, MMIO_GAP_END, MMIO_GAP_START};
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
    fn impossible_sizes_are_refused() {
        for bytes in [0, 1, 4095, 4097, (64 << 30) + 4096, (1 << 44) + 4096, u64::MAX] {
            assert!(matches!(ram_ranges(bytes), Err(HostRamError::BadSize { .. })), "{bytes}");
        }
    }
}
