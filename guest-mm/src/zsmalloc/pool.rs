//! A pool's state, and its zspages coming and going.

use core::ptr::NonNull;

use abi::Pfn;

use super::class::{ALL, CLASSES, MAX_CHAIN, SizeClass};
use super::error::ZsError;
use super::lists::Lists;
use super::stats::{Counters, ZsEvent};
use super::table::HandleTable;
use super::zspage::{Body, Contents, Zspage, zpdesc_of};
use crate::buddy::Gfp;
use crate::memdesc::{BlockKind, Order};
use crate::memory::{AllocError, FrozenFrames};
use crate::mm::Base;
use crate::objects::{DescribeError, Described, Freed, ZpDesc};
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::sync::{LockClass, SpinGuard, SpinLock};

/// A pool, in frames of its own. Its zspages know its address.
#[derive(Debug)]
pub(super) struct PoolState<'m, P: Platform> {
    pub(super) base: &'m Base<P>,
    pub(super) handles: HandleTable,
    pub(super) counters: Counters,
    classes: [SpinLock<Lists>; CLASSES],
}

/// log2 of the pages that a pool's state takes.
const STATE_ORDER: u8 = 2;

/// A class's number, definition and locked lists.
pub(super) struct ClassGuard<'a, P: Platform> {
    pub(super) class: &'static SizeClass,
    pub(super) lists: SpinGuard<'a, Lists, P>,
}

fn state_order() -> Order {
    Order::new(STATE_ORDER).unwrap_or_else(|| unreachable!("a small order"))
}

impl<'m, P: Platform> PoolState<'m, P> {
    const FITS: () = assert!(size_of::<Self>() <= 4096 << STATE_ORDER);

    /// An empty pool.
    ///
    /// # Errors
    /// No memory, with nothing kept.
    pub(super) fn create(base: &'m Base<P>) -> Result<NonNull<Self>, AllocError> {
        let () = Self::FITS;
        let memory = &base.memory;
        let mut handles = HandleTable::new(memory)?;
        let mut frames = match memory.alloc_frozen(state_order(), Gfp::KERNEL) {
            Ok(frames) => frames,
            Err(error) => {
                handles.free(memory);
                return Err(error);
            }
        };
        let typed = memory.retype(&mut frames, BlockKind::LargeKmalloc);
        debug_assert!(typed.is_ok(), "a frozen block becomes the kernel's: {typed:?}");
        let place = memory.platform().frame_ptr(frames.into_raw().0).cast::<Self>();
        let classes = [const { SpinLock::new(LockClass::ZsClass, Lists::EMPTY) }; CLASSES];
        let state = Self { base, handles, counters: Counters::default(), classes };
        // SAFETY: frames of ours, aligned and large enough, that nobody else knows.
        unsafe { place.write(state) };
        Ok(place)
    }

    /// Frees a pool without objects and pages.
    ///
    /// # Safety
    /// It came from [`Self::create`], nobody uses it any more and no zspage names it.
    pub(super) unsafe fn destroy(place: NonNull<Self>) {
        // SAFETY: the caller's promise; read this once.
        let mut state = unsafe { place.read() };
        let memory = &state.base.memory;
        state.handles.free(memory);
        let Some(frame) = memory.platform().frame_of(place.addr().get()) else { return };
        // SAFETY: made by `create` and not used any more.
        let frames =
            unsafe { FrozenFrames::from_raw_as(frame, state_order(), BlockKind::LargeKmalloc) };
        memory.free_frozen(frames);
    }

    pub(super) fn own_pages(&self) -> u64 {
        state_order().pages().get() + self.handles.pages(self.base.platform())
    }

    pub(super) fn lock_class(&self, class: usize) -> ClassGuard<'_, P> {
        let lists = self.classes[class].lock(self.base.platform());
        ClassGuard { class: &ALL[class], lists }
    }

    /// The contents of a zspage of `class`, whose body is locked.
    pub(super) fn contents<'a>(
        &'a self,
        class: &'a SizeClass,
        body: &'a mut Body,
    ) -> Contents<'a, P> {
        Contents { memory: &self.base.memory, class, body }
    }

    /// Makes a zspage without an object, in no list. Its pages can be migrated at once.
    ///
    /// # Errors
    /// No memory, with nothing kept.
    pub(super) fn new_zspage(&self, class: usize, gfp: Gfp) -> Result<&'m Zspage, ZsError> {
        let base = self.base;
        let cache = &base.caches.zspage;
        let object = cache.alloc_typesafe(&base.memory, gfp)?;
        // SAFETY: an object of the type-safe cache is a `Zspage`, its memory RAM of `'m`.
        let zspage: &'m Zspage = unsafe { object.as_ref() };
        zspage.pool.store(self.address(), Ordering::Relaxed);
        zspage.used.store(0, Ordering::Relaxed);
        let mut pages = [const { None }; MAX_CHAIN];
        for at in 0..ALL[class].pages {
            match self.new_page(zspage, at, gfp) {
                Ok(page) => pages[at] = Some(page),
                Err(error) => {
                    pages.into_iter().flatten().for_each(|page| self.undo_page(page));
                    // SAFETY: made above; late readers find a zspage without their object.
                    unsafe { cache.free(&base.memory, object) };
                    return Err(error.into());
                }
            }
        }
        // Nobody may migrate a page before the zspage knows its pages: the lock is
        // held until it does.
        let mut body = zspage.body.lock(base.platform());
        let mut frames = [Pfn::ZERO; MAX_CHAIN];
        let mut count = 0;
        for page in pages.into_iter().flatten() {
            frames[count] = page.frame();
            count += 1;
            let movable = base.let_migrate(page);
            debug_assert!(movable.is_ok(), "a page just described: {movable:?}");
        }
        *body = Body::new(&frames[..count]);
        drop(body);
        self.counters.zspages.fetch_add(1, Ordering::Relaxed);
        self.counters.pages.fetch_add(count as u64, Ordering::Relaxed);
        Ok(zspage)
    }

    fn new_page(
        &self,
        zspage: &Zspage,
        place: usize,
        gfp: Gfp,
    ) -> Result<Described<'m, ZpDesc>, AllocError> {
        let memory = &self.base.memory;
        let frames = memory.alloc_frozen(Order::ZERO, gfp | Gfp::MOVABLE)?;
        let place = u32::try_from(place).unwrap_or(0);
        let fill = |descriptor: &ZpDesc| {
            descriptor.zspage.store(zspage.address(), Ordering::Relaxed);
            descriptor.place.store(place, Ordering::Relaxed);
            descriptor.header.store(0, Ordering::Relaxed);
        };
        self.base.describe_frames(frames, gfp, fill).map_err(|DescribeError { frames, cause }| {
            memory.free_frozen(frames);
            cause.unwrap_or(AllocError::OutOfMemory(Order::ZERO))
        })
    }

    fn undo_page(&self, page: Described<'m, ZpDesc>) {
        let frames = self.base.undescribe_frames(page);
        debug_assert!(frames.is_ok(), "a page of ours: {frames:?}");
        if let Ok(frames) = frames {
            self.base.memory.free_frozen(frames);
        }
    }

    /// Ends a zspage without an object, which is in no list. Pages that migration
    /// has are left to it: it frees them instead of putting them back.
    pub(super) fn kill(&self, body: &mut Body) {
        let body = core::mem::replace(body, Body::EMPTY);
        for &frame in body.frames() {
            // SAFETY: a page of the zspage, whose lock is held.
            let descriptor = unsafe { zpdesc_of::<P>(&self.base.memory, frame) };
            let freed = descriptor.map(|page| self.base.free_object(frame, page));
            debug_assert!(matches!(freed, Some(Ok(_))), "a page of ours: {freed:?}");
            if let Some(Ok(Freed::ByMigration)) = freed {
                self.counters.count(ZsEvent::DeferredPage);
            }
        }
        self.counters.pages.fetch_sub(body.frames().len() as u64, Ordering::Relaxed);
    }

    /// Gives the descriptor of a killed zspage back, whose lock is not held.
    pub(super) fn free_zspage(&self, zspage: &'m Zspage) {
        self.counters.zspages.fetch_sub(1, Ordering::Relaxed);
        let memory = &self.base.memory;
        // SAFETY: from this cache, in no list, named by no page and no entry; late
        // readers lock it, look again, and go.
        unsafe { self.base.caches.zspage.free(memory, NonNull::from(zspage)) };
    }

    fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }
}

/// The pool at `address`.
///
/// # Safety
/// A zspage with pages names it, whose lock is held for `'a`.
pub(super) unsafe fn pool_at<'a, P: Platform>(address: u64) -> &'a PoolState<'a, P> {
    let address = usize::try_from(address).unwrap_or(0);
    let pool = core::ptr::with_exposed_provenance::<PoolState<'a, P>>(address);
    // SAFETY: the caller's promise: a pool is freed after its last zspage.
    unsafe { &*pool }
}
