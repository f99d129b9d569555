//! Isolation: migration takes a movable block from its owner by one swap.

use core::fmt;

use abi::Pfn;

use super::Memory;
use super::frames::FrozenFrames;
use super::offline::{ClaimError, offline_word};
use crate::memdesc::{DriverId, Hold, Offline, Order, TransitionError};
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
        if offline.hold != Hold::Movable {
            return Err(IsolateError::NotMovable);
        }
        let isolated = Offline { hold: Hold::Isolated, ..offline }.encode();
        self.transition(pfn, word, isolated).map_err(|_| IsolateError::NotMovable)?;
        Ok(IsolatedBlock { head: pfn, order: offline.order, driver })
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
