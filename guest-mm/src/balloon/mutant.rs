//! Deliberate defects, which the simulated machine must notice.
//!
//! They exist only under `cfg(test)` and the feature `testing`; elsewhere
//! [`BalloonDriver::is_mutant`] is a constant `false`.

use super::driver::BalloonDriver;

/// A defect in the order of the driver's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Blocks may be moved and deflated before the host has used their inflate buffers.
    MovableBeforeUsed,
    /// Deflated blocks are freed before the host has answered.
    FreedBeforeAnswer,
    /// Migration tells the host of the old page before it has the new one.
    OldDeflatedFirst,
}

impl<P, B, S> BalloonDriver<'_, P, B, S> {
    /// Makes the driver defective.
    #[cfg(any(test, feature = "testing"))]
    pub fn mutate(&mut self, mutant: Mutant) {
        self.mutant = Some(mutant);
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(any(test, feature = "testing")))]
    #[expect(clippy::unused_self, reason = "the defective build looks at it")]
    pub(super) const fn is_mutant(&self, _mutant: Mutant) -> bool {
        false
    }
}
