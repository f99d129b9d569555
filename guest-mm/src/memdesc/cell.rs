//! The atomic home of a word.

use super::kind::State;
use super::transition::{TransitionError, is_legal};
use super::word::Word;
use crate::sync::shim::{AtomicU64, Ordering};

/// One frame's word in memory.
#[derive(Debug)]
#[repr(transparent)]
pub struct WordCell(AtomicU64);

#[cfg(not(loom))]
const _: () = assert!(size_of::<WordCell>() == 8, "8 bytes per page");

impl WordCell {
    /// A cell that holds `word`.
    #[cfg(not(loom))]
    pub const fn new(word: Word) -> Self {
        Self(AtomicU64::new(word.bits()))
    }

    /// A cell that holds `word`.
    #[cfg(loom)]
    pub fn new(word: Word) -> Self {
        Self(AtomicU64::new(word.bits()))
    }

    /// The word, and whatever its writer published before it.
    #[inline]
    pub fn load(&self) -> Word {
        // Acquire pairs with the Release half of the CAS in `transition`.
        Word::from_bits(self.0.load(Ordering::Acquire))
    }

    /// Changes the word from `from` to `to` if the table allows that step and
    /// the word is still `from`.
    ///
    /// # Errors
    /// The step is illegal, a word malformed, or another CPU was faster; the
    /// word is unchanged then.
    #[inline]
    pub fn transition(&self, from: Word, to: Word) -> Result<(), TransitionError> {
        let from_state = from.state().map_err(TransitionError::Unknown)?;
        let to_state = to.state().map_err(TransitionError::Unknown)?;
        if !is_legal(from_state, to_state) {
            return Err(TransitionError::Illegal { from: from_state, to: to_state });
        }
        // Release publishes the descriptor and the frame's contents to whoever
        // reads the new word; Acquire takes over what the last owner wrote.
        match self.0.compare_exchange(from.bits(), to.bits(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(found) => Err(TransitionError::Raced { found: Word::from_bits(found) }),
        }
    }

    /// What a mutant does instead of a swap.
    #[cfg(loom)]
    pub(super) fn overwrite(&self, word: Word) {
        self.0.store(word.bits(), Ordering::Release);
    }

    /// The current state, for diagnosis.
    ///
    /// # Errors
    /// The word is malformed.
    pub fn state(&self) -> Result<State, super::UnknownWord> {
        self.load().state()
    }
}
