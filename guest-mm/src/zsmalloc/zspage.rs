//! A zspage: a few pages that hold objects of one class as if they were one piece.

use core::ptr::NonNull;

use abi::Pfn;

use super::class::{HEADER_BYTES, MAX_CHAIN, SizeClass};
use super::handle::ZsHandle;
use crate::memdesc::Memdesc;
use crate::memory::Memory;
use crate::objects::ZpDesc;
use crate::platform::Platform;
use crate::slab::TypeSafe;
use crate::sync::shim::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{LockClass, SpinLock};

const PAGE: usize = 4096;
/// The number of no object.
const NONE: u32 = u32::MAX;

/// The descriptor of a zspage, type-safe: who has read its address from an entry
/// or from a page's [`ZpDesc`] in a read section may lock it, and then looks
/// again at what led here.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Zspage {
    /// Address of the pool. Set before anybody can find the zspage.
    pub(super) pool: AtomicU64,
    /// Which class. Changes below the class's lock, with the zspage in no list.
    pub(super) class: AtomicU32,
    /// Objects in use; below the class's lock.
    pub(super) used: AtomicU32,
    /// Which list; below the class's lock, as are the links.
    pub(super) group: AtomicU32,
    pub(super) next: AtomicU64,
    pub(super) previous: AtomicU64,
    pub(super) body: SpinLock<Body>,
}

/// What the zspage's own lock guards, and with it the contents of the pages.
#[derive(Debug)]
pub(super) struct Body {
    frames: [Pfn; MAX_CHAIN],
    pages: usize,
    /// The first free object of those that were used once, linked by their headers.
    free: u32,
    /// Objects from here on were never used.
    fresh: u32,
}

// SAFETY: atomics, and what is behind a lock that the next owner takes too. Who
// finds one looks again, with the lock held, at what named it.
unsafe impl TypeSafe for Zspage {
    fn new_free() -> Self {
        Self {
            pool: 0.into(),
            class: 0.into(),
            used: 0.into(),
            group: 0.into(),
            next: 0.into(),
            previous: 0.into(),
            body: SpinLock::new(LockClass::Zspage, Body::EMPTY),
        }
    }
}

/// The zspage at `address`.
///
/// # Safety
/// A zspage was there when the address was read, and has been in use since or
/// the caller has been in a read section since.
pub(super) unsafe fn zspage_at<'m>(address: u64) -> &'m Zspage {
    let address = usize::try_from(address).unwrap_or(0);
    let zspage = core::ptr::with_exposed_provenance::<Zspage>(address);
    // SAFETY: the caller's promise; an object of the type-safe cache is always a `Zspage`.
    unsafe { &*zspage }
}

impl Zspage {
    pub(super) fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }
}

/// The header of an object: whose it is, or which is the next free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// In use by the handle with this index.
    Used(u32),
    /// Free; the next, or [`NONE`].
    Free(u32),
}

impl Header {
    const fn encode(self) -> u32 {
        match self {
            Self::Used(index) => index << 1 | 1,
            // One more, so that "none" is 0; object numbers are small.
            Self::Free(next) => next.wrapping_add(1) << 1,
        }
    }

    const fn decode(word: u32) -> Self {
        if word & 1 == 1 { Self::Used(word >> 1) } else { Self::Free((word >> 1).wrapping_sub(1)) }
    }

    /// The header of an object that `handle` names.
    pub(super) const fn of(handle: ZsHandle) -> Self {
        Self::Used(handle.index())
    }
}

impl Body {
    pub(super) const EMPTY: Self =
        Self { frames: [Pfn::ZERO; MAX_CHAIN], pages: 0, free: NONE, fresh: 0 };

    /// A body without an object.
    pub(super) fn new(frames: &[Pfn]) -> Self {
        let mut body = Self::EMPTY;
        for (place, &frame) in body.frames.iter_mut().zip(frames) {
            *place = frame;
            body.pages += 1;
        }
        body
    }

    /// Its pages, in order; none if it is no pool's.
    pub(super) fn frames(&self) -> &[Pfn] {
        &self.frames[..self.pages]
    }

    /// Puts `new` where `old` was. Whether it was there.
    pub(super) fn replace(&mut self, old: Pfn, new: Pfn) -> bool {
        let found = self.frames[..self.pages].iter_mut().find(|frame| **frame == old);
        found.map(|frame| *frame = new).is_some()
    }

    /// Objects that were ever used.
    pub(super) const fn fresh(&self) -> u32 {
        self.fresh
    }
}

/// A zspage's body with what is needed to reach its contents. Exists while the lock is held.
pub(super) struct Contents<'a, P> {
    pub(super) memory: &'a Memory<P>,
    pub(super) class: &'a SizeClass,
    pub(super) body: &'a mut Body,
}

impl<P: Platform> Contents<'_, P> {
    /// Takes a free object for `header`; `None` if all are in use, or if what should be
    /// the next free one is not.
    pub(super) fn take(&mut self, header: Header) -> Option<u32> {
        let object = if self.body.free == NONE {
            let fresh = self.body.fresh;
            if fresh as usize >= self.class.objects {
                return None;
            }
            self.body.fresh += 1;
            fresh
        } else {
            let object = self.body.free;
            self.body.free = self.next_free(object)?;
            object
        };
        self.set_header(object, header);
        Some(object)
    }

    /// Makes a used object free.
    pub(super) fn give_back(&mut self, object: u32) {
        self.set_header(object, Header::Free(self.body.free));
        self.body.free = object;
    }

    /// The one after `object` on the list of free ones, or [`NONE`]; `None` if its header
    /// says nothing like that.
    fn next_free(&self, object: u32) -> Option<u32> {
        let is_one = |object: u32| object < self.body.fresh;
        match is_one(object).then(|| self.header(object))? {
            Header::Free(next) => Some(next).filter(|next| *next == NONE || is_one(*next)),
            Header::Used(_) => None,
        }
    }

    /// Free objects by the list, as far as it goes.
    pub(super) fn count_free(&self) -> usize {
        let mut free = self.class.objects - self.body.fresh as usize;
        let mut object = self.body.free;
        while object != NONE && free <= self.class.objects {
            let Some(next) = self.next_free(object) else { break };
            (free, object) = (free + 1, next);
        }
        free
    }

    pub(super) fn header(&self, object: u32) -> Header {
        if let Some(descriptor) = self.huge_descriptor() {
            return Header::decode(descriptor.header.load(Ordering::Relaxed));
        }
        let mut bytes = [0; HEADER_BYTES];
        self.copy_out(object as usize * self.class.stride, &mut bytes);
        Header::decode(u32::from_ne_bytes(bytes))
    }

    fn set_header(&mut self, object: u32, header: Header) {
        if let Some(descriptor) = self.huge_descriptor() {
            descriptor.header.store(header.encode(), Ordering::Relaxed);
            return;
        }
        let bytes = header.encode().to_ne_bytes();
        self.copy_in(object as usize * self.class.stride, &bytes);
    }

    /// Writes the start of an object's payload.
    pub(super) fn write(&mut self, object: u32, bytes: &[u8]) {
        self.copy_in(self.payload(object), bytes);
    }

    /// Reads the start of an object's payload.
    pub(super) fn read(&self, object: u32, bytes: &mut [u8]) {
        self.copy_out(self.payload(object), bytes);
    }

    /// Copies an object's payload to another zspage of the class.
    pub(super) fn copy_object(&self, from: u32, other: &mut Contents<'_, P>, to: u32) {
        let (mut from, mut to) = (self.payload(from), other.payload(to));
        let mut left = self.class.capacity();
        while left > 0 {
            let len = left.min(PAGE - from % PAGE).min(PAGE - to % PAGE);
            let (source, target) = (self.byte(from), other.byte(to));
            // SAFETY: both in pages of two zspages whose locks are held, not beyond a page's end.
            unsafe { target.copy_from_nonoverlapping(source, len) };
            (from, to, left) = (from + len, to + len, left - len);
        }
    }

    /// Where an object's payload starts.
    fn payload(&self, object: u32) -> usize {
        let header = if self.class.is_huge() { 0 } else { HEADER_BYTES };
        object as usize * self.class.stride + header
    }

    fn copy_in(&mut self, mut offset: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PAGE - offset % PAGE));
            let source = NonNull::from(now).cast::<u8>();
            // SAFETY: in a page of the zspage, whose lock is held, not beyond its end.
            unsafe { self.byte(offset).copy_from_nonoverlapping(source, now.len()) };
            (offset, bytes) = (offset + now.len(), later);
        }
    }

    fn copy_out(&self, mut offset: usize, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let len = bytes.len().min(PAGE - offset % PAGE);
            let (now, later) = bytes.split_at_mut(len);
            let target = NonNull::from(now).cast::<u8>();
            // SAFETY: in a page of the zspage, whose lock is held, not beyond its end.
            unsafe { target.copy_from_nonoverlapping(self.byte(offset), len) };
            (offset, bytes) = (offset + len, later);
        }
    }

    /// The byte at `offset` of the zspage.
    fn byte(&self, offset: usize) -> NonNull<u8> {
        let frame = self.body.frames()[offset / PAGE];
        // SAFETY: within the frame.
        unsafe { self.memory.platform().frame_ptr(frame).add(offset % PAGE) }
    }

    /// Where the header is of a class whose object fills its page.
    fn huge_descriptor(&self) -> Option<&ZpDesc> {
        if !self.class.is_huge() {
            return None;
        }
        // SAFETY: the zspage's own page, which cannot leave it while its lock is held.
        unsafe { zpdesc_of(self.memory, self.body.frames()[0]) }
    }
}

/// The descriptor of a page, if it is a zspage's.
///
/// # Safety
/// The page is a zspage's until the caller is done, or the caller is in a read section.
pub(super) unsafe fn zpdesc_of<P: Platform>(memory: &Memory<P>, frame: Pfn) -> Option<&ZpDesc> {
    let Ok(Memdesc::Descriptor(found)) = memory.words().decode(frame) else { return None };
    if found.kind != crate::memdesc::DescriptorKind::ZpDesc {
        return None;
    }
    let address = usize::try_from(found.address()).ok()?;
    let descriptor = NonNull::new(core::ptr::with_exposed_provenance_mut::<ZpDesc>(address))?;
    // SAFETY: an object of the type-safe cache, by the word, and the caller's promise.
    Some(unsafe { descriptor.as_ref() })
}
