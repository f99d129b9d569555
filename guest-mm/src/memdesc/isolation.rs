//! Isolation: how a page leaves its owner for a while, by its word alone.
//!
//! ```text
//!             claim            isolate               retire
//!   held ◀──────────── movable ───────▶ isolated ─────────────▶ frozen (migration's, to free)
//!                         ▲  put_back     │                        ▲
//!                         └───────────────┤ claim by the owner     │ put_back, retire
//!                                         └───────────▶ doomed ────┘
//! ```
//!
//! Each arrow is one compare-and-swap of the word, so of two parties exactly
//! one gets the page; there is no lock, no list and no count. The word keeps
//! the owner's descriptor all the time: an owner who frees a page that
//! migration has finds so by the word, and leaves the freeing to migration by
//! one more swap (*doomed*). Nothing can be lost in between, and neither side
//! keeps a note of its own.

use core::fmt;

use super::body::{Descriptor, Memdesc, Offline};
use super::cell::WordCell;
use super::kind::{Hold, State};
use super::transition::TransitionError;
use super::word::{UnknownWord, Word};

/// Why a word was not isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotIsolated {
    /// The word is malformed.
    Unknown(UnknownWord),
    /// The frame is not movable: of another kind, held by its owner, or isolated already.
    NotMovable(Word),
    /// Another CPU changed the word first.
    Raced(Word),
}

impl fmt::Display for NotIsolated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(unknown) => unknown.fmt(f),
            Self::NotMovable(word) => write!(f, "Frame is not movable: {word:?}"),
            Self::Raced(word) => write!(f, "Frame became {word:?} meanwhile"),
        }
    }
}

impl core::error::Error for NotIsolated {}

/// What an owner who wanted a page back got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The page: its word is now this one, held.
    Held(Word),
    /// A promise: migration has the page and frees it, whatever becomes of the migration.
    Doomed,
}

/// How an isolation ended that was not a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutBack {
    /// The page is its owner's again, movable.
    Returned,
    /// Its owner has given it up: it is still the caller's, who frees it.
    Doomed,
}

impl Word {
    /// The same word in another hold; `None` if its kind has no holds.
    pub const fn with_hold(self, hold: Hold) -> Option<Self> {
        match self.decode() {
            Ok(Memdesc::Offline(offline)) => Some(Offline { hold, ..offline }.encode()),
            Ok(Memdesc::Descriptor(found)) if found.kind.kind().can_move() => {
                Some(Descriptor::with_hold(found, hold).encode())
            }
            _ => None,
        }
    }
}

impl WordCell {
    /// Takes the page that `word`, just read, shows to be movable from its owner,
    /// and returns the word that says so. Fails rather than waits.
    ///
    /// # Errors
    /// The page is not movable, or another CPU was faster.
    pub fn isolate(&self, word: Word) -> Result<Word, NotIsolated> {
        let State { hold, .. } = word.state().map_err(NotIsolated::Unknown)?;
        let isolated = match word.with_hold(Hold::Isolated) {
            Some(isolated) if hold == Hold::Movable => isolated,
            Some(_) | None => return Err(NotIsolated::NotMovable(word)),
        };
        #[cfg(loom)]
        if super::mutant::Mutant::CheckThenSet.is_active() {
            self.overwrite(isolated);
            return Ok(isolated);
        }
        match self.transition(word, isolated) {
            Ok(()) => Ok(isolated),
            Err(TransitionError::Raced { found }) => Err(NotIsolated::Raced(found)),
            Err(TransitionError::Illegal { .. }) => Err(NotIsolated::NotMovable(word)),
            Err(TransitionError::Unknown(unknown)) => Err(NotIsolated::Unknown(unknown)),
        }
    }

    /// Ends an isolation: `isolated` is what [`Self::isolate`] returned. If the
    /// answer is *doomed*, the page has not gone back, and [`Self::retire`] takes it.
    ///
    /// # Errors
    /// The word is neither: memory corruption.
    pub fn put_back(&self, isolated: Word) -> Result<PutBack, TransitionError> {
        let malformed = TransitionError::Unknown(UnknownWord(isolated));
        let movable = isolated.with_hold(Hold::Movable).ok_or(malformed)?;
        match self.transition(isolated, movable) {
            Ok(()) => Ok(PutBack::Returned),
            Err(TransitionError::Raced { found })
                if isolated.with_hold(Hold::Doomed) == Some(found) =>
            {
                #[cfg(loom)]
                if super::mutant::Mutant::FreeAfterPutback.is_active() {
                    self.overwrite(movable);
                }
                Ok(PutBack::Doomed)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends an isolation for good: from isolated or doomed to `frozen`.
    ///
    /// # Errors
    /// The word is neither: memory corruption.
    pub fn retire(&self, isolated: Word, frozen: Word) -> Result<(), TransitionError> {
        #[cfg(loom)]
        if super::mutant::Mutant::FreeAfterPutback.is_active() {
            self.overwrite(frozen);
            return Ok(());
        }
        match self.transition(isolated, frozen) {
            Err(TransitionError::Raced { found })
                if isolated.with_hold(Hold::Doomed) == Some(found) =>
            {
                self.transition(found, frozen)
            }
            ended => ended,
        }
    }

    /// The descriptor that `isolated` names goes over to the frame of `dst`, a
    /// destination whose word is `transit`; the word here becomes `frozen`. Returns
    /// the word of `dst`, held. At most one word names the descriptor at any time.
    ///
    /// # Errors
    /// The owner has given the page up, or a word is not what it should be.
    pub fn hand_over(
        &self,
        (isolated, frozen): (Word, Word),
        (dst, transit): (&Self, Word),
    ) -> Result<Word, TransitionError> {
        let malformed = TransitionError::Unknown(UnknownWord(isolated));
        let held = isolated.with_hold(Hold::Held).ok_or(malformed)?;
        // Not `retire`: what the owner has given up must not live on.
        self.transition(isolated, frozen)?;
        dst.transition(transit, held)?;
        Ok(held)
    }

    /// The owner of the movable page whose descriptor `word` names, in whatever
    /// hold, wants it back to free it.
    ///
    /// # Errors
    /// The page is held, given up already, or another descriptor's.
    pub fn claim_or_doom(&self, word: Word) -> Result<Claim, TransitionError> {
        let malformed = TransitionError::Unknown(UnknownWord(word));
        let [held, movable, isolated, doomed] =
            match [Hold::Held, Hold::Movable, Hold::Isolated, Hold::Doomed]
                .map(|hold| word.with_hold(hold))
            {
                [Some(held), Some(movable), Some(isolated), Some(doomed)] => {
                    [held, movable, isolated, doomed]
                }
                _ => return Err(malformed),
            };
        // Each turn lost is a step that migration took: to isolated, or back.
        loop {
            match self.transition(movable, held) {
                Ok(()) => return Ok(Claim::Held(held)),
                Err(TransitionError::Raced { found }) if found == isolated => {}
                Err(error) => return Err(error),
            }
            match self.transition(isolated, doomed) {
                Ok(()) => return Ok(Claim::Doomed),
                Err(TransitionError::Raced { found }) if found == movable => {}
                Err(error) => return Err(error),
            }
        }
    }
}
