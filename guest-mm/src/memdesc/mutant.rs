//! Faults that the models switch on to prove that they would be noticed.

/// A fault in the code of isolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A word is looked at, then overwritten, instead of swapped.
    CheckThenSet,
    /// A page that its owner has given up goes back all the same, and is freed then.
    FreeAfterPutback,
}

crate::mutant::mutants!(Mutant);
