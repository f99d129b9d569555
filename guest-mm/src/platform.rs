//! The machine as the memory manager sees it.

use core::ptr::NonNull;

use abi::Pfn;

use crate::sync::HeldLocks;

/// Largest number of CPUs, the length of per-CPU arrays.
pub const MAX_CPUS: usize = 4;

/// What the memory manager needs of a machine.
///
/// The kernel implements it on the virtual machine; tests implement it on the
/// host with simulated time, injected faults and a seeded scheduler. Every
/// method may be called from any CPU, masked or not, and from a trap handler.
///
/// # Safety
/// Implementors promise what [`Self::frame_ptr`] says: callers dereference the
/// pointer. [`Self::frame_of`] is its inverse.
pub unsafe trait Platform: Sync {
    /// The frame's first byte in the direct map: 4096-aligned, valid for reads
    /// and writes for as long as the platform lives, whoever holds it.
    ///
    /// Frames that follow each other in one range of RAM follow each other in
    /// the direct map too, and the pointer may be moved over the whole range:
    /// tables and blocks of higher order are used as one piece.
    ///
    /// # Panics
    /// If `pfn` is not a frame of RAM: a caller's bug.
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8>;

    /// The frame whose direct mapping holds the byte at `address`, or `None`
    /// if the address lies outside the direct map. Never dereferences it.
    fn frame_of(&self, address: usize) -> Option<Pfn>;

    /// The CPU that runs the caller, below [`MAX_CPUS`]; stable while masked.
    fn cpu(&self) -> usize;

    /// Masks interrupts on this CPU and returns whether they were masked before.
    fn irq_save(&self) -> bool;

    /// Undoes the matching [`Self::irq_save`], to which `was_masked` belongs.
    fn irq_restore(&self, was_masked: bool);

    /// Monotonic nanoseconds.
    fn now_ns(&self) -> u64;

    /// Called in every iteration of a spin: PAUSE on a machine, a scheduling
    /// point in the simulator.
    fn relax(&self);

    /// Where the lock-order checker of debug builds notes the locks that each
    /// CPU holds; `None` switches the checker off.
    fn held_locks(&self) -> Option<&HeldLocks> {
        None
    }

    /// Asks whether the step at `site` shall fail; always `false` on a real machine.
    fn inject_fault(&self, _site: FaultSite) -> bool {
        false
    }
}

/// A step that tests can make fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultSite {
    /// Taking a block from the buddy allocator.
    BuddyAlloc,
    /// Taking an object from a slab cache.
    SlabAlloc,
    /// Reserving a slot in a PFN store.
    StoreReserve,
    /// Adding a buffer to a virtqueue.
    QueueAdd,
}
