//! Taking pages from their owners, and giving them back.

use core::fmt;

use abi::Pfn;

use super::batch::MigrateBatch;
use super::folios::FolioIsolateError;
use super::ops::MovableKind;
use super::registry::OpsGuard;
use crate::errno::Errno;
use crate::memdesc::{BlockKind, Descriptor, Hold, Kind, LookupError, Memdesc, Offline, PutBack};
use crate::memory;
use crate::mm::Mm;
use crate::objects::{FrameObject, MovableDesc, TakeError, ZpDesc};
use crate::platform::{FaultSite, Platform};
use crate::sync::shim::Ordering;

/// Why a page was not isolated. It is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsolateError {
    /// The frame is not in RAM, or its word is malformed.
    Lookup(LookupError),
    /// The frame is free, or on its way.
    Free(Kind),
    /// Not the first frame of its block, which starts here.
    Tail(Pfn),
    /// Frames of this kind stay where they are: reserved, slabs, page tables, pinned by a driver.
    Immovable(Kind),
    /// The kind may move, but this page has a holder: its owner, or another migration.
    Held(Kind, Hold),
    /// The kind may move, but nobody has registered operations for it.
    NoOps(MovableKind),
    /// Its owner's operations refused.
    Refused(MovableKind),
    /// It is a folio, in use in a way that keeps it where it is.
    Folio(FolioIsolateError),
    /// Another CPU changed the word first.
    Raced(Pfn),
    /// The batch has no room.
    BatchFull,
}

impl IsolateError {
    /// Linux's number for it.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Lookup(_) | Self::BatchFull => Errno::EINVAL,
            Self::Raced(_) => Errno::EAGAIN,
            Self::Free(_)
            | Self::Tail(_)
            | Self::Immovable(_)
            | Self::Held(..)
            | Self::NoOps(_)
            | Self::Refused(_)
            | Self::Folio(_) => Errno::EBUSY,
        }
    }
}

impl fmt::Display for IsolateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup(error) => error.fmt(f),
            Self::Free(kind) => write!(f, "Frame is free ({})", kind.name()),
            Self::Tail(head) => write!(f, "Frame belongs to the block at {head}"),
            Self::Immovable(kind) => write!(f, "Frames of kind {} do not move", kind.name()),
            Self::Held(kind, hold) => write!(f, "Frame of kind {} is {hold:?}", kind.name()),
            Self::NoOps(kind) => write!(f, "Nobody moves frames of kind {kind:?}"),
            Self::Refused(kind) => write!(f, "The owner of {kind:?} pages refused"),
            Self::Folio(error) => error.fmt(f),
            Self::Raced(pfn) => write!(f, "Another CPU changed frame {pfn} first"),
            Self::BatchFull => f.write_str("Batch is full"),
        }
    }
}

impl core::error::Error for IsolateError {}

/// Why the swap of a described page failed.
fn not_taken(error: TakeError, pfn: Pfn, kind: MovableKind) -> IsolateError {
    match error {
        TakeError::Lookup(error) => IsolateError::Lookup(error),
        TakeError::Taken(hold) => IsolateError::Held(kind.kind(), hold),
        // It was of the kind just now.
        TakeError::OtherKind(_) | TakeError::Raced => IsolateError::Raced(pfn),
    }
}

/// How an entry of a batch is migrated and put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// By its owner's operations.
    Owned(MovableKind),
    /// By its reverse map (`migrate/folio.rs`).
    Folio,
}

pub(super) type Guards<'a, 'm, P> = [Option<OpsGuard<'a, 'm, P>>; MovableKind::ALL.len()];

impl<'m, P: Platform> Mm<'m, P> {
    /// Takes the page at `pfn` from its owner, for [`Self::migrate_pages`]: a
    /// block that starts there, or the folio that holds it.
    ///
    /// One swap of the word, for a page that is no folio: no lock, no count. Then
    /// the owner's operations may still refuse.
    ///
    /// # Errors
    /// [`IsolateError`]; the page is as it was.
    pub fn isolate_for_migration<const N: usize>(
        &self,
        pfn: Pfn,
        batch: &mut MigrateBatch<'_, 'm, P, N>,
    ) -> Result<(), IsolateError> {
        debug_assert!(core::ptr::eq(self.base(), batch.mm().base()), "another machine's batch");
        batch.isolate(pfn)
    }

    /// Isolates the page at `pfn`; returns the head of its block.
    pub(super) fn isolate_page<'a>(
        &'a self,
        pfn: Pfn,
        guards: &mut Guards<'a, 'm, P>,
    ) -> Result<Pfn, IsolateError> {
        if self.platform().inject_fault(FaultSite::MigrateIsolate) {
            return Err(IsolateError::Raced(pfn));
        }
        // The words of a hot-plugged block go with it, until the page is ours.
        let _section = self.base().rcu.read(self.platform().cpu());
        let memdesc = self.memory().words().decode(pfn).map_err(IsolateError::Lookup)?;
        let (kind, hold) = match memdesc {
            Memdesc::Buddy(_) => return Err(IsolateError::Free(Kind::Buddy)),
            Memdesc::Pcp(_) => return Err(IsolateError::Free(Kind::Pcp)),
            Memdesc::Block(block) if block.kind == BlockKind::Report => {
                return Err(IsolateError::Free(Kind::Report));
            }
            Memdesc::Block(block) => return Err(IsolateError::Immovable(block.kind.kind())),
            Memdesc::Transit(_) => return Err(IsolateError::Immovable(Kind::Transit)),
            Memdesc::Tail(_) => {
                let head = self.memory().words().head_of(pfn).map_err(IsolateError::Lookup)?;
                return Err(IsolateError::Tail(head.0));
            }
            Memdesc::Offline(Offline { hold, .. }) => (Kind::Offline, hold),
            Memdesc::Descriptor(Descriptor { kind, hold, .. }) => (kind.kind(), hold),
        };
        let Some(movable) = MovableKind::of(kind) else {
            return if matches!(kind, Kind::File | Kind::Anon) {
                let head = self.isolate_folio(pfn).map_err(IsolateError::Folio)?;
                self.migration.folios.fetch_add(1, Ordering::Relaxed);
                Ok(head)
            } else {
                Err(IsolateError::Immovable(kind))
            };
        };
        if hold != Hold::Movable {
            return Err(IsolateError::Held(kind, hold));
        }
        self.isolate_owned(pfn, movable, guards)?;
        Ok(pfn)
    }

    fn isolate_owned<'a>(
        &'a self,
        pfn: Pfn,
        kind: MovableKind,
        guards: &mut Guards<'a, 'm, P>,
    ) -> Result<(), IsolateError> {
        // Before the swap: the operations must not go while a page of theirs is isolated.
        let guard = match &mut guards[kind as usize] {
            Some(guard) => guard,
            none => none.insert(self.movable_ops(kind).ok_or(IsolateError::NoOps(kind))?),
        };
        let ops = guard.ops();
        match kind {
            MovableKind::Offline => self.isolate_offline(pfn)?,
            MovableKind::ZpDesc => self.isolate_described::<ZpDesc>(pfn, kind)?,
            MovableKind::Movable => self.isolate_described::<MovableDesc>(pfn, kind)?,
        }
        self.migration.owned.fetch_add(1, Ordering::Relaxed);
        if !ops.isolate(self, pfn) {
            self.release_owned(pfn, kind);
            return Err(IsolateError::Refused(kind));
        }
        Ok(())
    }

    fn isolate_described<D: FrameObject>(
        &self,
        pfn: Pfn,
        kind: MovableKind,
    ) -> Result<(), IsolateError> {
        let isolated = self.isolate_object::<D>(pfn);
        // The word owns it from here on: an entry of a batch is its frame number.
        isolated.map(drop).map_err(|error| not_taken(error, pfn, kind))
    }

    fn isolate_offline(&self, pfn: Pfn) -> Result<(), IsolateError> {
        let driver = match self.memory().words().decode(pfn).map_err(IsolateError::Lookup)? {
            Memdesc::Offline(offline) => offline.driver,
            Memdesc::Block(_)
            | Memdesc::Pcp(_)
            | Memdesc::Tail(_)
            | Memdesc::Buddy(_)
            | Memdesc::Descriptor(_)
            | Memdesc::Transit(_) => return Err(IsolateError::Raced(pfn)),
        };
        match self.memory().isolate(pfn, driver) {
            Ok(_block) => Ok(()),
            Err(memory::IsolateError::Claim(_) | memory::IsolateError::NotMovable) => {
                Err(IsolateError::Raced(pfn))
            }
        }
    }

    /// How the isolated page at `pfn` is to be treated.
    pub(super) fn entry_kind(&self, pfn: Pfn) -> EntryKind {
        let kind = self.memory().words().load(pfn).ok().and_then(|word| word.kind().ok());
        kind.and_then(MovableKind::of).map_or(EntryKind::Folio, EntryKind::Owned)
    }

    /// Gives an isolated page back to its owner, whom its operations tell, or frees it
    /// if he has given it up. Returns pages freed.
    pub(super) fn putback_owned(
        &self,
        pfn: Pfn,
        kind: MovableKind,
        guard: Option<&OpsGuard<'_, 'm, P>>,
    ) -> u64 {
        if let Some(guard) = guard.filter(|_| !self.is_doomed(pfn)) {
            guard.ops().putback(self, pfn);
        }
        self.release_owned(pfn, kind)
    }

    /// Makes an isolated page movable again, or frees it if its owner has given it
    /// up. Returns pages freed.
    fn release_owned(&self, pfn: Pfn, kind: MovableKind) -> u64 {
        let freed = match kind {
            MovableKind::Offline => {
                let back = self.memory().isolated_block(pfn).map(|b| self.memory().putback(b));
                back.map(|back| back.map(|()| PutBack::Returned))
            }
            MovableKind::ZpDesc => self.release_object::<ZpDesc>(pfn),
            MovableKind::Movable => self.release_object::<MovableDesc>(pfn),
        };
        self.migration.owned.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(matches!(freed, Some(Ok(_))), "{pfn:?} was isolated, and is {freed:?}");
        u64::from(matches!(freed, Some(Ok(PutBack::Doomed))))
    }

    fn release_object<D: FrameObject>(
        &self,
        pfn: Pfn,
    ) -> Option<Result<PutBack, crate::memdesc::TransitionError>> {
        Some(self.putback_object(self.isolated_object::<D>(pfn)?))
    }

    /// Whether the owner of the isolated page at `pfn` has given it up.
    pub(super) fn is_doomed(&self, pfn: Pfn) -> bool {
        let word = self.memory().words().load(pfn);
        word.is_ok_and(|word| word.state().is_ok_and(|state| state.hold == Hold::Doomed))
    }
}
