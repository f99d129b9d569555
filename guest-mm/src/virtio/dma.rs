//! Pages that a device reads or writes.
//!
//! Such a page is frozen: nobody holds a reference, nothing migrates it. The
//! device may read and write it at any time, so it is accessed by volatile or
//! atomic operations only and nothing read from it is believed unchecked.

use core::ptr::NonNull;

use abi::{PAGE_SIZE, Pfn};

/// Bytes of a page, for indexing.
pub const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_BYTES as u64 == PAGE_SIZE);

/// Where drivers get pages to lend to a device.
pub trait DmaMemory {
    /// Lends a page of unspecified contents, or `None` if there is no memory.
    fn lend_page(&self) -> Option<DmaPage>;

    /// Takes a page of [`Self::lend_page`] back.
    ///
    /// # Safety
    /// As for [`DmaPage::into_pfn`].
    unsafe fn take_back(&self, page: DmaPage);
}

/// Up to `N` pages lent together; dropping it leaks them, which is safe.
#[derive(Debug)]
pub struct DmaPages<const N: usize> {
    pages: [Option<DmaPage>; N],
}

impl<const N: usize> DmaPages<N> {
    /// Lends `count` pages (at most `N`), or none at all if one is missing.
    pub fn lend<M: DmaMemory + ?Sized>(memory: &M, count: usize) -> Option<Self> {
        let mut lent = Self { pages: [const { None }; N] };
        for slot in 0..count {
            let page = memory.lend_page();
            match (page, lent.pages.get_mut(slot)) {
                (Some(page), Some(free)) => *free = Some(page),
                (page, _) => {
                    lent.pages.iter_mut().filter_map(Option::take).chain(page).for_each(|page| {
                        // SAFETY: the page was lent above; no device has heard of it and no slice exists.
                        unsafe { memory.take_back(page) }
                    });
                    return None;
                }
            }
        }
        Some(lent)
    }

    /// `len` bytes at `offset` of page number `page`, or `None` outside it.
    pub fn slice(&self, page: usize, offset: usize, len: usize) -> Option<DmaSlice> {
        self.pages.get(page)?.as_ref()?.slice(offset, len)
    }

    /// Takes all pages back.
    ///
    /// # Safety
    /// As for [`DmaPage::into_pfn`], for each page.
    pub unsafe fn take_back<M: DmaMemory + ?Sized>(self, memory: &M) {
        for page in self.pages.into_iter().flatten() {
            // SAFETY: the caller's promise covers each page.
            unsafe { memory.take_back(page) }
        }
    }
}

/// One frozen page lent to a device; dropping it leaks the page, which is safe.
#[derive(Debug)]
pub struct DmaPage {
    pfn: Pfn,
    ptr: NonNull<u8>,
}

// SAFETY: the page is owned by this value alone on the guest's side, and every
// access goes through volatile or atomic operations; which thread makes them
// does not matter.
unsafe impl Send for DmaPage {}

impl DmaPage {
    /// Lends the page `pfn`, mapped at `ptr`.
    ///
    /// # Safety
    /// The page is owned by the caller and frozen, and `ptr` is its 4096-aligned
    /// mapping, valid for reads and writes of 4096 bytes until the page comes
    /// back through [`Self::into_pfn`].
    pub const unsafe fn new(pfn: Pfn, ptr: NonNull<u8>) -> Self {
        Self { pfn, ptr }
    }

    /// The frame.
    pub const fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// `len` bytes at `offset`, or `None` outside the page.
    pub fn slice(&self, offset: usize, len: usize) -> Option<DmaSlice> {
        let end = offset.checked_add(len)?;
        if end > PAGE_BYTES {
            return None;
        }
        // SAFETY: `offset <= 4096`, checked above, and `Self::new`'s caller
        // promised 4096 bytes: the sum stays inside, or one past, one object.
        let ptr = unsafe { self.ptr.add(offset) };
        Some(DmaSlice { gpa: self.pfn.gpa() + offset as u64, ptr, len })
    }

    /// Takes the page back from the device.
    ///
    /// # Safety
    /// The device no longer knows the page (its queue is drained or the device
    /// is reset), and no [`DmaSlice`] of it will be used again.
    pub unsafe fn into_pfn(self) -> Pfn {
        self.pfn
    }
}

/// Part of a [`DmaPage`]; does not own it.
///
/// Usable until the page is taken back, which is what makes
/// [`DmaPage::into_pfn`] unsafe.
#[derive(Debug, Clone, Copy)]
pub struct DmaSlice {
    gpa: u64,
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: as for `DmaPage`.
unsafe impl Send for DmaSlice {}

impl DmaSlice {
    /// Guest-physical address of the first byte.
    pub const fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the slice has no byte.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes at `offset` of the slice, or `None` outside it.
    pub fn part(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset <= self.len`, so the sum stays inside, or one past,
        // the page that the slice was cut from.
        let ptr = unsafe { self.ptr.add(offset) };
        Some(Self { gpa: self.gpa + offset as u64, ptr, len })
    }

    /// The mapping of the first byte.
    #[cfg(not(loom))]
    pub(super) const fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Fills the slice with zeros.
    pub fn zero(&self) {
        for at in 0..self.len {
            // SAFETY: `at < self.len`, so the byte lies inside the page.
            let to = unsafe { self.ptr.add(at) };
            // SAFETY: as in `write`.
            unsafe { to.write_volatile(0) };
        }
    }

    /// Copies `bytes` to the start of the slice and returns how many fitted.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.len);
        for (at, byte) in bytes.iter().take(count).enumerate() {
            // SAFETY: `at < self.len`, so the byte lies inside the page.
            let to = unsafe { self.ptr.add(at) };
            // SAFETY: valid for writes as `DmaPage::new`'s caller promised; the
            // page is not taken back while slices are in use (`into_pfn`).
            unsafe { to.write_volatile(*byte) };
        }
        count
    }

    /// Copies from `offset` of the slice into `out` and returns how many bytes there were.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let count = out.len().min(self.len.saturating_sub(offset));
        for (at, byte) in out.iter_mut().take(count).enumerate() {
            // SAFETY: `offset + at < self.len`, so the byte lies inside the page.
            let from = unsafe { self.ptr.add(offset + at) };
            // SAFETY: valid for reads as `DmaPage::new`'s caller promised; a
            // device that writes meanwhile makes the value arbitrary, not the
            // access undefined, because it is volatile.
            *byte = unsafe { from.read_volatile() };
        }
        count
    }

    /// Writes the little-endian word number `index`; `false` outside the slice.
    pub fn write_u32(&self, index: usize, value: u32) -> bool {
        let Some(part) = index.checked_mul(4).and_then(|offset| self.part(offset, 4)) else {
            return false;
        };
        let to = part.ptr.cast::<u32>();
        if to.is_aligned() {
            // SAFETY: four bytes inside the page (`part`), aligned, valid for writes as in `write`.
            unsafe { to.write_volatile(value.to_le()) };
        } else {
            part.write(&value.to_le_bytes());
        }
        true
    }

    /// Reads the little-endian word number `index`, or `None` outside the slice.
    pub fn read_u32(&self, index: usize) -> Option<u32> {
        let part = index.checked_mul(4).and_then(|offset| self.part(offset, 4))?;
        let from = part.ptr.cast::<u32>();
        if from.is_aligned() {
            // SAFETY: four bytes inside the page (`part`), aligned, valid for reads as in `read`.
            return Some(u32::from_le(unsafe { from.read_volatile() }));
        }
        let mut bytes = [0; 4];
        part.read(0, &mut bytes);
        Some(u32::from_le_bytes(bytes))
    }
}
