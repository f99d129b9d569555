//! What an owner of movable pages implements.

use core::fmt;

use abi::Pfn;

use crate::errno::Errno;
use crate::memdesc::Kind;
use crate::memory::TransitFrames;
use crate::mm::Mm;
use crate::platform::Platform;

/// How much migration may wait (Linux `enum migrate_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MigrateMode {
    /// Never: what cannot be had at once is left alone.
    Async,
    /// For locks, but not for devices or writeback.
    SyncLight,
    /// For whatever it takes.
    Sync,
}

/// How a migration that did not fail ended. Either way the source is the core's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Migrated {
    /// The owner uses the destination, whose word says so, in place of the source.
    Moved,
    /// The owner has given the source up and not taken the destination (what a
    /// driver of Linux says by `-ENOENT`): the balloon got smaller by a page.
    Released,
}

/// Why a page was not migrated. The source is its owner's again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MigrateError {
    /// A lock or a reference was in the way: later it may work (`EAGAIN`).
    Again,
    /// Pinned, or otherwise bound to its frame (`EBUSY`).
    Busy,
    /// No memory for a destination or for what migration needs (`ENOMEM`).
    NoMemory,
    /// The owner said that it had moved, and the destination's word says that it
    /// did not: a defect of the owner's, which the core has undone (`EIO`).
    NotTaken,
}

impl MigrateError {
    /// Linux's number for it.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Again => Errno::EAGAIN,
            Self::Busy => Errno::EBUSY,
            Self::NoMemory => Errno::ENOMEM,
            Self::NotTaken => Errno::EIO,
        }
    }
}

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Again => "Page is in use at the moment",
            Self::Busy => "Page is bound to its frame",
            Self::NoMemory => "No memory for the destination",
            Self::NotTaken => "The owner did not take the destination",
        })
    }
}

impl core::error::Error for MigrateError {}

/// A kind of word whose pages are moved by their owner's [`MovableOps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MovableKind {
    /// Tag Misc, subtype Offline: a balloon's pages.
    Offline,
    /// Tag ZPDesc: pages of a compressing allocator.
    ZpDesc,
    /// Tag Movable: pages of any other driver.
    Movable,
}

impl MovableKind {
    /// All of them, by number.
    pub const ALL: [Self; 3] = [Self::Offline, Self::ZpDesc, Self::Movable];

    /// The kind for words of `kind`, if they are moved by their owner's operations.
    pub const fn of(kind: Kind) -> Option<Self> {
        // A list of what is, not of what is not: most kinds stay where they are.
        if matches!(kind, Kind::Offline) {
            Some(Self::Offline)
        } else if matches!(kind, Kind::ZpDesc) {
            Some(Self::ZpDesc)
        } else if matches!(kind, Kind::Movable) {
            Some(Self::Movable)
        } else {
            None
        }
    }
}

/// What the owner of a kind of movable pages does when one of them migrates.
///
/// Called by the migration core without a spin lock, perhaps below the
/// allocation of the very owner: an owner takes its own locks by trying, at
/// least in [`MigrateMode::Async`], and says [`MigrateError::Again`].
///
/// No method reads or changes a reference count, and none may free `src`: from
/// the isolation on its word says *isolated*, so that the owner's own attempt
/// to free or claim it fails, and the core frees it when it has moved.
pub trait MovableOps<P: Platform>: Sync {
    /// The core has made the word of `src` *isolated*. `false` refuses: the core
    /// makes it movable again and [`Self::putback`] is not called.
    fn isolate(&self, _mm: &Mm<'_, P>, _src: Pfn) -> bool {
        true
    }

    /// Goes over from the isolated page `src` to `dst`, of the same order.
    ///
    /// For [`Migrated::Moved`] the contents, or what stands for them, are the
    /// same, nothing of the owner's names `src` any more, and the word of `dst`
    /// is the owner's ([`Memory::adopt_offline`]). In every other case the word of
    /// `dst` still says *transit*.
    ///
    /// # Errors
    /// [`MigrateError`]; nothing has changed. [`Self::putback`] follows.
    ///
    /// [`Memory::adopt_offline`]: crate::memory::Memory::adopt_offline
    fn migrate(
        &self,
        mm: &Mm<'_, P>,
        dst: &TransitFrames,
        src: Pfn,
        mode: MigrateMode,
    ) -> Result<Migrated, MigrateError>;

    /// `src` was isolated and is not migrated: it is the owner's again. Called
    /// before the core makes its word movable.
    fn putback(&self, _mm: &Mm<'_, P>, _src: Pfn) {}
}
