//! The folio lock: a bit that its holder may wait with.

use core::fmt;

use super::{Folio, FolioFlags};
use crate::platform::{Platform, WaitKey};
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
        self.acquire(platform);
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

    pub(super) fn acquire<P: Platform>(&self, platform: &P) {
        while !self.try_acquire() {
            self.await_unlock(platform, &|| false);
        }
    }

    /// Sleeps until nobody has it locked, at least for a moment, or `gives_up`.
    ///
    /// The caller holds a reference of it, and no spin lock.
    pub(crate) fn await_unlock<P: Platform>(&self, platform: &P, gives_up: &dyn Fn() -> bool) {
        self.set_flags(FolioFlags::WAITERS);
        // Whoever unlocks clears both and wakes; who sets the flag after that does not
        // find the lock.
        let both = FolioFlags::LOCKED | FolioFlags::WAITERS;
        platform.wait_until(WaitKey::object(self), &|| !self.has(both) || gives_up());
    }

    pub(super) fn release_lock<P: Platform>(&self, platform: &P) {
        // The folio may go as soon as it is unlocked.
        let key = WaitKey::object(self);
        // Release, in `clear_flags`: what was done under the lock comes before the next holder.
        let before = self.clear_flags(FolioFlags::LOCKED | FolioFlags::WAITERS);
        debug_assert!(before.contains(FolioFlags::LOCKED), "unlocked twice");
        if before.contains(FolioFlags::WAITERS) {
            platform.wake(key, 1);
        }
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
        self.folio.release_lock(self.platform);
    }
}

impl<P: Platform> fmt::Debug for FolioLockGuard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FolioLockGuard({:?})", self.folio.pfn())
    }
}
