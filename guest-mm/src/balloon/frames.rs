//! The balloon's steps on words, allocator and store, each in the one order
//! that keeps them in agreement.
//!
//! A block in the balloon is parked or movable in its word and in flight or
//! settled in the store; movable implies settled. So the store is told first on
//! the way out ([`Frames::settle`]) and last on the way back ([`Frames::claim`]).

use abi::{PageCount, Pfn};

use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Order};
use crate::memory::{ClaimError, Memory, OfflineBlock, TransitFrames};
use crate::platform::Platform;
use crate::store::{
    Block, BlockState, CommitError, PfnStore, Reservation, SplitError, SplitReservation,
    SplitShape, StoredBlock,
};
use crate::virtio::{DmaMemory, DmaPage};

/// Why inflation got no block. Nothing is left to undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakeError {
    /// The store has no room.
    Store,
    /// The allocator has no block of this order to spare.
    Pages,
    /// The block's last PFN does not fit in 32 bits, or the store has no place for it: it holds frames of a range.
    Unaddressable,
    /// A word or the store was not as expected: the frames are leaked, not risked.
    Inconsistent,
}

impl From<CommitError> for TakeError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::OutOfRange => Self::Unaddressable,
            CommitError::Occupied => Self::Inconsistent,
        }
    }
}

/// Why deflation got no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimFailure {
    /// No block is settled.
    Nothing,
    /// Somebody has isolated this one.
    Isolated(Block),
    /// Taking a part of this one needs memory that is not there.
    NoSplit(Block),
    /// A word was not what the store says.
    Inconsistent(Block),
}

/// The memory and the store that a balloon works on.
#[derive(Debug)]
pub(super) struct Frames<'m, P, S> {
    pub(super) memory: &'m Memory<P>,
    pub(super) store: &'m S,
}

impl<P: Platform, S: PfnStore> Frames<'_, P, S> {
    /// Takes a block for inflation: in flight, not movable.
    pub(super) fn take(&self, order: Order) -> Result<Block, TakeError> {
        let reservation = self.store.reserve().map_err(|_| TakeError::Store)?;
        let frames = self.memory.alloc_frozen(order, Gfp::BALLOON).map_err(|_| TakeError::Pages)?;
        let block = Block::new(frames.head(), order.get()).filter(|block| is_addressable(*block));
        let Some(block) = block else {
            self.memory.free_frozen(frames);
            return Err(TakeError::Unaddressable);
        };
        let offline = self
            .memory
            .make_offline(frames, DriverId::BALLOON)
            .map_err(|_| TakeError::Inconsistent)?;
        if let Err(error) = reservation.commit(block) {
            self.free(offline, Contents::Unknown)?;
            return Err(error.into());
        }
        self.memory.park(offline).map_err(|_| TakeError::Inconsistent)?;
        Ok(block)
    }

    /// Takes a migration's destination into the balloon: in flight, not movable.
    /// An error leaves it in transit.
    pub(super) fn take_in(&self, dst: &TransitFrames) -> Result<Block, TakeError> {
        let reservation = self.store.reserve().map_err(|_| TakeError::Store)?;
        let block = Block::new(dst.head(), dst.order().get());
        let block = block.filter(|block| is_addressable(*block)).ok_or(TakeError::Unaddressable)?;
        self.memory.adopt_offline(dst, DriverId::BALLOON).map_err(|_| TakeError::Inconsistent)?;
        if let Err(error) = reservation.commit(block) {
            // The word was just parked: it says so.
            let _undone = self.memory.disown_offline(dst, DriverId::BALLOON);
            return Err(error.into());
        }
        Ok(block)
    }

    /// Undoes [`Self::take_in`] for a block that the device has never heard of.
    pub(super) fn give_back(&self, block: Block, dst: &TransitFrames) -> Result<(), TakeError> {
        self.store.remove(block.head());
        self.memory.disown_offline(dst, DriverId::BALLOON).map_err(|_| TakeError::Inconsistent)
    }

    /// Cuts an isolated block so that its first page alone stays isolated.
    /// [`TakeError::Store`] leaves everything as it was.
    pub(super) fn cut_isolated(&self, whole: Block) -> Result<(), TakeError> {
        let head = whole.head();
        let split =
            self.store.reserve_split(head, 0, SplitShape::Isolate).map_err(
                |error| match error {
                    SplitError::NoMemory => TakeError::Store,
                    SplitError::NotStored | SplitError::OrderNotBelow => TakeError::Inconsistent,
                },
            )?;
        for _ in 0..whole.order() {
            let cut = self.memory.split_isolated(head, DriverId::BALLOON);
            cut.map_err(|_| TakeError::Inconsistent)?;
        }
        split.commit().map_err(|_| TakeError::Inconsistent)?;
        self.settle_rest(whole, Order::ZERO).map_err(|_| TakeError::Inconsistent)
    }

    /// The block at `head`, if it is in flight: what a returned buffer must name.
    pub(super) fn in_flight(&self, head: Pfn) -> Option<Block> {
        let found = self.store.block_at(head)?;
        let is_it = found.block.head() == head && found.state == BlockState::InFlight;
        is_it.then_some(found.block)
    }

    /// The host has used the block's inflate buffers: it may be moved and deflated.
    pub(super) fn settle(&self, block: Block) -> Result<(), TakeError> {
        self.store.set_state(block.head(), BlockState::Settled);
        self.memory
            .set_movable(block.head(), DriverId::BALLOON)
            .map_err(|_| TakeError::Inconsistent)
    }

    /// Claims a settled block at or above `from` (or the lowest) of at most
    /// `order`, cutting it off a larger one if need be: in flight, not movable.
    pub(super) fn claim(&self, from: Pfn, order: Order) -> Result<Claimed, ClaimFailure> {
        let found = self.store.claim(from).ok_or(ClaimFailure::Nothing)?;
        let head = found.head();
        let mut held = match self.memory.claim_offline(head, DriverId::BALLOON) {
            Ok(held) => held,
            Err(error) => {
                self.store.set_state(head, BlockState::Settled);
                return Err(match error {
                    ClaimError::Isolated => ClaimFailure::Isolated(found),
                    ClaimError::Lookup(_)
                    | ClaimError::NotOffline(_)
                    | ClaimError::ForeignDriver(_)
                    | ClaimError::Held
                    | ClaimError::Movable => ClaimFailure::Inconsistent(found),
                });
            }
        };
        let was_split = held.order() > order;
        if was_split {
            let Ok(split) = self.store.reserve_split(head, order.get(), SplitShape::Isolate) else {
                self.unclaim(held, found)?;
                return Err(ClaimFailure::NoSplit(found));
            };
            held = self.split(held, order).ok_or(ClaimFailure::Inconsistent(found))?;
            split.commit().map_err(|_| ClaimFailure::Inconsistent(found))?;
            self.settle_rest(found, order)?;
        }
        let block = Block::new(head, held.order().get());
        let block = block.ok_or(ClaimFailure::Inconsistent(found))?;
        self.memory.park(held).map_err(|_| ClaimFailure::Inconsistent(found))?;
        Ok(Claimed { block, was_split })
    }

    /// Cuts the lowest block of `order` off `held`; the upper halves are parked.
    fn split(&self, mut held: OfflineBlock, order: Order) -> Option<OfflineBlock> {
        while held.order() > order {
            let (lower, upper) = self.memory.split_offline(held).ok()?;
            self.memory.park(upper).ok()?;
            held = lower;
        }
        Some(held)
    }

    /// Settles again what a split has left of `whole` above its lowest block of `order`.
    fn settle_rest(&self, whole: Block, order: Order) -> Result<(), ClaimFailure> {
        for order in order.get()..whole.order() {
            let head = whole.head().checked_add(PageCount::of_order(order));
            let rest = head.and_then(|head| Block::new(head, order));
            rest.ok_or(ClaimFailure::Inconsistent(whole))
                .and_then(|rest| self.settle(rest).map_err(|_| ClaimFailure::Inconsistent(rest)))?;
        }
        Ok(())
    }

    /// Undoes a claim: settled and movable again.
    fn unclaim(&self, held: OfflineBlock, block: Block) -> Result<(), ClaimFailure> {
        self.memory
            .park(held)
            .map_err(|_| TakeError::Inconsistent)
            .and_then(|_| self.settle(block))
            .map_err(|_| ClaimFailure::Inconsistent(block))
    }

    /// The block leaves the balloon: out of the store, then free.
    ///
    /// The caller knows that no buffer with the device names it. Fails, and
    /// changes nothing, if somebody has isolated the block.
    pub(super) fn release(&self, block: Block, contents: Contents) -> Result<(), ClaimError> {
        let held = self.memory.claim_offline(block.head(), DriverId::BALLOON)?;
        self.store.remove(block.head());
        // The word was just claimed: it says what the handle says.
        let _freed = self.free(held, contents);
        Ok(())
    }

    fn free(&self, held: OfflineBlock, contents: Contents) -> Result<(), TakeError> {
        let frames = self.memory.online(held).map_err(|_| TakeError::Inconsistent)?;
        match contents {
            Contents::Unknown => self.memory.free_frozen(frames),
            Contents::GivenAway => self.memory.free_reported(frames),
        }
        Ok(())
    }

    /// The first block of the balloon at or above `from`, in any state.
    pub(super) fn next(&self, from: Pfn) -> Option<StoredBlock> {
        self.store.next(from, crate::store::Select::Any)
    }
}

/// A block claimed for deflation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claimed {
    /// The block.
    pub(super) block: Block,
    /// Whether it was cut off a larger one.
    pub(super) was_split: bool,
}

/// What is known of the memory behind a block that leaves the balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    /// The host may or may not have discarded it.
    Unknown,
    /// The host has confirmed inflation and deflation: it holds nothing, it reads as zero.
    GivenAway,
}

/// Whether each PFN of the block fits in the 32 bits of the wire.
fn is_addressable(block: Block) -> bool {
    block.range().is_some_and(|range| range.end().number() <= 1 << 32)
}

impl<P: Platform> DmaMemory for Memory<P> {
    fn lend_page(&self) -> Option<DmaPage> {
        let (pfn, _) = self.alloc_frozen(Order::ZERO, Gfp::KERNEL).ok()?.into_raw();
        let ptr = self.platform().frame_ptr(pfn);
        // SAFETY: the page was just allocated frozen and its handle is gone, so this
        // value owns it; `frame_ptr` promises the mapping.
        Some(unsafe { DmaPage::new(pfn, ptr) })
    }

    unsafe fn take_back(&self, page: DmaPage) {
        // SAFETY: the caller's promise.
        let pfn = unsafe { page.into_pfn() };
        // SAFETY: `lend_page` took the page with order 0 and gave its handle up.
        let frames = unsafe { crate::memory::FrozenFrames::from_raw(pfn, Order::ZERO) };
        self.free_frozen(frames);
    }
}
