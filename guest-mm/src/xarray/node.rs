//! [`Node`]: one level of the tree, and where its memory comes from.
//!
//! Every field is atomic because readers look at nodes without a lock; only the
//! holder of the array's lock writes. Readers use `shift`, `slots` and `marks`;
//! `shift` never changes while they can see the node. The other fields are the
//! writers' own.

use core::ptr::{self, NonNull};

use super::entry::RawEntry;
use super::mark::{MARKS, Mark};
use crate::platform::Platform;
use crate::rcu::{Deferrable, RcuHead};
use crate::sync::shim::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

/// log2 of the slots in a node; under the model checker 4 slots, to keep the search small.
pub(super) const SLOT_BITS: u32 = if cfg!(loom) { 2 } else { 6 };
/// Slots in a node.
pub(super) const SLOTS: usize = 1 << SLOT_BITS;
/// A bitmap with one bit per slot, all set.
pub(super) const ALL_SLOTS: u64 = if SLOTS == 64 { u64::MAX } else { (1 << SLOTS) - 1 };

/// Bytes that seven nodes may take so that they fit a 4 KiB slab with room for its list.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Node>() <= 576);

/// One level of the tree: 64 slots that cover `2^shift` indices each.
///
/// Opaque to users; [`NodeAlloc`] gives out memory of its size and alignment.
#[derive(Debug)]
#[repr(C)]
pub struct Node {
    shift: AtomicU8,
    offset: AtomicU8,
    count: AtomicU8,
    values: AtomicU8,
    parent: AtomicPtr<Node>,
    rcu: RcuHead,
    slots: [AtomicPtr<()>; SLOTS],
    marks: [AtomicU64; MARKS],
    /// Slots that are empty, or whose child has a free index below.
    free: AtomicU64,
}

// SAFETY: `rcu` is the node's own and only the array's defer queue uses it.
unsafe impl Deferrable for Node {
    fn rcu_head(&self) -> &RcuHead {
        &self.rcu
    }
}

impl Node {
    /// A node that nobody can see yet.
    pub(super) fn new() -> Self {
        Self {
            shift: AtomicU8::new(0),
            offset: AtomicU8::new(0),
            count: AtomicU8::new(0),
            values: AtomicU8::new(0),
            parent: AtomicPtr::new(ptr::null_mut()),
            rcu: RcuHead::new(),
            slots: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            marks: core::array::from_fn(|_| AtomicU64::new(0)),
            free: AtomicU64::new(ALL_SLOTS),
        }
    }

    /// Places a node that nobody can see yet. Relaxed: published with its pointer.
    pub(super) fn place(&self, shift: u32, offset: usize, parent: Option<&Node>) {
        let small = |n: usize| u8::try_from(n).unwrap_or_else(|_| unreachable!("below 64"));
        self.shift.store(small(shift as usize), Ordering::Relaxed);
        self.offset.store(small(offset), Ordering::Relaxed);
        self.set_parent(parent);
    }

    pub(super) fn shift(&self) -> u32 {
        u32::from(self.shift.load(Ordering::Relaxed))
    }

    /// The slot of `index` in this node.
    pub(super) fn slot_of(&self, index: u64) -> usize {
        slot_at(index, self.shift())
    }

    /// The node's slot in its parent.
    pub(super) fn offset(&self) -> usize {
        usize::from(self.offset.load(Ordering::Relaxed))
    }

    pub(super) fn parent(&self) -> Option<NonNull<Node>> {
        NonNull::new(self.parent.load(Ordering::Relaxed))
    }

    pub(super) fn set_parent(&self, parent: Option<&Node>) {
        let parent = parent.map_or(ptr::null_mut(), |node| ptr::from_ref(node).cast_mut());
        self.parent.store(parent, Ordering::Relaxed);
    }

    /// Slots that are not empty.
    pub(super) fn count(&self) -> usize {
        usize::from(self.count.load(Ordering::Relaxed))
    }

    /// Slots that hold a value, or are siblings of one.
    pub(super) fn values(&self) -> usize {
        usize::from(self.values.load(Ordering::Relaxed))
    }

    pub(super) fn set_counts(&self, count: usize, values: usize) {
        let small = |n: usize| u8::try_from(n).unwrap_or_else(|_| unreachable!("at most 64"));
        self.count.store(small(count), Ordering::Relaxed);
        self.values.store(small(values), Ordering::Relaxed);
    }

    /// Acquire pairs with the Release in [`Self::set_slot`]: what a new word
    /// points to is seen initialised, and words written before it are seen too.
    pub(super) fn slot(&self, slot: usize) -> RawEntry {
        RawEntry::from_word(self.slots[slot].load(Ordering::Acquire))
    }

    pub(super) fn set_slot(&self, slot: usize, entry: RawEntry) {
        self.slots[slot].store(entry.to_word(), Ordering::Release);
    }

    /// The bitmap of `mark`. Relaxed: a hint, the slot decides.
    pub(super) fn marks(&self, mark: Mark) -> u64 {
        self.marks[mark.index()].load(Ordering::Relaxed)
    }

    pub(super) fn set_marks(&self, mark: Mark, bits: u64) {
        self.marks[mark.index()].store(bits, Ordering::Relaxed);
    }

    pub(super) fn is_marked(&self, slot: usize, mark: Mark) -> bool {
        self.marks(mark) & bit(slot) != 0
    }

    /// Acquire pairs with the Release in [`Self::set_free`]: see `tree`.
    pub(super) fn free(&self) -> u64 {
        self.free.load(Ordering::Acquire)
    }

    pub(super) fn set_free(&self, bits: u64) {
        self.free.store(bits, Ordering::Release);
    }

    /// First slot and length of the entry that covers `slot`; `(slot, 1)` for an
    /// empty slot and a child.
    pub(super) fn group(&self, slot: usize) -> (usize, usize) {
        let first = self.slot(slot).sibling().unwrap_or(slot);
        let mut end = first + 1;
        while end < SLOTS && self.slot(end).sibling() == Some(first) {
            end += 1;
        }
        (first, end - first)
    }

    /// The order of the entry that covers `slot`.
    pub(super) fn order_at(&self, slot: usize) -> u32 {
        self.shift() + self.group(slot).1.ilog2()
    }
}

/// The slot of `index` in a node of `shift`.
pub(super) fn slot_at(index: u64, shift: u32) -> usize {
    let slot = (index >> shift) & (SLOTS as u64 - 1);
    usize::try_from(slot).unwrap_or_else(|_| unreachable!("below 64"))
}

/// The bit of `slot`.
pub(super) const fn bit(slot: usize) -> u64 {
    1 << slot
}

/// The bits of `len` slots from `first`.
pub(super) const fn bits(first: usize, len: usize) -> u64 {
    if len >= 64 { u64::MAX } else { ((1 << len) - 1) << first }
}

/// The shift of the node whose slots hold entries of `order`.
pub(super) const fn base_shift(order: u32) -> u32 {
    order / SLOT_BITS * SLOT_BITS
}

/// Where an array gets its lock's platform and the memory of its nodes.
///
/// A slab cache in the guest; tests supply one that fails on demand.
///
/// # Safety
/// Memory from [`Self::alloc_node`] is valid for reads and writes of
/// `size_of::<Node>()` bytes, aligned for [`Node`], stays where it is and
/// belongs to the caller alone until [`Self::free_node`].
pub unsafe trait NodeAlloc: Sync {
    /// The machine that the array runs on.
    type Platform: Platform;

    /// The machine that the array runs on.
    fn platform(&self) -> &Self::Platform;

    /// Uninitialised memory for a node, or `None`. Called without the array's lock.
    fn alloc_node(&self) -> Option<NonNull<Node>>;

    /// Takes a node's memory back. May be called with the array's lock held.
    ///
    /// # Safety
    /// `node` came from [`Self::alloc_node`] of the same allocator, and nobody
    /// uses it any more.
    unsafe fn free_node(&self, node: NonNull<Node>);
}

/// Initialised nodes that no tree holds, linked through their parent fields.
#[derive(Debug)]
pub(crate) struct FreshNodes {
    first: *mut Node,
    len: usize,
}

// SAFETY: the list owns its nodes; moving it moves them.
unsafe impl Send for FreshNodes {}

impl FreshNodes {
    pub(crate) const fn new() -> Self {
        Self { first: ptr::null_mut(), len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Adds a node.
    ///
    /// # Safety
    /// `node` is initialised, stays valid while the list or a tree holds it, and
    /// belongs to the caller alone.
    pub(super) unsafe fn push(&mut self, node: NonNull<Node>) {
        // SAFETY: initialised and the caller's own.
        unsafe { node.as_ref() }.parent.store(self.first, Ordering::Relaxed);
        self.first = node.as_ptr();
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<NonNull<Node>> {
        let node = NonNull::new(self.first)?;
        // SAFETY: on the list, hence initialised and ours by the promise at `push`.
        self.first = unsafe { node.as_ref() }.parent.load(Ordering::Relaxed);
        self.len -= 1;
        Some(node)
    }
}

/// Fresh nodes for one operation; frees what is left when dropped.
#[derive(Debug)]
pub(crate) struct NodeReserve<'a, A: NodeAlloc> {
    alloc: &'a A,
    pub(super) fresh: FreshNodes,
}

/// No memory for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoMemory;

impl core::fmt::Display for NoMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("No memory for an XArray node")
    }
}

impl core::error::Error for NoMemory {}

impl<'a, A: NodeAlloc> NodeReserve<'a, A> {
    pub(crate) fn new(alloc: &'a A) -> Self {
        Self { alloc, fresh: FreshNodes::new() }
    }

    /// Makes it `nodes` at least.
    pub(crate) fn fill(&mut self, nodes: usize) -> Result<(), NoMemory> {
        while self.fresh.len() < nodes {
            let node = self.alloc.alloc_node().ok_or(NoMemory)?;
            // SAFETY: valid for writes of a node, aligned and ours by `NodeAlloc`'s promise.
            unsafe { node.write(Node::new()) };
            // SAFETY: initialised above; the reserve and the tree give it back
            // only through `free_node`.
            unsafe { self.fresh.push(node) };
        }
        Ok(())
    }

    /// Takes nodes of `other` until it has `nodes`. Both are of one allocator.
    pub(crate) fn take_from(&mut self, other: &mut FreshNodes, nodes: usize) {
        move_nodes(other, &mut self.fresh, nodes);
    }

    /// Gives nodes to `other` until that has `nodes`. Both are of one allocator.
    pub(crate) fn give_to(&mut self, other: &mut FreshNodes, nodes: usize) {
        move_nodes(&mut self.fresh, other, nodes);
    }
}

fn move_nodes(from: &mut FreshNodes, to: &mut FreshNodes, until: usize) {
    if to.len == 0 && from.len <= until {
        // The whole list: the usual case of a store's spare nodes.
        core::mem::swap(from, to);
    }
    while to.len < until {
        let Some(node) = from.pop() else { return };
        // SAFETY: it was on a list under the same promise.
        unsafe { to.push(node) };
    }
}

impl<A: NodeAlloc> Drop for NodeReserve<'_, A> {
    fn drop(&mut self) {
        while let Some(node) = self.fresh.pop() {
            // SAFETY: from this allocator (`fill`, `take_from`); in no tree.
            unsafe { free_node(self.alloc, node) };
        }
    }
}

/// Drops a node and gives its memory back.
///
/// # Safety
/// `node` is initialised, came from `alloc`, and nobody uses it any more.
pub(super) unsafe fn free_node<A: NodeAlloc>(alloc: &A, node: NonNull<Node>) {
    // SAFETY: initialised and unused by the caller's promise. Frees loom's
    // bookkeeping; without loom it does nothing.
    unsafe { node.drop_in_place() };
    // SAFETY: from `alloc` and unused by the caller's promise.
    unsafe { alloc.free_node(node) };
}
