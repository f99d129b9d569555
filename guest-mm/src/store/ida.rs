//! [`IdaStore`]: bitmaps of 1024 frames, allocated where they are needed.
//!
//! What Linux's IDA does with 1024 bits to a leaf under an XArray, with two bits
//! a frame instead of one, because a [`PfnStore`] also keeps orders and states: a
//! leaf is 256 B, 0.25 B a page where all of its frames are in the store. It covers
//! one block of the largest order, so no block crosses leaves. (The IDA's other
//! trick, a few bits in the tree's slot itself, is not done.)
//!
//! A reservation holds one leaf and the nodes on the way to it; what a commit
//! did not use stays in the store for the next one. Splits need nothing.
//!
//! It exists to be measured against the others (`docs/experiments/`).

use core::fmt;
use core::ptr::NonNull;

use abi::{PageCount, Pfn, PfnRange};

use super::block::{Block, BlockState, MAX_BLOCK_ORDER, StoredBlock};
use super::planes::Planes;
use super::records::RecordAlloc;
use super::{
    BlockChanged, CommitError, NoMemory, PfnStore, Reservation, Select, SplitError,
    SplitReservation, SplitShape,
};
use crate::rcu::Rcu;
use crate::sync::shim::{AtomicU64, Ordering};
use crate::sync::{LockClass, SpinLock};
use crate::xarray::{
    Edit, Entry, FreshNodes, Mark, Node, NodeAlloc, NodeReserve, SearchFilter, XArray,
};

/// On a leaf: one of its blocks is settled.
const SETTLED: Mark = Mark::M0;
/// Frames of a leaf.
const LEAF_FRAMES: usize = 1 << MAX_BLOCK_ORDER;
/// Words of each of its planes.
const LEAF_WORDS: usize = LEAF_FRAMES / 64;

/// Two bits for each of 1024 frames (`Planes`).
#[derive(Debug)]
#[repr(C)]
pub struct Leaf {
    head: [u64; LEAF_WORDS],
    rest: [u64; LEAF_WORDS],
}

const _: () = assert!(size_of::<Leaf>() == 256);

impl Leaf {
    const fn planes(&mut self) -> Planes<'_> {
        Planes::over(&mut self.head, &mut self.rest)
    }
}

/// A [`PfnStore`] in leaves under an [`XArray`]. Nodes come from `A`, leaves from `L`.
pub struct IdaStore<'d, A: NodeAlloc, L: RecordAlloc<Leaf>> {
    /// Leaves by frame number / 1024. They are touched under the array's lock only.
    array: XArray<'d, A, Leaf>,
    leaves: L,
    range: PfnRange,
    /// Nodes that one commit may need at most.
    per_block: usize,
    spare: SpinLock<Spare>,
    /// Changed under the array's lock only.
    pages: AtomicU64,
    blocks: AtomicU64,
    leaves_used: AtomicU64,
}

/// What waits in the store for the next reservation.
struct Spare {
    nodes: FreshNodes,
    leaf: Option<NonNull<Leaf>>,
}

// SAFETY: the leaf is the store's own, as are the nodes.
unsafe impl Send for Spare {}

impl<'d, A: NodeAlloc, L: RecordAlloc<Leaf>> IdaStore<'d, A, L> {
    /// An empty store for blocks inside `range`.
    pub fn new(rcu: &'d Rcu, nodes: A, leaves: L, range: PfnRange) -> Self {
        let last = range.end().number().saturating_sub(1);
        let spare = Spare { nodes: FreshNodes::new(), leaf: None };
        Self {
            array: XArray::new(rcu, nodes),
            leaves,
            range,
            per_block: Edit::nodes_for_any_store(last >> MAX_BLOCK_ORDER),
            spare: SpinLock::new(LockClass::XArray, spare),
            pages: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            leaves_used: AtomicU64::new(0),
        }
    }

    /// The array of leaves, for validation.
    pub const fn array(&self) -> &XArray<'d, A, Leaf> {
        &self.array
    }

    /// Frees what is spare, and the nodes whose readers have left.
    pub fn trim(&self) {
        let mut nodes = self.no_nodes();
        let leaf = self.with_spare(|spare| {
            nodes.take_from(&mut spare.nodes, usize::MAX);
            spare.leaf.take()
        });
        self.free_leaf(leaf);
        drop(nodes);
        self.array.reclaim();
    }

    fn no_nodes(&self) -> NodeReserve<'_, A> {
        NodeReserve::new(self.array.node_alloc())
    }

    fn with_spare<R>(&self, op: impl FnOnce(&mut Spare) -> R) -> R {
        op(&mut self.spare.lock(self.array.node_alloc().platform()))
    }

    /// Runs a change that takes no node.
    fn edit<R>(&self, op: impl FnOnce(&mut Tree<'_, '_>) -> R) -> R {
        self.array.edit(&mut self.no_nodes(), |edit| op(&mut Tree { edit }))
    }

    fn free_leaf(&self, leaf: Option<NonNull<Leaf>>) {
        if let Some(leaf) = leaf {
            // SAFETY: all leaves are from this allocator; whoever calls this has taken it
            // out of the array or out of the spare, so nobody else has it.
            unsafe { self.leaves.free_record(leaf) };
        }
    }

    /// Keeps a leaf that nobody needs now for the next reservation, or frees it.
    fn keep_leaf(&self, leaf: Option<NonNull<Leaf>>) {
        let Some(leaf) = leaf else { return };
        let surplus = self.with_spare(|spare| match spare.leaf {
            Some(_) => Some(leaf),
            None => {
                spare.leaf = Some(leaf);
                None
            }
        });
        self.free_leaf(surplus);
    }

    /// Changes a counter; the array's lock is held.
    fn add(counter: &AtomicU64, by: i64) {
        let old = counter.load(Ordering::Relaxed);
        counter.store(old.wrapping_add_signed(by), Ordering::Relaxed);
    }

    fn count(&self, block: Block, blocks: i64, sign: i64) {
        Self::add(&self.pages, sign << block.order());
        Self::add(&self.blocks, blocks);
    }
}

/// The array under its lock, as a set of blocks.
struct Tree<'e, 'w> {
    edit: &'e mut Edit<'w>,
}

/// The leaf of a frame, and the frame's bit in it.
fn place(pfn: Pfn) -> (u64, usize) {
    let number = pfn.number();
    let bit = usize::try_from(number % LEAF_FRAMES as u64);
    (number >> MAX_BLOCK_ORDER, bit.unwrap_or_else(|_| unreachable!("below 1024")))
}

impl Tree<'_, '_> {
    /// What `op` makes of the leaf at `index`, if there is one.
    fn leaf<R>(&mut self, index: u64, op: impl FnOnce(&mut Leaf) -> R) -> Option<R> {
        let mut leaf = self.edit.find(index, index, SearchFilter::All)?.pointer::<Leaf>()?;
        // SAFETY: commits put initialised leaves there, which are freed only after they were
        // erased; leaves are touched under the array's lock only, which the caller holds, and
        // one at a time: `op` cannot reach the tree.
        Some(op(unsafe { leaf.as_mut() }))
    }

    /// The block of the leaf at `index` that begins at bit `at`.
    fn stored(&mut self, index: u64, at: usize) -> Option<StoredBlock> {
        let (len, settled) = self.leaf(index, |leaf| {
            let planes = leaf.planes();
            (planes.len_at(at), planes.is_settled(at))
        })?;
        let head = Pfn::new((index << MAX_BLOCK_ORDER) + at as u64)?;
        let state = if settled { BlockState::Settled } else { BlockState::InFlight };
        Some(StoredBlock { block: Block::new(head, len.ilog2())?, state })
    }

    fn at_head(&mut self, head: Pfn) -> Option<StoredBlock> {
        let (index, at) = place(head);
        let is_head = self.leaf(index, |leaf| leaf.planes().is_head(at))?;
        if is_head { self.stored(index, at) } else { None }
    }

    fn around(&mut self, pfn: Pfn) -> Option<StoredBlock> {
        let (index, at) = place(pfn);
        let head = self.leaf(index, |leaf| leaf.planes().head_of(at))??;
        self.stored(index, head)
    }

    fn set_state(&mut self, block: Block, state: BlockState) {
        let (index, at) = place(block.head());
        self.leaf(index, |leaf| leaf.planes().set_settled(at, state == BlockState::Settled));
        self.sync_mark(index);
    }

    /// The mark of a leaf says whether a block in it is settled.
    fn sync_mark(&mut self, index: u64) {
        let any = self.leaf(index, |leaf| leaf.planes().first_head(0, true).is_some());
        if let Some(any) = any {
            self.edit.set_mark(index, SETTLED, any);
        }
    }

    /// Takes a block out; the leaf too if it is empty then.
    fn remove(&mut self, block: Block) -> Option<NonNull<Leaf>> {
        let (index, at) = place(block.head());
        let is_empty = self.leaf(index, |leaf| {
            let mut planes = leaf.planes();
            planes.clear(at, 1 << block.order());
            planes.first_head(0, false).is_none()
        })?;
        if !is_empty {
            self.sync_mark(index);
            return None;
        }
        let leaf = self.edit.find(index, index, SearchFilter::All)?.pointer::<Leaf>();
        self.edit.erase(index);
        leaf
    }

    /// The block with the lowest head at or above `from`.
    fn next(&mut self, from: Pfn, select: Select) -> Option<StoredBlock> {
        let (mut index, mut at) = place(from);
        loop {
            let found = self.edit.find(index, u64::MAX, filter(select))?.base;
            if found != index {
                (index, at) = (found, 0);
            }
            let settled = select == Select::Settled;
            let head = self.leaf(index, |leaf| leaf.planes().first_head(at, settled))?;
            if let Some(head) = head {
                return self.stored(index, head);
            }
            (index, at) = (index + 1, 0);
        }
    }

    /// The block with the highest head at or below `from`.
    fn prev(&mut self, from: Pfn, select: Select) -> Option<StoredBlock> {
        let (mut index, mut at) = place(from);
        loop {
            let found = self.edit.find_back(index, filter(select))?.base;
            if found != index {
                (index, at) = (found, LEAF_FRAMES - 1);
            }
            let settled = select == Select::Settled;
            let head = self.leaf(index, |leaf| leaf.planes().last_head(at, settled))?;
            if let Some(head) = head {
                return self.stored(index, head);
            }
            (index, at) = (index.checked_sub(1)?, LEAF_FRAMES - 1);
        }
    }
}

const fn filter(select: Select) -> SearchFilter {
    match select {
        Select::Any => SearchFilter::All,
        Select::Settled => SearchFilter::Marked(SETTLED),
    }
}

impl<A: NodeAlloc, L: RecordAlloc<Leaf>> Drop for IdaStore<'_, A, L> {
    fn drop(&mut self) {
        while let Some(found) = self.next(Pfn::ZERO, Select::Any) {
            self.remove(found.block.head());
        }
        self.trim();
    }
}

impl<A: NodeAlloc, L: RecordAlloc<Leaf>> fmt::Debug for IdaStore<'_, A, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdaStore").field("blocks", &self.blocks()).finish_non_exhaustive()
    }
}

impl<A: NodeAlloc, L: RecordAlloc<Leaf>> PfnStore for IdaStore<'_, A, L> {
    type Reservation<'a>
        = IdaReservation<'a, A, L>
    where
        Self: 'a;
    type SplitReservation<'a>
        = IdaSplit<'a, A, L>
    where
        Self: 'a;

    fn reserve(&self) -> Result<IdaReservation<'_, A, L>, NoMemory> {
        let nodes = self.no_nodes();
        let mut reserved = IdaReservation { store: self, nodes, leaf: None };
        reserved.leaf = self.with_spare(|spare| {
            reserved.nodes.take_from(&mut spare.nodes, self.per_block);
            spare.leaf.take()
        });
        if reserved.leaf.is_none() {
            reserved.leaf = Some(self.leaves.alloc_record().ok_or(NoMemory)?);
        }
        reserved.nodes.fill(self.per_block).map_err(|_| NoMemory)?;
        Ok(reserved)
    }

    fn reserve_split(
        &self,
        pfn: Pfn,
        order: u32,
        shape: SplitShape,
    ) -> Result<IdaSplit<'_, A, L>, SplitError> {
        let block = self.block_at(pfn).ok_or(SplitError::NotStored)?.block;
        if order >= block.order() {
            return Err(SplitError::OrderNotBelow);
        }
        Ok(IdaSplit { store: self, block, pfn, order, shape })
    }

    fn remove(&self, head: Pfn) -> Option<StoredBlock> {
        let (found, leaf) = self.edit(|tree| {
            let found = tree.at_head(head)?;
            let leaf = tree.remove(found.block);
            self.count(found.block, -1, -1);
            Self::add(&self.leaves_used, -i64::from(leaf.is_some()));
            Some((found, leaf))
        })?;
        self.keep_leaf(leaf);
        Some(found)
    }

    fn block_at(&self, pfn: Pfn) -> Option<StoredBlock> {
        self.edit(|tree| tree.around(pfn))
    }

    fn set_state(&self, head: Pfn, state: BlockState) -> Option<BlockState> {
        self.edit(|tree| {
            let found = tree.at_head(head)?;
            tree.set_state(found.block, state);
            Some(found.state)
        })
    }

    fn claim(&self, from: Pfn) -> Option<Block> {
        self.edit(|tree| {
            let found = tree
                .next(from, Select::Settled)
                .or_else(|| tree.next(Pfn::ZERO, Select::Settled))?;
            tree.set_state(found.block, BlockState::InFlight);
            Some(found.block)
        })
    }

    fn next(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        self.edit(|tree| tree.next(from, select))
    }

    fn prev(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        self.edit(|tree| tree.prev(from, select))
    }

    fn pages(&self) -> PageCount {
        PageCount::new(self.pages.load(Ordering::Relaxed))
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    fn bytes_used(&self) -> usize {
        let (nodes, leaves) =
            self.with_spare(|spare| (spare.nodes.len(), u64::from(spare.leaf.is_some())));
        let leaves = usize::try_from(leaves + self.leaves_used.load(Ordering::Relaxed));
        self.array.usage().bytes()
            + nodes * size_of::<Node>()
            + leaves.unwrap_or(usize::MAX).saturating_mul(size_of::<Leaf>())
    }
}

/// A leaf and nodes for one block of an [`IdaStore`].
pub struct IdaReservation<'a, A: NodeAlloc, L: RecordAlloc<Leaf>> {
    store: &'a IdaStore<'a, A, L>,
    nodes: NodeReserve<'a, A>,
    leaf: Option<NonNull<Leaf>>,
}

impl<A: NodeAlloc, L: RecordAlloc<Leaf>> Reservation for IdaReservation<'_, A, L> {
    fn commit(mut self, block: Block) -> Result<(), CommitError> {
        let store = self.store;
        let inside = block.range().is_some_and(|frames| store.range.contains_range(frames));
        if !inside {
            return Err(CommitError::OutOfRange);
        }
        let (index, at) = place(block.head());
        let fresh = &mut self.leaf;
        let committed = store.array.edit(&mut self.nodes, |edit| {
            if edit.find(index, index, SearchFilter::All).is_none() {
                let leaf = fresh.take().unwrap_or_else(|| unreachable!("reserved"));
                let empty = Leaf { head: [0; LEAF_WORDS], rest: [0; LEAF_WORDS] };
                // SAFETY: valid for writes and nobody else's (`RecordAlloc`).
                unsafe { leaf.write(empty) };
                edit.insert_entry(index, 0, Entry::Pointer(leaf))
                    .unwrap_or_else(|_| unreachable!("`per_block` is the most a store may need"));
                IdaStore::<A, L>::add(&store.leaves_used, 1);
            }
            let put = Tree { edit }.leaf(index, |leaf| {
                let mut planes = leaf.planes();
                let is_absent = planes.is_absent(at, 1 << block.order());
                if is_absent {
                    planes.set_block(at, 1 << block.order(), false);
                }
                is_absent
            });
            if put != Some(true) {
                return Err(CommitError::Occupied);
            }
            store.count(block, 1, 1);
            Ok(())
        });
        committed?;
        store.with_spare(|spare| self.nodes.give_to(&mut spare.nodes, store.per_block));
        store.keep_leaf(self.leaf.take());
        Ok(())
    }
}

impl<A: NodeAlloc, L: RecordAlloc<Leaf>> Drop for IdaReservation<'_, A, L> {
    fn drop(&mut self) {
        self.store.free_leaf(self.leaf.take());
    }
}

/// A split in an [`IdaStore`], which needs nothing.
pub struct IdaSplit<'a, A: NodeAlloc, L: RecordAlloc<Leaf>> {
    store: &'a IdaStore<'a, A, L>,
    block: Block,
    pfn: Pfn,
    order: u32,
    shape: SplitShape,
}

impl<A: NodeAlloc, L: RecordAlloc<Leaf>> SplitReservation for IdaSplit<'_, A, L> {
    fn commit(self) -> Result<(), BlockChanged> {
        let Self { store, block, pfn, order, shape } = self;
        store.edit(|tree| {
            let found = tree.at_head(block.head()).ok_or(BlockChanged)?;
            if found.block != block {
                return Err(BlockChanged);
            }
            let (index, at) = place(block.head());
            let (_, own) = place(pfn);
            let settled = found.state == BlockState::Settled;
            let split = tree.leaf(index, |leaf| {
                let mut planes = leaf.planes();
                match shape {
                    SplitShape::Uniform => planes.split(at, block.order(), order, settled),
                    SplitShape::Isolate => planes.isolate(own, block.order(), order, settled),
                }
            });
            let more = split.ok_or(BlockChanged)?;
            IdaStore::<A, L>::add(&store.blocks, more);
            Ok(())
        })
    }
}

impl<A: NodeAlloc, L: RecordAlloc<Leaf>> fmt::Debug for IdaReservation<'_, A, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdaReservation").finish_non_exhaustive()
    }
}

impl<A: NodeAlloc, L: RecordAlloc<Leaf>> fmt::Debug for IdaSplit<'_, A, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdaSplit").field("block", &self.block).finish_non_exhaustive()
    }
}
