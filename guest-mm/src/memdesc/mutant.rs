//! Faults that the models switch on to prove that they would be noticed.

use std::cell::Cell;

/// A fault in the code of isolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A word is looked at, then overwritten, instead of swapped.
    CheckThenSet,
    /// A page that its owner has given up goes back all the same, and is freed then.
    FreeAfterPutback,
}

// A model's threads all run on the thread that explores it.
std::thread_local! {
    static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Keeps a mutant switched on.
#[derive(Debug)]
#[must_use = "the mutant is switched off when this is dropped"]
pub struct ActiveMutant(());

impl Mutant {
    /// Switches the fault on.
    pub fn active(self) -> ActiveMutant {
        ACTIVE.set(Some(self));
        ActiveMutant(())
    }

    pub(super) fn is_active(self) -> bool {
        ACTIVE.get() == Some(self)
    }
}

impl Drop for ActiveMutant {
    fn drop(&mut self) {
        ACTIVE.set(None);
    }
}
