//! Making folios and ending them.

use core::ptr::NonNull;

use abi::Pfn;

use super::speculative::{Glance, glance};
use super::{Folio, FolioKind, FolioPin, FolioRef, FrozenFolio, NoFolio};
use crate::buddy::Gfp;
use crate::memdesc::{Order, TransitionError};
use crate::memory::{AllocError, FrozenFrames};
use crate::mm::Mm;
use crate::platform::Platform;

/// Looks at a word before [`Mm::folio_of`] calls it busy.
const GLANCES: u32 = 8;

impl<'m, P: Platform> Mm<'m, P> {
    /// Allocates a folio: frames, a descriptor, and their words. One reference, the caller's.
    ///
    /// It has no mapping yet and is on no list.
    ///
    /// # Errors
    /// No block of `order`, or no memory for the descriptor; nothing is kept.
    pub fn alloc_folio(
        &self,
        order: Order,
        gfp: Gfp,
        kind: FolioKind,
    ) -> Result<FolioRef<'m>, AllocError> {
        let frames = self.alloc_frames(order, gfp)?;
        let described = match self.alloc_descriptor(gfp) {
            Ok(folio) => self.describe_folio(frames, folio, kind),
            Err(error) => Err((frames, error)),
        };
        described.map(|folio| folio.unfreeze(1)).map_err(|(frames, error)| {
            self.memory().free_frozen(frames);
            error
        })
    }

    /// A descriptor that describes nothing yet.
    pub(crate) fn alloc_descriptor(&self, gfp: Gfp) -> Result<FrozenFolio<'m>, AllocError> {
        let gfp = gfp - (Gfp::MOVABLE | Gfp::CMA | Gfp::ZERO);
        let folio = self.base().caches.folio.alloc_typesafe(self.memory(), gfp)?;
        // SAFETY: an object of the type-safe cache is a `Folio` since its slab was
        // made, has only atomic fields, and its memory is RAM of `'m`.
        let folio = unsafe { folio.as_ref() };
        // SAFETY: the cache has just handed the object out; free ones have count 0.
        Ok(unsafe { FrozenFolio::own(folio) })
    }

    /// Gives a descriptor back that no word names.
    pub(crate) fn free_descriptor(&self, folio: FrozenFolio<'m>) {
        // SAFETY: from this cache, and the handle is the only one; late speculative
        // readers find count 0 and refuse it.
        unsafe { self.base().caches.folio.free(self.memory(), folio.as_ptr()) };
    }

    /// Makes `frames` a folio described by `folio`, frozen still.
    pub(super) fn describe_folio(
        &self,
        frames: FrozenFrames,
        folio: FrozenFolio<'m>,
        kind: FolioKind,
    ) -> Result<FrozenFolio<'m>, (FrozenFrames, AllocError)> {
        folio.describe(frames.head(), frames.order(), kind);
        if let Err(error) = self.memory().describe(&frames, kind.word_of(folio.as_ptr())) {
            debug_assert!(false, "frames without an owner: {error}");
            self.free_descriptor(folio);
            let order = frames.order();
            return Err((frames, AllocError::OutOfMemory(order)));
        }
        // The words own the frames from here on; `dissolve` makes the handle again.
        frames.into_raw();
        Ok(folio)
    }

    /// Takes the folio's words and descriptor away and leaves its frames.
    ///
    /// # Errors
    /// Its words are not its own: memory corruption. Descriptor and frames are leaked.
    pub(crate) fn dissolve(&self, folio: FrozenFolio<'m>) -> Result<FrozenFrames, TransitionError> {
        // SAFETY: the folio owns its frames, and the frozen handle the folio.
        let frames = unsafe { FrozenFrames::from_raw(folio.pfn(), folio.order()) };
        self.memory().undescribe(&frames, folio.kind().word_of(folio.as_ptr()))?;
        self.free_descriptor(folio);
        Ok(frames)
    }

    /// Frees a folio whose last reference is gone.
    pub fn free_folio(&self, folio: FrozenFolio<'m>) {
        debug_assert_eq!(folio.mapcount(), 0, "{folio:?} is freed while mapped");
        debug_assert_eq!(folio.pincount(), 0, "{folio:?} is freed while pinned");
        debug_assert!(!folio.is_locked(), "{folio:?} is freed while locked");
        self.leave_lists(&folio);
        match self.dissolve(folio) {
            Ok(frames) => self.memory().free_frozen(frames),
            Err(error) => debug_assert!(false, "words of a folio: {error}"),
        }
    }

    /// Takes a folio that is being freed off whatever list it is on.
    fn leave_lists(&self, folio: &FrozenFolio<'m>) {
        self.undefer_split(folio);
        self.lru_remove(folio);
    }

    /// One more reference to a folio that the caller's borrow keeps.
    pub fn get(&self, folio: &Folio) -> FolioRef<'m> {
        // SAFETY: descriptors exist in this manager's cache only, and a borrow of one
        // comes from a handle, or from a leaf or list whose reference keeps it.
        unsafe { FolioRef::get_live(NonNull::from(folio)) }
    }

    /// Gives a reference up; frees the folio if it was the last.
    pub fn put(&self, folio: FolioRef<'m>) {
        if let Some(folio) = folio.release() {
            self.free_folio(folio);
        }
    }

    /// Gives a pin and its reference up; frees the folio if that was the last.
    pub fn unpin(&self, pin: FolioPin<'m>) {
        self.put(pin.unpin());
    }

    /// The folio that holds frame `pfn`, with a reference, found by the frame's word alone.
    ///
    /// This is how walkers over frame numbers come by folios, and lockless page
    /// table walks: read section, word, reference, word again.
    ///
    /// # Errors
    /// [`NoFolio`]. Frames beyond RAM and malformed words are errors, the latter counted.
    pub fn folio_of(&self, pfn: Pfn) -> Result<FolioRef<'m>, NoFolio> {
        let cell = self.memory().words().cell(pfn).map_err(NoFolio::OutOfMap)?;
        for _ in 0..GLANCES {
            let section = self.base().rcu.read(self.platform().cpu());
            // SAFETY: a read section of the base's domain is open, and the folio cache
            // is part of the base, which lives for `'m`.
            let seen = unsafe { glance(cell) };
            drop(section);
            match seen {
                Glance::Folio(folio) => return Ok(folio),
                Glance::NotFolio(word) => {
                    // Decoding from the table counts it if it is malformed.
                    return match self.memory().words().decode(pfn) {
                        Ok(_) | Err(_) => Err(NoFolio::NotFolio(word)),
                    };
                }
                Glance::Frozen => return Err(NoFolio::Busy),
                Glance::Moved(folio) => self.put(folio),
            }
        }
        Err(NoFolio::Busy)
    }

    /// The folio that holds frame `pfn`, which a leaf maps.
    ///
    /// `None` if the frame is not of RAM or no folio: the zero page.
    ///
    /// # Safety
    /// For as long as the result is used, a present leaf maps the frame and its
    /// page-table lock is held, or the caller holds a reference otherwise.
    pub unsafe fn mapped_folio<'a>(&self, pfn: Pfn) -> Option<&'a Folio>
    where
        'm: 'a,
    {
        let word = self.memory().words().load(pfn).ok()?;
        let folio = super::kind::descriptor_of(word)?;
        // SAFETY: the leaf's reference keeps the folio, which the word names for as
        // long as it exists.
        Some(unsafe { folio.as_ref() })
    }

    /// Changes what a frozen folio holds, and its words with it.
    ///
    /// # Errors
    /// Its words are not its own: memory corruption.
    pub fn convert_folio(
        &self,
        folio: &FrozenFolio<'m>,
        kind: FolioKind,
    ) -> Result<(), TransitionError> {
        let old = folio.kind();
        if old == kind {
            return Ok(());
        }
        // SAFETY: the folio owns its frames, and the frozen handle the folio; this one
        // is given up below.
        let frames = unsafe { FrozenFrames::from_raw(folio.pfn(), folio.order()) };
        self.memory().undescribe(&frames, old.word_of(folio.as_ptr()))?;
        folio.clear_flags(old.flags());
        folio.set_flags(kind.flags());
        let described = self.memory().describe(&frames, kind.word_of(folio.as_ptr()));
        let _ = frames.into_raw();
        described
    }
}
