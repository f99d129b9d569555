//! A PFN store that is obviously right: a map under a mutex, with room to order.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::{PageCount, Pfn};

use crate::store::{
    Block, BlockChanged, BlockState, CommitError, NoMemory, PfnStore, Reservation, Select,
    SplitError, SplitReservation, SplitShape, StoredBlock,
};

#[derive(Debug, Default)]
pub(crate) struct MapStore {
    blocks: Mutex<BTreeMap<Pfn, StoredBlock>>,
    pub(crate) is_full: AtomicBool,
    pub(crate) cannot_split: AtomicBool,
    /// Frames from this one on have no place; 0 for none.
    pub(crate) range_end: AtomicU64,
}

pub(crate) struct Room<'a>(&'a MapStore);

impl Reservation for Room<'_> {
    fn commit(self, block: Block) -> Result<(), CommitError> {
        let end = self.0.range_end.load(Ordering::Relaxed);
        if end != 0 && block.range().unwrap().end().number() > end {
            return Err(CommitError::OutOfRange);
        }
        if block.range().unwrap().iter().any(|pfn| self.0.contains(pfn)) {
            return Err(CommitError::Occupied);
        }
        let stored = StoredBlock { block, state: BlockState::InFlight };
        self.0.blocks.lock().unwrap().insert(block.head(), stored);
        Ok(())
    }
}

pub(crate) struct SplitRoom<'a> {
    store: &'a MapStore,
    whole: StoredBlock,
    order: u32,
}

impl SplitReservation for SplitRoom<'_> {
    /// Cuts the lowest frames off: all that the balloon asks for.
    fn commit(self) -> Result<(), BlockChanged> {
        let mut blocks = self.store.blocks.lock().unwrap();
        let head = self.whole.block.head();
        if blocks.remove(&head) != Some(self.whole) {
            return Err(BlockChanged);
        }
        let state = self.whole.state;
        let lowest = Block::new(head, self.order).unwrap();
        blocks.insert(head, StoredBlock { block: lowest, state });
        for order in self.order..self.whole.block.order() {
            let block = Block::new(head.checked_add(PageCount::of_order(order)).unwrap(), order);
            let block = block.unwrap();
            blocks.insert(block.head(), StoredBlock { block, state });
        }
        Ok(())
    }
}

impl PfnStore for MapStore {
    type Reservation<'a> = Room<'a>;
    type SplitReservation<'a> = SplitRoom<'a>;

    fn reserve(&self) -> Result<Room<'_>, NoMemory> {
        if self.is_full.load(Ordering::Relaxed) { Err(NoMemory) } else { Ok(Room(self)) }
    }

    fn reserve_split(
        &self,
        pfn: Pfn,
        order: u32,
        shape: SplitShape,
    ) -> Result<SplitRoom<'_>, SplitError> {
        assert_eq!(shape, SplitShape::Isolate);
        if self.cannot_split.load(Ordering::Relaxed) {
            return Err(SplitError::NoMemory);
        }
        let whole = self.block_at(pfn).ok_or(SplitError::NotStored)?;
        assert_eq!(whole.block.head(), pfn);
        if order >= whole.block.order() {
            return Err(SplitError::OrderNotBelow);
        }
        Ok(SplitRoom { store: self, whole, order })
    }

    fn remove(&self, head: Pfn) -> Option<StoredBlock> {
        self.blocks.lock().unwrap().remove(&head)
    }

    fn block_at(&self, pfn: Pfn) -> Option<StoredBlock> {
        self.prev(pfn, Select::Any).filter(|found| found.block.contains(pfn))
    }

    fn set_state(&self, head: Pfn, state: BlockState) -> Option<BlockState> {
        let mut blocks = self.blocks.lock().unwrap();
        blocks.get_mut(&head).map(|found| core::mem::replace(&mut found.state, state))
    }

    fn claim(&self, from: Pfn) -> Option<Block> {
        let found =
            self.next(from, Select::Settled).or_else(|| self.next(Pfn::ZERO, Select::Settled))?;
        self.set_state(found.block.head(), BlockState::InFlight);
        Some(found.block)
    }

    fn next(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        let blocks = self.blocks.lock().unwrap();
        blocks.range(from..).map(|(_, found)| *found).find(|found| admits(select, found.state))
    }

    fn prev(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        let blocks = self.blocks.lock().unwrap();
        blocks.range(..=from).rev().map(|(_, found)| *found).find(|f| admits(select, f.state))
    }

    fn pages(&self) -> PageCount {
        let blocks = self.blocks.lock().unwrap();
        PageCount::new(blocks.values().map(|found| found.block.pages().get()).sum())
    }

    fn blocks(&self) -> u64 {
        self.blocks.lock().unwrap().len() as u64
    }

    fn bytes_used(&self) -> usize {
        0
    }
}

fn admits(select: Select, state: BlockState) -> bool {
    select == Select::Any || state == BlockState::Settled
}
