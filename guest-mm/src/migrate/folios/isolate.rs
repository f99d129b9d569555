//! Taking a folio off the LRU, by its frame number.

use core::fmt;

use abi::{Pfn, PfnRange};

use crate::folio::{Folio, FolioFlags, FolioKind, FolioRef, NoFolio};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::platform::Platform;

/// A folio that migration has taken off the LRU, and a reference to it, which
/// keeps it where it is: it is neither freed, split nor moved by others.
#[must_use = "put it back, or reclaim never finds it again"]
#[derive(Debug, PartialEq, Eq)]
pub struct IsolatedFolio<'m>(FolioRef<'m>);

impl<'m> IsolatedFolio<'m> {
    pub(super) const fn own(folio: FolioRef<'m>) -> Self {
        Self(folio)
    }

    pub(super) fn into_reference(self) -> FolioRef<'m> {
        self.0
    }

    /// The folio.
    pub fn folio(&self) -> &Folio {
        &self.0
    }

    /// Its first frame.
    pub fn head(&self) -> Pfn {
        self.0.pfn()
    }

    /// log2 of its pages.
    pub fn order(&self) -> Order {
        self.0.order()
    }

    /// Its frames.
    pub fn range(&self) -> PfnRange {
        self.0.range()
    }

    /// Gives up the handle and leaves the folio isolated, to be known by its first
    /// frame alone: an entry of a batch. [`Mm::isolated_folio`] makes it again.
    ///
    /// [`Mm::isolated_folio`]: crate::mm::Mm::isolated_folio
    pub fn into_raw(self) -> Pfn {
        let head = self.head();
        self.0.into_raw();
        head
    }
}

/// Why a folio was not isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolioIsolateError {
    /// No folio has the frame, or it is frozen at the moment.
    NoFolio(NoFolio),
    /// It is device memory, which its driver moves.
    Device(Pfn),
    /// Somebody has it pinned.
    Pinned(Pfn),
    /// It is on no LRU list: new, or somebody else has isolated it.
    NotOnLru(Pfn),
}

impl fmt::Display for FolioIsolateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFolio(error) => error.fmt(f),
            Self::Device(pfn) => write!(f, "Folio at {pfn:?} is device memory"),
            Self::Pinned(pfn) => write!(f, "Folio at {pfn:?} is pinned"),
            Self::NotOnLru(pfn) => write!(f, "Folio at {pfn:?} is on no LRU list"),
        }
    }
}

impl core::error::Error for FolioIsolateError {}

impl<'m, P: Platform> Mm<'m, P> {
    /// Takes the folio that has frame `pfn`, first or not, off the LRU for migration.
    ///
    /// Never waits. The word, a reference, the word again; then one look at the
    /// LRU, below its lock: of two who isolate a folio one succeeds.
    ///
    /// # Errors
    /// [`FolioIsolateError`]; nothing has changed.
    pub fn isolate_lru_folio(&self, pfn: Pfn) -> Result<IsolatedFolio<'m>, FolioIsolateError> {
        let folio = self.folio_of(pfn).map_err(FolioIsolateError::NoFolio)?;
        let refusal = if folio.kind() == FolioKind::Device {
            Some(FolioIsolateError::Device(pfn))
        } else if folio.pincount() != 0 {
            Some(FolioIsolateError::Pinned(pfn))
        } else if !self.lru_isolate(&folio) {
            Some(FolioIsolateError::NotOnLru(pfn))
        } else {
            None
        };
        match refusal {
            None => Ok(IsolatedFolio(folio)),
            Some(error) => {
                self.put(folio);
                Err(error)
            }
        }
    }

    /// Makes the handle of an isolated folio again. `None`: no folio has the frame.
    ///
    /// # Safety
    /// [`IsolatedFolio::into_raw`] returned `head`, and its handle was not made since.
    pub unsafe fn isolated_folio(&self, head: Pfn) -> Option<IsolatedFolio<'m>> {
        // SAFETY: the caller owns a reference of the folio, which keeps it there.
        let folio = unsafe { self.mapped_folio(head) }?;
        debug_assert!(folio.has(FolioFlags::ISOLATED), "{folio:?} is not isolated");
        // SAFETY: the reference that `into_raw` left without a handle.
        Some(IsolatedFolio(unsafe { FolioRef::from_raw(core::ptr::NonNull::from(folio)) }))
    }

    /// Puts an isolated folio back on the LRU, and gives the reference up, which may
    /// have become the last.
    pub fn putback_lru_folio(&self, isolated: IsolatedFolio<'m>) {
        let folio = isolated.into_reference();
        self.lru_putback(&folio);
        self.put(folio);
    }
}
