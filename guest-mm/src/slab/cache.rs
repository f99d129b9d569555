//! A cache of objects of one size.

use core::ptr::NonNull;

use super::descriptor::{FRAME_BYTES, Slab, objects_per_slab, slab_word};
use super::guard;
use super::lists::{Chain, Leave, Slabs};
use super::object::{aligned, check_layout};
use super::options::{CacheError, MAX_ALIGN, MIN_ALIGN, SlabFreeError, SlabOptions, SlabStats};
use super::sheaf::{SHEAF_OBJECTS, Sheaf, Sheaves};
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{AllocError, FrozenFrames, Memory};
use crate::platform::{FaultSite, Platform};
use crate::rcu::{DeferQueue, RcuHead};
use crate::sync::{LockClass, SpinLock};

/// Fewest objects that a CPU keeps.
const MIN_SHEAF: usize = 4;

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
    /// 2^32 / stride, rounded up: divides offsets in a frame.
    reciprocal: u64,
    options: SlabOptions,
    sheaves: Sheaves,
    slabs: SpinLock<Slabs>,
    /// Objects that wait for a grace period.
    deferred: SpinLock<DeferQueue<RcuHead>>,
}

impl KmemCache {
    /// A cache of objects of `size` bytes, empty.
    ///
    /// # Errors
    /// `size` is 0, or larger than a slab, or the alignment is senseless.
    pub fn new<P: Platform>(
        memory: &Memory<P>,
        name: &'static str,
        size: usize,
        options: SlabOptions,
    ) -> Result<Self, CacheError> {
        if size == 0 {
            return Err(CacheError::ZeroSize);
        }
        let align = options.align.max(MIN_ALIGN);
        if !align.is_power_of_two() || align > MAX_ALIGN {
            return Err(CacheError::BadAlignment(options.align));
        }
        let guarded = size.checked_add(guard::RED_ZONE_BYTES);
        let stride = guarded.and_then(|bytes| bytes.checked_next_multiple_of(align));
        let stride = stride.ok_or(CacheError::TooLarge(size))?;
        let objects = objects_per_slab(stride);
        if objects == 0 {
            return Err(CacheError::TooLarge(size));
        }
        if let Some(offset) = options.rcu_head {
            let end = offset.checked_add(size_of::<RcuHead>());
            let fits = end.is_some_and(|end| end <= size);
            if !fits || !offset.is_multiple_of(align_of::<RcuHead>()) || options.type_safe {
                return Err(CacheError::BadRcuHead(offset));
            }
        }
        let leave = if options.type_safe { Leave::AfterGracePeriod } else { Leave::AtOnce };
        let keep = if options.per_cpu { (2 * objects).clamp(MIN_SHEAF, SHEAF_OBJECTS) } else { 0 };
        Ok(Self {
            name,
            id: memory.new_cache_id(),
            size,
            stride,
            reciprocal: (1u64 << 32).div_ceil(stride as u64),
            options,
            sheaves: Sheaves::new(keep),
            slabs: SpinLock::new(LockClass::Slab, Slabs::new(leave)),
            deferred: SpinLock::new(LockClass::Rcu, DeferQueue::new()),
        })
    }

    /// A cache of objects with the size and alignment of `T`, empty.
    ///
    /// # Errors
    /// The options are senseless.
    pub fn of<T, P: Platform>(
        memory: &Memory<P>,
        name: &'static str,
        options: SlabOptions,
    ) -> Result<Self, CacheError> {
        const { check_layout::<T>() };
        Self::new(memory, name, size_of::<T>(), aligned::<T>(options))
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
        self.sheaves.count(memory.platform(), |per_cpu| {
            let slabs = self.slabs.lock(memory.platform());
            SlabStats {
                slabs: slabs.slabs(),
                limbo: slabs.in_limbo(),
                in_use: slabs.out().saturating_sub(per_cpu),
                per_cpu,
                objects_per_slab: objects_per_slab(self.stride) as u64,
            }
        })
    }

    /// Takes an object. Its contents are arbitrary, or those it was freed with
    /// (or made with) if the cache is type-safe or has a constructor.
    ///
    /// # Errors
    /// No free object on any CPU, and no frame for a new slab.
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
        let object = match self.take(memory) {
            Some(object) => object,
            None => self.grow(memory, gfp)?,
        };
        // SAFETY: a free object keeps its slab one, and a used one does.
        let slab = unsafe { Slab::of(object) };
        slab.mark_used(self.number(object));
        if self.poisons() {
            // SAFETY: the object is `size` bytes of a slab and ours since `take`.
            let written = unsafe { guard::written_after_free(object, self.size) };
            debug_assert_eq!(written, None, "{}: written after free", self.name);
        }
        Ok(object)
    }

    /// Gives an object back, to this CPU if CPUs keep some.
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
        let (slab, number) = self.check(memory, object)?;
        if slab.mark_free(number) {
            return Err(SlabFreeError::DoubleFree);
        }
        if self.poisons() {
            // SAFETY: in use until now and, by the caller's promise, by nobody else.
            unsafe { guard::poison(object, self.size) };
        }
        // With the right to the whole slab, whatever the caller's pointer was made of.
        let object = self.object((slab, number));
        let mut leaving = Chain::default();
        if self.options.per_cpu {
            self.sheaves.push(memory.platform(), object, |sheaf| {
                self.flush(memory, sheaf, self.sheaves.limit() / 2, &mut leaving);
            });
        } else {
            self.slabs.lock(memory.platform()).put(memory, slab, number, &mut leaving);
        }
        self.release(memory, leaving);
        Ok(())
    }

    /// Checks that `object` points to an object in use whose red zone is whole.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check<'m, P: Platform>(
        &self,
        memory: &'m Memory<P>,
        object: NonNull<u8>,
    ) -> Result<(Slab<'m>, usize), SlabFreeError> {
        let pfn = memory.platform().frame_of(object.addr().get()).ok_or(SlabFreeError::NotRam)?;
        let slab = Slab::at(memory, pfn).ok_or(SlabFreeError::NotSlab)?;
        if slab.cache() != self.id {
            return Err(SlabFreeError::WrongCache);
        }
        let number = self.number(object);
        if number * self.stride != offset(object) || number >= slab.objects() {
            return Err(SlabFreeError::NotAnObject);
        }
        if slab.is_free(number) {
            return Err(SlabFreeError::DoubleFree);
        }
        // SAFETY: the object and its red zone are `stride` bytes of the slab; nobody
        // has any business in the zone.
        if !unsafe { guard::red_is_intact(object, self.size, self.stride) } {
            return Err(SlabFreeError::Overrun);
        }
        Ok((slab, number))
    }

    /// Puts the free objects that CPUs keep back into their slabs.
    pub fn drain<P: Platform>(&self, memory: &Memory<P>) {
        let mut leaving = Chain::default();
        self.drain_to(memory, &mut leaving);
        self.release(memory, leaving);
    }

    /// Drains all CPUs and gives slabs without a used object back to the buddy
    /// allocator. Returns how many; slabs of a type-safe cache only start to
    /// wait for a grace period, and [`Self::reap`] gives them back.
    pub fn shrink<P: Platform>(&self, memory: &Memory<P>) -> u64 {
        let mut leaving = Chain::default();
        self.drain_to(memory, &mut leaving);
        self.slabs.lock(memory.platform()).dismiss_empty(memory, &mut leaving);
        self.release(memory, leaving)
    }

    pub(super) const fn options(&self) -> &SlabOptions {
        &self.options
    }

    pub(super) const fn slabs(&self) -> &SpinLock<Slabs> {
        &self.slabs
    }

    pub(super) const fn deferred_queue(&self) -> &SpinLock<DeferQueue<RcuHead>> {
        &self.deferred
    }

    /// Whether free objects are filled with poison: nobody may look at them.
    const fn poisons(&self) -> bool {
        cfg!(debug_assertions) && !self.options.type_safe && self.options.ctor.is_none()
    }

    /// The number in its slab of the object that `object` points into.
    fn number(&self, object: NonNull<u8>) -> usize {
        let product = offset(object) as u64 * self.reciprocal;
        (product >> 32) as usize
    }

    fn object(&self, (slab, number): (Slab<'_>, usize)) -> NonNull<u8> {
        // SAFETY: the object with this number lies inside the slab's frame.
        unsafe { slab.start().add(number * self.stride) }
    }

    fn take<P: Platform>(&self, memory: &Memory<P>) -> Option<NonNull<u8>> {
        if self.options.per_cpu {
            return self.sheaves.pop(memory.platform(), |sheaf| self.fill(memory, sheaf));
        }
        self.slabs.lock(memory.platform()).take(memory).map(|taken| self.object(taken))
    }

    /// Takes an object from a new slab, or one that another CPU keeps.
    fn grow<P: Platform>(&self, memory: &Memory<P>, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        let grown = self.new_slab(memory, gfp);
        if grown.is_err() && self.options.per_cpu {
            self.drain(memory);
        }
        let mut slabs = self.slabs.lock(memory.platform());
        let error = match grown {
            Ok(slab) => {
                slabs.add(memory, slab);
                AllocError::OutOfMemory(Order::ZERO)
            }
            Err(error) => error,
        };
        slabs.take(memory).map(|taken| self.object(taken)).ok_or(error)
    }

    /// Half fills an empty sheaf, as far as the slabs have objects.
    fn fill<P: Platform>(&self, memory: &Memory<P>, sheaf: &mut Sheaf) {
        let mut slabs = self.slabs.lock(memory.platform());
        while sheaf.len() < self.sheaves.limit() / 2 {
            let Some(taken) = slabs.take(memory) else { return };
            sheaf.push(self.object(taken));
        }
    }

    /// Puts objects of a sheaf back into their slabs until `keep` are left.
    fn flush<P: Platform>(
        &self,
        memory: &Memory<P>,
        sheaf: &mut Sheaf,
        keep: usize,
        leaving: &mut Chain,
    ) {
        if sheaf.len() <= keep {
            return;
        }
        let mut slabs = self.slabs.lock(memory.platform());
        while sheaf.len() > keep {
            let Some(object) = sheaf.pop() else { return };
            // SAFETY: a free object keeps its slab one.
            let slab = unsafe { Slab::of(object) };
            slabs.put(memory, slab, self.number(object), leaving);
        }
    }

    fn drain_to<P: Platform>(&self, memory: &Memory<P>, leaving: &mut Chain) {
        if self.options.per_cpu {
            self.sheaves.for_each(memory.platform(), |sheaf| self.flush(memory, sheaf, 0, leaving));
        }
    }

    fn new_slab<'m, P: Platform>(
        &self,
        memory: &'m Memory<P>,
        gfp: Gfp,
    ) -> Result<Slab<'m>, AllocError> {
        let gfp = gfp - (Gfp::MOVABLE | Gfp::CMA | Gfp::ZERO);
        let frames = memory.alloc_frozen(Order::ZERO, gfp)?;
        let frame = memory.platform().frame_ptr(frames.head());
        let objects = objects_per_slab(self.stride);
        // SAFETY: `frames` owns the frame, which becomes no slab's if this fails.
        let slab = unsafe { Slab::create(frame, self.id, objects) };
        for number in 0..objects {
            // SAFETY: the object and its red zone lie in the frame, which is ours.
            unsafe { self.prepare(self.object((slab, number))) };
        }
        let published = slab_word(slab.descriptor_ptr())
            .and_then(|word| memory.describe(&frames, word).ok())
            .ok_or(AllocError::OutOfMemory(Order::ZERO));
        match published {
            Ok(()) => {
                // The word is the slab's owner from here on.
                let (_, _) = frames.into_raw();
                Ok(slab)
            }
            Err(error) => {
                memory.free_frozen(frames);
                Err(error)
            }
        }
    }

    /// Makes an object of a new slab what a free one looks like.
    ///
    /// # Safety
    /// `object` starts `stride` bytes that nobody else uses.
    unsafe fn prepare(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { guard::paint_red(object, self.size, self.stride) };
        if let Some(ctor) = self.options.ctor {
            // SAFETY: an object of the cache, in nobody's use.
            unsafe { ctor(object) };
        } else if self.options.type_safe {
            // Readers may look at it before its first owner.
            // SAFETY: as above.
            unsafe { object.write_bytes(0, self.size) };
        } else if self.poisons() {
            // SAFETY: as above.
            unsafe { guard::poison(object, self.size) };
        }
    }

    /// Gives slabs back that are in no list any more. Returns how many.
    fn release<P: Platform>(&self, memory: &Memory<P>, mut leaving: Chain) -> u64 {
        let mut released = 0;
        while let Some(slab) = leaving.pop(memory) {
            let Some(pfn) = slab.pfn(memory) else { break };
            self.release_frame(memory, pfn);
            released += 1;
        }
        released
    }

    pub(super) fn release_frame<P: Platform>(&self, memory: &Memory<P>, pfn: abi::Pfn) {
        // SAFETY: the cache owned the frame since `new_slab` gave up its handle, and
        // has taken the slab off its lists with no object in use.
        let frames = unsafe { FrozenFrames::from_raw(pfn, Order::ZERO) };
        let word = Slab::at(memory, pfn).and_then(|slab| slab_word(slab.descriptor_ptr()));
        let undone = word.map(|word| memory.undescribe(&frames, word));
        debug_assert!(matches!(undone, Some(Ok(()))), "slab word: {undone:?}");
        memory.free_frozen(frames);
    }
}

/// Bytes from the start of its frame to where `object` points.
fn offset(object: NonNull<u8>) -> usize {
    object.addr().get() % FRAME_BYTES
}
