//! The descriptor at the end of each slab, and its bit maps.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use abi::{PAGE_SIZE, PageCount, Pfn};

use super::options::MIN_ALIGN;
use crate::memdesc::{Descriptor, DescriptorKind, Memdesc, Word};
use crate::memory::Memory;
use crate::platform::Platform;

/// Two bits for each of 64 objects.
#[derive(Debug)]
#[repr(C)]
struct Maps {
    /// Bit *i*: nobody uses object *i*. Any CPU changes it, and so finds a
    /// double free by the bit's old value.
    free: AtomicU64,
    /// Bit *i*: the slab itself has object *i* to hand out; clear too while a
    /// CPU keeps the free object. Changed under the cache's lock.
    here: AtomicU64,
}

impl Maps {
    /// The maps of the first of `objects` objects, all free.
    const fn all_free(objects: usize) -> Self {
        let bits = all_free(objects);
        Self { free: AtomicU64::new(bits), here: AtomicU64::new(bits) }
    }
}

/// What a slab knows about itself. All but `free` is written under its cache's
/// lock; atomic because the census reads it without.
///
/// The maps of objects 64 and up lie below the descriptor, the nearest first.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct SlabDesc {
    maps: Maps,
    /// The cache's number.
    cache: AtomicU32,
    /// Objects in the slab, at most [`MAX_OBJECTS`].
    objects: AtomicU16,
    /// Objects that the slab has to hand out.
    here: AtomicU16,
    /// The cache's list of slabs with free objects: zone-relative frames.
    prev: AtomicU32,
    next: AtomicU32,
}

const _: () = assert!(size_of::<SlabDesc>() == DescriptorKind::Slab.descriptor_bytes());

/// "No slab" in the links of a descriptor.
const NO_SLAB: u32 = u32::MAX;

#[expect(clippy::cast_possible_truncation, reason = "4096")]
pub(super) const FRAME_BYTES: usize = PAGE_SIZE as usize;

/// Bytes of a slab that objects and further maps may use: the frame without its
/// descriptor.
pub const OBJECT_BYTES_PER_SLAB: usize = FRAME_BYTES - size_of::<SlabDesc>();

/// Objects that one pair of map words covers.
const PER_MAP: usize = 64;

/// Most objects in a slab: of 16 bytes.
const MAX_OBJECTS: usize = objects_per_slab(MIN_ALIGN);

/// Objects in a slab, each taking `stride` bytes; 0 below 16 bytes.
pub const fn objects_per_slab(stride: usize) -> usize {
    if stride < MIN_ALIGN {
        return 0;
    }
    let mut objects = OBJECT_BYTES_PER_SLAB / stride;
    while objects > PER_MAP
        && objects * stride + (objects.div_ceil(PER_MAP) - 1) * size_of::<Maps>()
            > OBJECT_BYTES_PER_SLAB
    {
        objects -= 1;
    }
    objects
}

/// The word of a slab whose descriptor is at `descriptor`.
pub(super) fn slab_word(descriptor: NonNull<SlabDesc>) -> Option<Word> {
    let address = u64::try_from(descriptor.addr().get()).ok()?;
    let descriptor = Descriptor::new(DescriptorKind::Slab, address)?;
    Some(Memdesc::Descriptor(descriptor).encode())
}

/// A frame that is a slab, or is being made one, as long as `'m`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slab<'m> {
    frame: NonNull<u8>,
    frames: PhantomData<&'m SlabDesc>,
}

impl<'m> Slab<'m> {
    /// Makes the frame at `frame` a slab of `objects` free objects.
    ///
    /// # Safety
    /// The frame is the caller's alone, in the direct map for `'m`, and
    /// `objects` is at most what [`objects_per_slab`] says.
    pub(super) unsafe fn create(frame: NonNull<u8>, cache: u32, objects: usize) -> Self {
        let slab = Self { frame, frames: PhantomData };
        for n in 1..objects.div_ceil(PER_MAP) {
            // SAFETY: `maps_ptr` stays inside the frame, behind the objects, aligned
            // to 16 bytes; the frame is the caller's.
            unsafe { slab.maps_ptr(n).write(Maps::all_free(objects - n * PER_MAP)) };
        }
        let count = u16::try_from(objects).unwrap_or(0);
        let descriptor = SlabDesc {
            maps: Maps::all_free(objects),
            cache: cache.into(),
            objects: count.into(),
            here: count.into(),
            prev: NO_SLAB.into(),
            next: NO_SLAB.into(),
        };
        // SAFETY: the descriptor's place is aligned, inside the frame, behind the
        // objects, and the frame is the caller's.
        unsafe { slab.descriptor_ptr().write(descriptor) };
        slab
    }

    /// The slab in frame `pfn`, if the frame's word says it is one.
    pub(super) fn at<P: Platform>(memory: &'m Memory<P>, pfn: Pfn) -> Option<Self> {
        let word = memory.words().load(pfn).ok()?;
        let slab = Self { frame: memory.platform().frame_ptr(pfn), frames: PhantomData };
        (slab_word(slab.descriptor_ptr()) == Some(word)).then_some(slab)
    }

    /// The slab at zone-relative frame `link`.
    pub(super) fn linked<P: Platform>(memory: &'m Memory<P>, link: u32) -> Option<Self> {
        let pfn = memory.words().base().checked_add(PageCount::new(u64::from(link)))?;
        Self::at(memory, pfn)
    }

    /// The slab of `object`.
    ///
    /// # Safety
    /// `object` came from a slab that stays one for `'m`.
    pub(super) unsafe fn of(object: NonNull<u8>) -> Self {
        let offset = object.addr().get() % FRAME_BYTES;
        // SAFETY: frames are aligned to their size in the direct map, so the frame's
        // start is `offset` bytes back in the same frame.
        Self { frame: unsafe { object.sub(offset) }, frames: PhantomData }
    }

    /// The slab's frame.
    pub(super) fn pfn<P: Platform>(self, memory: &Memory<P>) -> Option<Pfn> {
        memory.platform().frame_of(self.frame.addr().get())
    }

    /// The slab's frame, relative to the zone.
    pub(super) fn link<P: Platform>(self, memory: &Memory<P>) -> Option<u32> {
        let index = self.pfn(memory)?.offset_from(memory.words().base())?;
        u32::try_from(index.get()).ok()
    }

    /// The frame's first byte, where the first object is.
    pub(super) const fn start(self) -> NonNull<u8> {
        self.frame
    }

    /// Where the descriptor is.
    pub(super) fn descriptor_ptr(self) -> NonNull<SlabDesc> {
        // SAFETY: the offset stays inside the frame.
        unsafe { self.frame.add(OBJECT_BYTES_PER_SLAB) }.cast()
    }

    fn maps_ptr(self, n: usize) -> NonNull<Maps> {
        // The first field of the descriptor, and what lies below it.
        // SAFETY: `n` is at most 3 and the maps of that many objects were left room
        // for (`objects_per_slab`), so the place is inside the frame.
        unsafe { self.descriptor_ptr().cast::<Maps>().sub(n) }
    }

    fn descriptor(self) -> &'m SlabDesc {
        // SAFETY: the frame is a slab, whose descriptor was written before its word
        // (Release in `WordCell::transition`) and has only atomic fields. A slab freed
        // under a stale caller leaves RAM that is still mapped: a wrong answer only.
        unsafe { self.descriptor_ptr().as_ref() }
    }

    fn maps(self, object: usize) -> &'m Maps {
        // SAFETY: as in `descriptor`; `object` is one of the slab's.
        unsafe { self.maps_ptr(object / PER_MAP).as_ref() }
    }

    // Relaxed throughout: locks order the objects' users; the census tolerates a snapshot.

    pub(super) fn cache(self) -> u32 {
        self.descriptor().cache.load(Ordering::Relaxed)
    }

    pub(super) fn objects(self) -> usize {
        usize::from(self.descriptor().objects.load(Ordering::Relaxed)).min(MAX_OBJECTS)
    }

    /// Objects that the slab has to hand out.
    pub(super) fn here(self) -> usize {
        usize::from(self.descriptor().here.load(Ordering::Relaxed))
    }

    /// Whether the slab has all its objects.
    pub(super) fn is_empty(self) -> bool {
        self.here() == self.objects()
    }

    /// Whether nobody uses the object.
    pub(super) fn is_free(self, object: usize) -> bool {
        self.maps(object).free.load(Ordering::Relaxed) >> (object % PER_MAP) & 1 != 0
    }

    /// Notes that nobody uses the object; returns whether that was so before.
    pub(super) fn mark_free(self, object: usize) -> bool {
        let bit = 1 << (object % PER_MAP);
        self.maps(object).free.fetch_or(bit, Ordering::Relaxed) & bit != 0
    }

    /// Notes that somebody uses the object.
    pub(super) fn mark_used(self, object: usize) {
        self.maps(object).free.fetch_and(!(1 << (object % PER_MAP)), Ordering::Relaxed);
    }

    /// Takes an object that the slab has; under the cache's lock.
    pub(super) fn take(self) -> Option<usize> {
        let left = self.here().checked_sub(1)?;
        let words = self.objects().div_ceil(PER_MAP);
        let (n, here) = (0..words).find_map(|n| {
            let here = &self.maps(n * PER_MAP).here;
            (here.load(Ordering::Relaxed) != 0).then_some((n, here))
        })?;
        let bits = here.load(Ordering::Relaxed);
        here.store(bits & (bits - 1), Ordering::Relaxed);
        self.set_here(left);
        Some(n * PER_MAP + bits.trailing_zeros() as usize)
    }

    /// Gives the slab an object back; under the cache's lock.
    pub(super) fn put(self, object: usize) {
        let here = &self.maps(object).here;
        let bits = here.load(Ordering::Relaxed);
        debug_assert_eq!(bits >> (object % PER_MAP) & 1, 0, "object put back twice");
        here.store(bits | 1 << (object % PER_MAP), Ordering::Relaxed);
        self.set_here(self.here() + 1);
    }

    fn set_here(self, here: usize) {
        let here = u16::try_from(here).unwrap_or(u16::MAX);
        self.descriptor().here.store(here, Ordering::Relaxed);
    }

    pub(super) fn next(self) -> Option<u32> {
        Some(self.descriptor().next.load(Ordering::Relaxed)).filter(|&link| link != NO_SLAB)
    }

    pub(super) fn prev(self) -> Option<u32> {
        Some(self.descriptor().prev.load(Ordering::Relaxed)).filter(|&link| link != NO_SLAB)
    }

    pub(super) fn set_next(self, link: Option<u32>) {
        self.descriptor().next.store(link.unwrap_or(NO_SLAB), Ordering::Relaxed);
    }

    pub(super) fn set_prev(self, link: Option<u32>) {
        self.descriptor().prev.store(link.unwrap_or(NO_SLAB), Ordering::Relaxed);
    }

    /// What the census sees.
    fn view(self) -> SlabView {
        let objects = self.objects();
        let free: u32 = (0..objects.div_ceil(PER_MAP))
            .map(|n| {
                let free = self.maps(n * PER_MAP).free.load(Ordering::Relaxed);
                (free & all_free(objects - n * PER_MAP)).count_ones()
            })
            .sum();
        let objects = u32::try_from(objects).unwrap_or(u32::MAX);
        SlabView { cache: self.cache(), objects, in_use: objects.saturating_sub(free) }
    }
}

/// The lowest `objects` bits, at most 64.
const fn all_free(objects: usize) -> u64 {
    if objects >= PER_MAP { u64::MAX } else { (1 << objects) - 1 }
}

/// What the census sees of a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlabView {
    /// The cache's number.
    pub cache: u32,
    /// Objects in the slab.
    pub objects: u32,
    /// Objects in use; those that a CPU keeps are not.
    pub in_use: u32,
}

/// Reads the descriptor of the slab in frame `pfn`, or `None` if the frame's
/// word does not point to where a slab's descriptor is.
pub(crate) fn view<P: Platform>(memory: &Memory<P>, pfn: Pfn) -> Option<SlabView> {
    Slab::at(memory, pfn).map(Slab::view)
}
