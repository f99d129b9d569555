//! [`XArray`]: a sparse array of words, indexed by `u64`.
//!
//! A radix tree of 64-slot nodes with three marks per entry, entries that cover
//! `2^order` indices, reservations and index allocation. Readers take no lock:
//! they hold a read section of an [`Rcu`] domain, and nodes that leave the tree
//! are reused after a grace period only. Writers hold the array's lock (class
//! XArray) and get their nodes before they touch the tree, so that a failed
//! allocation changes nothing.
//!
//! An entry is a [`Value`] or a pointer that the array never follows, so it owns
//! nothing and drops nothing. Invariants and orderings: `tree.rs` and
//! `docs/xarray.md`.

mod cursor;
mod edit;
mod entry;
mod error;
mod mark;
#[cfg(loom)]
mod mutant;
mod node;
mod range;
mod read;
mod slab_nodes;
mod split;
mod tree;
mod validate;

pub use cursor::{Cursor, Entries, Paused};
pub(crate) use edit::{Edit, Shortage};
pub use entry::{Content, Entry, Value};
pub use error::{AllocError, InsertError, RangeError};
pub use mark::Mark;
#[cfg(loom)]
pub use mutant::Mutant;
pub(crate) use node::{FreshNodes, NodeReserve};
pub use node::{NoMemory, Node, NodeAlloc};
pub use slab_nodes::SlabNodes;
pub(crate) use tree::{Filter as SearchFilter, RawHit};
pub use validate::{Corrupt, Shape};

use core::fmt;
use core::marker::PhantomData;
use core::ops::RangeInclusive;

use crate::rcu::{DeferQueue, Rcu};
use crate::sync::{LockClass, SpinLock};
use entry::RawEntry;
use node::free_node;
use tree::{Pin, Tree, low_mask};

/// Largest order of an entry: half of all indices.
pub const MAX_ORDER: u32 = 63;

/// A sparse array of [`Entry`]s. See the module.
///
/// `A` supplies nodes and the machine; `T` is what pointer entries point to.
pub struct XArray<'d, A: NodeAlloc, T = usize> {
    rcu: &'d Rcu,
    alloc: A,
    tree: Tree,
    state: SpinLock<State>,
    entry: PhantomData<fn() -> Entry<T>>,
}

/// What the lock guards beside the tree.
#[derive(Debug)]
struct State {
    /// Nodes in the tree.
    nodes: usize,
    /// Nodes that left it and wait for their readers.
    limbo: DeferQueue<Node>,
}

/// An entry and the indices it covers.
#[derive(Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// The first index.
    pub index: u64,
    /// log2 of the indices.
    pub order: u32,
    /// The entry.
    pub entry: Entry<T>,
}

impl<T> Clone for Found<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Found<T> {}

impl<T> Found<T> {
    /// The last index that the entry covers.
    pub const fn last(&self) -> u64 {
        self.index | low_mask(self.order)
    }

    fn from_hit(hit: RawHit<'_>) -> Option<Self> {
        Some(Self { index: hit.base, order: hit.order, entry: Entry::from_raw(hit.entry)? })
    }
}

/// Nodes that an array holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// In the tree.
    pub nodes: usize,
    /// Out of the tree, waiting for a grace period.
    pub deferred: usize,
}

impl Usage {
    /// Bytes of all of them.
    pub const fn bytes(self) -> usize {
        (self.nodes + self.deferred) * size_of::<Node>()
    }
}

impl<'d, A: NodeAlloc, T> XArray<'d, A, T> {
    /// An empty array whose readers are sections of `rcu`.
    pub fn new(rcu: &'d Rcu, alloc: A) -> Self {
        let state = State { nodes: 0, limbo: DeferQueue::new() };
        Self {
            rcu,
            alloc,
            tree: Tree::new(),
            state: SpinLock::new(LockClass::XArray, state),
            entry: PhantomData,
        }
    }

    /// The domain of its readers.
    pub fn rcu(&self) -> &'d Rcu {
        self.rcu
    }

    /// Where its nodes come from.
    pub fn node_alloc(&self) -> &A {
        &self.alloc
    }

    /// Puts `entry` at `index` and returns the entry before. An entry of a higher
    /// order there is replaced at all its indices. Marks stay.
    ///
    /// # Errors
    /// [`NoMemory`]; the array is unchanged.
    pub fn store(&self, index: u64, entry: Entry<T>) -> Result<Option<Entry<T>>, NoMemory> {
        self.store_order(index, 0, entry)
    }

    /// Puts `entry` at the `2^order` indices of the aligned block around `index`
    /// and returns the entry that was at `index`. Marks of replaced entries add up.
    ///
    /// # Errors
    /// [`NoMemory`]; the array is unchanged.
    /// # Panics
    /// If `order` is above [`MAX_ORDER`].
    pub fn store_order(
        &self,
        index: u64,
        order: u32,
        entry: Entry<T>,
    ) -> Result<Option<Entry<T>>, NoMemory> {
        let base = block_base(index, order);
        self.write(|edit| {
            let old = edit.tree.walk(edit.pin, index).entry;
            edit.store(base, order, entry.to_raw())?;
            Ok(Entry::from_raw(old))
        })
    }

    /// Puts `entry` at `index` if nothing is there.
    ///
    /// # Errors
    /// [`InsertError`]; the array is unchanged.
    pub fn insert(&self, index: u64, entry: Entry<T>) -> Result<(), InsertError> {
        self.insert_order(index, 0, entry)
    }

    /// Puts `entry` at the aligned block of `2^order` indices around `index` if
    /// nothing is in it.
    ///
    /// # Errors
    /// [`InsertError`]; the array is unchanged.
    /// # Panics
    /// If `order` is above [`MAX_ORDER`].
    pub fn insert_order(&self, index: u64, order: u32, entry: Entry<T>) -> Result<(), InsertError> {
        let base = block_base(index, order);
        self.write(|edit| {
            Ok(edit.insert(base, order, entry.to_raw())?.ok_or(InsertError::Occupied))
        })?
    }

    /// Puts `new` at `index` if what is there equals `current`; returns what was
    /// there. An entry of a higher order is replaced at all its indices.
    ///
    /// # Errors
    /// [`NoMemory`]; the array is unchanged.
    pub fn compare_exchange(
        &self,
        index: u64,
        current: Content<T>,
        new: Content<T>,
    ) -> Result<Content<T>, NoMemory> {
        self.write(|edit| {
            let there = edit.tree.walk(edit.pin, index).entry;
            if there == current.to_raw() {
                match new {
                    Content::Empty => edit.erase(index),
                    Content::Reserved | Content::Entry(_) => edit.store(index, 0, new.to_raw())?,
                };
            }
            Ok(Content::from_raw(there))
        })
    }

    /// Removes the entry that covers `index`, at all its indices, or the reserved
    /// place there. Never allocates.
    pub fn erase(&self, index: u64) -> Option<Entry<T>> {
        self.write_free(|edit| Entry::from_raw(edit.erase(index)))
    }

    /// Covers `range` with `entry`, in as few aligned blocks as possible. What
    /// was in it is replaced.
    ///
    /// # Errors
    /// [`RangeError`]; the array is unchanged.
    pub fn store_range(
        &self,
        range: RangeInclusive<u64>,
        entry: Entry<T>,
    ) -> Result<(), RangeError> {
        let (first, last) = range.into_inner();
        self.write(|edit| {
            if edit.straddles(first, last) {
                return Ok(Err(RangeError::Straddles));
            }
            edit.store_range(first, last, entry.to_raw()).map(Ok)
        })?
    }

    /// Removes every entry that overlaps `range`, at all its indices, and every
    /// reserved place in it. Never allocates.
    pub fn erase_range(&self, range: RangeInclusive<u64>) {
        let (first, last) = range.into_inner();
        self.write_free(|edit| edit.erase_range(first, last));
    }

    /// Removes everything.
    pub fn clear(&self) {
        self.write_free(|edit| edit.clear());
    }

    /// Holds the place at `index`, if it is empty, so that a store there cannot fail.
    ///
    /// # Errors
    /// [`InsertError::Occupied`] if something is there; the array is unchanged.
    pub fn reserve(&self, index: u64) -> Result<(), InsertError> {
        self.write(|edit| Ok(edit.insert(index, 0, RawEntry::ZERO)?.ok_or(InsertError::Occupied)))?
    }

    /// Gives a reserved place up; leaves an entry that was stored there alone.
    pub fn release(&self, index: u64) {
        self.write_free(|edit| {
            if edit.tree.walk(edit.pin, index).entry == RawEntry::ZERO {
                edit.erase(index);
            }
        });
    }

    /// Reserves every empty index of `range`, so that order-0 stores there cannot
    /// fail. Takes time and nodes in proportion to the range.
    ///
    /// # Errors
    /// [`NoMemory`]; the array is unchanged.
    pub fn create_range(&self, range: RangeInclusive<u64>) -> Result<(), NoMemory> {
        let (first, last) = range.into_inner();
        if first > last {
            return Ok(());
        }
        self.write(|edit| edit.reserve_range(first, last))
    }

    /// Stores `entry` at the lowest empty index of `range` and returns the index.
    ///
    /// # Errors
    /// [`AllocError`]; the array is unchanged.
    pub fn alloc(&self, range: RangeInclusive<u64>, entry: Entry<T>) -> Result<u64, AllocError> {
        let (min, max) = range.into_inner();
        self.write(|edit| match edit.first_free(min, max) {
            None => Ok(Err(AllocError::Full)),
            Some(index) => edit.store(index, 0, entry.to_raw()).map(|_| Ok(index)),
        })?
    }

    /// Like [`Self::alloc`], searching from `*next` upward before it wraps to the
    /// start of `range`; then sets `*next` to the index after the one it took.
    /// The flag says whether the search wrapped.
    ///
    /// # Errors
    /// [`AllocError`]; the array and `next` are unchanged.
    pub fn alloc_cyclic(
        &self,
        range: RangeInclusive<u64>,
        next: &mut u64,
        entry: Entry<T>,
    ) -> Result<(u64, bool), AllocError> {
        let (min, max) = range.into_inner();
        let from = (*next).clamp(min, max.max(min));
        let (index, wrapped) = self.write(|edit| {
            let ahead = edit.first_free(from, max).map(|index| (index, false));
            let found = ahead.or_else(|| Some((edit.first_free(min, from)?, true)));
            let Some((index, wrapped)) = found else { return Ok(Err(AllocError::Full)) };
            edit.store(index, 0, entry.to_raw()).map(|_| Ok((index, wrapped)))
        })??;
        *next = if index == max { min } else { index + 1 };
        Ok((index, wrapped))
    }

    /// Sets `mark` on the entry that covers `index`; `false` if there is none.
    pub fn set_mark(&self, index: u64, mark: Mark) -> bool {
        self.write_free(|edit| edit.set_mark(index, mark, true)).is_some()
    }

    /// Clears `mark` on the entry that covers `index`; `false` if there is none.
    pub fn clear_mark(&self, index: u64, mark: Mark) -> bool {
        self.write_free(|edit| edit.set_mark(index, mark, false)).is_some()
    }

    /// Splits the entry that covers `index` into entries of `order`, each with
    /// its word and marks. Does nothing if there is none above `order`.
    ///
    /// # Errors
    /// [`NoMemory`]; the array is unchanged.
    pub fn split(&self, index: u64, order: u32) -> Result<(), NoMemory> {
        self.write(|edit| edit.split(index, order))
    }

    /// Splits the entry that covers `index` so that one of `order` covers it; the
    /// rest keeps the largest aligned orders. Does nothing if there is none above.
    ///
    /// # Errors
    /// [`NoMemory`]; the array is unchanged.
    pub fn isolate(&self, index: u64, order: u32) -> Result<(), NoMemory> {
        self.write(|edit| edit.isolate(index, order))
    }

    /// Frees the nodes whose readers have left, as every write does too; returns
    /// how many still wait.
    pub fn reclaim(&self) -> usize {
        self.write_free(|_| ());
        self.usage().deferred
    }

    /// The nodes it holds now.
    pub fn usage(&self) -> Usage {
        let state = self.state.lock(self.alloc.platform());
        Usage { nodes: state.nodes, deferred: state.limbo.len() }
    }

    /// Checks every invariant of the tree.
    ///
    /// # Errors
    /// [`Corrupt`], with the first violation.
    pub fn validate(&self) -> Result<Shape, Corrupt> {
        let state = self.state.lock(self.alloc.platform());
        // SAFETY: the lock is held, and nothing reclaimed, until the end.
        let shape = validate::check(&self.tree, unsafe { Pin::new() })?;
        if shape.nodes == state.nodes { Ok(shape) } else { Err(Corrupt::NodeCount) }
    }

    /// Runs a change that may need nodes; gets them without the lock and starts again.
    fn write<R>(
        &self,
        mut op: impl FnMut(&mut Edit<'_>) -> Result<R, Shortage>,
    ) -> Result<R, NoMemory> {
        let mut reserve = NodeReserve::new(&self.alloc);
        loop {
            match self.edit(&mut reserve, &mut op) {
                Ok(result) => return Ok(result),
                Err(shortage) => reserve.fill(shortage.nodes)?,
            }
        }
    }

    /// Runs a change that needs no node.
    fn write_free<R>(&self, op: impl FnOnce(&mut Edit<'_>) -> R) -> R {
        self.edit(&mut NodeReserve::new(&self.alloc), op)
    }

    /// Runs one change under the lock, with the nodes of `reserve`.
    pub(crate) fn edit<R>(
        &self,
        reserve: &mut NodeReserve<'_, A>,
        op: impl FnOnce(&mut Edit<'_>) -> R,
    ) -> R {
        let mut guard = self.state.lock(self.alloc.platform());
        let State { nodes, limbo } = &mut *guard;
        // SAFETY: the lock is held, and nodes are freed only after `finish`.
        let pin = unsafe { Pin::new() };
        let mut edit = Edit::new(&self.tree, pin, self.rcu, limbo, nodes, &mut reserve.fresh);
        let result = op(&mut edit);
        edit.finish();
        while let Some(node) = limbo.pop_over(self.rcu) {
            self.rcu.note_reclaimed(size_of::<Node>() as u64);
            // SAFETY: from `alloc`, as all nodes; unlinked, and its readers have left.
            unsafe { free_node(&self.alloc, node) };
        }
        result
    }
}

/// The first index of the aligned block of `order` around `index`.
fn block_base(index: u64, order: u32) -> u64 {
    assert!(order <= MAX_ORDER, "order {order} of an XArray entry");
    index & !low_mask(order)
}

impl<A: NodeAlloc, T> Drop for XArray<'_, A, T> {
    fn drop(&mut self) {
        self.clear();
        // Readers of this array borrow it, so there are none: no need to wait for
        // those of other structures in the domain.
        let mut state = self.state.lock(self.alloc.platform());
        while let Some(node) = state.limbo.pop_now() {
            self.rcu.note_reclaimed(size_of::<Node>() as u64);
            // SAFETY: from `alloc`; unlinked by `clear` or before, no readers.
            unsafe { free_node(&self.alloc, node) };
        }
    }
}

impl<A: NodeAlloc, T> fmt::Debug for XArray<'_, A, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XArray").field("usage", &self.usage()).finish_non_exhaustive()
    }
}
