//! Folios of device memory: the same descriptor under the tag DevFolio.
//!
//! Idle, they have a count of 0, all kinds of device memory alike: the device's
//! driver holds the frozen handle. The last reference that is put leaves the folio frozen and idle again,
//! with its words and descriptor; nothing of it goes to the buddy allocator.

use super::{FolioKind, FolioRef, FrozenFolio};
use crate::buddy::Gfp;
use crate::memory::{AllocError, FrozenFrames};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes `frames` of a device an idle folio: described, count 0.
    ///
    /// # Errors
    /// No memory for the descriptor; the frames come back.
    pub fn device_folio(
        &self,
        frames: FrozenFrames,
    ) -> Result<FrozenFolio<'m>, (FrozenFrames, AllocError)> {
        match self.alloc_descriptor(Gfp::KERNEL) {
            Ok(folio) => self.describe_folio(frames, folio, FolioKind::Device),
            Err(error) => Err((frames, error)),
        }
    }

    /// Hands an idle device folio out, with one reference.
    ///
    /// # Panics
    /// In debug builds, if its last user left something behind.
    pub fn device_folio_start(&self, folio: FrozenFolio<'m>) -> FolioRef<'m> {
        debug_assert_eq!(folio.kind(), FolioKind::Device, "{folio:?}");
        debug_assert_eq!((folio.mapcount(), folio.pincount()), (0, 0), "{folio:?}");
        folio.index.store(0, Ordering::Relaxed);
        folio.private.store(0, Ordering::Relaxed);
        folio.unplace();
        folio.unfreeze(1)
    }

    /// Gives a reference of a device folio up. The last one gives the idle folio
    /// back, for the driver's free list; nobody touches it afterwards.
    #[must_use = "the idle folio is the driver's"]
    pub fn put_device_folio(&self, folio: FolioRef<'m>) -> Option<FrozenFolio<'m>> {
        debug_assert_eq!(folio.kind(), FolioKind::Device, "{folio:?}");
        folio.release()
    }

    /// Takes an idle device folio's descriptor away and leaves the device's frames.
    ///
    /// # Errors
    /// Its words are not its own: memory corruption.
    pub fn end_device_folio(
        &self,
        folio: FrozenFolio<'m>,
    ) -> Result<FrozenFrames, crate::memdesc::TransitionError> {
        self.dissolve(folio)
    }
}
