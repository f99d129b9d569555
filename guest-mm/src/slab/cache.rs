//! A cache of objects of one size.

use core::fmt;
use core::ptr::NonNull;

use abi::{PageCount, Pfn};

use super::descriptor::{MIN_STRIDE, SlabDesc, descriptor_ptr, objects_per_slab, slab_word};
use super::guard;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{AllocError, FrozenFrames, Memory};
use crate::platform::{FaultSite, Platform};
use crate::sync::{LockClass, SpinLock};

/// Alignment of every object.
const ALIGN: usize = 16;
/// Slabs without a used object that a cache keeps.
const EMPTY_SLABS_KEPT: u64 = 1;

/// How a cache treats its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlabOptions {
    /// Free objects keep their contents even in debug builds, because lockless
    /// readers may still look at them.
    pub type_safe: bool,
}

/// Why a cache cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheError {
    /// The object size is 0.
    ZeroSize,
    /// Not a single object would fit a slab.
    TooLarge(usize),
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ZeroSize => f.write_str("Objects of no size"),
            Self::TooLarge(size) => write!(f, "Objects of {size} bytes do not fit a slab"),
        }
    }
}

impl core::error::Error for CacheError {}

/// Why an object was not freed. Nothing is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlabFreeError {
    /// The pointer leads outside RAM.
    NotRam,
    /// Its frame is no slab: never was, or was freed with its last object.
    NotSlab,
    /// Its slab belongs to another cache.
    WrongCache,
    /// It does not point to the start of an object.
    NotAnObject,
    /// The object is free already.
    DoubleFree,
    /// Somebody wrote beyond the object's end (debug builds).
    Overrun,
}

impl fmt::Display for SlabFreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRam => "Pointer leads outside RAM",
            Self::NotSlab => "Pointer leads to no slab",
            Self::WrongCache => "Object belongs to another cache",
            Self::NotAnObject => "Pointer is not the start of an object",
            Self::DoubleFree => "Object is free already",
            Self::Overrun => "Bytes behind the object were overwritten",
        })
    }
}

impl core::error::Error for SlabFreeError {}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlabStats {
    /// Slabs, one frame each.
    pub slabs: u64,
    /// Objects in use.
    pub in_use: u64,
    /// Objects that fit one slab.
    pub objects_per_slab: u64,
}

impl SlabStats {
    /// Memory that the cache takes from the buddy allocator.
    pub const fn pages(&self) -> PageCount {
        PageCount::new(self.slabs)
    }
}

#[derive(Debug)]
struct Slabs {
    /// First slab with a free object: zone-relative frame.
    partial: Option<u32>,
    slabs: u64,
    /// Slabs on the partial list that have no used object.
    empty: u64,
    in_use: u64,
}

/// A cache of objects of one size, at least 16-byte aligned.
///
/// Any CPU may allocate and free, also from a trap handler and also long after
/// the object was unlinked: freeing needs nothing but the pointer, so it can be
/// deferred until a grace period has passed.
#[derive(Debug)]
pub struct KmemCache {
    name: &'static str,
    id: u32,
    size: usize,
    stride: usize,
    options: SlabOptions,
    slabs: SpinLock<Slabs>,
}

impl KmemCache {
    /// A cache of objects of `size` bytes, empty.
    ///
    /// # Errors
    /// `size` is 0, or larger than a slab.
    pub fn new<P: Platform>(
        memory: &Memory<P>,
        name: &'static str,
        size: usize,
        options: SlabOptions,
    ) -> Result<Self, CacheError> {
        if size == 0 {
            return Err(CacheError::ZeroSize);
        }
        let padded = size.checked_next_multiple_of(ALIGN).ok_or(CacheError::TooLarge(size))?;
        let stride = padded.saturating_add(guard::RED_ZONE_BYTES).max(MIN_STRIDE);
        if objects_per_slab(stride) == 0 {
            return Err(CacheError::TooLarge(size));
        }
        let slabs = Slabs { partial: None, slabs: 0, empty: 0, in_use: 0 };
        let slabs = SpinLock::new(LockClass::Slab, slabs);
        Ok(Self { name, id: memory.new_cache_id(), size, stride, options, slabs })
    }

    /// The cache's name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The cache's number, as in [`SlabView::cache`](super::SlabView::cache).
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Bytes of an object.
    pub const fn object_bytes(&self) -> usize {
        self.size
    }

    /// What the cache holds.
    pub fn stats<P: Platform>(&self, memory: &Memory<P>) -> SlabStats {
        let slabs = self.slabs.lock(memory.platform());
        SlabStats {
            slabs: slabs.slabs,
            in_use: slabs.in_use,
            objects_per_slab: objects_per_slab(self.stride) as u64,
        }
    }

    /// Takes an object. Its contents are arbitrary.
    ///
    /// # Errors
    /// No free object, and no frame for a new slab.
    ///
    /// # Panics
    /// In debug builds, if the object was written after it was freed.
    pub fn alloc<P: Platform>(
        &self,
        memory: &Memory<P>,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, AllocError> {
        if memory.platform().inject_fault(FaultSite::SlabAlloc) {
            return Err(AllocError::OutOfMemory(Order::ZERO));
        }
        let taken = self.slabs.lock(memory.platform()).take(self, memory);
        let object = match taken {
            Some(object) => object,
            None => {
                let slab = self.new_slab(memory, gfp)?;
                let mut slabs = self.slabs.lock(memory.platform());
                slabs.add(memory, slab);
                slabs.take(self, memory).ok_or(AllocError::OutOfMemory(Order::ZERO))?
            }
        };
        if cfg!(debug_assertions) && !self.options.type_safe {
            // SAFETY: the object is `size` bytes of a slab and ours since `take`.
            let written = unsafe { guard::written_after_free(object, self.size) };
            debug_assert_eq!(written, None, "{}: written after free", self.name);
        }
        Ok(object)
    }

    /// Gives an object back. Frees its slab if that has no other.
    ///
    /// # Safety
    /// Nobody uses the object any more, lockless readers included (unless the
    /// cache is type-safe).
    ///
    /// # Errors
    /// The pointer is not that of an object in use; nothing is changed.
    pub unsafe fn free<P: Platform>(
        &self,
        memory: &Memory<P>,
        object: NonNull<u8>,
    ) -> Result<(), SlabFreeError> {
        let pfn = memory.platform().frame_of(object.addr().get()).ok_or(SlabFreeError::NotRam)?;
        let descriptor = slab_at(memory, pfn).ok_or(SlabFreeError::NotSlab)?;
        if descriptor.cache() != self.id {
            return Err(SlabFreeError::WrongCache);
        }
        let start = memory.platform().frame_ptr(pfn).addr().get();
        let offset = object.addr().get() - start;
        let bit = offset / self.stride;
        if !offset.is_multiple_of(self.stride) || bit >= objects_per_slab(self.stride) {
            return Err(SlabFreeError::NotAnObject);
        }
        let mut slabs = self.slabs.lock(memory.platform());
        if descriptor.free() >> bit & 1 != 0 {
            return Err(SlabFreeError::DoubleFree);
        }
        // SAFETY: the object and its red zone are `stride` bytes of the slab and, by
        // the caller's promise, in nobody's use.
        if !unsafe { guard::red_is_intact(object, self.padded()) } {
            return Err(SlabFreeError::Overrun);
        }
        if cfg!(debug_assertions) && !self.options.type_safe {
            // SAFETY: as above.
            unsafe { guard::poison(object, self.size) };
        }
        let surplus = slabs.put(memory, pfn, descriptor, 1 << bit);
        drop(slabs);
        if surplus {
            self.release_slab(memory, pfn);
        }
        Ok(())
    }

    /// Gives slabs without a used object back to the buddy allocator. Returns
    /// how many.
    pub fn shrink<P: Platform>(&self, memory: &Memory<P>) -> u64 {
        let mut released = 0;
        while let Some(pfn) = self.slabs.lock(memory.platform()).remove_empty(memory) {
            self.release_slab(memory, pfn);
            released += 1;
        }
        released
    }

    const fn padded(&self) -> usize {
        self.stride - guard::RED_ZONE_BYTES
    }

    fn new_slab<P: Platform>(&self, memory: &Memory<P>, gfp: Gfp) -> Result<Pfn, AllocError> {
        let gfp = gfp - (Gfp::MOVABLE | Gfp::CMA);
        let frames = memory.alloc_frozen(Order::ZERO, gfp)?;
        let pfn = frames.head();
        let start = memory.platform().frame_ptr(pfn);
        let count = objects_per_slab(self.stride);
        for i in 0..count {
            // SAFETY: object `i` lies inside the frame, which `frames` owns.
            let object = unsafe { start.add(i * self.stride) };
            // SAFETY: as above, with its red zone.
            unsafe { guard::paint_red(object, self.padded()) };
            if cfg!(debug_assertions) {
                // SAFETY: as above.
                unsafe { guard::poison(object, self.padded()) };
            }
        }
        let descriptor = descriptor_ptr(memory, pfn);
        let objects = u32::try_from(count).unwrap_or(0);
        // SAFETY: the descriptor's place is aligned, inside the frame, behind the
        // objects, and `frames` owns the frame.
        unsafe { descriptor.write(SlabDesc::new(self.id, objects)) };
        let published =
            slab_word(descriptor).ok_or(AllocError::OutOfMemory(Order::ZERO)).and_then(|word| {
                memory.describe(&frames, word).map_err(|_| AllocError::OutOfMemory(Order::ZERO))
            });
        if let Err(error) = published {
            memory.free_frozen(frames);
            return Err(error);
        }
        let (pfn, _) = frames.into_raw();
        Ok(pfn)
    }

    fn release_slab<P: Platform>(&self, memory: &Memory<P>, pfn: Pfn) {
        // SAFETY: the cache owned the frame since `new_slab` gave up its handle, and
        // has just taken the slab off its list with no object in use.
        let frames = unsafe { FrozenFrames::from_raw(pfn, Order::ZERO) };
        let word = slab_word(descriptor_ptr(memory, pfn));
        let undone = word.map(|word| memory.undescribe(&frames, word));
        debug_assert!(matches!(undone, Some(Ok(()))), "slab word: {undone:?}");
        memory.free_frozen(frames);
    }
}

/// The descriptor of the slab in `pfn`, if the frame's word says it is one.
fn slab_at<P: Platform>(memory: &Memory<P>, pfn: Pfn) -> Option<&SlabDesc> {
    let word = memory.words().load(pfn).ok()?;
    let descriptor = descriptor_ptr(memory, pfn);
    if slab_word(descriptor) != Some(word) {
        return None;
    }
    // SAFETY: the word says that the frame is a slab; its descriptor was written
    // before the word (Release in `WordCell::transition`), has only atomic fields,
    // and stays as long as the object that the caller frees is not freed.
    Some(unsafe { descriptor.as_ref() })
}

impl Slabs {
    /// Takes an object from the first slab that has one.
    fn take<P: Platform>(&mut self, cache: &KmemCache, memory: &Memory<P>) -> Option<NonNull<u8>> {
        let (pfn, descriptor) = self.slab(memory, self.partial?)?;
        if descriptor.is_empty() {
            self.empty -= 1;
        }
        let free = descriptor.free();
        let bit = free.trailing_zeros();
        descriptor.set_free(free & free.wrapping_sub(1));
        if descriptor.free() == 0 {
            self.unlink(memory, descriptor);
        }
        self.in_use += 1;
        let start = memory.platform().frame_ptr(pfn);
        // SAFETY: `bit` is the number of an object of the slab, so inside the frame.
        Some(unsafe { start.add(bit as usize * cache.stride) })
    }

    /// Marks an object free. Returns whether the slab is to be released: it was
    /// taken off the list.
    fn put<P: Platform>(
        &mut self,
        memory: &Memory<P>,
        pfn: Pfn,
        descriptor: &SlabDesc,
        bit: u64,
    ) -> bool {
        let was_full = descriptor.free() == 0;
        descriptor.set_free(descriptor.free() | bit);
        self.in_use -= 1;
        if was_full {
            self.link(memory, pfn, descriptor);
        }
        if !descriptor.is_empty() {
            return false;
        }
        if self.empty >= EMPTY_SLABS_KEPT {
            self.unlink(memory, descriptor);
            self.slabs -= 1;
            return true;
        }
        self.empty += 1;
        false
    }

    fn add<P: Platform>(&mut self, memory: &Memory<P>, pfn: Pfn) {
        if let Some(descriptor) = slab_at(memory, pfn) {
            self.link(memory, pfn, descriptor);
            self.slabs += 1;
            self.empty += 1;
        }
    }

    fn remove_empty<P: Platform>(&mut self, memory: &Memory<P>) -> Option<Pfn> {
        let mut at = self.partial;
        while let Some((pfn, descriptor)) = self.slab(memory, at?) {
            if descriptor.is_empty() {
                self.unlink(memory, descriptor);
                self.slabs -= 1;
                self.empty -= 1;
                return Some(pfn);
            }
            at = descriptor.next();
        }
        None
    }

    fn slab<'m, P: Platform>(
        &self,
        memory: &'m Memory<P>,
        link: u32,
    ) -> Option<(Pfn, &'m SlabDesc)> {
        let pfn = memory.words().base().checked_add(PageCount::new(u64::from(link)))?;
        Some((pfn, slab_at(memory, pfn)?))
    }

    fn link<P: Platform>(&mut self, memory: &Memory<P>, pfn: Pfn, descriptor: &SlabDesc) {
        let index = pfn.offset_from(memory.words().base());
        let link = index.and_then(|index| u32::try_from(index.get()).ok());
        descriptor.set_prev(None);
        descriptor.set_next(self.partial);
        if let Some((_, first)) = self.partial.and_then(|first| self.slab(memory, first)) {
            first.set_prev(link);
        }
        self.partial = link;
    }

    fn unlink<P: Platform>(&mut self, memory: &Memory<P>, descriptor: &SlabDesc) {
        let (prev, next) = (descriptor.prev(), descriptor.next());
        match prev.and_then(|prev| self.slab(memory, prev)) {
            Some((_, prev)) => prev.set_next(next),
            None => self.partial = next,
        }
        if let Some((_, next)) = next.and_then(|next| self.slab(memory, next)) {
            next.set_prev(prev);
        }
    }
}
