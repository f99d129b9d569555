//! A reader-writer lock that does not mask interrupts: for sections that may wait.

use core::fmt;
use core::ops::{Deref, DerefMut};

use super::LockClass;
use super::lock_order::{Nesting, note_acquire, note_release};
use super::shim::{AtomicU32, Ordering, UnsafeCell};
use crate::platform::Platform;

/// Set while a writer holds the lock.
const WRITER: u32 = 1 << 31;
/// Set by a writer that waits: no further reader gets in, so that writers are not starved.
const WAITING: u32 = 1 << 30;

/// A value that many may read, or one may write.
///
/// Its holder may fault, allocate and wait; interrupts stay as they are. So
/// it must not be taken by a trap handler that may have interrupted its holder,
/// nor while a [`super::SpinLock`] is held. Waiters call [`Platform::relax`].
///
/// A flow of control that reads must not take the lock for reading once more:
/// a writer may have come to wait in between.
pub struct RwLock<T> {
    class: LockClass,
    /// Readers, and the two flags.
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: readers share `T`, and a writer moves it between threads.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}
// SAFETY: owning the lock is owning the value.
unsafe impl<T: Send> Send for RwLock<T> {}

impl<T> RwLock<T> {
    /// A free lock of `class` around `value`.
    #[cfg(not(loom))]
    pub const fn new(class: LockClass, value: T) -> Self {
        Self { class, state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// A free lock of `class` around `value`.
    #[cfg(loom)]
    pub fn new(class: LockClass, value: T) -> Self {
        Self { class, state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Takes the lock for reading, waiting for writers.
    ///
    /// # Panics
    /// In debug builds, on a lock-order violation ([`super::lock_order`]).
    pub fn read<'a, P: Platform>(&'a self, platform: &'a P) -> ReadLockGuard<'a, T, P> {
        self.read_as(platform, Nesting::Outermost)
    }

    /// As [`Self::read`], for a further lock of a class that is held already; the caller orders them.
    ///
    /// # Panics
    /// In debug builds, if a lock of an inner class is held.
    pub fn read_nested<'a, P: Platform>(&'a self, platform: &'a P) -> ReadLockGuard<'a, T, P> {
        self.read_as(platform, Nesting::Nested)
    }

    fn read_as<'a, P: Platform>(
        &'a self,
        platform: &'a P,
        nesting: Nesting,
    ) -> ReadLockGuard<'a, T, P> {
        note_acquire(platform, self.class, nesting);
        while !self.try_acquire_read() {
            platform.relax();
        }
        ReadLockGuard { lock: self, platform, nesting }
    }

    /// Takes the lock for reading if no writer holds or awaits it.
    pub fn try_read<'a, P: Platform>(&'a self, platform: &'a P) -> Option<ReadLockGuard<'a, T, P>> {
        if !self.try_acquire_read() {
            return None;
        }
        note_acquire(platform, self.class, Nesting::Outermost);
        Some(ReadLockGuard { lock: self, platform, nesting: Nesting::Outermost })
    }

    /// Takes the lock for writing, waiting for everybody else.
    ///
    /// # Panics
    /// In debug builds, on a lock-order violation ([`super::lock_order`]).
    pub fn write<'a, P: Platform>(&'a self, platform: &'a P) -> WriteLockGuard<'a, T, P> {
        self.write_as(platform, Nesting::Outermost)
    }

    /// As [`Self::write`], for a further lock of a class that is held already; the caller orders them.
    ///
    /// # Panics
    /// In debug builds, if a lock of an inner class is held.
    pub fn write_nested<'a, P: Platform>(&'a self, platform: &'a P) -> WriteLockGuard<'a, T, P> {
        self.write_as(platform, Nesting::Nested)
    }

    fn write_as<'a, P: Platform>(
        &'a self,
        platform: &'a P,
        nesting: Nesting,
    ) -> WriteLockGuard<'a, T, P> {
        note_acquire(platform, self.class, nesting);
        while !self.try_acquire_write() {
            // Relaxed: the flag only keeps readers out for a while.
            self.state.fetch_or(WAITING, Ordering::Relaxed);
            platform.relax();
        }
        WriteLockGuard { lock: self, platform, nesting }
    }

    /// Takes the lock for writing if it is free.
    pub fn try_write<'a, P: Platform>(
        &'a self,
        platform: &'a P,
    ) -> Option<WriteLockGuard<'a, T, P>> {
        if !self.try_acquire_write() {
            return None;
        }
        note_acquire(platform, self.class, Nesting::Outermost);
        Some(WriteLockGuard { lock: self, platform, nesting: Nesting::Outermost })
    }

    /// The value, by the exclusive borrow of the lock.
    pub fn get_mut(&mut self) -> &mut T {
        let value = self.value.with_mut(|value| value);
        // SAFETY: `&mut self` proves that no guard is alive.
        unsafe { &mut *value }
    }

    fn try_acquire_read(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        // Acquire pairs with the Release of the writer that left.
        state & (WRITER | WAITING) == 0
            && self
                .state
                .compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    fn try_acquire_write(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        // Clears WAITING: others that wait set it again. Acquire pairs with the Release of whoever left.
        state & !WAITING == 0
            && self
                .state
                .compare_exchange(state, WRITER, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("class", &self.class).finish_non_exhaustive()
    }
}

/// Holding one proves that nobody writes the value.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReadLockGuard<'a, T, P: Platform> {
    lock: &'a RwLock<T>,
    platform: &'a P,
    nesting: Nesting,
}

impl<T, P: Platform> Deref for ReadLockGuard<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        let value = self.lock.value.with(|value| value);
        // SAFETY: the guard counts as a reader, so no writer's `&mut` exists for as long as it lives.
        unsafe { &*value }
    }
}

impl<T, P: Platform> Drop for ReadLockGuard<'_, T, P> {
    fn drop(&mut self) {
        note_release(self.platform, self.lock.class, self.nesting);
        // Release pairs with the Acquire of the next writer.
        self.lock.state.fetch_sub(1, Ordering::Release);
    }
}

/// Holding one proves that nobody else reads or writes the value.
#[must_use = "the lock is released when the guard is dropped"]
pub struct WriteLockGuard<'a, T, P: Platform> {
    lock: &'a RwLock<T>,
    platform: &'a P,
    nesting: Nesting,
}

impl<T, P: Platform> Deref for WriteLockGuard<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        let value = self.lock.value.with(|value| value);
        // SAFETY: the guard is the only one of the lock, and the borrow lasts no longer than the guard's.
        unsafe { &*value }
    }
}

impl<T, P: Platform> DerefMut for WriteLockGuard<'_, T, P> {
    fn deref_mut(&mut self) -> &mut T {
        let value = self.lock.value.with_mut(|value| value);
        // SAFETY: the guard is the only one of the lock and is borrowed exclusively.
        unsafe { &mut *value }
    }
}

impl<T, P: Platform> Drop for WriteLockGuard<'_, T, P> {
    fn drop(&mut self) {
        note_release(self.platform, self.lock.class, self.nesting);
        // Release pairs with the Acquire of whoever comes next; a waiting writer's flag stays.
        self.lock.state.fetch_and(!WRITER, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn readers_share_and_writers_exclude() {
        let memory = testing::memory(64);
        let platform = memory.platform();
        let lock = RwLock::new(LockClass::Mmap, 7);
        {
            let first = lock.read(platform);
            let second = lock.read_nested(platform);
            assert_eq!(*first + *second, 14);
            assert!(lock.try_write(platform).is_none());
        }
        *lock.write(platform) += 1;
        let held = lock.write(platform);
        assert!(lock.try_read(platform).is_none());
        assert_eq!(*held, 8);
    }

    #[test]
    fn a_waiting_writer_keeps_new_readers_out() {
        let memory = testing::memory(64);
        let platform = memory.platform();
        let lock = RwLock::new(LockClass::Mmap, 0u32);
        let reader = lock.read(platform);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                testing::set_cpu(1);
                *lock.write(platform) = 1;
            });
            while lock.state.load(Ordering::Relaxed) & WAITING == 0 {
                std::thread::yield_now();
            }
            assert!(lock.try_read(platform).is_none());
            drop(reader);
            writer.join().unwrap();
        });
        assert_eq!(*lock.read(platform), 1);
    }

    #[test]
    fn counts_of_many_writers_and_readers_add_up() {
        let memory = testing::memory(64);
        let platform = memory.platform();
        let lock = RwLock::new(LockClass::Mmap, (0u64, 0u64));
        std::thread::scope(|scope| {
            for cpu in 0..4 {
                let lock = &lock;
                scope.spawn(move || {
                    testing::set_cpu(cpu);
                    for i in 0..500 {
                        if i % 3 == 0 {
                            let mut both = lock.write(platform);
                            both.0 += 1;
                            both.1 += 1;
                        } else {
                            let both = lock.read(platform);
                            assert_eq!(both.0, both.1);
                        }
                    }
                });
            }
        });
        assert_eq!(lock.read(platform).0, 4 * 167);
    }
}
