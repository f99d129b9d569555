//! Destinations of migration: allocated, and nobody can find them yet.

use core::cell::Cell;
use core::fmt;

use abi::{PageCount, Pfn, PfnRange};

use super::Memory;
use super::frames::FrozenFrames;
use crate::memdesc::{DriverId, Hold, Memdesc, Order, Transit, TransitionError, Word};
use crate::memory::offline::offline_word;
use crate::platform::Platform;

/// A block that a page is about to move to; its word says *transit*.
///
/// The migration core makes it of frozen frames and lends it to the page's
/// owner, who takes it by giving its word a type of its own
/// ([`Memory::adopt_offline`]).
/// What the word says afterwards decides whose the frames are.
#[must_use = "dropping a handle leaks its frames; take it out of transit"]
#[derive(PartialEq, Eq)]
pub struct TransitFrames {
    head: Pfn,
    order: Order,
    reported: bool,
    /// Somebody has taken the block. The word said so at that moment; by now the
    /// block may have moved on, and even be in transit anew.
    taken: Cell<bool>,
}

impl TransitFrames {
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

    /// Whether somebody has taken the block by this handle.
    pub const fn is_taken(&self) -> bool {
        self.taken.get()
    }

    /// Notes that somebody has taken the block, or given it back.
    pub(crate) fn set_taken(&self, taken: bool) {
        self.taken.set(taken);
    }

    /// The frames.
    pub fn range(&self) -> PfnRange {
        // Blocks lie in RAM, which ends far below 2^64.
        PfnRange::from_start(self.head, self.pages())
            .unwrap_or_else(|| unreachable!("a block of RAM ends below 2^64"))
    }

    pub(crate) const fn word(&self) -> Word {
        Memdesc::Transit(Transit { order: self.order }).encode()
    }
}

impl fmt::Debug for TransitFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransitFrames({:?}, {:?})", self.head, self.order)
    }
}

impl<P: Platform> Memory<P> {
    /// Makes an allocated block the destination of a migration.
    ///
    /// # Errors
    /// The word is not what the handle says; the frames are leaked, not risked.
    pub fn put_in_transit(&self, frames: FrozenFrames) -> Result<TransitFrames, TransitionError> {
        let reported = frames.was_reported();
        let (head, order) = (frames.head(), frames.order());
        let transit = TransitFrames { head, order, reported, taken: Cell::new(false) };
        self.transition(transit.head, frames.word(), transit.word())?;
        Ok(transit)
    }

    /// Whether nobody has taken the block yet.
    pub fn is_in_transit(&self, transit: &TransitFrames) -> bool {
        self.words().load(transit.head) == Ok(transit.word())
    }

    /// Makes a destination that nobody has taken an allocated block again.
    ///
    /// # Errors
    /// Somebody has taken it: the frames are his.
    pub fn take_out_of_transit(
        &self,
        transit: TransitFrames,
    ) -> Result<FrozenFrames, TransitionError> {
        let frames = FrozenFrames::own(transit.head, transit.order, transit.reported);
        self.transition(transit.head, transit.word(), frames.word())?;
        Ok(frames)
    }

    /// Takes a destination for `driver`: offline, parked, known by number only.
    ///
    /// # Errors
    /// The block is not in transit any more.
    pub fn adopt_offline(
        &self,
        transit: &TransitFrames,
        driver: DriverId,
    ) -> Result<Pfn, TransitionError> {
        let parked = offline_word(transit.order, driver, Hold::Parked);
        self.transition(transit.head, transit.word(), parked)?;
        transit.set_taken(true);
        Ok(transit.head)
    }

    /// Undoes [`Self::adopt_offline`] before the block became movable.
    ///
    /// # Errors
    /// The block is not parked by `driver`.
    pub fn disown_offline(
        &self,
        transit: &TransitFrames,
        driver: DriverId,
    ) -> Result<(), TransitionError> {
        let parked = offline_word(transit.order, driver, Hold::Parked);
        self.transition(transit.head, parked, transit.word())?;
        transit.set_taken(false);
        Ok(())
    }
}
