//! [`ListStore`]: an allocated record per block, on a list: the baseline.
//!
//! What a balloon does that has no bitmap, no tree, and no room for links in the
//! page itself: 32 B for each block, taken when it is inflated. The list is kept
//! in the order of frames and remembers where it was used last, so that going up
//! or down it costs a step; anything else walks.
//!
//! It exists to be measured against the others (`docs/experiments/`), and makes
//! no promise about splits without memory.

use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;

use abi::{PageCount, Pfn, PfnRange};

use super::block::{Block, BlockState, StoredBlock};
use super::records::RecordAlloc;
use super::{
    BlockChanged, CommitError, NoMemory, PfnStore, Reservation, Select, SplitError,
    SplitReservation, SplitShape,
};
use crate::platform::Platform;
use crate::sync::{LockClass, SpinLock};

/// A block on the list.
#[derive(Debug)]
pub struct Record {
    prev: Link,
    next: Link,
    head: Pfn,
    order: Cell<u32>,
    state: Cell<BlockState>,
}

type Link = Cell<Option<NonNull<Record>>>;

const _: () = assert!(size_of::<Record>() == 32);

impl Record {
    fn block(&self) -> Block {
        Block::new(self.head, self.order.get()).unwrap_or_else(|| unreachable!("it was one"))
    }
}

/// A [`PfnStore`] on a list. Records come from `A`.
pub struct ListStore<'d, P: Platform, A: RecordAlloc<Record>> {
    platform: &'d P,
    records: A,
    range: PfnRange,
    list: SpinLock<List>,
}

/// What the lock guards. The records on it are valid and the list's own.
struct List {
    first: Option<NonNull<Record>>,
    last: Option<NonNull<Record>>,
    /// Where it was used last; `None` only if it is empty.
    finger: Option<NonNull<Record>>,
    pages: u64,
    blocks: u64,
}

// SAFETY: the list owns its records; they are reached through its lock only.
unsafe impl Send for List {}

impl List {
    /// The record of a link.
    fn at(&self, link: Option<NonNull<Record>>) -> Option<&Record> {
        let record = link?;
        // SAFETY: links and the list's ends lead to records on the list, which are valid
        // until they are taken off and freed, which needs `&mut self`.
        Some(unsafe { record.as_ref() })
    }

    /// The last record that begins at or below `pfn`, from where the list was used last.
    fn seek(&mut self, pfn: Pfn) -> Option<NonNull<Record>> {
        let begins_above = |record: &Record| record.head > pfn;
        let mut at = self.finger;
        if self.at(self.last).is_some_and(|last| !begins_above(last)) {
            at = self.last;
        } else if self.at(self.first).is_none_or(begins_above) {
            return None;
        }
        while self.at(at).is_some_and(begins_above) {
            at = self.at(at)?.prev.get();
        }
        while let Some(next) = self.at(at)?.next.get() {
            if self.at(Some(next)).is_none_or(begins_above) {
                break;
            }
            at = Some(next);
        }
        self.finger = at;
        at
    }

    /// The record that begins at `head`.
    fn seek_head(&mut self, head: Pfn) -> Option<NonNull<Record>> {
        let found = self.seek(head)?;
        (self.at(Some(found))?.head == head).then_some(found)
    }

    /// The first record at or above `pfn`.
    fn seek_up(&mut self, pfn: Pfn) -> Option<NonNull<Record>> {
        match self.seek(pfn) {
            None => self.first,
            Some(at) => {
                let record = self.at(Some(at))?;
                if record.head == pfn { Some(at) } else { record.next.get() }
            }
        }
    }

    /// `from` or the first behind it that `select` admits; before it with `back`.
    fn admitted(
        &self,
        from: Option<NonNull<Record>>,
        select: Select,
        back: bool,
    ) -> Option<NonNull<Record>> {
        let mut link = from;
        while let Some(record) = self.at(link) {
            if select == Select::Any || record.state.get() == BlockState::Settled {
                return link;
            }
            link = if back { record.prev.get() } else { record.next.get() };
        }
        None
    }

    fn stored(&self, link: Option<NonNull<Record>>) -> Option<StoredBlock> {
        let record = self.at(link)?;
        Some(StoredBlock { block: record.block(), state: record.state.get() })
    }

    /// Puts a record, which becomes the list's, behind `before`.
    ///
    /// # Safety
    /// `new` is valid, the caller's own, and of the store's allocator.
    unsafe fn insert(
        &mut self,
        before: Option<NonNull<Record>>,
        new: NonNull<Record>,
        block: Block,
        state: BlockState,
    ) {
        let after = self.at(before).map_or(self.first, |record| record.next.get());
        let record = Record {
            prev: Cell::new(before),
            next: Cell::new(after),
            head: block.head(),
            order: Cell::new(block.order()),
            state: Cell::new(state),
        };
        // SAFETY: valid for writes and nobody else's, by the caller's promise.
        unsafe { new.write(record) };
        match self.at(before) {
            Some(record) => record.next.set(Some(new)),
            None => self.first = Some(new),
        }
        match self.at(after) {
            Some(record) => record.prev.set(Some(new)),
            None => self.last = Some(new),
        }
        self.finger = Some(new);
        self.pages += block.pages().get();
        self.blocks += 1;
    }

    /// Takes a record off the list: it is the caller's now.
    fn take(&mut self, link: NonNull<Record>) -> Option<StoredBlock> {
        let found = self.stored(Some(link))?;
        let record = self.at(Some(link))?;
        let (prev, next) = (record.prev.get(), record.next.get());
        match self.at(prev) {
            Some(record) => record.next.set(next),
            None => self.first = next,
        }
        match self.at(next) {
            Some(record) => record.prev.set(prev),
            None => self.last = prev,
        }
        self.finger = next.or(prev);
        self.pages -= found.block.pages().get();
        self.blocks -= 1;
        Some(found)
    }
}

impl<'d, P: Platform, A: RecordAlloc<Record>> ListStore<'d, P, A> {
    /// An empty store for blocks inside `range`.
    pub const fn new(platform: &'d P, records: A, range: PfnRange) -> Self {
        let list = List { first: None, last: None, finger: None, pages: 0, blocks: 0 };
        Self { platform, records, range, list: SpinLock::new(LockClass::XArray, list) }
    }

    fn with<R>(&self, op: impl FnOnce(&mut List) -> R) -> R {
        op(&mut self.list.lock(self.platform))
    }

    /// Fresh records, or none.
    fn fresh(&self, count: usize) -> Result<Fresh<'_, A>, NoMemory> {
        let mut fresh = Fresh { records: &self.records, first: None };
        for _ in 0..count {
            fresh.push(self.records.alloc_record().ok_or(NoMemory)?);
        }
        Ok(fresh)
    }
}

impl<P: Platform, A: RecordAlloc<Record>> fmt::Debug for ListStore<'_, P, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListStore").field("blocks", &self.blocks()).finish_non_exhaustive()
    }
}

impl<P: Platform, A: RecordAlloc<Record>> Drop for ListStore<'_, P, A> {
    fn drop(&mut self) {
        while let Some(first) = self.with(|list| {
            let first = list.first?;
            list.take(first).map(|_| first)
        }) {
            // SAFETY: off the list, hence ours; from this allocator.
            unsafe { self.records.free_record(first) };
        }
    }
}

impl<P: Platform, A: RecordAlloc<Record>> PfnStore for ListStore<'_, P, A> {
    type Reservation<'a>
        = ListReservation<'a, P, A>
    where
        Self: 'a;
    type SplitReservation<'a>
        = ListSplit<'a, P, A>
    where
        Self: 'a;

    fn reserve(&self) -> Result<ListReservation<'_, P, A>, NoMemory> {
        let fresh = self.fresh(1)?;
        Ok(ListReservation { platform: self.platform, range: self.range, list: &self.list, fresh })
    }

    fn reserve_split(
        &self,
        pfn: Pfn,
        order: u32,
        shape: SplitShape,
    ) -> Result<ListSplit<'_, P, A>, SplitError> {
        let block = self.block_at(pfn).ok_or(SplitError::NotStored)?.block;
        if order >= block.order() {
            return Err(SplitError::OrderNotBelow);
        }
        // The first piece keeps the record.
        let more = match shape {
            SplitShape::Uniform => (1 << (block.order() - order)) - 1,
            SplitShape::Isolate => (block.order() - order) as usize,
        };
        let fresh = self.fresh(more).map_err(|NoMemory| SplitError::NoMemory)?;
        let (platform, list) = (self.platform, &self.list);
        Ok(ListSplit { platform, list, fresh, block, pfn, order, shape })
    }

    fn remove(&self, head: Pfn) -> Option<StoredBlock> {
        let (record, found) = self.with(|list| {
            let record = list.seek_head(head)?;
            Some((record, list.take(record)?))
        })?;
        // SAFETY: off the list, hence ours; from this allocator.
        unsafe { self.records.free_record(record) };
        Some(found)
    }

    fn block_at(&self, pfn: Pfn) -> Option<StoredBlock> {
        self.with(|list| {
            let at = list.seek(pfn);
            list.stored(at).filter(|found| found.block.contains(pfn))
        })
    }

    fn set_state(&self, head: Pfn, state: BlockState) -> Option<BlockState> {
        self.with(|list| {
            let at = list.seek_head(head);
            Some(list.at(at)?.state.replace(state))
        })
    }

    fn claim(&self, from: Pfn) -> Option<Block> {
        self.with(|list| {
            let ahead = list.seek_up(from);
            let found = list
                .admitted(ahead, Select::Settled, false)
                .or_else(|| list.admitted(list.first, Select::Settled, false))?;
            list.finger = Some(found);
            let record = list.at(Some(found))?;
            record.state.set(BlockState::InFlight);
            Some(record.block())
        })
    }

    fn next(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        self.with(|list| {
            let ahead = list.seek_up(from);
            list.stored(list.admitted(ahead, select, false))
        })
    }

    fn prev(&self, from: Pfn, select: Select) -> Option<StoredBlock> {
        self.with(|list| {
            let behind = list.seek(from);
            list.stored(list.admitted(behind, select, true))
        })
    }

    fn pages(&self) -> PageCount {
        PageCount::new(self.with(|list| list.pages))
    }

    fn blocks(&self) -> u64 {
        self.with(|list| list.blocks)
    }

    fn bytes_used(&self) -> usize {
        usize::try_from(self.blocks()).unwrap_or(usize::MAX).saturating_mul(size_of::<Record>())
    }
}

/// Records that are on no list yet; gives back what is left when dropped.
struct Fresh<'a, A: RecordAlloc<Record>> {
    records: &'a A,
    first: Option<NonNull<Record>>,
}

impl<A: RecordAlloc<Record>> Fresh<'_, A> {
    /// Adds a record of the allocator, which is the caller's.
    fn push(&mut self, record: NonNull<Record>) {
        let link: NonNull<Option<NonNull<Record>>> = record.cast();
        // SAFETY: a record is aligned for pointers, larger than one, and ours.
        unsafe { link.write(self.first) };
        self.first = Some(record);
    }

    fn pop(&mut self) -> Option<NonNull<Record>> {
        let record = self.first?;
        let link: NonNull<Option<NonNull<Record>>> = record.cast();
        // SAFETY: written by `push`, and ours since.
        self.first = unsafe { link.read() };
        Some(record)
    }
}

impl<A: RecordAlloc<Record>> Drop for Fresh<'_, A> {
    fn drop(&mut self) {
        while let Some(record) = self.pop() {
            // SAFETY: from this allocator (`push`), on no list.
            unsafe { self.records.free_record(record) };
        }
    }
}

/// A record for one block of a [`ListStore`].
pub struct ListReservation<'a, P: Platform, A: RecordAlloc<Record>> {
    platform: &'a P,
    range: PfnRange,
    list: &'a SpinLock<List>,
    fresh: Fresh<'a, A>,
}

impl<P: Platform, A: RecordAlloc<Record>> Reservation for ListReservation<'_, P, A> {
    fn commit(mut self, block: Block) -> Result<(), CommitError> {
        let frames = block.range().filter(|frames| self.range.contains_range(*frames));
        let frames = frames.ok_or(CommitError::OutOfRange)?;
        let mut list = self.list.lock(self.platform);
        let last = Pfn::new(frames.end().number() - 1).unwrap_or(block.head());
        // Whatever holds one of the frames begins at or below the last of them, and is the last that does.
        let before = list.seek(last);
        let end = list.stored(before).and_then(|found| found.block.range());
        if before.is_some() && end.is_none_or(|found| found.end() > block.head()) {
            return Err(CommitError::Occupied);
        }
        let record = self.fresh.pop().unwrap_or_else(|| unreachable!("reserved"));
        // SAFETY: from the store's allocator and ours: it was fresh.
        unsafe { list.insert(before, record, block, BlockState::InFlight) };
        Ok(())
    }
}

/// Records for the pieces of one block of a [`ListStore`].
pub struct ListSplit<'a, P: Platform, A: RecordAlloc<Record>> {
    platform: &'a P,
    list: &'a SpinLock<List>,
    fresh: Fresh<'a, A>,
    block: Block,
    pfn: Pfn,
    order: u32,
    shape: SplitShape,
}

impl<P: Platform, A: RecordAlloc<Record>> SplitReservation for ListSplit<'_, P, A> {
    fn commit(mut self) -> Result<(), BlockChanged> {
        let mut list = self.list.lock(self.platform);
        let at = list.seek_head(self.block.head()).ok_or(BlockChanged)?;
        let found = list.stored(Some(at)).ok_or(BlockChanged)?;
        if found.block != self.block {
            return Err(BlockChanged);
        }
        // The record that there is becomes the first piece; the rest follow it in order.
        let mut behind = at;
        let mut next = Some(self.block.head());
        while let Some(head) = next {
            let piece = self.piece(head);
            if head == self.block.head() {
                list.shrink(at, piece);
            } else {
                let record = self.fresh.pop().unwrap_or_else(|| unreachable!("reserved"));
                // SAFETY: from the store's allocator and ours: it was fresh.
                unsafe { list.insert(Some(behind), record, piece, found.state) };
                behind = record;
            }
            next = head.checked_add(piece.pages()).filter(|head| self.block.contains(*head));
        }
        Ok(())
    }
}

impl<P: Platform, A: RecordAlloc<Record>> ListSplit<'_, P, A> {
    /// The piece that begins at `head`, where one begins.
    fn piece(&self, head: Pfn) -> Block {
        let order = match self.shape {
            SplitShape::Uniform => self.order,
            // The frame's own piece, or the largest that begins here and does not hold it.
            SplitShape::Isolate => (self.order..self.block.order())
                .rev()
                .find(|&order| {
                    head.is_aligned(order) && head.align_down(order) != self.pfn.align_down(order)
                })
                .unwrap_or(self.order),
        };
        Block::new(head, order).unwrap_or_else(|| unreachable!("pieces are aligned"))
    }
}

impl List {
    /// Makes a record's block its first piece.
    fn shrink(&mut self, link: NonNull<Record>, piece: Block) {
        let Some(record) = self.at(Some(link)) else { return };
        let less = record.block().pages().get() - piece.pages().get();
        record.order.set(piece.order());
        self.pages -= less;
    }
}

impl<P: Platform, A: RecordAlloc<Record>> fmt::Debug for ListReservation<'_, P, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListReservation").finish_non_exhaustive()
    }
}

impl<P: Platform, A: RecordAlloc<Record>> fmt::Debug for ListSplit<'_, P, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListSplit").field("block", &self.block).finish_non_exhaustive()
    }
}
