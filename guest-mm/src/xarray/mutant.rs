//! Faults that the models switch on to prove that they would be noticed.

/// A fault in the array's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A reader takes what the first slot of an entry holds without looking
    /// again whether its own slot still belongs to the entry.
    TrustSiblings,
    /// Nodes that leave the tree keep their slots.
    NoRetry,
    /// A store over several slots stores the first one last.
    SiblingsFirst,
}

crate::mutant::mutants!(Mutant);
