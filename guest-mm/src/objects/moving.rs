//! Objects on the move: isolated, put back, given up, or at another frame.

use core::fmt;

use abi::Pfn;

use super::{Described, FrameObject, TakeError, word_of};
use crate::memdesc::{Claim, Hold, Order, PutBack, TransitionError};
use crate::memory::{FrozenFrames, TransitFrames};
use crate::mm::{Base, Mm};
use crate::platform::Platform;

/// A described frame that migration has taken.
#[must_use = "dropping a handle leaves the frame isolated for ever; put it back"]
pub struct IsolatedObject<'m, D> {
    frame: Pfn,
    descriptor: &'m D,
}

impl<D> IsolatedObject<'_, D> {
    /// The frame.
    pub const fn frame(&self) -> Pfn {
        self.frame
    }

    /// Its descriptor.
    pub const fn descriptor(&self) -> &D {
        self.descriptor
    }
}

impl<D> fmt::Debug for IsolatedObject<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IsolatedObject({:?})", self.frame)
    }
}

/// How a page went that its owner freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// At once.
    Now,
    /// Migration has it and frees it, whether it moves or not.
    ByMigration,
}

/// Why an owner could not go over to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptError {
    /// The owner has freed the page, on another CPU: migration frees it.
    Doomed,
    /// It is not an isolated page of this kind.
    Source(TakeError),
    /// The destination is not a single page, or taken already.
    NoDestination(Pfn),
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Doomed => f.write_str("The owner has freed the page meanwhile"),
            Self::Source(error) => error.fmt(f),
            Self::NoDestination(dst) => write!(f, "Frame {dst} is no free destination for a page"),
        }
    }
}

impl core::error::Error for AdoptError {}

impl<'m, P: Platform> Mm<'m, P> {
    /// Migration takes a movable page from its owner: one swap, no lock, no count.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn isolate_object<D: FrameObject>(
        &self,
        frame: Pfn,
    ) -> Result<IsolatedObject<'m, D>, TakeError> {
        let (word, hold, descriptor) = self.base().found_object::<D>(frame)?;
        if hold != Hold::Movable {
            return Err(TakeError::Taken(hold));
        }
        let cell = self.base().cell_of(frame).map_err(|_| TakeError::Raced)?;
        cell.isolate(word).map_err(|_| TakeError::Raced)?;
        Ok(IsolatedObject { frame, descriptor })
    }

    /// Migration gives a page back to its owner, movable as before; or frees it,
    /// if the owner has given it up meanwhile.
    ///
    /// # Errors
    /// The word is not the handle's: memory corruption.
    pub fn putback_object<D: FrameObject>(
        &self,
        object: IsolatedObject<'m, D>,
    ) -> Result<PutBack, TransitionError> {
        let isolated = word_of(object.descriptor, Hold::Isolated);
        let ended = self.base().cell_of(object.frame)?.put_back(isolated)?;
        if ended == PutBack::Doomed {
            let frames = self.retire_object(object)?;
            self.memory().free_frozen(frames);
        }
        Ok(ended)
    }

    /// Ends an isolation: the page is allocated memory again, its owner has given
    /// it up. Its descriptor is freed.
    ///
    /// # Errors
    /// The word is not the handle's: memory corruption. Frame and descriptor are leaked.
    pub fn retire_object<D: FrameObject>(
        &self,
        object: IsolatedObject<'m, D>,
    ) -> Result<FrozenFrames, TransitionError> {
        // SAFETY: the handle owns the frame, whose word names the descriptor.
        let frames = unsafe { FrozenFrames::from_raw(object.frame, Order::ZERO) };
        let isolated = word_of(object.descriptor, Hold::Isolated);
        self.base().cell_of(object.frame)?.retire(isolated, frames.word())?;
        self.base().free_object_descriptor(object.descriptor);
        Ok(frames)
    }

    /// As [`Base::free_object`].
    ///
    /// # Errors
    /// The page is not movable nor isolated under this descriptor; nothing has changed.
    pub fn free_object<D: FrameObject>(
        &self,
        frame: Pfn,
        descriptor: &'m D,
    ) -> Result<Freed, TransitionError> {
        self.base().free_object(frame, descriptor)
    }

    /// As [`Base::adopt_object`].
    ///
    /// # Errors
    /// [`AdoptError`]; nothing has changed.
    pub fn adopt_object<D: FrameObject>(
        &self,
        dst: &TransitFrames,
        src: Pfn,
    ) -> Result<Described<'m, D>, AdoptError> {
        self.base().adopt_object(dst, src)
    }

    /// The handle of the page at `frame`, which the caller has isolated before and
    /// given the handle up of.
    pub(crate) fn isolated_object<D: FrameObject>(
        &self,
        frame: Pfn,
    ) -> Option<IsolatedObject<'m, D>> {
        match self.base().found_object(frame) {
            Ok((_, Hold::Isolated | Hold::Doomed, descriptor)) => {
                Some(IsolatedObject { frame, descriptor })
            }
            Ok(_) | Err(_) => None,
        }
    }
}

impl<P: Platform> Base<P> {
    /// The owner of the movable page `frame`, whose descriptor is `descriptor`, frees
    /// both: now, or by migration if that has the page.
    ///
    /// The owner may look at neither afterwards. What says that the page is gone (in
    /// the descriptor, say, for [`MovableOps::migrate`]) it writes before.
    ///
    /// # Errors
    /// The page is not movable nor isolated under this descriptor; nothing has changed.
    ///
    /// [`MovableOps::migrate`]: crate::migrate::MovableOps::migrate
    pub fn free_object<'m, D: FrameObject>(
        &'m self,
        frame: Pfn,
        descriptor: &'m D,
    ) -> Result<Freed, TransitionError> {
        match self.cell_of(frame)?.claim_or_doom(word_of(descriptor, Hold::Movable))? {
            Claim::Doomed => Ok(Freed::ByMigration),
            Claim::Held(_) => {
                let frames = self.undescribe_frames(Described { frame, descriptor })?;
                self.memory.free_frozen(frames);
                Ok(Freed::Now)
            }
        }
    }

    /// The owner of the isolated page `src` goes over to `dst`, by whose word the
    /// descriptor of `src` is found from now on: the last step of its
    /// [`MovableOps::migrate`], after which nothing can fail. Allocates nothing.
    /// `src` is migration's to free.
    ///
    /// The word of `src` changes first, so at most one word names the descriptor. A
    /// walker that read it before finds another word at its second look.
    ///
    /// # Errors
    /// [`AdoptError`]; nothing has changed.
    ///
    /// [`MovableOps::migrate`]: crate::migrate::MovableOps::migrate
    pub fn adopt_object<D: FrameObject>(
        &self,
        dst: &TransitFrames,
        src: Pfn,
    ) -> Result<Described<'_, D>, AdoptError> {
        let is_free = !dst.is_taken() && self.memory.is_in_transit(dst);
        if dst.order() != Order::ZERO || !is_free {
            return Err(AdoptError::NoDestination(dst.head()));
        }
        let object = match self.found_object::<D>(src).map_err(AdoptError::Source)? {
            (_, Hold::Isolated, object) => object,
            (_, Hold::Doomed, _) => return Err(AdoptError::Doomed),
            (_, hold, _) => return Err(AdoptError::Source(TakeError::Taken(hold))),
        };
        // SAFETY: `src` is isolated, so migration has it, in whose call this is.
        let frames = unsafe { FrozenFrames::from_raw(src, Order::ZERO) };
        let to = self.cell_of(dst.head()).map_err(|_| AdoptError::NoDestination(dst.head()))?;
        let from = self.cell_of(src).map_err(|_| AdoptError::Doomed)?;
        from.hand_over((word_of(object, Hold::Isolated), frames.word()), (to, dst.word()))
            .map_err(|_| AdoptError::Doomed)?;
        dst.set_taken(true);
        Ok(Described { frame: dst.head(), descriptor: object })
    }
}
