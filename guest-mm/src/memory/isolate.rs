//! Isolation: migration takes a movable block from its owner by one swap.

use core::fmt;

use abi::Pfn;

use super::Memory;
use super::frames::{FrozenFrames, upper_half};
use super::offline::{ClaimError, offline_word};
use crate::memdesc::{DriverId, Hold, Memdesc, Offline, Order, TransitionError};
use crate::platform::Platform;

/// An Offline block that migration owns: its driver can neither claim nor free it.
#[must_use = "dropping a handle leaves the block isolated for ever; put it back"]
#[derive(Debug, PartialEq, Eq)]
pub struct IsolatedBlock {
    head: Pfn,
    order: Order,
    driver: DriverId,
}

impl IsolatedBlock {
    /// First frame.
    pub const fn head(&self) -> Pfn {
        self.head
    }

    /// log2 of the pages.
    pub const fn order(&self) -> Order {
        self.order
    }

    /// The driver from which the block was taken.
    pub const fn driver(&self) -> DriverId {
        self.driver
    }
}

/// Why a block could not be isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsolateError {
    /// No Offline block of this driver starts there.
    Claim(ClaimError),
    /// It is there but not movable, or another CPU has just changed it.
    NotMovable,
}

impl fmt::Display for IsolateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(claim) => claim.fmt(f),
            Self::NotMovable => f.write_str("Block is not movable"),
        }
    }
}

impl core::error::Error for IsolateError {}

impl<P: Platform> Memory<P> {
    /// Takes the movable Offline block at `pfn` for migration: one swap, no
    /// lock, no list, no count. Fails rather than waits.
    ///
    /// # Errors
    /// The block is not there, not movable, or another CPU was faster.
    pub fn isolate(&self, pfn: Pfn, driver: DriverId) -> Result<IsolatedBlock, IsolateError> {
        let (word, offline) = self.offline_at(pfn, driver).map_err(IsolateError::Claim)?;
        let cell = self.words().cell(pfn).map_err(|_| IsolateError::NotMovable)?;
        cell.isolate(word).map_err(|_| IsolateError::NotMovable)?;
        Ok(IsolatedBlock { head: pfn, order: offline.order, driver })
    }

    /// The handle of the Offline block at `pfn`, which the caller has isolated
    /// before and given the handle up of.
    pub(crate) fn isolated_block(&self, pfn: Pfn) -> Option<IsolatedBlock> {
        match self.words().load(pfn).ok()?.decode() {
            Ok(Memdesc::Offline(Offline { order, driver, hold: Hold::Isolated, .. })) => {
                Some(IsolatedBlock { head: pfn, order, driver })
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Returns an isolated block to its driver, movable as before.
    ///
    /// # Errors
    /// The word is not what the handle says.
    pub fn putback(&self, block: IsolatedBlock) -> Result<(), TransitionError> {
        let from = offline_word(block.order, block.driver, Hold::Isolated);
        let to = offline_word(block.order, block.driver, Hold::Movable);
        self.transition(block.head, from, to)
    }

    /// Takes an isolated block back for its driver, parked: the driver has told
    /// somebody of it who may still act on it. Only the driver itself does so,
    /// in the middle of its part of a migration.
    ///
    /// # Errors
    /// [`ClaimError`]: no isolated block of this driver starts there.
    pub fn park_isolated(&self, pfn: Pfn, driver: DriverId) -> Result<(), ClaimError> {
        self.leave_isolation(pfn, driver, Hold::Parked)
    }

    /// Takes an isolated block back for its driver, movable, as [`Self::putback`]
    /// does for migration.
    ///
    /// # Errors
    /// As for [`Self::park_isolated`].
    pub fn unisolate(&self, pfn: Pfn, driver: DriverId) -> Result<(), ClaimError> {
        self.leave_isolation(pfn, driver, Hold::Movable)
    }

    fn leave_isolation(&self, pfn: Pfn, driver: DriverId, to: Hold) -> Result<(), ClaimError> {
        let order = self.isolated_order(pfn, driver)?;
        let from = offline_word(order, driver, Hold::Isolated);
        // Whoever isolated the block waits for its driver: nobody else changes the word.
        self.transition(pfn, from, offline_word(order, driver, to)).map_err(|_| ClaimError::Held)
    }

    /// The order of the isolated block that starts at `pfn`.
    ///
    /// # Errors
    /// [`ClaimError`]: none of this driver does, isolated.
    pub fn isolated_order(&self, pfn: Pfn, driver: DriverId) -> Result<Order, ClaimError> {
        let (_, offline) = self.offline_at(pfn, driver)?;
        match offline.hold {
            Hold::Isolated => Ok(offline.order),
            Hold::Movable => Err(ClaimError::Movable),
            Hold::Held | Hold::Parked | Hold::Doomed => Err(ClaimError::Held),
        }
    }

    /// Cuts the isolated block at `pfn` in two halves: the lower stays isolated,
    /// the upper is its driver's, parked. Words before store. Returns the upper's head.
    ///
    /// # Errors
    /// [`ClaimError`]: no isolated block of this driver starts there, or it is a
    /// single page ([`ClaimError::Held`]).
    pub fn split_isolated(&self, pfn: Pfn, driver: DriverId) -> Result<Pfn, ClaimError> {
        let order = self.isolated_order(pfn, driver)?;
        let half = order.down().ok_or(ClaimError::Held)?;
        let upper = upper_half(pfn, half);
        let [old, new] = [order, half].map(|order| offline_word(order, driver, Hold::Isolated));
        self.split_words((pfn, old, new), (upper, offline_word(half, driver, Hold::Parked)))
            .map_err(|_| ClaimError::Held)?;
        Ok(upper)
    }

    /// Ends a migration: the driver has moved to another block, and this one is
    /// allocated memory again, for the migration core to free.
    ///
    /// # Errors
    /// The word is not what the handle says.
    pub fn retire(&self, block: IsolatedBlock) -> Result<FrozenFrames, TransitionError> {
        let from = offline_word(block.order, block.driver, Hold::Isolated);
        let frames = FrozenFrames::own(block.head, block.order, true);
        self.transition(block.head, from, frames.word())?;
        Ok(frames)
    }
}
