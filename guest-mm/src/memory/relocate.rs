//! The words of a block whose descriptor goes over to another block.
//!
//! ```text
//!  destination   transit, tails ─ adopt_described ─▶ descriptor
//!  source        descriptor ─ leave_described ─▶ descriptor, isolated ─ retire_described ─▶ frozen, tails
//! ```
//!
//! In between both blocks' words name the descriptor. Only who has it frozen may do this.

use abi::PfnRange;

use super::Memory;
use super::frames::FrozenFrames;
use super::transit::TransitFrames;
use crate::memdesc::{TransitionError, Word};
use crate::platform::Platform;

impl<P: Platform> Memory<P> {
    /// Makes the words of a destination `word`, the head's last.
    ///
    /// # Errors
    /// The block is not in transit any more, or its tails are not its own: memory
    /// corruption. Those before are as they were.
    pub(crate) fn adopt_described(
        &self,
        transit: &TransitFrames,
        word: Word,
    ) -> Result<(), TransitionError> {
        let tails = || transit.range().iter().skip(1);
        let undo = |until: Option<abi::Pfn>| {
            for tail in tails().take_while(|&tail| Some(tail) != until) {
                let undone = self.transition(tail, word, crate::buddy::tail_word(tail));
                debug_assert!(undone.is_ok(), "{tail:?}: {undone:?}");
            }
        };
        for tail in tails() {
            self.transition(tail, crate::buddy::tail_word(tail), word)
                .inspect_err(|_| undo(Some(tail)))?;
        }
        self.transition(transit.head(), transit.word(), word).inspect_err(|_| undo(None))?;
        transit.set_taken(true);
        Ok(())
    }

    /// Makes the words of `range`, which are `word`, those of frames that the
    /// descriptor has left.
    ///
    /// # Errors
    /// A word is not `word`: memory corruption. Those before it have changed.
    pub(crate) fn leave_described(
        &self,
        range: PfnRange,
        word: Word,
        left: Word,
    ) -> Result<(), TransitionError> {
        range.iter().try_for_each(|at| self.transition(at, word, left))
    }

    /// Makes a block that its descriptor has left allocated memory again. No leaf
    /// names it any more.
    ///
    /// # Errors
    /// A word is not `left`: memory corruption. The block is leaked.
    pub(crate) fn retire_described(
        &self,
        frames: FrozenFrames,
        left: Word,
    ) -> Result<FrozenFrames, TransitionError> {
        for tail in frames.range().iter().skip(1) {
            self.transition(tail, left, crate::buddy::tail_word(tail))?;
        }
        self.transition(frames.head(), left, frames.word())?;
        Ok(frames)
    }
}
