//! What became of a page, by the words: whatever its owner says of it.

use abi::Pfn;

use super::ops::{MigrateError, Migrated, MovableKind, SourceMemory};
use crate::memdesc::{Memdesc, Order};
use crate::memory::{FrozenFrames, TransitFrames};
use crate::mm::Mm;
use crate::objects::{FrameObject, MovableDesc, ZpDesc};
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// The end of a page's migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// It is where it shall be, its source free.
    Moved,
    /// Its owner gave it up; its source is free.
    Released,
    /// Its owner has the source, and the destination if he took it.
    Kept,
    /// It is where it was, isolated.
    Failed(MigrateError),
}

/// The same, and the destination if nobody has taken it.
#[derive(Debug)]
pub(super) struct Settlement {
    pub(super) end: Settled,
    pub(super) unused: Option<FrozenFrames>,
}

impl From<Settled> for Settlement {
    fn from(end: Settled) -> Self {
        Self { end, unused: None }
    }
}

impl<P: Platform> Mm<'_, P> {
    /// Compares what the owner says of a page with the words. These decide.
    pub(super) fn settle_move(
        &self,
        src: Pfn,
        dst: TransitFrames,
        kind: MovableKind,
        answer: Result<Migrated, MigrateError>,
    ) -> Settlement {
        match (answer, dst.is_taken()) {
            (Ok(Migrated::Moved(behind)), true) => {
                self.free_source(src, kind, behind);
                Settled::Moved.into()
            }
            (Ok(Migrated::Released(behind)), false) => {
                self.free_source(src, kind, behind);
                Settlement { end: Settled::Released, unused: self.take_back(dst) }
            }
            // Its word may be another migration's by now: no look at it tells anything. If
            // the owner left it isolated, the census counts one too many.
            (Ok(Migrated::Kept), is_taken) => {
                self.migration.owned.fetch_sub(1, Ordering::Relaxed);
                let unused = if is_taken { None } else { self.take_back(dst) };
                Settlement { end: Settled::Kept, unused }
            }
            (Err(error), false) => {
                Settlement { end: Settled::Failed(error), unused: self.take_back(dst) }
            }
            // From here on the owner contradicts the words.
            (Ok(Migrated::Moved(_)), false) => {
                let end = Settled::Failed(self.note_contradiction());
                Settlement { end, unused: self.take_back(dst) }
            }
            (Ok(Migrated::Released(_)) | Err(_), true) => self.settle_denied(src, dst, kind),
        }
    }

    /// The owner has taken the destination and denies it.
    fn settle_denied(&self, src: Pfn, dst: TransitFrames, kind: MovableKind) -> Settlement {
        let error = self.note_contradiction();
        if let Ok(Memdesc::Offline(offline)) = self.memory().words().decode(src)
            && self.memory().disown_offline(&dst, offline.driver).is_ok()
        {
            return Settlement { end: Settled::Failed(error), unused: self.take_back(dst) };
        }
        // A descriptor has left the source with the adoption, and an Offline block that is
        // no longer parked has been used: there is no way back.
        self.free_source(src, kind, SourceMemory::Present);
        Settled::Moved.into()
    }

    fn note_contradiction(&self) -> MigrateError {
        self.migration.contradictions.fetch_add(1, Ordering::Relaxed);
        MigrateError::NotTaken
    }

    /// A destination that nobody took, to be given back.
    fn take_back(&self, dst: TransitFrames) -> Option<FrozenFrames> {
        let frames = self.memory().take_out_of_transit(dst);
        // Leaked, not risked; the census shows it.
        debug_assert!(frames.is_ok(), "a destination nobody took: {frames:?}");
        frames.ok()
    }

    /// Frees an isolated page that its owner has given up.
    pub(super) fn free_doomed(&self, src: Pfn, kind: MovableKind) {
        self.free_source(src, kind, SourceMemory::Present);
    }

    /// Frees a source that its owner has left, or given up.
    fn free_source(&self, src: Pfn, kind: MovableKind, behind: SourceMemory) {
        let frames = match kind {
            MovableKind::Offline => {
                self.memory().isolated_block(src).and_then(|block| self.memory().retire(block).ok())
            }
            MovableKind::ZpDesc => self.left_source::<ZpDesc>(src),
            MovableKind::Movable => self.left_source::<MovableDesc>(src),
        };
        self.migration.owned.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(frames.is_some(), "{src:?} was isolated");
        match (frames, behind) {
            (Some(frames), SourceMemory::Present) => self.memory().free_frozen(frames),
            (Some(frames), SourceMemory::Discarded) => self.memory().free_reported(frames),
            (None, _) => {}
        }
    }

    /// Its word says *frozen* if the descriptor went over to the destination, else the
    /// descriptor goes with it.
    fn left_source<D: FrameObject>(&self, src: Pfn) -> Option<FrozenFrames> {
        match self.isolated_object::<D>(src) {
            Some(object) => self.retire_object(object).ok(),
            // SAFETY: the entry's page: `adopt_object` made its word frozen, for us. A free
            // refuses any other.
            None => Some(unsafe { FrozenFrames::from_raw(src, Order::ZERO) }),
        }
    }
}
