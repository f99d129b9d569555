//! What each operation on address spaces does with each kind of leaf.
//!
//! Every function is one match without wildcard.

use abi::Pfn;

use super::{Leaf, LeafFlags, Location, Marker, Softleaf, SwapSlot};

/// Whether writes to a mapping go to a private copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Copy on write: pages of the mapping may become shared by fork.
    Private,
    /// Writes reach everybody who maps the page.
    Shared,
}

/// Whose page a leaf stands for, as its folio tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// An anonymous folio.
    Anon,
    /// A page of a file.
    File,
}

/// What a leaf stands for: what it keeps alive and where it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// No page.
    Nothing,
    /// A slot: one reference in the swap table, one page in the swap counter.
    Swap(SwapSlot),
    /// A folio: one reference and one mapcount, one page of RSS. Rmap finds the leaf.
    Mapped(Location),
    /// A folio on the move: no reference and no mapcount, which went when the
    /// leaf was installed, but still a page of RSS. Rmap finds the leaf when it
    /// looks for such.
    Migrating(Location),
}

/// What fork makes of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkLeaf {
    /// The child gets nothing, the parent keeps what it has.
    Skip,
    /// Parent and child each get a leaf, the target another holder.
    Copy {
        /// What the parent's entry becomes.
        parent: Leaf,
        /// What the child's entry becomes.
        child: Leaf,
    },
    /// The frame first becomes present in the parent again, which ends the
    /// device's exclusive access; then the present page is copied.
    RestoreExclusive(Pfn),
}

/// Whether zapping takes markers away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerZap {
    /// The pages go, the mapping stays (`MADV_DONTNEED`, truncation): guards,
    /// poison and userfaultfd's notes stay.
    Keep,
    /// The mapping goes: nothing stays.
    Drop,
}

impl Softleaf {
    /// What the leaf stands for.
    pub const fn target(self) -> Target {
        match self {
            Self::None | Self::HwPoison(_) | Self::Marker(_) => Target::Nothing,
            Self::Swap { slot, .. } => Target::Swap(slot),
            Self::DevicePrivateRead(at) | Self::DevicePrivateWrite(at) => {
                Target::Mapped(Location::DevOffset(at))
            }
            Self::DeviceExclusive(pfn) => Target::Mapped(Location::Pfn(pfn)),
            Self::MigrationRead(pfn)
            | Self::MigrationReadExclusive(pfn)
            | Self::MigrationWrite(pfn) => Target::Migrating(Location::Pfn(pfn)),
            Self::MigrationDevicePrivateRead(at)
            | Self::MigrationDevicePrivateReadExclusive(at)
            | Self::MigrationDevicePrivateWrite(at) => Target::Migrating(Location::DevOffset(at)),
        }
    }

    /// The leaf on both sides of a fork of a private mapping: nothing in it is
    /// exclusive or writable any more.
    const fn shared_by_fork(self) -> Self {
        match self {
            Self::Swap { slot, exclusive: _ } => Self::Swap { slot, exclusive: false },
            Self::MigrationRead(pfn)
            | Self::MigrationReadExclusive(pfn)
            | Self::MigrationWrite(pfn) => Self::MigrationRead(pfn),
            Self::DevicePrivateRead(at) | Self::DevicePrivateWrite(at) => {
                Self::DevicePrivateRead(at)
            }
            Self::MigrationDevicePrivateRead(at)
            | Self::MigrationDevicePrivateReadExclusive(at)
            | Self::MigrationDevicePrivateWrite(at) => Self::MigrationDevicePrivateRead(at),
            Self::None | Self::DeviceExclusive(_) | Self::HwPoison(_) | Self::Marker(_) => self,
        }
    }

    /// The leaf after mprotect, whatever the new permissions: no longer writable
    /// as it stands, because only the fault that follows can tell whether it may
    /// be. What was exclusive stays so.
    #[must_use]
    pub const fn for_mprotect(self, owner: Owner) -> Self {
        match self {
            Self::MigrationWrite(pfn) => match owner {
                Owner::Anon => Self::MigrationReadExclusive(pfn),
                Owner::File => Self::MigrationRead(pfn),
            },
            Self::DevicePrivateWrite(at) => Self::DevicePrivateRead(at),
            // Pages in device memory are anonymous, always.
            Self::MigrationDevicePrivateWrite(at) => Self::MigrationDevicePrivateReadExclusive(at),
            Self::None
            | Self::Swap { .. }
            | Self::MigrationRead(_)
            | Self::MigrationReadExclusive(_)
            | Self::DevicePrivateRead(_)
            | Self::DeviceExclusive(_)
            | Self::HwPoison(_)
            | Self::Marker(_)
            | Self::MigrationDevicePrivateRead(_)
            | Self::MigrationDevicePrivateReadExclusive(_) => self,
        }
    }

    /// Whether zapping the range clears the leaf.
    pub const fn is_zapped(self, markers: MarkerZap) -> bool {
        match self {
            Self::None => false,
            Self::Marker(_) => matches!(markers, MarkerZap::Drop),
            Self::Swap { .. }
            | Self::MigrationRead(_)
            | Self::MigrationReadExclusive(_)
            | Self::MigrationWrite(_)
            | Self::DevicePrivateRead(_)
            | Self::DevicePrivateWrite(_)
            | Self::DeviceExclusive(_)
            | Self::HwPoison(_)
            | Self::MigrationDevicePrivateRead(_)
            | Self::MigrationDevicePrivateReadExclusive(_)
            | Self::MigrationDevicePrivateWrite(_) => true,
        }
    }
}

impl Leaf {
    /// What fork makes of the leaf. Page state stays on both sides;
    /// `child_has_uffd` tells whether the child's mapping is watched by
    /// userfaultfd too, else its write-protection is not for the child.
    pub fn for_fork(self, sharing: Sharing, child_has_uffd: bool) -> ForkLeaf {
        let kind = self.kind;
        let shared = match sharing {
            Sharing::Private => kind.shared_by_fork(),
            Sharing::Shared => kind,
        };
        let child = match kind {
            Softleaf::None => return ForkLeaf::Skip,
            Softleaf::DeviceExclusive(pfn) => return ForkLeaf::RestoreExclusive(pfn),
            Softleaf::Marker(marker) => {
                let dropped = if child_has_uffd { None } else { Some(Marker::UFFD_WP) };
                match dropped.map_or(Some(marker), |note| marker.without(note)) {
                    Some(marker) => Softleaf::Marker(marker),
                    None => return ForkLeaf::Skip,
                }
            }
            Softleaf::Swap { .. }
            | Softleaf::MigrationRead(_)
            | Softleaf::MigrationReadExclusive(_)
            | Softleaf::MigrationWrite(_)
            | Softleaf::DevicePrivateRead(_)
            | Softleaf::DevicePrivateWrite(_)
            | Softleaf::HwPoison(_)
            | Softleaf::MigrationDevicePrivateRead(_)
            | Softleaf::MigrationDevicePrivateReadExclusive(_)
            | Softleaf::MigrationDevicePrivateWrite(_) => shared,
        };
        let child = self.with_kind(child);
        let child = if child_has_uffd { child } else { child.without_flags(LeafFlags::UFFD_WP) };
        ForkLeaf::Copy { parent: self.with_kind(shared), child }
    }

    /// The leaf after mprotect; page state stays. See [`Softleaf::for_mprotect`].
    #[must_use]
    pub const fn for_mprotect(self, owner: Owner) -> Self {
        self.with_kind(self.kind.for_mprotect(owner))
    }

    /// The leaf at its new address after mremap: the place counts as written,
    /// for who watches soft-dirty bits. `keep_uffd`: whether userfaultfd goes on
    /// watching it. `None` if nothing is left.
    pub const fn for_move(self, keep_uffd: bool) -> Option<Self> {
        let kind = match self.kind {
            Softleaf::None => return None,
            Softleaf::Marker(marker) if !keep_uffd => match marker.without(Marker::UFFD_WP) {
                Some(marker) => Softleaf::Marker(marker),
                None => return None,
            },
            Softleaf::Marker(_)
            | Softleaf::Swap { .. }
            | Softleaf::MigrationRead(_)
            | Softleaf::MigrationReadExclusive(_)
            | Softleaf::MigrationWrite(_)
            | Softleaf::DevicePrivateRead(_)
            | Softleaf::DevicePrivateWrite(_)
            | Softleaf::DeviceExclusive(_)
            | Softleaf::HwPoison(_)
            | Softleaf::MigrationDevicePrivateRead(_)
            | Softleaf::MigrationDevicePrivateReadExclusive(_)
            | Softleaf::MigrationDevicePrivateWrite(_) => self.kind,
        };
        let moved = self.with_kind(kind).with_flags(LeafFlags::SOFT_DIRTY);
        Some(if keep_uffd { moved } else { moved.without_flags(LeafFlags::UFFD_WP) })
    }
}
