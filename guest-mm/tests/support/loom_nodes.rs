//! Nodes of XArrays for models.
#![allow(unreachable_pub, reason = "part of several test binaries")]

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use guest_mm::xarray::{Node, NodeAlloc};

#[path = "no_ram.rs"]
mod no_ram;

use no_ram::NoRam;

/// Nodes from the heap that are handed out again at once and freed at the end.
pub struct Nodes {
    platform: NoRam,
    // Only the writer allocates and frees: the mutex is never contended, and
    // loom need not know of it.
    free: std::sync::Mutex<Vec<usize>>,
    all: std::sync::Mutex<Vec<usize>>,
}

impl Nodes {
    pub fn new() -> Self {
        Self { platform: NoRam, free: Default::default(), all: Default::default() }
    }
}

// SAFETY: heap memory of the node's layout, which stays until the end.
unsafe impl NodeAlloc for Nodes {
    type Platform = NoRam;

    fn platform(&self) -> &NoRam {
        &self.platform
    }

    fn alloc_node(&self) -> Option<NonNull<Node>> {
        let address = self.free.lock().unwrap().pop().unwrap_or_else(|| {
            // SAFETY: a node is not zero-sized.
            let memory = unsafe { alloc(Layout::new::<Node>()) };
            let address = memory.expose_provenance();
            self.all.lock().unwrap().push(address);
            address
        });
        NonNull::new(std::ptr::with_exposed_provenance_mut(address))
    }

    unsafe fn free_node(&self, node: NonNull<Node>) {
        self.free.lock().unwrap().push(node.as_ptr().expose_provenance());
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for &address in self.all.get_mut().unwrap().iter() {
            let memory = std::ptr::with_exposed_provenance_mut(address);
            // SAFETY: from `alloc_node`, with this layout; the array is gone.
            unsafe { dealloc(memory, Layout::new::<Node>()) };
        }
    }
}
