//! [`XArrayStore`]: blocks as multi-index entries, the default store.
//!
//! A block of order `o` is one entry of order `o` at its first frame; the first
//! mark says that it is settled. Cost in nodes of 576 B: nine bytes a page for
//! single pages that fill their nodes, 0.14 for 2 MiB blocks.
//!
//! A reservation holds enough nodes for a block at any frame, whatever happens
//! to the tree meanwhile. What it did not use stays in the store as spare nodes
//! for the next one, a slab page's worth at most; one spare is kept for a split.

use abi::{PageCount, Pfn, PfnRange};

use super::block::{Block, BlockState, StoredBlock};
use super::{
    BlockChanged, CommitError, NoMemory, PfnStore, Reservation, Select, SplitError,
    SplitReservation, SplitShape,
};
use crate::rcu::Rcu;
use crate::sync::shim::{AtomicU64, Ordering};
use crate::sync::{LockClass, SpinLock};
use crate::xarray::{
    Edit, Entry, FreshNodes, Mark, NodeAlloc, NodeReserve, RawHit, SearchFilter, XArray,
};

/// On an entry: the block is settled.
const SETTLED: Mark = Mark::M0;

/// Spare nodes kept back for a split that isolates one piece.
const KEPT_FOR_SPLIT: usize = 1;

/// A [`PfnStore`] in an [`XArray`].
#[derive(Debug)]
pub struct XArrayStore<'d, A: NodeAlloc> {
    array: XArray<'d, A>,
    range: PfnRange,
    /// Nodes that one commit may need at most.
    per_block: usize,
    spare: SpinLock<Spare>,
    /// Changed under the array's lock only.
    pages: AtomicU64,
    blocks: AtomicU64,
}

/// Nodes that wait in the store.
#[derive(Debug)]
struct Spare {
    /// What reservations left, for the next one; [`XArrayStore::per_block`] at most.
    for_block: FreshNodes,
    /// [`KEPT_FOR_SPLIT`] nodes from the first reservation on.
    for_split: FreshNodes,
}

impl<'d, A: NodeAlloc> XArrayStore<'d, A> {
    /// An empty store for blocks inside `range`.
    pub fn new(rcu: &'d Rcu, alloc: A, range: PfnRange) -> Self {
        let last = range.end().number().saturating_sub(1);
        let spare = Spare { for_block: FreshNodes::new(), for_split: FreshNodes::new() };
        Self {
            array: XArray::new(rcu, alloc),
            range,
            per_block: Edit::nodes_for_any_store(last),
            spare: SpinLock::new(LockClass::XArray, spare),
            pages: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
        }
    }

    /// The array, for lockless readers and validation.
    pub const fn array(&self) -> &XArray<'d, A> {
        &self.array
    }

    /// Frees the spare nodes and those whose readers have left.
    pub fn trim(&self) {
        let mut reserve = self.empty_reserve();
        self.with_spare(|spare| {
            reserve.take_from(&mut spare.for_block, usize::MAX);
            reserve.take_from(&mut spare.for_split, usize::MAX);
        });
        drop(reserve);
        self.array.reclaim();
    }

    fn empty_reserve(&self) -> NodeReserve<'_, A> {
        NodeReserve::new(self.array.node_alloc())
    }

    fn with_spare<R>(&self, op: impl FnOnce(&mut Spare) -> R) -> R {
        op(&mut self.spare.lock(self.array.node_alloc().platform()))
    }

    /// Keeps what a reservation left; the rest of `reserve` is freed with it.
    fn keep_spare(&self, reserve: &mut NodeReserve<'_, A>) {
        self.with_spare(|spare| {
            reserve.give_to(&mut spare.for_split, KEPT_FOR_SPLIT);
            reserve.give_to(&mut spare.for_block, self.per_block);
        });
    }

    /// Runs a change that takes no node.
    fn edit<R>(&self, op: impl FnOnce(&mut Edit<'_>) -> R) -> R {
        self.array.edit(&mut self.empty_reserve(), op)
    }

    fn count(&self, pages: u64, blocks: u64, add: bool) {
        let change = |counter: &AtomicU64, n: u64| {
            let old = counter.load(Ordering::Relaxed);
            let new = if add { old.wrapping_add(n) } else { old.wrapping_sub(n) };
            counter.store(new, Ordering::Relaxed);
        };
        change(&self.pages, pages);
        change(&self.blocks, blocks);
    }
}

impl<A: NodeAlloc> Drop for XArrayStore<'_, A> {
    fn drop(&mut self) {
        self.trim();
    }
}

impl<A: NodeAlloc> PfnStore for XArrayStore<'_, A> {
    type Reservation<'a>
        = XArrayReservation<'a, A>
    where
        Self: 'a;
    type SplitReservation<'a>
        = XArraySplit<'a, A>
    where
        Self: 'a;

    fn reserve(&self) -> Result<XArrayReservation<'_, A>, NoMemory> {
        let mut nodes = self.empty_reserve();
        let to_keep = self.with_spare(|spare| {
            nodes.take_from(&mut spare.for_block, self.per_block);
            KEPT_FOR_SPLIT - spare.for_split.len()
        });
        nodes.fill(self.per_block + to_keep).map_err(|_| NoMemory)?;
        if to_keep > 0 {
            self.with_spare(|spare| nodes.give_to(&mut spare.for_split, KEPT_FOR_SPLIT));
        }
        Ok(XArrayReservation { store: self, nodes })
    }

    fn reserve_split(
        &self,
        pfn: Pfn,
        order: u32,
        shape: SplitShape,
    ) -> Result<XArraySplit<'_, A>, SplitError> {
        let block = self.block_at(pfn).ok_or(SplitError::NotStored)?.block;
        if order >= block.order() {
            return Err(SplitError::OrderNotBelow);
        }
        let wanted = match shape {
            SplitShape::Uniform => Edit::nodes_for_split(block.order(), order),
            SplitShape::Isolate => Edit::nodes_for_isolate(block.order(), order),
        };
        let mut nodes = self.empty_reserve();
        self.with_spare(|spare| {
            nodes.take_from(&mut spare.for_split, wanted);
            nodes.take_from(&mut spare.for_block, wanted);
        });
        if nodes.fill(wanted).is_err() {
            self.keep_spare(&mut nodes);
            return Err(SplitError::NoMemory);
        }
        Ok(XArraySplit { store: self, nodes, block, pfn, order, shape })
    }

    fn remove(&self, head: Pfn) -> Option<StoredBlock> {
        self.edit(|edit| {
            let found = at_head(edit, head)?;
            edit.erase(head.number());
            self.count(found.block.pages().get(), 1, false);
            Some(found)
        })
    }

    fn block_at(&self, pfn: Pfn) -> Option<StoredBlock> {
        self.edit(|edit| block_at(edit, pfn))
    }

    fn set_state(&self, head: Pfn, state: BlockState) -> Option<BlockState> {
        self.edit(|edit| {
            at_head(edit, head)?;
            edit.set_mark(head.number(), SETTLED, state == BlockState::Settled).map(state_of)
        })
    }

    fn claim(&self, from: Pfn) -> Option<Block> {
        self.edit(|edit| {
            let found = next(edit, from, Select::Settled)
                .or_else(|| next(edit, Pfn::ZERO, Select::Settled))?;
            edit.set_mark(found.block.head().number(), SETTLED, false)?;
            Some(found.block)
        })
    }

    fn next(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        self.edit(|edit| next(edit, from, select))
    }

    fn prev(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        self.edit(|edit| stored(edit, edit.find_back(from.number(), filter(select))?))
    }

    fn pages(&self) -> PageCount {
        PageCount::new(self.pages.load(Ordering::Relaxed))
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    fn bytes_used(&self) -> usize {
        let spare = self.with_spare(|spare| spare.for_block.len() + spare.for_split.len());
        self.array.usage().bytes() + spare * size_of::<crate::xarray::Node>()
    }
}

const fn filter(select: Select) -> SearchFilter {
    match select {
        Select::Any => SearchFilter::All,
        Select::Settled => SearchFilter::Marked(SETTLED),
    }
}

const fn state_of(settled: bool) -> BlockState {
    if settled { BlockState::Settled } else { BlockState::InFlight }
}

/// The block that a search found. Only commits put entries there, so every hit is one.
fn stored(edit: &Edit<'_>, hit: RawHit<'_>) -> Option<StoredBlock> {
    let block = Block::new(Pfn::new(hit.base)?, hit.order)?;
    Some(StoredBlock { block, state: state_of(edit.has_mark(&hit, SETTLED)) })
}

fn block_at(edit: &Edit<'_>, pfn: Pfn) -> Option<StoredBlock> {
    let index = pfn.number();
    stored(edit, edit.find(index, index, SearchFilter::All)?)
}

fn at_head(edit: &Edit<'_>, head: Pfn) -> Option<StoredBlock> {
    block_at(edit, head).filter(|found| found.block.head() == head)
}

fn next(edit: &Edit<'_>, from: Pfn, select: Select) -> Option<StoredBlock> {
    let mut index = from.number();
    loop {
        let hit = edit.find(index, u64::MAX, filter(select))?;
        if hit.base >= from.number() {
            return stored(edit, hit);
        }
        // A block that covers `from` and begins below it.
        index = hit.last().checked_add(1)?;
    }
}

/// Nodes for one block of an [`XArrayStore`].
#[derive(Debug)]
pub struct XArrayReservation<'a, A: NodeAlloc> {
    store: &'a XArrayStore<'a, A>,
    nodes: NodeReserve<'a, A>,
}

impl<A: NodeAlloc> Reservation for XArrayReservation<'_, A> {
    fn commit(mut self, block: Block) -> Result<(), CommitError> {
        let store = self.store;
        let inside = block.range().is_some_and(|frames| store.range.contains_range(frames));
        if !inside {
            return Err(CommitError::OutOfRange);
        }
        let entry = Entry::<usize>::value(0).unwrap_or_else(|| unreachable!("0 is a value"));
        store.array.edit(&mut self.nodes, |edit| {
            let inserted = edit
                .insert_entry(block.head().number(), block.order(), entry)
                .unwrap_or_else(|_| unreachable!("`per_block` is the most a store may need"));
            if !inserted {
                return Err(CommitError::Occupied);
            }
            store.count(block.pages().get(), 1, true);
            Ok(())
        })?;
        store.keep_spare(&mut self.nodes);
        Ok(())
    }
}

/// Nodes for one split in an [`XArrayStore`].
#[derive(Debug)]
pub struct XArraySplit<'a, A: NodeAlloc> {
    store: &'a XArrayStore<'a, A>,
    nodes: NodeReserve<'a, A>,
    block: Block,
    pfn: Pfn,
    order: u32,
    shape: SplitShape,
}

impl<A: NodeAlloc> SplitReservation for XArraySplit<'_, A> {
    fn commit(mut self) -> Result<(), BlockChanged> {
        let Self { store, block, pfn, order, shape, .. } = self;
        store.array.edit(&mut self.nodes, |edit| {
            if block_at(edit, pfn).is_none_or(|found| found.block != block) {
                return Err(BlockChanged);
            }
            let (result, pieces) = match shape {
                SplitShape::Uniform => {
                    (edit.split(pfn.number(), order), 1 << (block.order() - order))
                }
                SplitShape::Isolate => {
                    let pieces = u64::from(block.order() - order) + 1;
                    (edit.isolate(pfn.number(), order), pieces)
                }
            };
            result.unwrap_or_else(|_| unreachable!("the reservation holds what it takes"));
            store.count(0, pieces - 1, true);
            Ok(())
        })
    }
}

impl<A: NodeAlloc> Drop for XArraySplit<'_, A> {
    fn drop(&mut self) {
        // The node held back for splits goes back where it came from.
        self.store.keep_spare(&mut self.nodes);
    }
}
