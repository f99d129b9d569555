//! The folio lock: a bit that its holder may wait with.

use core::fmt;

use super::{Folio, FolioFlags};
use crate::platform::Platform;
use crate::sync::LockClass;
use crate::sync::lock_order::{Nesting, note_acquire, note_release};

/// Holding one proves that nobody else has the folio locked: its mapping, its
/// place in the page cache and its contents' validity stay as they are.
///
/// Does not mask interrupts; the holder may allocate and wait. The folio is
/// kept by a reference of the holder's, which outlives the guard.
#[must_use = "the lock is released when the guard is dropped"]
pub struct FolioLockGuard<'a, P: Platform> {
    folio: &'a Folio,
    platform: &'a P,
    nesting: Nesting,
}

impl Folio {
    /// Takes the lock, waiting for its holder.
    ///
    /// # Panics
    /// In debug builds, on a lock-order violation ([`crate::sync::lock_order`]).
    pub fn lock<'a, P: Platform>(&'a self, platform: &'a P) -> FolioLockGuard<'a, P> {
        self.lock_as(platform, Nesting::Outermost)
    }

    /// As [`Self::lock`], while another folio is locked that comes before this
    /// one: lower in a file, or the source of a copy.
    ///
    /// # Panics
    /// In debug builds, if a lock of an inner class is held.
    pub fn lock_nested<'a, P: Platform>(&'a self, platform: &'a P) -> FolioLockGuard<'a, P> {
        self.lock_as(platform, Nesting::Nested)
    }

    fn lock_as<'a, P: Platform>(
        &'a self,
        platform: &'a P,
        nesting: Nesting,
    ) -> FolioLockGuard<'a, P> {
        note_acquire(platform, LockClass::Folio, nesting);
        while !self.try_acquire() {
            while self.has(FolioFlags::LOCKED) {
                platform.relax();
            }
        }
        FolioLockGuard { folio: self, platform, nesting }
    }

    /// Takes the lock if it is free. May be called with locks of inner classes
    /// held, since it does not wait; the guard then must not be kept beyond them.
    pub fn try_lock<'a, P: Platform>(&'a self, platform: &'a P) -> Option<FolioLockGuard<'a, P>> {
        if !self.try_acquire() {
            return None;
        }
        Some(FolioLockGuard { folio: self, platform, nesting: Nesting::Nested })
    }

    /// Whether somebody has it locked.
    pub fn is_locked(&self) -> bool {
        self.has(FolioFlags::LOCKED)
    }

    pub(super) fn try_acquire(&self) -> bool {
        // Acquire, in `set_flags`, pairs with the Release of the last holder.
        !self.set_flags(FolioFlags::LOCKED).contains(FolioFlags::LOCKED)
    }

    pub(super) fn release_lock(&self) {
        // Release, in `clear_flags`: what was done under the lock comes before the next holder.
        let before = self.clear_flags(FolioFlags::LOCKED);
        debug_assert!(before.contains(FolioFlags::LOCKED), "unlocked twice");
    }
}

impl<P: Platform> FolioLockGuard<'_, P> {
    /// The locked folio.
    pub fn folio(&self) -> &Folio {
        self.folio
    }
}

impl<P: Platform> Drop for FolioLockGuard<'_, P> {
    fn drop(&mut self) {
        note_release(self.platform, LockClass::Folio, self.nesting);
        self.folio.release_lock();
    }
}

impl<P: Platform> fmt::Debug for FolioLockGuard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FolioLockGuard({:?})", self.folio.pfn())
    }
}
