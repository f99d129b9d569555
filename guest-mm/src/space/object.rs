//! VMAs as objects: made, put into the tree, changed, taken out.

use core::mem;
use core::ptr::NonNull;

use super::lookup::SpaceWriteGuard;
use super::structure::AddressSpace;
use super::vma::{VmFlags, Vma, key_of};
use crate::addr::{VaRange, VirtAddr};
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::mm::Mm;
use crate::pagecache::{FileMapping, FileRef};
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::xarray::{Content, Entry};

/// A VMA that nobody has seen yet. Dropping it frees it.
#[must_use]
pub(super) struct NewVma<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    vma: NonNull<Vma<'m, P>>,
}

impl<'a, 'm, P: Platform> NewVma<'a, 'm, P> {
    /// A VMA of `space` over `range`, with a reference of `file`.
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn new(
        mm: &'a Mm<'m, P>,
        space: &AddressSpace<'m, P>,
        range: VaRange,
        pgoff: u64,
        flags: VmFlags,
        file: Option<NonNull<FileMapping<'m, P>>>,
    ) -> Result<Self, Errno> {
        let vma = mm.base().caches.vma.alloc(mm.memory(), Gfp::KERNEL)?.cast();
        // SAFETY: an object of the cache of VMAs, large and aligned enough, and ours alone.
        unsafe { vma.write(Vma::new(space, &space.seq, range, pgoff, flags, file)) };
        if let Some(file) = file {
            // SAFETY: the caller has a reference, by a VMA or a handle.
            mm.file_get(unsafe { file.as_ref() }).into_raw();
        }
        Ok(Self { mm, vma })
    }

    /// The VMA.
    pub(super) fn vma(&self) -> &Vma<'m, P> {
        // SAFETY: written by `new`, freed by `drop`.
        unsafe { self.vma.as_ref() }
    }
}

impl<P: Platform> Drop for NewVma<'_, '_, P> {
    fn drop(&mut self) {
        let vma = self.vma();
        self.mm.anon_vma_unlink(vma);
        self.mm.put_file_of(vma);
        // SAFETY: in no tree, and nobody but this handle has ever known of it.
        let freed = unsafe { self.mm.base().caches.vma.free(self.mm.memory(), self.vma.cast()) };
        debug_assert_eq!(freed, Ok(()), "VMA");
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Gives up the reference that a VMA which nobody uses any more has of its file.
    pub(super) fn put_file_of(&self, vma: &Vma<'m, P>) {
        if let Some(file) = vma.file() {
            // SAFETY: the VMA's reference, from `NewVma::new`; this is its last use.
            self.file_put(unsafe { FileRef::from_raw(file) });
        }
    }
}

impl<'a, 'm, P: Platform> SpaceWriteGuard<'a, 'm, P> {
    /// Puts a VMA into the tree and counts it. What it covers is empty, or is taken
    /// out next; of a VMA with the same end the tree knows nothing any more.
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
        self.push_removed(vma);
    }

    /// Gives `vma` another end. The tree has no other VMA up to there. Reverse maps are the caller's.
    ///
    /// # Errors
    /// ENOMEM; nothing is changed.
    pub(super) fn move_key(&self, vma: &Vma<'m, P>, end: VirtAddr) -> Result<(), Errno> {
        let key = key_of(end);
        if key == vma.key() {
            return Ok(());
        }
        let pointer = NonNull::from(vma);
        self.space().vmas.store(key, Entry::Pointer(pointer)).map_err(|_| Errno::ENOMEM)?;
        self.forget_key(vma.key(), pointer);
        Ok(())
    }

    /// Makes the place of `high` in the tree that of `keep`, which is `high` or the
    /// neighbour below, and takes `gone`, the other one, away. `keep` covers both.
    pub(super) fn absorb(&self, keep: &Vma<'m, P>, gone: &Vma<'m, P>, old_low_end: VirtAddr) {
        let stored = self.space().vmas.store(keep.key(), Entry::Pointer(NonNull::from(keep)));
        debug_assert!(stored.is_ok(), "replacing an entry takes no memory");
        let low = if gone.end() == old_low_end { gone } else { keep };
        self.forget_key(key_of(old_low_end), NonNull::from(low));
        gone.lock.detach();
        self.count(-1, 0);
        self.push_removed(gone);
    }

    fn push_removed(&self, vma: &Vma<'m, P>) {
        let pointer = NonNull::from(vma).as_ptr();
        vma.next_removed.store(self.removed.replace(pointer), Ordering::Relaxed);
    }

    /// VMAs taken out of the tree under this guard, the latest first.
    pub(super) fn removed(&self) -> impl Iterator<Item = &Vma<'m, P>> {
        let follow = |vma: &NonNull<Vma<'m, P>>| {
            // SAFETY: taken out under this guard, which keeps them until it drops.
            NonNull::new(unsafe { vma.as_ref() }.next_removed.load(Ordering::Relaxed))
        };
        let all = core::iter::successors(NonNull::new(self.removed.get()), follow);
        // SAFETY: as above; the borrow is the guard's.
        all.map(|vma| unsafe { &*vma.as_ptr() })
    }

    /// Erases the entry at `key` if it is still `vma`'s.
    fn forget_key(&self, key: u64, vma: NonNull<Vma<'m, P>>) {
        let there = Content::Entry(Entry::Pointer(vma));
        let erased = self.space().vmas.compare_exchange(key, there, Content::Empty);
        debug_assert!(erased.is_ok(), "erasing takes no memory");
    }

    /// Tells the search for room of a gap that has `address` in it or at its end.
    pub(super) fn note_gap(&self, address: VirtAddr) {
        let above = self.find(address);
        self.space().gaps.freed(above.map_or(VirtAddr::END, Vma::start));
    }
}
