//! What a thread says of its sleep, for a scheduler that blocks threads.
//!
//! ```text
//!  sleeper: fall_asleep, barrier, look ─ not over: lets the CPU go
//!  waker:   change, barrier, wake_up   ─ was asleep: may run
//! ```
//!
//! One of the two sees the other: a change that the sleeper's look misses finds
//! him asleep. Tried in `tests/loom_sleeper.rs`, with a mutant that looks first.

use super::shim::{AtomicU64, Ordering, fence};
use crate::platform::WaitKey;

/// No [`WaitKey`] has this number.
const AWAKE: u64 = u64::MAX;

/// A thread's own: what it sleeps on.
#[derive(Debug)]
pub struct Sleeper(AtomicU64);

impl Sleeper {
    /// Awake.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU64::new(AWAKE))
    }

    /// Awake.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU64::new(AWAKE))
    }

    /// Says what the thread is about to sleep on. Then it looks whether that is
    /// over already; if not, it lets its CPU go until it is [awake](Self::is_awake).
    pub fn fall_asleep(&self, key: WaitKey) {
        // The fence orders it before the look; pairs with the one in `wake_up`.
        self.0.store(key.get(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The thread does not sleep, after all or any more.
    pub fn rise(&self) {
        self.0.store(AWAKE, Ordering::Relaxed);
    }

    /// Whether the thread may run.
    pub fn is_awake(&self) -> bool {
        // Acquire pairs with the Release of the waker: what he changed is seen.
        self.0.load(Ordering::Acquire) == AWAKE
    }

    /// Orders what a waker has changed before his looks at who sleeps: once before [`Self::wake_up`] of all.
    pub fn before_wake_up() {
        fence(Ordering::SeqCst);
    }

    /// Wakes the thread if it sleeps on one of `count` keys from `first` on.
    /// Returns whether it does no longer, so that its CPU should look.
    pub fn wake_up(&self, first: WaitKey, count: u64) -> bool {
        let key = self.0.load(Ordering::Relaxed);
        key != AWAKE
            && WaitKey::from_number(key).is_among(first, count)
            && self.0.compare_exchange(key, AWAKE, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

impl Default for Sleeper {
    fn default() -> Self {
        Self::new()
    }
}
