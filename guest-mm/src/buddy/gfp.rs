//! What an allocation may use and how hard it tries.

use bitflags::bitflags;

use super::Watermarks;
use crate::memdesc::MigrateType;

bitflags! {
    /// Allocation flags.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Gfp: u32 {
        /// The frames can be migrated.
        const MOVABLE = 1 << 0;
        /// The frames can be given back on demand.
        const RECLAIMABLE = 1 << 1;
        /// May use memory lent by CMA areas (with [`Self::MOVABLE`]).
        const CMA = 1 << 2;
        /// Cannot wait: may use half of the reserve and the high-order reserve.
        const HIGH = 1 << 3;
        /// Frees memory if it gets some: may use the whole reserve.
        const MEMALLOC = 1 << 4;
        /// The caller can do without: stays above the *low* watermark.
        const OPTIONAL = 1 << 5;
        /// The frames are filled with zeros.
        const ZERO = 1 << 6;
        /// May move others' pages out of the way, without waiting, though it does not reclaim.
        const COMPACT = 1 << 7;
        /// As [`Self::COMPACT`], and may wait for it.
        const COMPACT_SYNC = 1 << 8;
    }
}

impl Gfp {
    /// Kernel data that stays where it is.
    pub const KERNEL: Self = Self::empty();
    /// Kernel data needed where nothing can wait.
    pub const ATOMIC: Self = Self::HIGH;
    /// A process's pages.
    pub const USER: Self = Self::MOVABLE;
    /// The balloon's pages: it must not take what others need next.
    pub const BALLOON: Self = Self::MOVABLE.union(Self::OPTIONAL);

    /// The list to look at first.
    pub const fn migratetype(self) -> MigrateType {
        if self.contains(Self::MOVABLE) {
            MigrateType::Movable
        } else if self.contains(Self::RECLAIMABLE) {
            MigrateType::Reclaimable
        } else {
            MigrateType::Unmovable
        }
    }

    /// Pages that must stay free after the allocation.
    pub const fn reserve(self, marks: Watermarks) -> u64 {
        if self.contains(Self::MEMALLOC) {
            0
        } else if self.contains(Self::HIGH) {
            marks.min / 2
        } else if self.contains(Self::OPTIONAL) {
            marks.low
        } else {
            marks.min
        }
    }
}
