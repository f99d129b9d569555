//! From a frame's word to a reference, without a lock.

use core::fmt;

use super::kind::descriptor_of;
use super::{Folio, FolioRef};
use crate::memdesc::{OutOfMap, Word, WordCell};

/// Why a frame number led to no folio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoFolio {
    /// The frame is not in RAM.
    OutOfMap(OutOfMap),
    /// Its word is not a folio's: another type, or malformed.
    NotFolio(Word),
    /// The folio is frozen, being freed, or changed with every look.
    Busy,
}

impl fmt::Display for NoFolio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMap(out) => out.fmt(f),
            Self::NotFolio(word) => write!(f, "Frame is no folio: {word:?}"),
            Self::Busy => f.write_str("Folio is frozen or being freed"),
        }
    }
}

impl core::error::Error for NoFolio {}

/// What one look at a word gave.
#[derive(Debug)]
pub enum Glance<'m> {
    /// A reference to the folio that holds the frame.
    Folio(FolioRef<'m>),
    /// The word is not a folio's.
    NotFolio(Word),
    /// The folio is frozen or free.
    Frozen,
    /// A reference to a folio that the word no longer names: to be put.
    Moved(FolioRef<'m>),
}

/// Takes a reference to the folio that `cell` names: word, reference, word again.
///
/// Between the first look and the reference the folio may be freed and its
/// descriptor used for other frames. Then the second look differs: taking the
/// reference synchronised with whoever published the new folio, who had taken
/// the old words away before.
///
/// # Safety
/// A read section of the domain that frees descriptors' slabs is open during
/// the call, and the cache of the descriptors lives for `'m`.
pub unsafe fn glance<'m>(cell: &WordCell) -> Glance<'m> {
    // SAFETY: the caller's promise.
    unsafe { glance_as::<true>(cell, || ()) }
}

/// As [`glance`]; without `RECHECK`, without the second look: a mutant that
/// tests must notice. `between` runs where the race is, for tests that want to
/// lose it.
///
/// # Safety
/// As [`glance`].
pub(crate) unsafe fn glance_as<'m, const RECHECK: bool>(
    cell: &WordCell,
    between: impl FnOnce(),
) -> Glance<'m> {
    let word = cell.load();
    let Some(descriptor) = descriptor_of(word) else { return Glance::NotFolio(word) };
    between();
    // SAFETY: a word with this tag held the address of a descriptor during the read
    // section, so it is memory of the type-safe cache until the section ends, all of
    // it atomic and initialised (`TypeSafe`).
    let folio: &'m Folio = unsafe { descriptor.as_ref() };
    let Some(folio) = FolioRef::try_get(folio) else { return Glance::Frozen };
    #[cfg(loom)]
    if super::mutant::Mutant::NoWordRecheck.is_active() {
        return Glance::Folio(folio);
    }
    if !RECHECK || cell.load() == word { Glance::Folio(folio) } else { Glance::Moved(folio) }
}
