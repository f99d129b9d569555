//! The machine as the memory manager sees it.

use core::ptr::NonNull;

use abi::Pfn;

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
/// pointer.
pub unsafe trait Platform: Sync {
    /// The frame's first byte in the direct map: 4096-aligned, valid for reads
    /// and writes of 4096 bytes for as long as the platform lives.
    ///
    /// # Panics
    /// If `pfn` is not a frame of RAM: a caller's bug.
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8>;

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
