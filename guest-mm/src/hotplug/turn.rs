//! One block at a time is added or removed.

use core::sync::atomic::{AtomicBool, Ordering};

/// Whether a block is being added or removed.
#[derive(Debug, Default)]
pub(crate) struct TurnFlag(AtomicBool);

/// The turn of whoever adds or removes a block, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'m>(&'m AtomicBool);

impl TurnFlag {
    /// Takes the turn, unless somebody has it.
    pub(super) fn take(&self) -> Option<Turn<'_>> {
        // Acquire: pairs with the Release of the one before.
        let taken =
            self.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        // Lazily: a turn that is made is given back.
        taken.then(|| Turn(&self.0))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
