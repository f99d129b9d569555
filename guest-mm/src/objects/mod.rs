//! Descriptors of frames that are no folios: compressed pages, and pages that a
//! driver lets migration move.
//!
//! Such a frame has no reference count. It has one owner, and whoever wants it
//! takes it by one compare-and-swap of its word:
//!
//! ```text
//! FrozenFrames ─ describe_frames ─▶ Described ─ let_migrate ─▶ (word: movable) ─ isolate_object ─▶ IsolatedObject
//!              ◀ undescribe_frames ─          ◀ claim_object ─                 ◀ putback_object ─
//!              ◀──────────────────────────── retire_object ──────────────────────────────────────
//! TransitFrames ─────────────────── adopt_object ─▶ Described: the descriptor of an isolated frame
//! ```
//!
//! While a word says *movable* there is no handle: owner and migration know the
//! frame by its number, and of a claim and an isolation one succeeds. An owner
//! who only wants to be rid of a page need not wait for migration:
//! [`Mm::free_object`] leaves an isolated one to it.
//!
//! When a page migrates its descriptor goes with it; at most one word names it at any time.
//! Descriptors are type-safe where [`DescriptorKind::is_type_safe`] says so,
//! which is for both kinds here: a walker may look at one after reading the word.

mod moving;

use core::fmt;
use core::ptr::NonNull;

use abi::{PAGE_SIZE, Pfn};

use crate::buddy::Gfp;
use crate::memdesc::{
    Descriptor, DescriptorKind, Hold, LookupError, Memdesc, Order, TransitionError, Word, WordCell,
};
pub use moving::{AdoptError, Freed, IsolatedObject};

use crate::memory::{AllocError, FrozenFrames};
use crate::mm::{Base, Caches, Mm};
use crate::platform::Platform;
use crate::slab::{TypeSafe, TypeSafeCache};
use crate::sync::shim::{AtomicU32, AtomicU64};

/// The descriptor of a kind of frames.
pub trait FrameObject: TypeSafe + 'static {
    /// The tag of their words.
    const KIND: DescriptorKind;

    /// Where descriptors come from.
    fn cache(caches: &Caches) -> &TypeSafeCache<Self>
    where
        Self: Sized;
}

/// A page of a compressing allocator (tag ZPDesc).
#[derive(Debug)]
#[repr(C, align(16))]
pub struct ZpDesc {
    /// Address of the group of pages that it belongs to.
    pub zspage: AtomicU64,
    /// Which of the group's pages it is.
    pub place: AtomicU32,
    /// Header of the page's one object, if the object fills the page.
    pub header: AtomicU32,
}

/// A page that its driver lets migration move (tag Movable).
#[derive(Debug)]
#[repr(C, align(16))]
pub struct MovableDesc {
    /// Who owns it: the number under which its operations are registered.
    pub owner: AtomicU64,
    /// The owner's.
    pub private: AtomicU64,
}

const _: () = assert!(size_of::<ZpDesc>() == ZpDesc::KIND.descriptor_bytes());
const _: () = assert!(size_of::<MovableDesc>() == MovableDesc::KIND.descriptor_bytes());
const _: () = assert!(ZpDesc::KIND.is_type_safe() && MovableDesc::KIND.is_type_safe());

// SAFETY: all fields are atomics; the word, not the descriptor, says whose it is,
// and it is taken by a step that fails on another's.
unsafe impl TypeSafe for ZpDesc {
    fn new_free() -> Self {
        Self { zspage: 0.into(), place: 0.into(), header: 0.into() }
    }
}

// SAFETY: as for `ZpDesc`.
unsafe impl TypeSafe for MovableDesc {
    fn new_free() -> Self {
        Self { owner: 0.into(), private: 0.into() }
    }
}

impl FrameObject for ZpDesc {
    const KIND: DescriptorKind = DescriptorKind::ZpDesc;

    fn cache(caches: &Caches) -> &TypeSafeCache<Self> {
        &caches.zpdesc
    }
}

impl FrameObject for MovableDesc {
    const KIND: DescriptorKind = DescriptorKind::Movable;

    fn cache(caches: &Caches) -> &TypeSafeCache<Self> {
        &caches.movable
    }
}

/// A described frame and nobody else's.
#[must_use = "dropping a handle leaks its frame"]
pub struct Described<'m, D> {
    frame: Pfn,
    descriptor: &'m D,
}

/// Why frames got no descriptor; they come back.
#[derive(Debug)]
pub struct DescribeError {
    /// The frames.
    pub frames: FrozenFrames,
    /// `None` if they are not a single page of kind frozen.
    pub cause: Option<AllocError>,
}

/// Why a frame could not be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeError {
    /// The frame is not in RAM, or its word is malformed.
    Lookup(LookupError),
    /// Another kind of frame.
    OtherKind(Word),
    /// It is not movable now: its owner holds it, or migration does.
    Taken(Hold),
    /// Another CPU changed it first.
    Raced,
}

impl fmt::Display for TakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup(error) => error.fmt(f),
            Self::OtherKind(word) => write!(f, "Frame is of another kind: {word:?}"),
            Self::Taken(hold) => write!(f, "Frame is not movable but {hold:?}"),
            Self::Raced => f.write_str("Another CPU changed the frame first"),
        }
    }
}

impl core::error::Error for TakeError {}

impl<'m, D> Described<'m, D> {
    /// The frame.
    pub const fn frame(&self) -> Pfn {
        self.frame
    }

    /// Its descriptor.
    pub const fn descriptor(&self) -> &D {
        self.descriptor
    }
}

impl<'m, D> Described<'m, D> {
    /// The descriptor, which outlives the handle, but not its page.
    pub const fn descriptor_ref(&self) -> &'m D {
        self.descriptor
    }
}

impl<D> fmt::Debug for Described<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Described({:?})", self.frame)
    }
}

/// The word of a frame that `descriptor` describes.
fn word_of<D: FrameObject>(descriptor: &D, hold: Hold) -> Word {
    let address = core::ptr::from_ref(descriptor).expose_provenance() as u64;
    let descriptor = Descriptor::new(D::KIND, address)
        .unwrap_or_else(|| unreachable!("descriptors are aligned to 16 bytes"));
    Memdesc::Descriptor(descriptor.with_hold(hold)).encode()
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Gives a page a descriptor, which `fill` fills before anybody can see it.
    ///
    /// # Errors
    /// [`DescribeError`], with the frames: no memory, or no single page of kind frozen.
    pub fn describe_frames<D: FrameObject>(
        &self,
        frames: FrozenFrames,
        fill: impl FnOnce(&D),
    ) -> Result<Described<'m, D>, DescribeError> {
        self.base().describe_frames(frames, Gfp::KERNEL, fill)
    }

    /// Takes the descriptor away and leaves the page.
    ///
    /// # Errors
    /// The word is not the handle's: memory corruption. Frame and descriptor are leaked.
    pub fn undescribe_frames<D: FrameObject>(
        &self,
        object: Described<'m, D>,
    ) -> Result<FrozenFrames, TransitionError> {
        self.base().undescribe_frames(object)
    }

    /// The page's bytes.
    pub fn described_bytes<'a, D>(&self, object: &'a mut Described<'m, D>) -> &'a mut [u8]
    where
        'm: 'a,
    {
        let bytes = usize::try_from(PAGE_SIZE).unwrap_or_else(|_| unreachable!("4 KiB"));
        let start = self.platform().frame_ptr(object.frame);
        // SAFETY: a frame of RAM, which the platform maps for as long as it lives; any
        // byte is a valid u8; the handle owns the frame and is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), bytes) }
    }

    /// Lets migration take the page. The owner knows it by its frame number from now on.
    ///
    /// # Errors
    /// The word is not the handle's: memory corruption.
    pub fn let_migrate<D: FrameObject>(
        &self,
        object: Described<'m, D>,
    ) -> Result<Pfn, TransitionError> {
        self.base().let_migrate(object)
    }

    /// The owner takes its movable page back: nobody can isolate it any more.
    ///
    /// # Errors
    /// [`TakeError`]; `Taken(Isolated)` while migration has it. An owner who wants the
    /// page only to free it calls [`Self::free_object`], which does not fail then.
    pub fn claim_object<D: FrameObject>(&self, frame: Pfn) -> Result<Described<'m, D>, TakeError> {
        self.base().claim_object(frame)
    }
}

/// The calls, for parts that have no manager at hand: a swap device, an allocator.
impl<P: Platform> Base<P> {
    /// Gives a page a descriptor, which `fill` fills before anybody can see it;
    /// `gfp` says what its memory may cost.
    ///
    /// # Errors
    /// [`DescribeError`], with the frames: no memory, or no single page of kind frozen.
    pub fn describe_frames<'m, D: FrameObject>(
        &'m self,
        frames: FrozenFrames,
        gfp: Gfp,
        fill: impl FnOnce(&D),
    ) -> Result<Described<'m, D>, DescribeError> {
        if frames.order() != Order::ZERO {
            return Err(DescribeError { frames, cause: None });
        }
        let cache = D::cache(&self.caches);
        let object = match cache.alloc_typesafe(&self.memory, gfp) {
            Ok(object) => object,
            Err(error) => return Err(DescribeError { frames, cause: Some(error) }),
        };
        // SAFETY: an object of the type-safe cache is a `D` since its slab was made, all
        // of it atomic, and its memory is RAM of `'m`.
        let descriptor: &'m D = unsafe { object.as_ref() };
        fill(descriptor);
        if self.memory.describe(&frames, word_of(descriptor, Hold::Held)).is_err() {
            // SAFETY: no word names it.
            unsafe { cache.free(&self.memory, object) };
            return Err(DescribeError { frames, cause: None });
        }
        // The word owns the frame from here on; `undescribe_frames` makes the handle again.
        let (frame, _) = frames.into_raw();
        Ok(Described { frame, descriptor })
    }

    /// As [`Mm::undescribe_frames`].
    ///
    /// # Errors
    /// The word is not the handle's: memory corruption. Frame and descriptor are leaked.
    pub fn undescribe_frames<'m, D: FrameObject>(
        &'m self,
        object: Described<'m, D>,
    ) -> Result<FrozenFrames, TransitionError> {
        // SAFETY: the handle owned the frame, whose word names the descriptor.
        let frames = unsafe { FrozenFrames::from_raw(object.frame, Order::ZERO) };
        self.memory.undescribe(&frames, word_of(object.descriptor, Hold::Held))?;
        self.free_object_descriptor(object.descriptor);
        Ok(frames)
    }

    /// As [`Mm::let_migrate`].
    ///
    /// # Errors
    /// The word is not the handle's: memory corruption.
    pub fn let_migrate<'m, D: FrameObject>(
        &'m self,
        object: Described<'m, D>,
    ) -> Result<Pfn, TransitionError> {
        self.change_hold(object.frame, object.descriptor, Hold::Held, Hold::Movable)?;
        Ok(object.frame)
    }

    /// As [`Mm::claim_object`].
    ///
    /// # Errors
    /// [`TakeError`]; `Taken(Isolated)` while migration has it.
    pub fn claim_object<'m, D: FrameObject>(
        &'m self,
        frame: Pfn,
    ) -> Result<Described<'m, D>, TakeError> {
        let (word, hold, descriptor) = self.found_object::<D>(frame)?;
        if hold != Hold::Movable {
            return Err(TakeError::Taken(hold));
        }
        let held = word_of(descriptor, Hold::Held);
        self.memory.transition(frame, word, held).map_err(|_| TakeError::Raced)?;
        Ok(Described { frame, descriptor })
    }

    fn free_object_descriptor<D: FrameObject>(&self, descriptor: &D) {
        let cache = D::cache(&self.caches);
        // SAFETY: from this cache, and no word names it any more; late walkers find it
        // a `D` still.
        unsafe { cache.free(&self.memory, NonNull::from(descriptor)) };
    }

    fn cell_of(&self, frame: Pfn) -> Result<&WordCell, TransitionError> {
        let cell = self.memory.words().cell(frame);
        // A handle of another machine's memory.
        cell.map_err(|_| TransitionError::Raced { found: Word::EMPTY })
    }

    /// The object that the word of `frame` names, the word, and its hold. Unless the
    /// caller owns the frame, the object may be another frame's at any time.
    fn found_object<D: FrameObject>(&self, frame: Pfn) -> Result<(Word, Hold, &D), TakeError> {
        let word = self.memory.words().load(frame);
        let word = word.map_err(|out| TakeError::Lookup(LookupError::OutOfMap(out)))?;
        let unknown = |unknown| TakeError::Lookup(LookupError::Unknown(unknown));
        let found = match word.decode().map_err(unknown)? {
            Memdesc::Descriptor(found) if found.kind == D::KIND => found,
            Memdesc::Descriptor(_)
            | Memdesc::Block(_)
            | Memdesc::Offline(_)
            | Memdesc::Pcp(_)
            | Memdesc::Tail(_)
            | Memdesc::Buddy(_)
            | Memdesc::Transit(_) => return Err(TakeError::OtherKind(word)),
        };
        let address = usize::try_from(found.address()).unwrap_or(0);
        let object = NonNull::new(core::ptr::with_exposed_provenance_mut::<D>(address));
        let object = object.ok_or(TakeError::OtherKind(word))?;
        // SAFETY: the word names it, so it is an object of the cache, whose memory stays
        // a `D`, all of it atomic, until a grace period after it was freed; the callers
        // own the frame, or do not look at it before a swap of the word.
        Ok((word, found.hold, unsafe { &*object.as_ptr() }))
    }

    fn change_hold<D: FrameObject>(
        &self,
        frame: Pfn,
        descriptor: &D,
        from: Hold,
        to: Hold,
    ) -> Result<(), TransitionError> {
        self.memory.transition(frame, word_of(descriptor, from), word_of(descriptor, to))
    }
}

#[cfg(test)]
mod tests;
