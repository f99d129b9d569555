//! A platform without RAM and a heap allocator of nodes that fails on demand.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use guest_mm::scenario::xarray::CountedNodes;
use guest_mm::store::RecordAlloc;
use guest_mm::xarray::{Node, NodeAlloc};

mod no_ram;

pub use no_ram::NoRam;

/// Nodes, and records of stores, from the heap. Counts them, and fails when told to.
#[derive(Debug)]
pub struct HeapNodes {
    platform: NoRam,
    live: AtomicUsize,
    allocated: AtomicUsize,
    /// Allocations that still succeed; negative for no limit.
    budget: AtomicIsize,
}

impl HeapNodes {
    pub fn new() -> Self {
        Self {
            platform: NoRam,
            live: AtomicUsize::new(0),
            allocated: AtomicUsize::new(0),
            budget: AtomicIsize::new(-1),
        }
    }

    /// Lets `n` more allocations succeed, then none.
    pub fn fail_after(&self, n: usize) {
        self.budget.store(isize::try_from(n).unwrap(), Ordering::Relaxed);
    }

    pub fn succeed(&self) {
        self.budget.store(-1, Ordering::Relaxed);
    }

    /// Nodes handed out and not freed.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Nodes ever handed out.
    pub fn allocated(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }
}

impl HeapNodes {
    fn take<T>(&self) -> Option<NonNull<T>> {
        const { assert!(size_of::<T>() > 0) };
        match self.budget.load(Ordering::Relaxed) {
            0 => return None,
            limited @ 1.. => self.budget.store(limited - 1, Ordering::Relaxed),
            _ => {}
        }
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc(Layout::new::<T>()) })?;
        self.live.fetch_add(1, Ordering::Relaxed);
        self.allocated.fetch_add(1, Ordering::Relaxed);
        Some(memory.cast())
    }

    /// # Safety
    /// `object` came from [`Self::take`] of the same type, and nobody uses it any more.
    unsafe fn give<T>(&self, object: NonNull<T>) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        // Poison: a use after free reads garbage instead of the old content.
        // SAFETY: the object's memory, the caller's no more.
        unsafe { object.cast::<u8>().write_bytes(0xa5, size_of::<T>()) };
        // SAFETY: from `take`, with the same layout.
        unsafe { dealloc(object.cast().as_ptr(), Layout::new::<T>()) };
    }
}

// SAFETY: fresh heap memory of the node's layout, freed by `free_node` only.
unsafe impl NodeAlloc for &HeapNodes {
    type Platform = NoRam;

    fn platform(&self) -> &NoRam {
        &self.platform
    }

    fn alloc_node(&self) -> Option<NonNull<Node>> {
        self.take()
    }

    unsafe fn free_node(&self, node: NonNull<Node>) {
        // SAFETY: from `alloc_node`, and nobody's any more.
        unsafe { self.give(node) };
    }
}

// SAFETY: as for nodes.
unsafe impl<T> RecordAlloc<T> for &HeapNodes {
    fn alloc_record(&self) -> Option<NonNull<T>> {
        self.take()
    }

    unsafe fn free_record(&self, record: NonNull<T>) {
        // SAFETY: from `alloc_record`, and nobody's any more.
        unsafe { self.give(record) };
    }
}

impl CountedNodes for &HeapNodes {
    fn live(self) -> usize {
        HeapNodes::live(self)
    }

    fn fail_after(self, n: usize) {
        HeapNodes::fail_after(self, n);
    }

    fn succeed(self) {
        HeapNodes::succeed(self);
    }
}

impl Drop for HeapNodes {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.live(), 0, "nodes leaked");
        }
    }
}
