//! What an owner of movable pages implements.

use core::fmt;

use abi::Pfn;

use crate::errno::Errno;
use crate::memdesc::Kind;
use crate::memory::TransitFrames;
use crate::mm::Mm;
use crate::objects::AdoptError;
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

/// How a migration that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Migrated {
    /// The owner uses the destination, whose word says so, in place of the
    /// source, which is the core's to free.
    Moved(SourceMemory),
    /// The owner has given the source up, which is the core's to free, and not
    /// taken the destination (what a driver of Linux says by `-ENOENT`): the
    /// balloon got smaller by a page.
    Released(SourceMemory),
    /// The source is the owner's again, by its own change of the word from
    /// *isolated*, and the core does not touch it; so is the destination, if it
    /// is taken. So ends what a device does not answer in the middle.
    Kept,
}

/// What is behind a source that its owner has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceMemory {
    /// Anything, as far as the owner knows ([`Memory::free_frozen`]).
    ///
    /// [`Memory::free_frozen`]: crate::memory::Memory::free_frozen
    Present,
    /// Nothing: the host holds no memory for it, it reads as zero until
    /// somebody writes ([`Memory::free_reported`]).
    ///
    /// [`Memory::free_reported`]: crate::memory::Memory::free_reported
    Discarded,
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
    /// What the owner said is not what the words say: it claimed to have moved and
    /// had not, or the other way round. A defect of the owner's, which the core has
    /// undone (`EIO`).
    NotTaken,
}

impl MigrateError {
    /// All of them, by number.
    pub const ALL: [Self; 4] = [Self::Again, Self::Busy, Self::NoMemory, Self::NotTaken];

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

impl From<AdoptError> for MigrateError {
    fn from(error: AdoptError) -> Self {
        match error {
            // The core finds that out by the word.
            AdoptError::Doomed => Self::Again,
            AdoptError::Source(_) | AdoptError::NoDestination(_) => Self::Busy,
        }
    }
}

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

    /// The same as a [`Kind`].
    pub const fn kind(self) -> Kind {
        match self {
            Self::Offline => Kind::Offline,
            Self::ZpDesc => Kind::ZpDesc,
            Self::Movable => Kind::Movable,
        }
    }

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

/// One of several pages that migrate at once.
#[derive(Debug)]
pub struct Move<'d> {
    /// Head of the isolated block.
    pub src: Pfn,
    /// Where it shall go, of the same order.
    pub dst: &'d TransitFrames,
    /// How it ended: [`MovableOps::migrate`]'s answer, written by the owner.
    pub ended: Result<Migrated, MigrateError>,
}

impl<'d> Move<'d> {
    /// A move that has not begun.
    pub const fn new(src: Pfn, dst: &'d TransitFrames) -> Self {
        Self { src, dst, ended: Err(MigrateError::Again) }
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
/// to free or claim it fails, and the core frees it when it has moved
/// ([`Migrated::Kept`] is the one exception). An owner who frees a described
/// page all the same, on another CPU, leaves that to the core by
/// [`Mm::free_object`]: then no further method is called for it, except that
/// [`Self::putback`] may be under way, or [`Self::migrate`], which finds so at
/// [`Mm::adopt_object`].
pub trait MovableOps<P: Platform>: Sync {
    /// The core has made the word of `src` *isolated*. `false` refuses: the core
    /// makes it movable again and [`Self::putback`] is not called.
    fn isolate(&self, _mm: &Mm<'_, P>, _src: Pfn) -> bool {
        true
    }

    /// Goes over from the isolated page `src` to `dst`, of the same order.
    ///
    /// For [`Migrated::Moved`] the contents, or what stands for them, are the
    /// same, nothing of the owner's names `src` any more, and the owner has taken
    /// `dst` ([`Memory::adopt_offline`], [`Mm::adopt_object`]; [`TransitFrames::is_taken`] says so, also
    /// when `dst` has moved on meanwhile). For [`Migrated::Released`] and every
    /// error it has not.
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

    /// [`Self::migrate`] for several pages, as many as [`Self::batch`] says at
    /// most; `None`s are passed over. An owner whose every step is a round trip
    /// to a device makes one for all of them.
    fn migrate_batch(&self, mm: &Mm<'_, P>, moves: &mut [Option<Move<'_>>], mode: MigrateMode) {
        for step in moves.iter_mut().flatten() {
            step.ended = self.migrate(mm, step.dst, step.src, mode);
        }
    }

    /// Pages that [`Self::migrate_batch`] is worth calling with.
    fn batch(&self) -> usize {
        1
    }

    /// Cuts the isolated block that starts at `src` so that one page of it stays
    /// isolated, `src` itself; the rest is the owner's again, movable. For a
    /// block of an order for which there is no destination.
    ///
    /// # Errors
    /// [`MigrateError::Busy`]: blocks of this owner are moved whole;
    /// [`MigrateError::Again`], [`MigrateError::NoMemory`]. Nothing has changed.
    fn split(&self, _mm: &Mm<'_, P>, _src: Pfn) -> Result<(), MigrateError> {
        Err(MigrateError::Busy)
    }

    /// `src` was isolated and is not migrated: it is the owner's again. Called
    /// before the core makes its word movable.
    fn putback(&self, _mm: &Mm<'_, P>, _src: Pfn) {}
}
