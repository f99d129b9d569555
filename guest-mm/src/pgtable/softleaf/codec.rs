//! Leaves from and to bits. Every field is tabulated here and nowhere else.
//!
//! | bit | meaning |
//! |---|---|
//! | 0 | P = 0 |
//! | 1 | soft-dirty |
//! | 2 | userfaultfd write-protected |
//! | 3 | exclusive (swap only) |
//! | 4 | young |
//! | 5 | dirty |
//! | 6–57 | offset, inverted |
//! | 58 | 0 |
//! | 59–63 | kind, 1–12; nothing is 64 zero bits |
//!
//! The offset is inverted against L1 terminal fault (CVE-2018-3620): a CPU that
//! speculates past P = 0 takes bits 12–51 for a physical address, which for
//! every offset in use lies beyond all RAM.

use core::fmt;

use abi::Pfn;

use super::super::entry::Entry;
use super::{DevOffset, Leaf, LeafFlags, Marker, OFFSET_BITS, Softleaf, SwapSlot};

const SOFT_DIRTY: u64 = 1 << 1;
const UFFD_WP: u64 = 1 << 2;
const EXCLUSIVE: u64 = 1 << 3;
const YOUNG: u64 = 1 << 4;
const DIRTY: u64 = 1 << 5;
const OFFSET_SHIFT: u32 = 6;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;
const SPARE: u64 = 1 << (OFFSET_SHIFT + OFFSET_BITS);
const KIND_SHIFT: u32 = 59;

const _: () = assert!(OFFSET_SHIFT + OFFSET_BITS + 1 == KIND_SHIFT, "no field overlaps");

/// An entry that no encoder produces.
///
/// A fault on it is a bus error and counted; nobody takes a frame number from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnknownLeaf(pub Entry);

impl fmt::Display for UnknownLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unknown page-table entry {:#018x}", self.0.bits())
    }
}

impl core::error::Error for UnknownLeaf {}

// The kinds' numbers. 0 and 13–31 are unused.
const SWAP: u64 = 1;
const MIGRATION_READ: u64 = 2;
const MIGRATION_READ_EXCLUSIVE: u64 = 3;
const MIGRATION_WRITE: u64 = 4;
const DEVICE_PRIVATE_READ: u64 = 5;
const DEVICE_PRIVATE_WRITE: u64 = 6;
const DEVICE_EXCLUSIVE: u64 = 7;
const HWPOISON: u64 = 8;
const MARKER: u64 = 9;
const MIGRATION_DEVICE_PRIVATE_READ: u64 = 10;
const MIGRATION_DEVICE_PRIVATE_READ_EXCLUSIVE: u64 = 11;
const MIGRATION_DEVICE_PRIVATE_WRITE: u64 = 12;

impl Softleaf {
    /// Number, offset and kind-specific bits; `None` for nothing.
    const fn fields(self) -> Option<(u64, u64, u64)> {
        Some(match self {
            Self::None => return None,
            Self::Swap { slot, exclusive: false } => (SWAP, slot.get(), 0),
            Self::Swap { slot, exclusive: true } => (SWAP, slot.get(), EXCLUSIVE),
            Self::MigrationRead(pfn) => (MIGRATION_READ, pfn.number(), 0),
            Self::MigrationReadExclusive(pfn) => (MIGRATION_READ_EXCLUSIVE, pfn.number(), 0),
            Self::MigrationWrite(pfn) => (MIGRATION_WRITE, pfn.number(), 0),
            Self::DevicePrivateRead(at) => (DEVICE_PRIVATE_READ, at.get(), 0),
            Self::DevicePrivateWrite(at) => (DEVICE_PRIVATE_WRITE, at.get(), 0),
            Self::DeviceExclusive(pfn) => (DEVICE_EXCLUSIVE, pfn.number(), 0),
            Self::HwPoison(pfn) => (HWPOISON, pfn.number(), 0),
            Self::Marker(marker) => (MARKER, marker.0 as u64, 0),
            Self::MigrationDevicePrivateRead(at) => (MIGRATION_DEVICE_PRIVATE_READ, at.get(), 0),
            Self::MigrationDevicePrivateReadExclusive(at) => {
                (MIGRATION_DEVICE_PRIVATE_READ_EXCLUSIVE, at.get(), 0)
            }
            Self::MigrationDevicePrivateWrite(at) => (MIGRATION_DEVICE_PRIVATE_WRITE, at.get(), 0),
        })
    }

    /// The kind with this number and offset.
    const fn from_fields(number: u64, offset: u64, exclusive: bool) -> Option<Self> {
        let (Some(pfn), Some(at)) = (Pfn::new(offset), DevOffset::new(offset)) else {
            return None;
        };
        if exclusive && number != SWAP {
            return None;
        }
        Some(match number {
            SWAP => match SwapSlot::new(offset) {
                Some(slot) => Self::Swap { slot, exclusive },
                None => return None,
            },
            MIGRATION_READ => Self::MigrationRead(pfn),
            MIGRATION_READ_EXCLUSIVE => Self::MigrationReadExclusive(pfn),
            MIGRATION_WRITE => Self::MigrationWrite(pfn),
            DEVICE_PRIVATE_READ => Self::DevicePrivateRead(at),
            DEVICE_PRIVATE_WRITE => Self::DevicePrivateWrite(at),
            DEVICE_EXCLUSIVE => Self::DeviceExclusive(pfn),
            HWPOISON => Self::HwPoison(pfn),
            MARKER => match Marker::from_bits(offset) {
                Some(marker) => Self::Marker(marker),
                None => return None,
            },
            MIGRATION_DEVICE_PRIVATE_READ => Self::MigrationDevicePrivateRead(at),
            MIGRATION_DEVICE_PRIVATE_READ_EXCLUSIVE => {
                Self::MigrationDevicePrivateReadExclusive(at)
            }
            MIGRATION_DEVICE_PRIVATE_WRITE => Self::MigrationDevicePrivateWrite(at),
            _ => return None,
        })
    }
}

const FLAGS: [(LeafFlags, u64); 4] = [
    (LeafFlags::YOUNG, YOUNG),
    (LeafFlags::DIRTY, DIRTY),
    (LeafFlags::SOFT_DIRTY, SOFT_DIRTY),
    (LeafFlags::UFFD_WP, UFFD_WP),
];

impl Leaf {
    /// The entry that says this.
    pub const fn entry(self) -> Entry {
        let Some((number, offset, extra)) = self.kind.fields() else { return Entry::NONE };
        let inverted = (!offset & OFFSET_MASK) << OFFSET_SHIFT;
        let mut bits = number << KIND_SHIFT | inverted | extra;
        let mut i = 0;
        while i < FLAGS.len() {
            if self.flags.contains(FLAGS[i].0) {
                bits |= FLAGS[i].1;
            }
            i += 1;
        }
        Entry::from_bits(bits)
    }

    /// What the non-present `entry` says.
    ///
    /// # Errors
    /// No leaf encodes to this entry.
    pub const fn decode(entry: Entry) -> Result<Self, UnknownLeaf> {
        let bits = entry.bits();
        if entry.is_none() {
            return Ok(Self { kind: Softleaf::None, flags: LeafFlags::empty() });
        }
        if entry.is_present() || bits & SPARE != 0 {
            return Err(UnknownLeaf(entry));
        }
        let offset = !(bits >> OFFSET_SHIFT) & OFFSET_MASK;
        let exclusive = bits & EXCLUSIVE != 0;
        let Some(kind) = Softleaf::from_fields(bits >> KIND_SHIFT, offset, exclusive) else {
            return Err(UnknownLeaf(entry));
        };
        let mut flags = LeafFlags::empty();
        let mut i = 0;
        while i < FLAGS.len() {
            if bits & FLAGS[i].1 != 0 {
                flags = flags.union(FLAGS[i].0);
            }
            i += 1;
        }
        Ok(Self { kind, flags })
    }
}

impl From<Leaf> for Entry {
    fn from(leaf: Leaf) -> Self {
        leaf.entry()
    }
}
