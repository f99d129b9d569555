//! VMAs as objects: made, put into the tree, changed, taken out.

use core::mem;
use core::ptr::NonNull;

use super::lookup::SpaceWriteGuard;
use super::structure::AddressSpace;
use super::vma::{VmFlags, Vma, key_of};
use crate::addr::VaRange;
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::mm::Base;
use crate::pagecache::FileMapping;
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::xarray::{Content, Entry};

/// A VMA that nobody has seen yet. Dropping it frees it.
#[must_use]
pub(super) struct NewVma<'a, 'm, P: Platform> {
    space: &'a AddressSpace<'m, P>,
    vma: NonNull<Vma<'m, P>>,
}

impl<'a, 'm, P: Platform> NewVma<'a, 'm, P> {
    /// A VMA over `range`.
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn new(
        space: &'a AddressSpace<'m, P>,
        range: VaRange,
        pgoff: u64,
        flags: VmFlags,
        file: Option<NonNull<FileMapping<'m, P>>>,
    ) -> Result<Self, Errno> {
        let base = space.base;
        let vma: NonNull<Vma<'m, P>> = base.caches.vma.alloc(&base.memory, Gfp::KERNEL)?.cast();
        // SAFETY: an object of the cache of VMAs, large and aligned enough, and ours alone.
        unsafe { vma.write(Vma::new(space, &space.seq, range, pgoff, flags, file)) };
        Ok(Self { space, vma })
    }

    /// The VMA.
    pub(super) fn vma(&self) -> &Vma<'m, P> {
        // SAFETY: written by `new`, freed by `drop`.
        unsafe { self.vma.as_ref() }
    }
}

impl<P: Platform> Drop for NewVma<'_, '_, P> {
    fn drop(&mut self) {
        // SAFETY: nobody but this handle has ever known of it.
        unsafe { free_vma(self.space.base, self.vma) };
    }
}

/// Gives a VMA's memory back.
///
/// # Safety
/// Nobody uses it any more, lockless readers included; it came from [`NewVma`].
pub(super) unsafe fn free_vma<P: Platform>(base: &Base<P>, vma: NonNull<Vma<'_, P>>) {
    // SAFETY: the caller's promise. A VMA has nothing to drop.
    let freed = unsafe { base.caches.vma.free(&base.memory, vma.cast()) };
    debug_assert_eq!(freed, Ok(()), "VMA");
}

impl<'a, 'm, P: Platform> SpaceWriteGuard<'a, 'm, P> {
    /// Puts a VMA into the tree and counts it. What it covers is empty, or is taken out next.
    ///
    /// # Errors
    /// ENOMEM; the VMA is freed, nothing is changed.
    pub(super) fn insert(&self, new: NewVma<'_, 'm, P>) -> Result<&Vma<'m, P>, Errno> {
        let pointer = new.vma;
        let pages = new.vma().pages().get().cast_signed();
        self.space()
            .vmas
            .store(new.vma().key(), Entry::Pointer(pointer))
            .map_err(|_| Errno::ENOMEM)?;
        mem::forget(new);
        // SAFETY: the tree has it now, and keeps it for as long as this guard lives:
        // see `Vmas::borrow`.
        let vma = unsafe { pointer.as_ref() };
        vma.lock.attach();
        self.count(1, pages);
        Ok(vma)
    }

    /// Takes `vma` out of the tree and keeps new readers out; it is freed after the guard.
    pub(super) fn take_out(&self, vma: &Vma<'m, P>) {
        self.lock_vma(vma);
        let pointer = NonNull::from(vma);
        self.forget_key(vma.key(), pointer);
        vma.lock.detach();
        self.count(-1, -vma.pages().get().cast_signed());
        self.note_gap(vma.end());
        vma.next_removed.store(self.removed.replace(pointer.as_ptr()), Ordering::Relaxed);
    }

    /// Gives `vma` another range. The tree has no other VMA in it.
    ///
    /// # Errors
    /// ENOMEM; nothing is changed. Never if the end stays.
    pub(super) fn set_range(
        &self,
        vma: &Vma<'m, P>,
        range: VaRange,
        pgoff: u64,
    ) -> Result<(), Errno> {
        self.lock_vma(vma);
        let (old, pointer) = (vma.range(), NonNull::from(vma));
        if old.end() != range.end() {
            let key = key_of(range.end());
            let stored = self.space().vmas.store(key, Entry::Pointer(pointer));
            stored.map_err(|_| Errno::ENOMEM)?;
        }
        vma.start.store(range.start().get(), Ordering::Relaxed);
        vma.end.store(range.end().get(), Ordering::Relaxed);
        vma.pgoff.store(pgoff, Ordering::Relaxed);
        if old.end() != range.end() {
            self.forget_key(key_of(old.end()), pointer);
        }
        self.count(0, range.pages().get().cast_signed() - old.pages().get().cast_signed());
        self.note_gap(range.start());
        self.note_gap(range.end());
        Ok(())
    }

    /// Erases the entry at `key` if it is still `vma`'s.
    fn forget_key(&self, key: u64, vma: NonNull<Vma<'m, P>>) {
        let there = Content::Entry(Entry::Pointer(vma));
        let erased = self.space().vmas.compare_exchange(key, there, Content::Empty);
        debug_assert!(erased.is_ok(), "erasing takes no memory");
    }

    /// Tells the search for room of a gap that has `address` in it or at its end.
    fn note_gap(&self, address: crate::addr::VirtAddr) {
        let above = self.find(address);
        self.space().gaps.freed(above.map_or(crate::addr::VirtAddr::END, Vma::start));
    }
}
