//! The order of locks, and its checker in debug builds.
//!
//! A CPU that holds a lock may take only locks of classes further down in
//! [`LockClass`]; two locks of one class only by [`SpinLock::lock_nested`],
//! whose caller names the order between them. Locks mask interrupts, so the
//! classes held by a CPU are those of one flow of control.
//!
//! [`SpinLock::lock_nested`]: super::SpinLock::lock_nested

use core::sync::atomic::AtomicU32;
#[cfg(debug_assertions)]
use core::sync::atomic::Ordering;

use crate::platform::{MAX_CPUS, Platform};

/// A class of locks; outer classes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum LockClass {
    /// The balloon's mutex; migration may only try it.
    Balloon,
    /// A virtqueue and its driver state.
    Queue,
    /// The mmap lock of an address space.
    Mmap,
    /// A VMA's own lock.
    Vma,
    /// The list of files; a file's length and contents.
    Files,
    /// A folio's lock; never waited for below it.
    Folio,
    /// Reverse maps: per file and per anonymous region.
    Rmap,
    /// A PMD-level page table.
    Pmd,
    /// A PTE-level page table; nothing is allocated below it.
    Pte,
    /// An XArray.
    XArray,
    /// One CPU's compressor of a compressed swap device.
    Zram,
    /// A size class of zsmalloc.
    ZsClass,
    /// A group of pages of zsmalloc: which they are, and what is in them.
    Zspage,
    /// The free handles of a zsmalloc pool.
    ZsHandles,
    /// Callbacks that wait for a grace period.
    Rcu,
    /// The free objects that one CPU keeps of a slab cache.
    Sheaf,
    /// A slab cache.
    Slab,
    /// The LRU lists.
    Lru,
    /// The free slots of a swap device.
    Swap,
    /// One CPU's page lists.
    Pcp,
    /// A zone's free lists.
    Zone,
}

/// The lock classes that each CPU holds, as bit masks.
#[derive(Debug, Default)]
pub struct HeldLocks {
    #[cfg_attr(not(debug_assertions), expect(dead_code, reason = "read in debug builds only"))]
    per_cpu: [AtomicU32; MAX_CPUS],
}

impl HeldLocks {
    /// No lock held by any CPU.
    pub const fn new() -> Self {
        Self { per_cpu: [const { AtomicU32::new(0) }; MAX_CPUS] }
    }
}

/// Whether a lock was taken while another of its class was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nesting {
    /// The only lock of its class.
    Outermost,
    /// A further lock of a class that the CPU holds already.
    Nested,
}

/// Notes that this CPU is about to take a lock of `class`.
///
/// # Panics
/// In debug builds if the CPU holds a lock of an inner class, or one of the
/// same class unless `Nested`: a deadlock waiting for its second thread.
#[cfg(debug_assertions)]
pub(crate) fn note_acquire<P: Platform>(platform: &P, class: LockClass, nesting: Nesting) {
    let Some(held) = held_mask(platform) else { return };
    let bit = 1u32 << class as u32;
    let mask = held.load(Ordering::Relaxed);
    let forbidden = match nesting {
        Nesting::Outermost => !(bit - 1),
        Nesting::Nested => !(bit - 1) & !bit,
    };
    assert!(
        mask & forbidden == 0,
        "lock order: {class:?} taken while the classes of mask {mask:#x} are held"
    );
    held.store(mask | bit, Ordering::Relaxed);
}

/// Notes that this CPU has taken a free lock of `class` without waiting for it.
///
/// # Panics
/// In debug builds if the CPU holds one of the class: the release of either
/// would be taken for that of both.
#[cfg(debug_assertions)]
pub(crate) fn note_tried<P: Platform>(platform: &P, class: LockClass) {
    let Some(held) = held_mask(platform) else { return };
    let bit = 1u32 << class as u32;
    let mask = held.load(Ordering::Relaxed);
    assert!(mask & bit == 0, "lock order: {class:?} tried while another of the class is held");
    held.store(mask | bit, Ordering::Relaxed);
}

/// Notes that this CPU released its lock of `class`; a nested one keeps the class held.
#[cfg(debug_assertions)]
pub(crate) fn note_release<P: Platform>(platform: &P, class: LockClass, nesting: Nesting) {
    let Some(held) = held_mask(platform) else { return };
    if nesting == Nesting::Outermost {
        held.fetch_and(!(1u32 << class as u32), Ordering::Relaxed);
    }
}

/// Notes a lock of another make that this CPU has taken.
pub(crate) fn note_held<P: Platform>(platform: &P, class: LockClass) {
    note_acquire(platform, class, Nesting::Outermost);
}

/// Notes that this CPU has let go of it.
pub(crate) fn note_let_go<P: Platform>(platform: &P, class: LockClass) {
    note_release(platform, class, Nesting::Outermost);
}

#[cfg(debug_assertions)]
fn held_mask<P: Platform>(platform: &P) -> Option<&AtomicU32> {
    platform.held_locks()?.per_cpu.get(platform.cpu())
}

#[cfg(not(debug_assertions))]
pub(crate) fn note_acquire<P: Platform>(_: &P, _: LockClass, _: Nesting) {}

#[cfg(not(debug_assertions))]
pub(crate) fn note_tried<P: Platform>(_: &P, _: LockClass) {}

#[cfg(not(debug_assertions))]
pub(crate) fn note_release<P: Platform>(_: &P, _: LockClass, _: Nesting) {}
