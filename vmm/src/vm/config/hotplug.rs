//! Hotplug memory as its operator describes it.

use std::time::Duration;

use abi::PageCount;
use abi::platform::{HOTPLUG_ALIGN_BYTES, MAX_HOTPLUG_BYTES};

/// Smallest block, as in Firecracker: what a guest can plug and unplug at a time.
pub const MIN_BLOCK_BYTES: u64 = 2 << 20;
/// Largest block: the region begins at a multiple of it, however much RAM lies below.
pub const MAX_BLOCK_BYTES: u64 = HOTPLUG_ALIGN_BYTES;
/// Block size unless another is asked for, as in Firecracker.
pub const DEFAULT_BLOCK_BYTES: u64 = 2 << 20;
/// Slot size unless another is asked for, as in Firecracker.
pub const DEFAULT_SLOT_BYTES: u64 = 128 << 20;

/// A region of hotplug memory, and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugConfig {
    /// Bytes of the region.
    pub total_bytes: u64,
    /// What the guest plugs and unplugs at a time.
    pub block_bytes: u64,
    /// What KVM has a memory slot for while a block in it is plugged: a block or more.
    pub slot_bytes: u64,
    /// A resize operation without progress for this long is stalled.
    pub stall_after: Duration,
}

impl HotplugConfig {
    /// `total_bytes` in blocks of [`DEFAULT_BLOCK_BYTES`] and the largest slots up to [`DEFAULT_SLOT_BYTES`] that fit.
    pub fn of_size(total_bytes: u64) -> Self {
        let largest = 1 << total_bytes.trailing_zeros().min(DEFAULT_SLOT_BYTES.trailing_zeros());
        Self {
            total_bytes,
            block_bytes: DEFAULT_BLOCK_BYTES,
            slot_bytes: DEFAULT_BLOCK_BYTES.max(largest),
            stall_after: Duration::from_secs(5),
        }
    }

    /// Checks the sizes by themselves and against each other.
    ///
    /// # Errors
    /// [`HotplugError`].
    pub fn validate(&self) -> Result<(), HotplugError> {
        let Self { total_bytes, block_bytes, slot_bytes, .. } = *self;
        let is_possible = (MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&block_bytes);
        if !is_possible || !block_bytes.is_power_of_two() {
            return Err(HotplugError::Block { block_bytes });
        }
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(block_bytes) {
            return Err(HotplugError::Slot { slot_bytes, block_bytes });
        }
        let fits = (slot_bytes..=MAX_HOTPLUG_BYTES).contains(&total_bytes);
        if !fits || !total_bytes.is_multiple_of(slot_bytes) {
            return Err(HotplugError::Total { total_bytes, slot_bytes });
        }
        Ok(())
    }

    /// Pages of a slot.
    pub(crate) const fn slot_pages(&self) -> PageCount {
        PageCount::new(self.slot_bytes / abi::PAGE_SIZE)
    }

    /// Slots that the region needs when all of it is plugged.
    pub(crate) const fn slots(&self) -> u64 {
        self.total_bytes / self.slot_bytes
    }
}

/// Hotplug memory that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HotplugError {
    /// Block size.
    #[error(
        "Hotplug memory in blocks of {block_bytes} B is not possible; allowed: powers of two from {MIN_BLOCK_BYTES} B (2 MiB) to {MAX_BLOCK_BYTES} B (2 GiB)"
    )]
    Block {
        /// What was asked.
        block_bytes: u64,
    },
    /// Slot size.
    #[error(
        "Hotplug memory in slots of {slot_bytes} B is not possible; allowed: multiples of the block size, {block_bytes} B"
    )]
    Slot {
        /// What was asked.
        slot_bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// Size of the region.
    #[error(
        "{total_bytes} B of hotplug memory are not possible; allowed: multiples of the slot size, {slot_bytes} B, to {MAX_HOTPLUG_BYTES} B (64 GiB)"
    )]
    Total {
        /// What was asked.
        total_bytes: u64,
        /// Bytes of a slot.
        slot_bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn slots_are_as_large_as_the_size_allows() {
        for (total, slot) in [(2, 2), (64, 64), (128, 128), (192, 64), (1024, 128), (130, 2)] {
            let config = HotplugConfig::of_size(total * MIB);
            assert_eq!((config.slot_bytes, config.validate()), (slot * MIB, Ok(())), "{total} MiB");
        }
        for total in [0, 1, MIB, 3 * MIB, (64 << 30) + 2 * MIB, u64::MAX] {
            assert!(HotplugConfig::of_size(total).validate().is_err(), "{total}");
        }
    }

    #[test]
    fn sizes_that_do_not_go_together_are_refused_with_both() {
        let good = HotplugConfig::of_size(1024 * MIB);
        for (block_bytes, slot_bytes, total_bytes) in [
            (MIB, 128 * MIB, 1024 * MIB),
            (3 * MIB, 129 * MIB, 1290 * MIB),
            (0, 128 * MIB, 1024 * MIB),
            (4 * MIB, 130 * MIB, 1300 * MIB),
            (256 * MIB, 128 * MIB, 1024 * MIB),
            (2 * MIB, 0, 1024 * MIB),
            (2 * MIB, 128 * MIB, 64 * MIB),
            (2 * MIB, 128 * MIB, 1000 * MIB),
            (2 * MIB, 128 * MIB, 65 << 30),
            (2 * MIB, u64::MAX - MIB + 1 - MIB, u64::MAX - MIB + 1 - MIB),
        ] {
            let bad = HotplugConfig { total_bytes, block_bytes, slot_bytes, ..good };
            let said = bad.validate().expect_err("refused").to_string();
            assert!(said.contains("allowed"), "{said}");
        }
        let strict = HotplugConfig { block_bytes: 128 * MIB, ..good };
        assert_eq!(strict.validate(), Ok(()));
    }

    /// Blocks of 4 GiB were taken, and then did not fit the region, which begins at 6 GiB beside 5 GiB of RAM: the VM did not start.
    #[test]
    fn no_block_is_larger_than_what_the_region_begins_at_a_multiple_of() {
        let of = |gib: u64| HotplugConfig {
            total_bytes: 64 << 30,
            block_bytes: gib << 30,
            slot_bytes: gib << 30,
            ..HotplugConfig::of_size(1 << 30)
        };
        assert_eq!(of(2).validate(), Ok(()));
        for gib in [4, 64] {
            let refused = of(gib).validate().expect_err("refused");
            assert_eq!(refused, HotplugError::Block { block_bytes: gib << 30 });
            assert!(refused.to_string().contains("2147483648 B (2 GiB)"), "{refused}");
        }
        for ram in [4096, (3 << 30) + 4096, 5 << 30, 64 << 30] {
            let region = guest_ram::hotplug_range(ram, 64 << 30).expect("a region");
            assert!(region.start().gpa().is_multiple_of(MAX_BLOCK_BYTES), "{region:?}");
        }
    }
}
