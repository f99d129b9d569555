//! Leaves that stand for 512 pages in a page directory.

use abi::{PageCount, Pfn};

use super::super::entry::Entry;
use super::rules::{ForkLeaf, Owner, Sharing};
use super::{DevOffset, Leaf, LeafFlags, Softleaf, UnknownLeaf};

/// log2 of the pages.
const ORDER: u32 = 9;

/// The kinds that a page directory may hold: device-private and migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PmdSoftleaf {
    /// [`Softleaf::MigrationRead`] of 512 pages.
    MigrationRead(Pfn),
    /// [`Softleaf::MigrationReadExclusive`] of 512 pages.
    MigrationReadExclusive(Pfn),
    /// [`Softleaf::MigrationWrite`] of 512 pages.
    MigrationWrite(Pfn),
    /// [`Softleaf::DevicePrivateRead`] of 512 pages.
    DevicePrivateRead(DevOffset),
    /// [`Softleaf::DevicePrivateWrite`] of 512 pages.
    DevicePrivateWrite(DevOffset),
    /// [`Softleaf::MigrationDevicePrivateRead`] of 512 pages.
    MigrationDevicePrivateRead(DevOffset),
    /// [`Softleaf::MigrationDevicePrivateReadExclusive`] of 512 pages.
    MigrationDevicePrivateReadExclusive(DevOffset),
    /// [`Softleaf::MigrationDevicePrivateWrite`] of 512 pages.
    MigrationDevicePrivateWrite(DevOffset),
}

impl PmdSoftleaf {
    /// The same kind among all.
    pub const fn softleaf(self) -> Softleaf {
        match self {
            Self::MigrationRead(pfn) => Softleaf::MigrationRead(pfn),
            Self::MigrationReadExclusive(pfn) => Softleaf::MigrationReadExclusive(pfn),
            Self::MigrationWrite(pfn) => Softleaf::MigrationWrite(pfn),
            Self::DevicePrivateRead(at) => Softleaf::DevicePrivateRead(at),
            Self::DevicePrivateWrite(at) => Softleaf::DevicePrivateWrite(at),
            Self::MigrationDevicePrivateRead(at) => Softleaf::MigrationDevicePrivateRead(at),
            Self::MigrationDevicePrivateReadExclusive(at) => {
                Softleaf::MigrationDevicePrivateReadExclusive(at)
            }
            Self::MigrationDevicePrivateWrite(at) => Softleaf::MigrationDevicePrivateWrite(at),
        }
    }

    /// `leaf` for 512 pages; `None` for the other kinds.
    pub const fn from_softleaf(leaf: Softleaf) -> Option<Self> {
        Some(match leaf {
            Softleaf::MigrationRead(pfn) => Self::MigrationRead(pfn),
            Softleaf::MigrationReadExclusive(pfn) => Self::MigrationReadExclusive(pfn),
            Softleaf::MigrationWrite(pfn) => Self::MigrationWrite(pfn),
            Softleaf::DevicePrivateRead(at) => Self::DevicePrivateRead(at),
            Softleaf::DevicePrivateWrite(at) => Self::DevicePrivateWrite(at),
            Softleaf::MigrationDevicePrivateRead(at) => Self::MigrationDevicePrivateRead(at),
            Softleaf::MigrationDevicePrivateReadExclusive(at) => {
                Self::MigrationDevicePrivateReadExclusive(at)
            }
            Softleaf::MigrationDevicePrivateWrite(at) => Self::MigrationDevicePrivateWrite(at),
            Softleaf::None
            | Softleaf::Swap { .. }
            | Softleaf::DeviceExclusive(_)
            | Softleaf::HwPoison(_)
            | Softleaf::Marker(_) => return None,
        })
    }

    /// Page `index` of the block by itself.
    const fn page(self, index: u64) -> Option<Softleaf> {
        macro_rules! at {
            ($kind:ident, $first:expr, $step:expr) => {
                match $first.checked_add($step) {
                    Some(page) => Softleaf::$kind(page),
                    None => return None,
                }
            };
        }
        let pages = PageCount::new(index);
        Some(match self {
            Self::MigrationRead(pfn) => at!(MigrationRead, pfn, pages),
            Self::MigrationReadExclusive(pfn) => at!(MigrationReadExclusive, pfn, pages),
            Self::MigrationWrite(pfn) => at!(MigrationWrite, pfn, pages),
            Self::DevicePrivateRead(at) => at!(DevicePrivateRead, at, index),
            Self::DevicePrivateWrite(at) => at!(DevicePrivateWrite, at, index),
            Self::MigrationDevicePrivateRead(at) => at!(MigrationDevicePrivateRead, at, index),
            Self::MigrationDevicePrivateReadExclusive(at) => {
                at!(MigrationDevicePrivateReadExclusive, at, index)
            }
            Self::MigrationDevicePrivateWrite(at) => at!(MigrationDevicePrivateWrite, at, index),
        })
    }
}

/// A non-present leaf of a page directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PmdLeaf {
    kind: PmdSoftleaf,
    flags: LeafFlags,
}

impl PmdLeaf {
    /// The leaf of this kind and state.
    pub const fn new(kind: PmdSoftleaf, flags: LeafFlags) -> Self {
        Self { kind, flags: LeafFlags::from_bits_truncate(flags.bits()) }
    }

    /// The kind.
    pub const fn kind(self) -> PmdSoftleaf {
        self.kind
    }

    /// The page state, of all 512.
    pub const fn flags(self) -> LeafFlags {
        self.flags
    }

    /// The same, as a leaf of any size: for code that treats sizes alike.
    pub const fn leaf(self) -> Leaf {
        Leaf::new(self.kind.softleaf(), self.flags)
    }

    /// `leaf` for 512 pages; `None` for kinds that a directory never holds.
    pub const fn from_leaf(leaf: Leaf) -> Option<Self> {
        match PmdSoftleaf::from_softleaf(leaf.kind()) {
            Some(kind) => Some(Self::new(kind, leaf.flags())),
            None => None,
        }
    }

    /// The entry that says this.
    pub const fn entry(self) -> Entry {
        self.leaf().entry()
    }

    /// What the non-present, non-empty `entry` of a page directory says.
    ///
    /// # Errors
    /// No such leaf encodes to this entry.
    pub const fn decode(entry: Entry) -> Result<Self, UnknownLeaf> {
        let leaf = match Leaf::decode(entry) {
            Ok(leaf) => leaf,
            Err(unknown) => return Err(unknown),
        };
        match Self::from_leaf(leaf) {
            Some(leaf) => Ok(leaf),
            None => Err(UnknownLeaf(entry)),
        }
    }

    /// The leaf of page `index` by itself, with the state of the whole. `None`
    /// from 512 on.
    pub const fn split(self, index: u64) -> Option<Leaf> {
        if index >> ORDER != 0 {
            return None;
        }
        match self.kind.page(index) {
            Some(kind) => Some(Leaf::new(kind, self.flags)),
            None => None,
        }
    }

    /// What fork makes of the leaf: parent's and child's. See [`Leaf::for_fork`].
    pub fn for_fork(self, sharing: Sharing, child_has_uffd: bool) -> Option<(Self, Self)> {
        match self.leaf().for_fork(sharing, child_has_uffd) {
            ForkLeaf::Copy { parent, child } => {
                Some((Self::from_leaf(parent)?, Self::from_leaf(child)?))
            }
            ForkLeaf::Skip | ForkLeaf::RestoreExclusive(_) => None,
        }
    }

    /// The leaf after mprotect. See [`Softleaf::for_mprotect`].
    pub const fn for_mprotect(self, owner: Owner) -> Option<Self> {
        Self::from_leaf(self.leaf().for_mprotect(owner))
    }

    /// The leaf at its new address after mremap. See [`Leaf::for_move`].
    pub const fn for_move(self, keep_uffd: bool) -> Option<Self> {
        match self.leaf().for_move(keep_uffd) {
            Some(leaf) => Self::from_leaf(leaf),
            None => None,
        }
    }
}

impl From<PmdLeaf> for Entry {
    fn from(leaf: PmdLeaf) -> Self {
        leaf.entry()
    }
}
