//! Sleep and wake-up of threads, without a time limit: a lost wake-up is a test that hangs.

use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::vec::Vec;

use crate::platform::WaitKey;

/// Who sleeps on what.
#[derive(Debug, Default)]
pub struct Waits {
    /// The keys of those who sleep, each with a number of its own.
    asleep: Mutex<Vec<(WaitKey, u64)>>,
    woken: Condvar,
    /// Threads that sleep or are about to.
    waiting: AtomicU64,
    /// Times that somebody fell asleep.
    sleeps: AtomicU64,
}

impl Waits {
    /// Threads that sleep now.
    pub fn sleeping(&self) -> usize {
        self.asleep.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Times that a thread fell asleep.
    pub fn sleeps(&self) -> u64 {
        self.sleeps.load(Ordering::Relaxed)
    }

    pub(super) fn wait_until(&self, key: WaitKey, is_over: &dyn Fn() -> bool) {
        if is_over() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever changed something before the lock was had has not seen the key;
        // whoever does so from here on finds it, since waking takes the lock.
        fence(Ordering::SeqCst);
        while !is_over() {
            let me = (key, self.sleeps.fetch_add(1, Ordering::Relaxed));
            asleep.push(me);
            // All are woken; it is one's turn if the waker has taken one off.
            while asleep.contains(&me) {
                asleep = self.woken.wait(asleep).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(asleep);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn wake(&self, first: WaitKey, count: u64) {
        // Pairs with the count of who is about to sleep and the fence before his look.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        asleep.retain(|(key, _)| !key.is_among(first, count));
        drop(asleep);
        self.woken.notify_all();
    }
}
