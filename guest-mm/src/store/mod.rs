//! The set of frames that the balloon holds, as blocks.
//!
//! [`PfnStore`] is what the balloon driver and the census see; [`XArrayStore`]
//! (the default) and [`BitmapStore`] implement it. [`IdaStore`] and [`ListStore`]
//! do too, to be measured against them. The order of an inflation is
//! fixed: reserve here, take the frames from the buddy allocator, make their
//! words Offline, [commit](Reservation::commit), publish the buffer, and
//! [settle](PfnStore::set_state) the block once the host has used the buffer. So
//! the only step here that may fail for want of memory comes first, when there
//! is nothing to undo, and removal never allocates.
//!
//! Every method takes the store's own lock (class XArray) for its duration and
//! may be called from any CPU. Design and figures: `docs/pfn-store.md`.

mod bitmap;
mod block;
#[cfg(not(loom))]
mod ida;
#[cfg(not(loom))]
mod list;
mod planes;
#[cfg(not(loom))]
mod records;
mod xarray;

pub use bitmap::{BitmapReservation, BitmapSplit, BitmapStore};
pub use block::{Block, BlockState, MAX_BLOCK_ORDER, StoredBlock};

#[cfg(not(loom))]
pub use ida::{IdaReservation, IdaSplit, IdaStore, Leaf};
#[cfg(not(loom))]
pub use list::{ListReservation, ListSplit, ListStore, Record};
#[cfg(not(loom))]
pub use records::{RecordAlloc, SlabRecords};
pub use xarray::{XArrayReservation, XArraySplit, XArrayStore};

use core::fmt;

use abi::{PageCount, Pfn};

/// A set of disjoint blocks of frames, each [in flight or settled](BlockState).
pub trait PfnStore: Sync {
    /// Room for one block; see [`Reservation`].
    type Reservation<'a>: Reservation
    where
        Self: 'a;

    /// Room for one split; see [`SplitReservation`].
    type SplitReservation<'a>: SplitReservation
    where
        Self: 'a;

    /// Sets room aside for one block of any order at any frame of the store's range.
    ///
    /// # Errors
    /// [`NoMemory`], with nothing to undo.
    fn reserve(&self) -> Result<Self::Reservation<'_>, NoMemory>;

    /// Sets aside what [`SplitReservation::commit`] will need to cut the block
    /// that contains `pfn` into blocks of `order` in the given `shape`.
    ///
    /// A split that stays at `order` 6 or above never needs memory. With
    /// [`SplitShape::Isolate`] it needs at most one node, which the store holds
    /// back for this purpose, so that a deflation does not depend on free memory.
    /// (The list store, a baseline, promises neither.)
    ///
    /// # Errors
    /// [`SplitError`]; the store is unchanged.
    fn reserve_split(
        &self,
        pfn: Pfn,
        order: u32,
        shape: SplitShape,
    ) -> Result<Self::SplitReservation<'_>, SplitError>;

    /// Removes the block that starts at `head` and returns it; `None` if no
    /// block starts there. Never allocates.
    fn remove(&self, head: Pfn) -> Option<StoredBlock>;

    /// The block that contains `pfn`.
    fn block_at(&self, pfn: Pfn) -> Option<StoredBlock>;

    /// Sets the state of the block that starts at `head`; returns the state
    /// before, or `None` if no block starts there.
    fn set_state(&self, head: Pfn, state: BlockState) -> Option<BlockState>;

    /// Picks a settled block for deflation and makes it in flight, in one step.
    ///
    /// Takes the first one that starts at or above `from`, else the lowest of
    /// all; `None` if no block is settled.
    fn claim(&self, from: Pfn) -> Option<Block>;

    /// The block with the lowest head at or above `from` that `select` admits.
    fn next(&self, from: Pfn, select: Select) -> Option<StoredBlock>;

    /// The block with the highest head at or below `from` that `select` admits.
    fn prev(&self, from: Pfn, select: Select) -> Option<StoredBlock>;

    /// Pages in the store: the sum over its blocks.
    fn pages(&self) -> PageCount;

    /// Number of blocks.
    fn blocks(&self) -> u64;

    /// Bytes that the store occupies now: nodes (those waiting for a grace
    /// period and those held back included), or the preallocated bitmap.
    fn bytes_used(&self) -> usize;

    /// Whether a block contains `pfn`.
    fn contains(&self, pfn: Pfn) -> bool {
        self.block_at(pfn).is_some()
    }
}

/// Room for one block. Dropping it cancels and leaves nothing behind.
#[must_use = "dropping a reservation cancels it"]
pub trait Reservation {
    /// Puts `block` into the store, in flight. Never allocates.
    ///
    /// # Errors
    /// [`CommitError`], a caller's bug; the reservation is cancelled.
    fn commit(self, block: Block) -> Result<(), CommitError>;
}

/// Room for one split. Dropping it cancels and leaves nothing behind.
#[must_use = "dropping a reservation cancels it"]
pub trait SplitReservation {
    /// Splits the block; every piece keeps its state. Never allocates.
    ///
    /// # Errors
    /// [`BlockChanged`] if the block is not what it was at the reservation: a
    /// caller's bug; the store is unchanged.
    fn commit(self) -> Result<(), BlockChanged>;
}

/// The pieces that a split leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SplitShape {
    /// All pieces have the wanted order.
    Uniform,
    /// The frame's own piece has the wanted order; the rest stays in the largest
    /// aligned blocks, one of each order in between, as in a buddy split.
    Isolate,
}

/// Which blocks a search admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Select {
    /// All.
    Any,
    /// Those in [`BlockState::Settled`].
    Settled,
}

/// No memory for the store's own tables; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("No memory for the PFN store's tables")
    }
}

impl core::error::Error for NoMemory {}

/// Why a block could not be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitError {
    /// The block leaves the range that the store was made for.
    OutOfRange,
    /// The store holds a frame of the block already.
    Occupied,
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "Block is outside the PFN store's range",
            Self::Occupied => "PFN store holds a frame of the block already",
        })
    }
}

impl core::error::Error for CommitError {}

/// Why a split could not be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SplitError {
    /// No block contains the frame.
    NotStored,
    /// The wanted order is not below the block's.
    OrderNotBelow,
    /// No memory for the tables of the pieces.
    NoMemory,
}

impl fmt::Display for SplitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStored => "No stored block contains the frame",
            Self::OrderNotBelow => "Wanted order is not below the order of the block",
            Self::NoMemory => "No memory for the tables of the pieces",
        })
    }
}

impl core::error::Error for SplitError {}

/// The block changed between the reservation of a split and its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockChanged;

impl fmt::Display for BlockChanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Block changed after its split was reserved")
    }
}

impl core::error::Error for BlockChanged {}
