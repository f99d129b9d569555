//! Read-copy-update: readers without locks, memory reclaimed once they are gone.
//!
//! [`Rcu`] is one domain of readers: per-CPU counters in two banks and an epoch
//! that says which bank new readers count themselves in. A writer unlinks an
//! object, takes a [`Stamp`], and may reuse the memory when the stamp
//! [is over](Rcu::is_over). [`DeferQueue`] keeps unlinked objects until then,
//! linked through the objects themselves, so deferring never allocates.
//!
//! Read sections nest, may be entered in trap handlers and may end on another
//! CPU than they began on. No lock is taken anywhere in this module.
//!
//! [`Callbacks`] runs functions then instead (Linux's `call_rcu`). Grace periods
//! move forward when a writer asks; [`GraceStats`] says how long they took and
//! how much memory waited. docs/slab-rcu.md tells the whole.

mod batch;
mod callback;
mod defer;
mod stats;
mod wait;

pub use callback::{Callback, Callbacks, MAX_BATCH};
pub use defer::{DeferQueue, Deferrable, RcuHead};
pub use stats::{Durations, GraceStats};

pub(crate) use batch::{Batches, List};

use core::marker::PhantomData;

use crate::platform::{CpuSet, MAX_CPUS};
use crate::sync::shim::{AtomicU32, AtomicU64, Ordering, fence, fence_after_rmw};
use stats::Counters;

/// Reader counters; under the model checker fewer, to keep the search small.
const COUNTERS: usize = if cfg!(loom) { 2 } else { MAX_CPUS };

/// Epoch steps until nobody can hold what was reachable before a stamp.
///
/// A step out of epoch `e` follows a scan that found the bank of `e + 1` empty.
/// The step under way while the stamp is taken may have scanned before it, so it
/// does not count; the two after it scan both banks. An argument by the memory
/// model of C++20 gives three in all; loom, which weakens sequentially consistent
/// accesses, finds a reader left over with three when a third CPU steps, and none
/// with four. A grace period that is one step longer costs nothing that matters.
const STEPS_TO_QUIESCE: u64 = 4;

/// One CPU's readers by bank, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct CpuReaders([AtomicU32; 2]);

/// A domain of readers and the writers that wait for them.
#[derive(Debug)]
pub struct Rcu {
    epoch: AtomicU64,
    readers: [CpuReaders; COUNTERS],
    counters: Counters,
    /// Ends every grace period at once: the mutant that the models must kill.
    #[cfg(loom)]
    broken: bool,
}

/// A point after which an object unlinked before it can be reused.
///
/// Sections that open after the stamp may still delay it, each at most once: those
/// of the epoch after the stamp's share a bank with the last scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

impl Stamp {
    /// The stamp as an address: an epoch takes centuries to reach 2^64.
    #[expect(clippy::cast_possible_truncation, reason = "addresses have 64 bits")]
    const fn to_address(self) -> usize {
        self.0 as usize
    }

    const fn from_address(address: usize) -> Self {
        Self(address as u64)
    }
}

impl Rcu {
    /// A domain without readers.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
            readers: [const { CpuReaders([AtomicU32::new(0), AtomicU32::new(0)]) }; COUNTERS],
            counters: Counters::new(),
        }
    }

    /// A domain without readers.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
            readers: core::array::from_fn(|_| CpuReaders([AtomicU32::new(0), AtomicU32::new(0)])),
            counters: Counters::new(),
            broken: false,
        }
    }

    /// A domain that ends every grace period at once: what a model that passes
    /// with [`Self::new`] must catch.
    #[cfg(loom)]
    pub fn new_broken() -> Self {
        Self { broken: true, ..Self::new() }
    }

    /// Opens a read section: what is reachable now stays valid until the guard drops.
    ///
    /// `cpu` chooses the counter, to keep CPUs off each other's cache lines; any
    /// value is correct.
    pub fn read(&self, cpu: usize) -> ReadGuard<'_> {
        // Relaxed: a stale epoch only puts the reader in the other bank, which
        // every grace period scans too.
        let bank = usize::from(self.epoch.load(Ordering::Relaxed) & 1 == 1);
        let counter = &self.readers[cpu % COUNTERS].0[bank];
        counter.fetch_add(1, Ordering::Relaxed);
        // Orders the count before the section's loads. Pairs with the fence in
        // `stamp`: a section that still sees the unlinked object is seen counted
        // by the scans that follow.
        fence_after_rmw();
        ReadGuard { rcu: self, counter, not_send: PhantomData }
    }

    /// The stamp for an object that the caller has just unlinked.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        // Orders the unlinking before the scans of later steps; pairs with the
        // fences in `read` and `try_step`.
        fence(Ordering::SeqCst);
        let now = self.epoch.load(Ordering::Relaxed);
        #[cfg(loom)]
        if self.broken {
            return Stamp(now);
        }
        Stamp(now + STEPS_TO_QUIESCE)
    }

    /// Whether every read section that was open at `stamp` has ended.
    ///
    /// Moves the grace period forward as far as readers allow; never waits.
    pub fn is_over(&self, stamp: Stamp) -> bool {
        loop {
            // Acquire pairs with the Release of the step that got here, which
            // came after the scan that saw the readers gone.
            let now = self.epoch.load(Ordering::Acquire);
            if now >= stamp.0 {
                return true;
            }
            if !self.try_step(now) {
                return false;
            }
        }
    }

    /// The CPUs whose sections hold up a grace period now: those that opened one
    /// there, wherever they run since.
    fn holdouts(&self) -> CpuSet {
        let next_bank = usize::from(self.epoch.load(Ordering::Relaxed) & 1 == 0);
        let busy = |cpu: &usize| self.readers[*cpu].0[next_bank].load(Ordering::Relaxed) != 0;
        (0..COUNTERS).filter(busy).fold(CpuSet::EMPTY, |set, cpu| set.with(cpu))
    }

    /// Moves on from `epoch` if the bank that comes next has no readers left;
    /// `false` if it has. `true` too if somebody else moved on.
    fn try_step(&self, epoch: u64) -> bool {
        // Orders the load that gave `epoch` before the scan; see `stamp`.
        fence(Ordering::SeqCst);
        let next_bank = usize::from(epoch & 1 == 0);
        // Acquire pairs with the Release in `ReadGuard::drop`: the reader's
        // loads happened before the memory is reused.
        let busy = self.readers.iter().any(|cpu| cpu.0[next_bank].load(Ordering::Acquire) != 0);
        if busy {
            return false;
        }
        // The epoch only grows, so success proves that the scan fell into it.
        match self.epoch.compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(_) => true,
        }
    }
}

impl Default for Rcu {
    fn default() -> Self {
        Self::new()
    }
}

/// An open read section. Holding one proves that objects which were reachable
/// in it are not reused.
#[derive(Debug)]
#[must_use = "the section ends when the guard is dropped"]
pub struct ReadGuard<'r> {
    rcu: &'r Rcu,
    counter: &'r AtomicU32,
    not_send: PhantomData<*mut ()>,
}

impl ReadGuard<'_> {
    /// Whether this section is one of `rcu`'s.
    pub fn is_of(&self, rcu: &Rcu) -> bool {
        core::ptr::eq(self.rcu, rcu)
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        // Release pairs with the Acquire scan in `try_step`.
        self.counter.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn without_readers_a_grace_period_ends_at_once() {
        let rcu = Rcu::new();
        let stamp = rcu.stamp();
        assert!(rcu.is_over(stamp));
    }

    #[test]
    fn a_grace_period_waits_for_the_sections_open_at_its_stamp() {
        let rcu = Rcu::new();
        // From every epoch that a stamp may be taken in, and on every counter.
        for cpu in 0..2 * COUNTERS {
            let reader = rcu.read(cpu);
            let stamp = rcu.stamp();
            for _ in 0..5 {
                assert!(!rcu.is_over(stamp));
            }
            drop(reader);
            assert!(rcu.is_over(stamp));
        }
    }

    #[test]
    fn readers_that_overlap_for_ever_do_not_hold_a_grace_period_up() {
        let rcu = Rcu::new();
        let mut reader = rcu.read(0);
        let stamp = rcu.stamp();
        let mut rounds = 0;
        while !rcu.is_over(stamp) {
            // The next section opens before the last one ends.
            let next = rcu.read(rounds);
            reader = next;
            rounds += 1;
            assert!(rounds < 10);
        }
        drop(reader);
    }

    #[test]
    fn nested_sections_count_as_one_until_the_last_ends() {
        let rcu = Rcu::new();
        let outer = rcu.read(0);
        let inner = rcu.read(0);
        let stamp = rcu.stamp();
        drop(outer);
        assert!(!rcu.is_over(stamp));
        drop(inner);
        assert!(rcu.is_over(stamp));
    }
}
