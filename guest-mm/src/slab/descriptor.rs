//! The descriptor at the end of each slab.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use abi::{PAGE_SIZE, Pfn};

use crate::memdesc::{Descriptor, DescriptorKind, Memdesc, Word};
use crate::memory::Memory;
use crate::platform::Platform;

/// What a slab knows about itself. Written under its cache's lock; atomic
/// because the census reads it without.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct SlabDesc {
    /// Bit *i*: object *i* is free.
    free: AtomicU64,
    /// The cache's number.
    cache: AtomicU32,
    /// Objects in the slab.
    objects: AtomicU32,
    /// The cache's list of slabs with free objects: zone-relative frames.
    prev: AtomicU32,
    next: AtomicU32,
    spare: AtomicU64,
}

const _: () = assert!(size_of::<SlabDesc>() == DescriptorKind::Slab.descriptor_bytes());

/// "No slab" in the links of a descriptor.
const NO_SLAB: u32 = u32::MAX;

#[expect(clippy::cast_possible_truncation, reason = "4096")]
const FRAME_BYTES: usize = PAGE_SIZE as usize;

/// Bytes of a slab that objects may use: the frame without its descriptor.
pub const OBJECT_BYTES_PER_SLAB: usize = FRAME_BYTES - size_of::<SlabDesc>();

/// Smallest stride of objects: the bit map has 64 bits.
pub(super) const MIN_STRIDE: usize = 64;

/// Objects in a slab, each taking `stride` bytes.
pub const fn objects_per_slab(stride: usize) -> usize {
    if stride < MIN_STRIDE { 0 } else { OBJECT_BYTES_PER_SLAB / stride }
}

/// The descriptor of the slab in frame `pfn`, wherever it is in the direct map.
pub(super) fn descriptor_ptr<P: Platform>(memory: &Memory<P>, pfn: Pfn) -> NonNull<SlabDesc> {
    let frame = memory.platform().frame_ptr(pfn);
    // SAFETY: the offset stays inside the frame (`Platform::frame_ptr`).
    unsafe { frame.add(OBJECT_BYTES_PER_SLAB) }.cast()
}

/// The word of a slab whose descriptor is at `descriptor`.
pub(super) fn slab_word(descriptor: NonNull<SlabDesc>) -> Option<Word> {
    let address = u64::try_from(descriptor.addr().get()).ok()?;
    let descriptor = Descriptor::new(DescriptorKind::Slab, address)?;
    Some(Memdesc::Descriptor(descriptor).encode())
}

impl SlabDesc {
    /// A slab of `objects` free objects.
    pub(super) fn new(cache: u32, objects: u32) -> Self {
        Self {
            free: AtomicU64::new(all_free(objects)),
            cache: AtomicU32::new(cache),
            objects: AtomicU32::new(objects),
            prev: AtomicU32::new(NO_SLAB),
            next: AtomicU32::new(NO_SLAB),
            spare: AtomicU64::new(0),
        }
    }

    // Relaxed throughout: the cache's lock orders its users; the census tolerates a snapshot.

    pub(super) fn cache(&self) -> u32 {
        self.cache.load(Ordering::Relaxed)
    }

    pub(super) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    pub(super) fn set_free(&self, free: u64) {
        self.free.store(free, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free() == all_free(self.objects.load(Ordering::Relaxed))
    }

    pub(super) fn next(&self) -> Option<u32> {
        Some(self.next.load(Ordering::Relaxed)).filter(|&link| link != NO_SLAB)
    }

    pub(super) fn prev(&self) -> Option<u32> {
        Some(self.prev.load(Ordering::Relaxed)).filter(|&link| link != NO_SLAB)
    }

    pub(super) fn set_next(&self, link: Option<u32>) {
        self.next.store(link.unwrap_or(NO_SLAB), Ordering::Relaxed);
    }

    pub(super) fn set_prev(&self, link: Option<u32>) {
        self.prev.store(link.unwrap_or(NO_SLAB), Ordering::Relaxed);
    }
}

const fn all_free(objects: u32) -> u64 {
    match u64::MAX.checked_shr(64u32.saturating_sub(objects)) {
        Some(bits) => bits,
        None => 0,
    }
}

/// What the census sees of a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlabView {
    /// The cache's number.
    pub cache: u32,
    /// Objects in the slab.
    pub objects: u32,
    /// Objects in use.
    pub in_use: u32,
}

/// Reads the descriptor of the slab in frame `pfn`, or `None` if the frame's
/// word does not point to where a slab's descriptor is.
pub(crate) fn view<P: Platform>(memory: &Memory<P>, pfn: Pfn) -> Option<SlabView> {
    let word = memory.words().load(pfn).ok()?;
    let descriptor = descriptor_ptr(memory, pfn);
    if slab_word(descriptor) != Some(word) {
        return None;
    }
    // SAFETY: the word says that the frame is a slab, whose descriptor was written
    // before the word (Release in `WordCell::transition`) and has only atomic fields.
    // A slab freed meanwhile leaves RAM that is still mapped; the snapshot is then
    // stale, which the census allows for.
    let descriptor = unsafe { descriptor.as_ref() };
    let objects = descriptor.objects.load(Ordering::Relaxed);
    let free = (descriptor.free() & all_free(objects)).count_ones();
    Some(SlabView { cache: descriptor.cache(), objects, in_use: objects.saturating_sub(free) })
}
