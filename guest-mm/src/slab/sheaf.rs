//! Free objects that CPUs keep for themselves.

use core::fmt;
use core::ptr::NonNull;

use crate::platform::{MAX_CPUS, Platform};
use crate::sync::{LockClass, SpinGuard, SpinLock};

/// Most objects that one CPU keeps.
pub(super) const SHEAF_OBJECTS: usize = 32;

/// One CPU's free objects, last freed first: they are the ones in its caches.
pub(super) struct Sheaf {
    len: usize,
    objects: [Option<NonNull<u8>>; SHEAF_OBJECTS],
}

// SAFETY: the sheaf owns its objects, which nobody else uses.
unsafe impl Send for Sheaf {}

impl Sheaf {
    const fn new() -> Self {
        Self { len: 0, objects: [None; SHEAF_OBJECTS] }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn pop(&mut self) -> Option<NonNull<u8>> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        self.objects.get_mut(last)?.take()
    }

    /// Adds an object. The caller sees to it that there is room.
    pub(super) fn push(&mut self, object: NonNull<u8>) {
        if let Some(slot) = self.objects.get_mut(self.len) {
            *slot = Some(object);
            self.len += 1;
        } else {
            debug_assert!(false, "a full sheaf leaks an object");
        }
    }
}

/// The sheaves of all CPUs.
///
/// Each has a lock, so that any CPU can empty it, and its CPU may take it in a
/// trap handler; it is the owner's alone otherwise, and stays in its caches.
pub(super) struct Sheaves {
    cpus: [CpuSheaf; MAX_CPUS],
    /// Objects that a CPU keeps at most.
    limit: usize,
}

/// On cache lines of its own.
#[repr(align(64))]
struct CpuSheaf(SpinLock<Sheaf>);

impl Sheaves {
    /// Empty sheaves of at most `limit` objects; 0 means that CPUs keep none.
    pub(super) fn new(limit: usize) -> Self {
        let sheaf = |_| CpuSheaf(SpinLock::new(LockClass::Sheaf, Sheaf::new()));
        Self { cpus: core::array::from_fn(sheaf), limit: limit.min(SHEAF_OBJECTS) }
    }

    /// Objects that a CPU keeps at most.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// This CPU's last free object; `fill` adds some if there is none.
    pub(super) fn pop<P: Platform>(
        &self,
        platform: &P,
        fill: impl FnOnce(&mut Sheaf),
    ) -> Option<NonNull<u8>> {
        let mut sheaf = self.lock_mine(platform);
        if sheaf.len == 0 {
            fill(&mut sheaf);
        }
        sheaf.pop()
    }

    /// Gives this CPU a free object; `flush` takes some off first if it has
    /// enough.
    pub(super) fn push<P: Platform>(
        &self,
        platform: &P,
        object: NonNull<u8>,
        flush: impl FnOnce(&mut Sheaf),
    ) {
        let mut sheaf = self.lock_mine(platform);
        if sheaf.len >= self.limit {
            flush(&mut sheaf);
        }
        sheaf.push(object);
    }

    /// Calls `each` with the sheaf of every CPU, one at a time.
    pub(super) fn for_each<P: Platform>(&self, platform: &P, mut each: impl FnMut(&mut Sheaf)) {
        for cpu in &self.cpus {
            each(&mut cpu.0.lock(platform));
        }
    }

    /// Calls `with` with the number of objects that CPUs keep, which stays what
    /// it is for as long.
    pub(super) fn count<P: Platform, R>(&self, platform: &P, with: impl FnOnce(u64) -> R) -> R {
        let [first, second, third, fourth] = &self.cpus;
        // Ascending by CPU; dropped in reverse.
        let first = first.0.lock(platform);
        let second = second.0.lock_nested(platform);
        let third = third.0.lock_nested(platform);
        let fourth = fourth.0.lock_nested(platform);
        let sheaves = [&*first, &*second, &*third, &*fourth];
        with(sheaves.map(|sheaf| sheaf.len as u64).iter().sum())
    }

    /// Any CPU's sheaf would do; a caller moved to another CPU meanwhile only
    /// takes a line that is not in its caches.
    fn lock_mine<'a, P: Platform>(&'a self, platform: &'a P) -> SpinGuard<'a, Sheaf, P> {
        self.cpus[platform.cpu() % MAX_CPUS].0.lock(platform)
    }
}

impl fmt::Debug for Sheaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sheaves").field("limit", &self.limit).finish_non_exhaustive()
    }
}
