//! The table of handles: a tree of pages of entries, three levels deep, that
//! grows with the number of objects and is freed with the pool.
//!
//! Whoever has a handle finds its entry without a lock. Free entries are a list
//! through the entries themselves, last freed first.

use core::ptr::NonNull;

use super::error::ZsError;
use super::handle::{Entry, MAX_HANDLES, ZsHandle};
use crate::buddy::Gfp;
use crate::memdesc::{BlockKind, Order};
use crate::memory::{AllocError, FrozenFrames, Memory};
use crate::platform::Platform;
use crate::sync::shim::{AtomicU64, Ordering};
use crate::sync::{LockClass, SpinLock};

/// Entries of a page.
const ENTRIES: u32 = 512;
/// log2 of them.
const BITS: u32 = ENTRIES.ilog2();
const _: () = assert!(MAX_HANDLES == ENTRIES * ENTRIES * ENTRIES);

/// A page of the tree: entries, or addresses of pages below.
type Node = [AtomicU64; ENTRIES as usize];

#[derive(Debug)]
struct FreeList {
    first: Option<u32>,
    /// Entries that were ever handed out: those from here on are free too.
    fresh: u32,
    /// Entries that there are.
    capacity: u32,
}

/// The handles of a pool.
#[derive(Debug)]
pub(super) struct HandleTable {
    root: NonNull<Node>,
    free: SpinLock<FreeList>,
}

// SAFETY: pages of atomics that live as long as the table.
unsafe impl Send for HandleTable {}
// SAFETY: as for `Send`; what is no atomic is behind the lock.
unsafe impl Sync for HandleTable {}

impl HandleTable {
    /// A table without entries.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new<P: Platform>(memory: &Memory<P>) -> Result<Self, AllocError> {
        let list = FreeList { first: None, fresh: 0, capacity: 0 };
        Ok(Self {
            root: node(memory, Gfp::KERNEL)?,
            free: SpinLock::new(LockClass::ZsHandles, list),
        })
    }

    /// The cell of `handle`'s entry; `None` if there is none of this number.
    pub(super) fn cell(&self, handle: ZsHandle) -> Option<&AtomicU64> {
        self.cell_at(handle.index())
    }

    pub(super) fn cell_at(&self, index: u32) -> Option<&AtomicU64> {
        let mid = child(self.node(self.root), index >> (2 * BITS))?;
        let leaf = child(self.node(mid), index >> BITS)?;
        Some(&self.node(leaf)[slot(index)])
    }

    /// Takes a free entry. Only its new owner knows its handle.
    ///
    /// # Errors
    /// [`ZsError::NoMemory`], [`ZsError::TooManyObjects`].
    pub(super) fn take<P: Platform>(
        &self,
        memory: &Memory<P>,
        gfp: Gfp,
    ) -> Result<ZsHandle, ZsError> {
        loop {
            let mut list = self.free.lock(memory.platform());
            let index = list.first.unwrap_or(list.fresh);
            if let Some(cell) = self.cell_at(index).filter(|_| index < list.capacity) {
                let entry = Entry::from_bits(cell.load(Ordering::Relaxed));
                if list.first.is_some() {
                    list.first = entry.next();
                } else {
                    list.fresh += 1;
                }
                return ZsHandle::new(index, entry.generation()).ok_or(ZsError::TooManyObjects);
            }
            let capacity = list.capacity;
            drop(list);
            self.grow(memory, capacity, gfp)?;
        }
    }

    /// Gives an entry back; its handle means nothing from now on.
    pub(super) fn give_back<P: Platform>(&self, platform: &P, handle: ZsHandle) {
        let mut list = self.free.lock(platform);
        let Some(cell) = self.cell(handle) else { return };
        let entry = Entry::free(list.first, handle.generation() + 1);
        cell.store(entry.bits(), Ordering::Relaxed);
        list.first = Some(handle.index());
    }

    /// Calls `each` with the handle of every entry in use, which may be freed at any time.
    pub(super) fn for_each_used(&self, each: &mut dyn FnMut(ZsHandle)) {
        for index in 0..MAX_HANDLES {
            let Some(cell) = self.cell_at(index) else { return };
            let entry = Entry::from_bits(cell.load(Ordering::Relaxed));
            let handle = ZsHandle::new(index, entry.generation());
            if let Some(handle) = handle.filter(|_| entry.location().is_some()) {
                each(handle);
            }
        }
    }

    /// Frees the table's pages.
    pub(super) fn free<P: Platform>(&mut self, memory: &Memory<P>) {
        for top in 0..ENTRIES {
            let Some(mid) = child(self.node(self.root), top) else { break };
            for low in 0..ENTRIES {
                let Some(leaf) = child(self.node(mid), low) else { break };
                free_node(memory, leaf);
            }
            free_node(memory, mid);
        }
        free_node(memory, self.root);
    }

    /// Pages that the table is made of.
    pub(super) fn pages<P: Platform>(&self, platform: &P) -> u64 {
        let leaves = u64::from(self.free.lock(platform).capacity / ENTRIES);
        1 + leaves + leaves.div_ceil(u64::from(ENTRIES))
    }

    /// Adds a page of entries, unless somebody else has since there were `capacity`.
    fn grow<P: Platform>(
        &self,
        memory: &Memory<P>,
        capacity: u32,
        gfp: Gfp,
    ) -> Result<(), ZsError> {
        if capacity >= MAX_HANDLES {
            return Err(ZsError::TooManyObjects);
        }
        let leaf = node(memory, gfp)?;
        let root = self.node(self.root);
        let (mut spare, mut mid) = (None, child(root, capacity >> (2 * BITS)));
        if mid.is_none() {
            match node(memory, gfp) {
                Ok(new) => (spare, mid) = (Some(new), Some(new)),
                Err(error) => {
                    free_node(memory, leaf);
                    return Err(error.into());
                }
            }
        }
        let mut list = self.free.lock(memory.platform());
        let is_first = list.capacity == capacity;
        if let Some(mid) = mid.filter(|_| is_first) {
            // Release pairs with the Acquire in `child`: the zeros.
            self.node(mid)[slot(capacity >> BITS)].store(address(leaf), Ordering::Release);
            if spare.take().is_some() {
                root[slot(capacity >> (2 * BITS))].store(address(mid), Ordering::Release);
            }
            list.capacity += ENTRIES;
        }
        drop(list);
        if !is_first {
            free_node(memory, leaf);
            spare.into_iter().for_each(|mid| free_node(memory, mid));
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "the table keeps its pages")]
    fn node(&self, node: NonNull<Node>) -> &Node {
        // SAFETY: a page of the table's own, of zeros or atomics, until the table is freed.
        unsafe { node.as_ref() }
    }
}

/// Which of a page's entries the lowest bits name.
const fn slot(index: u32) -> usize {
    (index % ENTRIES) as usize
}

fn address(node: NonNull<Node>) -> u64 {
    node.as_ptr().expose_provenance() as u64
}

fn child(node: &Node, index: u32) -> Option<NonNull<Node>> {
    let address = usize::try_from(node[slot(index)].load(Ordering::Acquire)).ok()?;
    NonNull::new(core::ptr::with_exposed_provenance_mut(address))
}

/// A page of zeros.
fn node<P: Platform>(memory: &Memory<P>, gfp: Gfp) -> Result<NonNull<Node>, AllocError> {
    let mut frames = memory.alloc_frozen(Order::ZERO, gfp | Gfp::ZERO)?;
    let typed = memory.retype(&mut frames, BlockKind::LargeKmalloc);
    debug_assert!(typed.is_ok(), "a frozen block becomes the kernel's: {typed:?}");
    Ok(memory.platform().frame_ptr(frames.into_raw().0).cast())
}

fn free_node<P: Platform>(memory: &Memory<P>, node: NonNull<Node>) {
    let Some(frame) = memory.platform().frame_of(node.addr().get()) else { return };
    // SAFETY: made by `node` above, and nobody uses it any more.
    let frames = unsafe { FrozenFrames::from_raw_as(frame, Order::ZERO, BlockKind::LargeKmalloc) };
    memory.free_frozen(frames);
}
