//! Offline blocks: frames that a balloon or hot-plug driver has taken away.
//!
//! A driver keeps frame numbers, not handles: thousands of them, in a store.
//! So a handle can be *parked*, which leaves the ownership in the word alone,
//! and claimed again by one compare-and-swap. Only a parked block can become
//! movable; migration takes a movable block by the same kind of swap, so of a
//! claim and an isolation exactly one succeeds.
//!
//! ```text
//! frozen ─ make_offline ─▶ held ─ park ─▶ parked ─ set_movable ─▶ movable ⇄ isolated
//!   ▲                       │ ▲             │                        │         │
//!   └──────── online ───────┘ └── claim ────┴───────── claim ────────┘      retire
//! ```

use core::fmt;

use abi::{PageCount, Pfn};

use super::Memory;
use super::frames::{FrozenFrames, SplitError, upper_half};
use crate::memdesc::{DriverId, Hold, LookupError, Memdesc, Offline, Order, TransitionError, Word};
use crate::platform::Platform;

/// An Offline block that the holder owns and migration may not take.
#[must_use = "dropping a handle leaves the block offline for ever; park it"]
#[derive(Debug, PartialEq, Eq)]
pub struct OfflineBlock {
    head: Pfn,
    order: Order,
    driver: DriverId,
}

/// Why a frame number gave no Offline block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimError {
    /// The frame is not in RAM, or its word is malformed.
    Lookup(LookupError),
    /// No Offline block starts there.
    NotOffline(Memdesc),
    /// Another driver's.
    ForeignDriver(DriverId),
    /// Somebody holds the handle already.
    Held,
    /// It is movable already.
    Movable,
    /// Migration has isolated it; try again later.
    Isolated,
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup(lookup) => lookup.fmt(f),
            Self::NotOffline(found) => write!(f, "Frame is not offline: {found:?}"),
            Self::ForeignDriver(driver) => write!(f, "Block belongs to driver {}", driver.get()),
            Self::Held => f.write_str("Block has a holder"),
            Self::Movable => f.write_str("Block is movable already"),
            Self::Isolated => f.write_str("Block is being migrated"),
        }
    }
}

impl core::error::Error for ClaimError {}

impl OfflineBlock {
    /// First frame.
    pub const fn head(&self) -> Pfn {
        self.head
    }

    /// log2 of the pages.
    pub const fn order(&self) -> Order {
        self.order
    }

    /// Number of pages.
    pub const fn pages(&self) -> PageCount {
        self.order.pages()
    }

    /// The owner.
    pub const fn driver(&self) -> DriverId {
        self.driver
    }

    const fn word(&self, hold: Hold) -> Word {
        offline_word(self.order, self.driver, hold)
    }
}

pub(super) const fn offline_word(order: Order, driver: DriverId, hold: Hold) -> Word {
    Offline { order, driver, hold, skippable: false }.encode()
}

impl<P: Platform> Memory<P> {
    /// Takes an allocated block offline for `driver`: held, not movable.
    ///
    /// # Errors
    /// The word is not what the handle says; the frames are leaked, not risked.
    pub fn make_offline(
        &self,
        frames: FrozenFrames,
        driver: DriverId,
    ) -> Result<OfflineBlock, TransitionError> {
        let block = OfflineBlock { head: frames.head(), order: frames.order(), driver };
        self.transition(block.head, frames.word(), block.word(Hold::Held))?;
        Ok(block)
    }

    /// Gives up the handle: the driver knows the block by its frame number
    /// from now on. Not movable yet.
    ///
    /// # Errors
    /// The word is not what the handle says.
    pub fn park(&self, block: OfflineBlock) -> Result<Pfn, TransitionError> {
        self.transition(block.head, block.word(Hold::Held), block.word(Hold::Parked))?;
        Ok(block.head)
    }

    /// Lets migration take the parked block at `pfn`. A balloon does so only
    /// after the host has returned the buffer that names the block.
    ///
    /// # Errors
    /// Not a parked block of this driver.
    pub fn set_movable(&self, pfn: Pfn, driver: DriverId) -> Result<(), ClaimError> {
        self.change_hold(pfn, driver, Hold::Movable).map(|_| ())
    }

    /// Takes the block at `pfn`, parked or movable, for its driver: nobody can
    /// isolate it any more. The first step of every deflate.
    ///
    /// # Errors
    /// [`ClaimError::Isolated`] while migration has the block; otherwise `pfn`
    /// names no unclaimed block of this driver.
    pub fn claim_offline(&self, pfn: Pfn, driver: DriverId) -> Result<OfflineBlock, ClaimError> {
        let order = self.change_hold(pfn, driver, Hold::Held)?;
        Ok(OfflineBlock { head: pfn, order, driver })
    }

    /// The order of the Offline block that starts at `pfn`, whoever holds it.
    ///
    /// # Errors
    /// No Offline block of this driver starts there.
    pub fn offline_order(&self, pfn: Pfn, driver: DriverId) -> Result<Order, ClaimError> {
        self.offline_at(pfn, driver).map(|(_, offline)| offline.order)
    }

    /// Cuts an Offline block in two halves, lower first: words before store.
    ///
    /// # Errors
    /// The block is a single page; it comes back.
    pub fn split_offline(
        &self,
        block: OfflineBlock,
    ) -> Result<(OfflineBlock, OfflineBlock), SplitError<OfflineBlock>> {
        let Some(half) = block.order.down() else {
            return Err(SplitError { block, cause: None });
        };
        let lower = OfflineBlock { head: block.head, order: half, driver: block.driver };
        let upper =
            OfflineBlock { head: upper_half(block.head, half), order: half, driver: block.driver };
        let words = (block.head, block.word(Hold::Held), lower.word(Hold::Held));
        match self.split_words(words, (upper.head, upper.word(Hold::Held))) {
            Ok(()) => Ok((lower, upper)),
            Err(cause) => Err(SplitError { block, cause: Some(cause) }),
        }
    }

    /// Brings an Offline block back as an allocated one. A balloon does so only
    /// after the host has acknowledged the deflate, and then frees the frames
    /// by [`Memory::free_reported`].
    ///
    /// # Errors
    /// The word is not what the handle says; the frames stay offline.
    pub fn online(&self, block: OfflineBlock) -> Result<FrozenFrames, TransitionError> {
        let frames = FrozenFrames::own(block.head, block.order, true);
        self.transition(block.head, block.word(Hold::Held), frames.word())?;
        Ok(frames)
    }

    /// The owner's change of hold: parked or movable to held, parked to movable.
    fn change_hold(&self, pfn: Pfn, driver: DriverId, to: Hold) -> Result<Order, ClaimError> {
        loop {
            let (word, offline) = self.offline_at(pfn, driver)?;
            match (offline.hold, to) {
                (Hold::Isolated | Hold::Doomed, _) => return Err(ClaimError::Isolated),
                (Hold::Held, _) => return Err(ClaimError::Held),
                (Hold::Movable, Hold::Movable) => return Err(ClaimError::Movable),
                (Hold::Parked | Hold::Movable, _) => {}
            }
            let new = Offline { hold: to, ..offline }.encode();
            match self.transition(pfn, word, new) {
                Ok(()) => return Ok(offline.order),
                // Somebody was faster: look again.
                Err(TransitionError::Raced { .. }) => {}
                Err(TransitionError::Illegal { .. } | TransitionError::Unknown(_)) => {
                    return Err(ClaimError::Held);
                }
            }
        }
    }

    pub(super) fn offline_at(
        &self,
        pfn: Pfn,
        driver: DriverId,
    ) -> Result<(Word, Offline), ClaimError> {
        let word = self
            .map
            .words
            .load(pfn)
            .map_err(|out| ClaimError::Lookup(LookupError::OutOfMap(out)))?;
        match word.decode() {
            Ok(Memdesc::Offline(offline)) if offline.driver == driver => Ok((word, offline)),
            Ok(Memdesc::Offline(offline)) => Err(ClaimError::ForeignDriver(offline.driver)),
            Ok(other) => Err(ClaimError::NotOffline(other)),
            Err(unknown) => Err(ClaimError::Lookup(LookupError::Unknown(unknown))),
        }
    }
}
