//! Non-present leaves: where a page is that the MMU must not reach, or why.
//!
//! One enum, [`Softleaf`], names every kind; [`Leaf`] adds the page state that
//! travels with it. Payloads are typed by what they number: frames of RAM
//! ([`Pfn`]), pages of device memory ([`DevOffset`]), slots of swap
//! ([`SwapSlot`]). A device offset can therefore never reach a function that
//! wants a frame; code that deals with both asks for a [`Location`] and has to
//! match.
//!
//! What fork, mprotect, zap, mremap and rmap do with a leaf is decided in
//! `rules.rs` by matches without wildcard: a new kind does not compile until
//! each of them has decided.
//!
//! Kinds follow Linux `include/linux/leafops.h`, device offsets and their three
//! migration kinds the linux-mm series "Remove device private pages from the
//! physical address space" (February 2026).

mod codec;
mod of_folio;
mod pmd;
mod rules;

use core::fmt;

use abi::Pfn;
use bitflags::bitflags;

pub use codec::UnknownLeaf;
pub use pmd::{PmdLeaf, PmdSoftleaf};
pub use rules::{ForkLeaf, MarkerZap, Owner, Sharing, Target};

/// Bits of a leaf's offset: enough for any frame number.
pub(super) const OFFSET_BITS: u32 = 52;

/// Index of a page in device memory that no physical address reaches.
///
/// Not a frame number: the two count different things, and nothing converts
/// one into the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DevOffset(u64);

impl DevOffset {
    /// The page with this index, or `None` at 2^52 and above.
    pub const fn new(index: u64) -> Option<Self> {
        if index >> OFFSET_BITS == 0 { Some(Self(index)) } else { None }
    }

    /// The index.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The page `n` further on, or `None` past the last one.
    pub const fn checked_add(self, n: u64) -> Option<Self> {
        match self.0.checked_add(n) {
            Some(index) => Self::new(index),
            None => None,
        }
    }
}

impl fmt::Debug for DevOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev:{:x}", self.0)
    }
}

/// A slot of swap space: device and index, as the swap code packs them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SwapSlot(u64);

impl SwapSlot {
    /// The slot with this number, or `None` at 2^52 and above.
    pub const fn new(number: u64) -> Option<Self> {
        if number >> OFFSET_BITS == 0 { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for SwapSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "swap:{:x}", self.0)
    }
}

/// Where a page is: in RAM, or in a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Location {
    /// A frame of RAM.
    Pfn(Pfn),
    /// A page of device-private memory.
    DevOffset(DevOffset),
}

/// What a page table remembers of a page that never was or is no more.
///
/// At least one note; any combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Marker(u8);

impl Marker {
    /// The page was lost: a bus error for whoever touches it.
    pub const POISON: Self = Self(1);
    /// Nothing may be mapped here (`MADV_GUARD_INSTALL`).
    pub const GUARD: Self = Self(2);
    /// userfaultfd waits for the first write.
    pub const UFFD_WP: Self = Self(4);

    /// Both notes.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The notes without those of `other`; `None` if none is left.
    pub const fn without(self, other: Self) -> Option<Self> {
        Self::from_bits((self.0 & !other.0) as u64)
    }

    /// Whether the page was lost.
    pub const fn is_poison(self) -> bool {
        self.0 & Self::POISON.0 != 0
    }

    /// Whether nothing may be mapped.
    pub const fn is_guard(self) -> bool {
        self.0 & Self::GUARD.0 != 0
    }

    /// Whether userfaultfd waits.
    pub const fn is_uffd_wp(self) -> bool {
        self.0 & Self::UFFD_WP.0 != 0
    }

    const fn from_bits(bits: u64) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "three bits")]
        if bits != 0 && bits < 8 { Some(Self(bits as u8)) } else { None }
    }
}

bitflags! {
    /// The state of a page that its leaf keeps for it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct LeafFlags: u8 {
        /// Was used: comes back with A set.
        const YOUNG = 1;
        /// Was written: comes back with D set.
        const DIRTY = 2;
        /// Was written or moved since soft-dirty bits were cleared.
        const SOFT_DIRTY = 4;
        /// userfaultfd waits for a write.
        const UFFD_WP = 8;
    }
}

/// Every kind of non-present leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Softleaf {
    /// Nothing.
    None,
    /// The contents are in swap. `exclusive`: they belong to this leaf alone.
    Swap {
        /// Where.
        slot: SwapSlot,
        /// Whether the page comes back anon-exclusive.
        exclusive: bool,
    },
    /// The page is being moved; it comes back read-only and maybe shared.
    MigrationRead(Pfn),
    /// The page is being moved; it comes back read-only and anon-exclusive.
    MigrationReadExclusive(Pfn),
    /// The page is being moved; it comes back writable, if anonymous also exclusive.
    MigrationWrite(Pfn),
    /// The page is in device memory; the device may read it.
    DevicePrivateRead(DevOffset),
    /// The page is in device memory; the device may write it.
    DevicePrivateWrite(DevOffset),
    /// The page is in RAM, and a device has it to itself until the CPU faults.
    DeviceExclusive(Pfn),
    /// The frame has a memory error.
    HwPoison(Pfn),
    /// A note about the place, without a page.
    Marker(Marker),
    /// As [`Self::MigrationRead`], of a page in device memory.
    MigrationDevicePrivateRead(DevOffset),
    /// As [`Self::MigrationReadExclusive`], of a page in device memory.
    MigrationDevicePrivateReadExclusive(DevOffset),
    /// As [`Self::MigrationWrite`], of a page in device memory.
    MigrationDevicePrivateWrite(DevOffset),
}

/// How a migrating page comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MigrationAccess {
    /// Read-only, maybe shared.
    Read,
    /// Read-only, anon-exclusive.
    ReadExclusive,
    /// Writable.
    Write,
}

impl Softleaf {
    /// The leaf of a page on the move, wherever it is.
    pub const fn migration(at: Location, access: MigrationAccess) -> Self {
        match (at, access) {
            (Location::Pfn(pfn), MigrationAccess::Read) => Self::MigrationRead(pfn),
            (Location::Pfn(pfn), MigrationAccess::ReadExclusive) => {
                Self::MigrationReadExclusive(pfn)
            }
            (Location::Pfn(pfn), MigrationAccess::Write) => Self::MigrationWrite(pfn),
            (Location::DevOffset(at), MigrationAccess::Read) => {
                Self::MigrationDevicePrivateRead(at)
            }
            (Location::DevOffset(at), MigrationAccess::ReadExclusive) => {
                Self::MigrationDevicePrivateReadExclusive(at)
            }
            (Location::DevOffset(at), MigrationAccess::Write) => {
                Self::MigrationDevicePrivateWrite(at)
            }
        }
    }

    /// The leaf of a page in device memory.
    pub const fn device_private(at: DevOffset, writable: bool) -> Self {
        if writable { Self::DevicePrivateWrite(at) } else { Self::DevicePrivateRead(at) }
    }

    /// How the page comes back, if it is on the move.
    pub const fn migration_access(self) -> Option<MigrationAccess> {
        match self {
            Self::MigrationRead(_) | Self::MigrationDevicePrivateRead(_) => {
                Some(MigrationAccess::Read)
            }
            Self::MigrationReadExclusive(_) | Self::MigrationDevicePrivateReadExclusive(_) => {
                Some(MigrationAccess::ReadExclusive)
            }
            Self::MigrationWrite(_) | Self::MigrationDevicePrivateWrite(_) => {
                Some(MigrationAccess::Write)
            }
            Self::None
            | Self::Swap { .. }
            | Self::DevicePrivateRead(_)
            | Self::DevicePrivateWrite(_)
            | Self::DeviceExclusive(_)
            | Self::HwPoison(_)
            | Self::Marker(_) => None,
        }
    }

    /// Whether the page is on the move, from RAM or from device memory: a fault
    /// waits and looks again.
    pub const fn is_migration(self) -> bool {
        self.migration_access().is_some()
    }

    /// Whether the page is in device memory, on the move or not.
    pub const fn is_device_private(self) -> bool {
        matches!(self.location(), Some(Location::DevOffset(_)))
    }

    /// Where the page is, if it is anywhere but in swap.
    pub const fn location(self) -> Option<Location> {
        match self {
            Self::None | Self::Swap { .. } | Self::Marker(_) => None,
            Self::MigrationRead(pfn)
            | Self::MigrationReadExclusive(pfn)
            | Self::MigrationWrite(pfn)
            | Self::DeviceExclusive(pfn)
            | Self::HwPoison(pfn) => Some(Location::Pfn(pfn)),
            Self::DevicePrivateRead(at)
            | Self::DevicePrivateWrite(at)
            | Self::MigrationDevicePrivateRead(at)
            | Self::MigrationDevicePrivateReadExclusive(at)
            | Self::MigrationDevicePrivateWrite(at) => Some(Location::DevOffset(at)),
        }
    }

    /// Whether somebody, CPU after migration or device, may write by this leaf.
    pub const fn is_writable(self) -> bool {
        match self {
            Self::MigrationWrite(_)
            | Self::MigrationDevicePrivateWrite(_)
            | Self::DevicePrivateWrite(_) => true,
            Self::None
            | Self::Swap { .. }
            | Self::MigrationRead(_)
            | Self::MigrationReadExclusive(_)
            | Self::DevicePrivateRead(_)
            | Self::DeviceExclusive(_)
            | Self::HwPoison(_)
            | Self::Marker(_)
            | Self::MigrationDevicePrivateRead(_)
            | Self::MigrationDevicePrivateReadExclusive(_) => false,
        }
    }
}

/// A non-present leaf of a PTE table: a kind, and the state kept for its page.
///
/// Nothing ([`Softleaf::None`]) has no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Leaf {
    kind: Softleaf,
    flags: LeafFlags,
}

impl Leaf {
    /// The leaf of this kind and state. The state of nothing is dropped.
    pub const fn new(kind: Softleaf, flags: LeafFlags) -> Self {
        let flags = if matches!(kind, Softleaf::None) {
            LeafFlags::empty()
        } else {
            LeafFlags::from_bits_truncate(flags.bits())
        };
        Self { kind, flags }
    }

    /// The kind.
    pub const fn kind(self) -> Softleaf {
        self.kind
    }

    /// The page state.
    pub const fn flags(self) -> LeafFlags {
        self.flags
    }

    /// Another kind with the same state: what fork, mprotect and migration do.
    #[must_use]
    pub const fn with_kind(self, kind: Softleaf) -> Self {
        Self::new(kind, self.flags)
    }

    /// The same kind with more state.
    #[must_use]
    pub const fn with_flags(self, flags: LeafFlags) -> Self {
        Self::new(self.kind, self.flags.union(flags))
    }

    /// The same kind with less state.
    #[must_use]
    pub const fn without_flags(self, flags: LeafFlags) -> Self {
        Self::new(self.kind, self.flags.difference(flags))
    }

    /// Whether the page was used.
    pub const fn is_young(self) -> bool {
        self.flags.contains(LeafFlags::YOUNG)
    }

    /// Whether the page was written.
    pub const fn is_dirty(self) -> bool {
        self.flags.contains(LeafFlags::DIRTY)
    }

    /// Whether the page was written or moved since soft-dirty bits were cleared.
    pub const fn is_soft_dirty(self) -> bool {
        self.flags.contains(LeafFlags::SOFT_DIRTY)
    }

    /// Whether userfaultfd waits for a write.
    pub const fn is_uffd_wp(self) -> bool {
        let noted = matches!(self.kind, Softleaf::Marker(marker) if marker.is_uffd_wp());
        noted || self.flags.contains(LeafFlags::UFFD_WP)
    }
}

impl From<Softleaf> for Leaf {
    fn from(kind: Softleaf) -> Self {
        Self::new(kind, LeafFlags::empty())
    }
}

#[cfg(test)]
mod tests;
