//! A spinning lock that masks interrupts while held.

use core::fmt;
use core::ops::{Deref, DerefMut};

use super::LockClass;
use super::lock_order::{Nesting, note_acquire, note_release, note_tried};
use super::shim::{AtomicBool, Ordering, UnsafeCell};
use crate::platform::Platform;

/// A value behind a spinning lock.
///
/// Interrupts are masked while it is held, so a trap handler may take the same
/// lock. Waiters call [`Platform::relax`]. Test-and-test-and-set, not fair:
/// critical sections are short and CPUs at most four.
pub struct SpinLock<T> {
    class: LockClass,
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out one borrow at a time, so sharing it shares `T` only
// as moving it between threads would.
unsafe impl<T: Send> Sync for SpinLock<T> {}
// SAFETY: owning the lock is owning the value.
unsafe impl<T: Send> Send for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock of `class` around `value`.
    #[cfg(not(loom))]
    pub const fn new(class: LockClass, value: T) -> Self {
        Self { class, locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// A free lock of `class` around `value`.
    #[cfg(loom)]
    pub fn new(class: LockClass, value: T) -> Self {
        Self { class, locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the lock, spinning until it is free.
    ///
    /// # Panics
    /// In debug builds, on a lock-order violation ([`super::lock_order`]).
    pub fn lock<'a, P: Platform>(&'a self, platform: &'a P) -> SpinGuard<'a, T, P> {
        self.acquire(platform, Nesting::Outermost)
    }

    /// Takes a further lock of a class that this CPU holds already.
    ///
    /// The caller orders such locks itself (per-CPU lists: by CPU number) and
    /// drops this guard before the first one.
    ///
    /// # Panics
    /// In debug builds, if a lock of an inner class is held.
    pub fn lock_nested<'a, P: Platform>(&'a self, platform: &'a P) -> SpinGuard<'a, T, P> {
        self.acquire(platform, Nesting::Nested)
    }

    /// Takes the lock if it is free. Whoever tries waits for nobody, so inner
    /// classes may be held: that is how migration gets at a balloon's lock.
    pub fn try_lock<'a, P: Platform>(&'a self, platform: &'a P) -> Option<SpinGuard<'a, T, P>> {
        let was_masked = platform.irq_save();
        if self.try_acquire() {
            note_tried(platform, self.class);
            return Some(SpinGuard {
                lock: self,
                platform,
                was_masked,
                nesting: Nesting::Outermost,
            });
        }
        platform.irq_restore(was_masked);
        None
    }

    /// The value, by the exclusive borrow of the lock.
    pub fn get_mut(&mut self) -> &mut T {
        let value = self.value.with_mut(|value| value);
        // SAFETY: `&mut self` proves that no guard is alive.
        unsafe { &mut *value }
    }

    /// The value, without the lock.
    #[cfg(not(loom))]
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    fn acquire<'a, P: Platform>(
        &'a self,
        platform: &'a P,
        nesting: Nesting,
    ) -> SpinGuard<'a, T, P> {
        let was_masked = platform.irq_save();
        note_acquire(platform, self.class, nesting);
        while !self.try_acquire() {
            // Spin on a read: the line stays shared until the holder writes it.
            while self.locked.load(Ordering::Relaxed) {
                platform.relax();
            }
        }
        SpinGuard { lock: self, platform, was_masked, nesting }
    }

    fn try_acquire(&self) -> bool {
        // Acquire pairs with the Release store in `SpinGuard::drop`.
        self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

impl<T> fmt::Debug for SpinLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpinLock").field("class", &self.class).finish_non_exhaustive()
    }
}

/// Holding one proves that this CPU owns the lock; dropping it releases the
/// lock and restores the interrupt mask.
#[must_use = "the lock is released when the guard is dropped"]
pub struct SpinGuard<'a, T, P: Platform> {
    lock: &'a SpinLock<T>,
    platform: &'a P,
    was_masked: bool,
    nesting: Nesting,
}

impl<T, P: Platform> Deref for SpinGuard<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        let value = self.lock.value.with(|value| value);
        // SAFETY: the guard is the only one of a locked lock, and the borrow lasts
        // no longer than the guard's, so no `&mut` to the value exists meanwhile.
        unsafe { &*value }
    }
}

impl<T, P: Platform> DerefMut for SpinGuard<'_, T, P> {
    fn deref_mut(&mut self) -> &mut T {
        let value = self.lock.value.with_mut(|value| value);
        // SAFETY: the guard is the only one of a locked lock and is borrowed
        // exclusively, so this is the only borrow of the value.
        unsafe { &mut *value }
    }
}

impl<T, P: Platform> Drop for SpinGuard<'_, T, P> {
    fn drop(&mut self) {
        note_release(self.platform, self.lock.class, self.nesting);
        // Release pairs with the Acquire in `SpinLock::try_acquire`.
        self.lock.locked.store(false, Ordering::Release);
        self.platform.irq_restore(self.was_masked);
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for SpinGuard<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
