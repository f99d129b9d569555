//! Faults that the models switch on to prove that they would be noticed.

/// A fault in the code of folios and the page cache's lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A speculative reader does not look at the word again.
    NoWordRecheck,
    /// The count of a new folio is written with its other fields, by a plain store.
    PlainRefcount,
    /// Whoever took a leaf away looks for pins without a barrier between the two.
    NoBarrierBeforePins,
    /// A page-cache lookup does not look at the slot again.
    NoSlotRecheck,
    /// Migration does not make sure that nobody has a reference.
    NoFreeze,
    /// The old frame's word names the folio until after it was unfrozen elsewhere.
    WordAfterUnfreeze,
}

crate::mutant::mutants!(Mutant);
