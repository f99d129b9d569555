//! [`BitmapStore`]: a preallocated pair of bitmaps; nothing in it can fail.
//!
//! Costs 0.25 B per page of the range, whether inflated or not: 0.125 B for the
//! set and as much again for orders and states, which lets the store stand
//! without the memdesc words. Searches scan words: at most one per 64 pages of
//! the range, and callers that go on from where they were scan each word once.

use abi::{PageCount, Pfn, PfnRange};

use super::block::{Block, BlockState, MAX_BLOCK_ORDER, StoredBlock};
use super::planes::Planes;
use super::{
    BlockChanged, CommitError, NoMemory, PfnStore, Reservation, Select, SplitError,
    SplitReservation, SplitShape,
};
use crate::platform::Platform;
use crate::sync::{LockClass, SpinLock};

/// A [`PfnStore`] in two bits per frame.
#[derive(Debug)]
pub struct BitmapStore<'d, P: Platform> {
    platform: &'d P,
    range: PfnRange,
    /// The frame of bit 0: the range's start, rounded down to the largest block.
    base: Pfn,
    bytes: usize,
    state: SpinLock<State<'d>>,
}

#[derive(Debug)]
struct State<'d> {
    planes: Planes<'d>,
    pages: u64,
    blocks: u64,
}

impl<'d, P: Platform> BitmapStore<'d, P> {
    /// Words that a store of `range` needs.
    ///
    /// `None` if their number does not fit `usize`.
    pub fn words_for(range: PfnRange) -> Option<usize> {
        let base = range.start().align_down(MAX_BLOCK_ORDER);
        let pages = range.end().number() - base.number();
        usize::try_from(pages.div_ceil(64)).ok()?.checked_mul(2)
    }

    /// An empty store for blocks inside `range`, in `words`; `None` if they are
    /// fewer than [`Self::words_for`] says. Overwrites what they hold.
    pub fn new(platform: &'d P, range: PfnRange, words: &'d mut [u64]) -> Option<Self> {
        let words = words.get_mut(..Self::words_for(range)?)?;
        let planes = Planes::new(words);
        Some(Self {
            platform,
            range,
            base: range.start().align_down(MAX_BLOCK_ORDER),
            bytes: planes.bytes(),
            state: SpinLock::new(LockClass::XArray, State { planes, pages: 0, blocks: 0 }),
        })
    }

    fn with<R>(&self, op: impl FnOnce(&mut State<'d>) -> R) -> R {
        op(&mut self.state.lock(self.platform))
    }

    /// The bit of `pfn`, `None` outside the range.
    fn bit(&self, pfn: Pfn) -> Option<usize> {
        if !self.range.contains(pfn) {
            return None;
        }
        usize::try_from(pfn.offset_from(self.base)?.get()).ok()
    }

    fn stored(&self, state: &State<'_>, at: usize) -> Option<StoredBlock> {
        let head = self.base.checked_add(PageCount::new(at as u64))?;
        let block = Block::new(head, state.planes.len_at(at).ilog2())?;
        let settled = state.planes.is_settled(at);
        let state = if settled { BlockState::Settled } else { BlockState::InFlight };
        Some(StoredBlock { block, state })
    }

    /// The bit where a block begins, if one begins at `head`.
    fn head_bit(&self, state: &State<'_>, head: Pfn) -> Option<usize> {
        self.bit(head).filter(|&at| state.planes.is_head(at))
    }
}

/// Frames of `block`, for the bitmaps.
fn len_of(block: Block) -> usize {
    1 << block.order()
}

impl<'d, P: Platform> PfnStore for BitmapStore<'d, P> {
    type Reservation<'a>
        = BitmapReservation<'a, 'd, P>
    where
        Self: 'a;
    type SplitReservation<'a>
        = BitmapSplit<'a, 'd, P>
    where
        Self: 'a;

    fn reserve(&self) -> Result<BitmapReservation<'_, 'd, P>, NoMemory> {
        Ok(BitmapReservation { store: self })
    }

    fn reserve_split(
        &self,
        pfn: Pfn,
        order: u32,
        shape: SplitShape,
    ) -> Result<BitmapSplit<'_, 'd, P>, SplitError> {
        let block = self.block_at(pfn).ok_or(SplitError::NotStored)?.block;
        if order >= block.order() {
            return Err(SplitError::OrderNotBelow);
        }
        Ok(BitmapSplit { store: self, block, pfn, order, shape })
    }

    fn remove(&self, head: Pfn) -> Option<StoredBlock> {
        self.with(|state| {
            let at = self.head_bit(state, head)?;
            let found = self.stored(state, at)?;
            state.planes.clear(at, len_of(found.block));
            state.pages -= found.block.pages().get();
            state.blocks -= 1;
            Some(found)
        })
    }

    fn block_at(&self, pfn: Pfn) -> Option<StoredBlock> {
        let at = self.bit(pfn)?;
        self.with(|state| self.stored(state, state.planes.head_of(at)?))
    }

    fn set_state(&self, head: Pfn, new: BlockState) -> Option<BlockState> {
        self.with(|state| {
            let at = self.head_bit(state, head)?;
            let before = self.stored(state, at)?.state;
            state.planes.set_settled(at, new == BlockState::Settled);
            Some(before)
        })
    }

    fn claim(&self, from: Pfn) -> Option<Block> {
        self.with(|state| {
            let from = from.max(self.range.start());
            let ahead = self.bit(from).and_then(|at| state.planes.first_head(at, true));
            let at = ahead.or_else(|| state.planes.first_head(0, true))?;
            let block = self.stored(state, at)?.block;
            state.planes.set_settled(at, false);
            Some(block)
        })
    }

    fn next(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        let from = self.bit(from.max(self.range.start()))?;
        self.with(|state| {
            let at = state.planes.first_head(from, select == Select::Settled)?;
            self.stored(state, at)
        })
    }

    fn prev(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        let last = Pfn::new(self.range.end().number().checked_sub(1)?)?;
        let from = self.bit(from.min(last))?;
        self.with(|state| {
            let at = state.planes.last_head(from, select == Select::Settled)?;
            self.stored(state, at)
        })
    }

    fn pages(&self) -> PageCount {
        PageCount::new(self.with(|state| state.pages))
    }

    fn blocks(&self) -> u64 {
        self.with(|state| state.blocks)
    }

    fn bytes_used(&self) -> usize {
        self.bytes
    }
}

/// A place in a [`BitmapStore`], which always has one.
#[derive(Debug)]
pub struct BitmapReservation<'a, 'd, P: Platform> {
    store: &'a BitmapStore<'d, P>,
}

impl<P: Platform> Reservation for BitmapReservation<'_, '_, P> {
    fn commit(self, block: Block) -> Result<(), CommitError> {
        let store = self.store;
        let inside = block.range().is_some_and(|frames| store.range.contains_range(frames));
        let at = store.bit(block.head()).filter(|_| inside).ok_or(CommitError::OutOfRange)?;
        store.with(|state| {
            if !state.planes.is_absent(at, len_of(block)) {
                return Err(CommitError::Occupied);
            }
            state.planes.set_block(at, len_of(block), false);
            state.pages += block.pages().get();
            state.blocks += 1;
            Ok(())
        })
    }
}

/// A split in a [`BitmapStore`], which needs nothing.
#[derive(Debug)]
pub struct BitmapSplit<'a, 'd, P: Platform> {
    store: &'a BitmapStore<'d, P>,
    block: Block,
    pfn: Pfn,
    order: u32,
    shape: SplitShape,
}

impl<P: Platform> SplitReservation for BitmapSplit<'_, '_, P> {
    fn commit(self) -> Result<(), BlockChanged> {
        let store = self.store;
        store.with(|state| {
            let at = store.head_bit(state, self.block.head()).ok_or(BlockChanged)?;
            let found = store.stored(state, at).ok_or(BlockChanged)?;
            if found.block != self.block {
                return Err(BlockChanged);
            }
            let settled = found.state == BlockState::Settled;
            let (from, to) = (self.block.order(), self.order);
            let more = match self.shape {
                SplitShape::Uniform => state.planes.split(at, from, to, settled),
                SplitShape::Isolate => {
                    let own = store.bit(self.pfn).ok_or(BlockChanged)?;
                    state.planes.isolate(own, from, to, settled)
                }
            };
            state.blocks = state.blocks.wrapping_add_signed(more);
            Ok(())
        })
    }
}
