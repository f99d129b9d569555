//! Nodes that are counted, and that fail on demand.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use crate::platform::Platform;
use crate::xarray::{Node, NodeAlloc, SlabNodes};

/// An allocator of nodes that the cases can ask and starve.
pub trait CountedNodes: NodeAlloc + Copy {
    /// Nodes handed out and not freed.
    fn live(self) -> usize;
    /// Lets `n` more allocations succeed, then none.
    fn fail_after(self, n: usize);
    /// Lets allocations succeed again.
    fn succeed(self);
}

/// Nodes of a slab cache, counted.
#[derive(Debug)]
pub struct SlabCounted<'m, P> {
    nodes: SlabNodes<'m, P>,
    live: AtomicUsize,
    /// Allocations that still succeed; negative for no limit.
    budget: AtomicIsize,
}

impl<'m, P> SlabCounted<'m, P> {
    /// Counts the nodes taken from here on.
    pub const fn new(nodes: SlabNodes<'m, P>) -> Self {
        Self { nodes, live: AtomicUsize::new(0), budget: AtomicIsize::new(-1) }
    }
}

// SAFETY: forwards to an allocator that keeps the promises.
unsafe impl<P: Platform> NodeAlloc for &SlabCounted<'_, P> {
    type Platform = P;

    fn platform(&self) -> &P {
        self.nodes.platform()
    }

    fn alloc_node(&self) -> Option<NonNull<Node>> {
        match self.budget.load(Ordering::Relaxed) {
            0 => return None,
            limited @ 1.. => self.budget.store(limited - 1, Ordering::Relaxed),
            _ => {}
        }
        let node = self.nodes.alloc_node()?;
        self.live.fetch_add(1, Ordering::Relaxed);
        Some(node)
    }

    unsafe fn free_node(&self, node: NonNull<Node>) {
        self.live.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { self.nodes.free_node(node) };
    }
}

impl<P: Platform> CountedNodes for &SlabCounted<'_, P> {
    fn live(self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    fn fail_after(self, n: usize) {
        self.budget.store(isize::try_from(n).unwrap_or(isize::MAX), Ordering::Relaxed);
    }

    fn succeed(self) {
        self.budget.store(-1, Ordering::Relaxed);
    }
}
