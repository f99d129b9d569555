//! A reference and the lock in one handle, to be handed on.

use core::fmt;
use core::ops::Deref;

use super::{Folio, FolioRef};
use crate::platform::Platform;
use crate::sync::LockClass;
use crate::sync::lock_order::{Nesting, note_acquire, note_release};

/// A locked folio and a reference to it. Like the other handles it does nothing
/// when it is dropped.
#[must_use = "unlock it, or everybody waits"]
pub struct LockedFolio<'m, P: Platform> {
    folio: FolioRef<'m>,
    platform: &'m P,
    nesting: Nesting,
}

impl<'m> FolioRef<'m> {
    /// Locks the folio, waiting for who has it locked.
    ///
    /// # Panics
    /// In debug builds, on a lock-order violation ([`crate::sync::lock_order`]).
    pub fn into_locked<P: Platform>(self, platform: &'m P) -> LockedFolio<'m, P> {
        note_acquire(platform, LockClass::Folio, Nesting::Outermost);
        self.acquire(platform);
        LockedFolio { folio: self, platform, nesting: Nesting::Outermost }
    }

    /// Locks the folio if nobody has it locked.
    ///
    /// May be called with locks of inner classes held, since it does not wait.
    ///
    /// # Errors
    /// Somebody has; the reference comes back.
    pub fn try_into_locked<P: Platform>(self, platform: &'m P) -> Result<LockedFolio<'m, P>, Self> {
        if !self.try_acquire() {
            return Err(self);
        }
        Ok(LockedFolio { folio: self, platform, nesting: Nesting::Nested })
    }
}

impl<'m, P: Platform> LockedFolio<'m, P> {
    /// Unlocks the folio and leaves the reference.
    pub fn unlock(self) -> FolioRef<'m> {
        note_release(self.platform, LockClass::Folio, self.nesting);
        self.folio.release_lock(self.platform);
        self.folio
    }

    /// The reference.
    pub const fn reference(&self) -> &FolioRef<'m> {
        &self.folio
    }
}

impl<P: Platform> Deref for LockedFolio<'_, P> {
    type Target = Folio;

    fn deref(&self) -> &Folio {
        &self.folio
    }
}

impl<P: Platform> fmt::Debug for LockedFolio<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockedFolio({:?}, {:?})", self.pfn(), self.order())
    }
}
