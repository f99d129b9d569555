//! Splitting and merging VMAs.

use core::ptr::NonNull;

use super::lookup::SpaceWriteGuard;
use super::object::NewVma;
use super::structure::MAX_MAP_COUNT;
use super::vma::{VmFlags, Vma};
use crate::addr::{PMD_SHIFT, VaRange, VirtAddr};
use crate::errno::Errno;
use crate::mm::Mm;
use crate::pagecache::FileMapping;
use crate::pgtable::MakeTableError;
use crate::platform::Platform;

impl<'m, P: Platform> Mm<'m, P> {
    /// Splits VMAs so that none has pages both in `range` and outside.
    ///
    /// # Errors
    /// ENOMEM: no memory, or the space has [`MAX_MAP_COUNT`] VMAs. What was split
    /// before that is merged again.
    pub(super) fn isolate(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        range: VaRange,
    ) -> Result<(), Errno> {
        self.split(guard, range.start())?;
        self.split(guard, range.end()).inspect_err(|_| self.merge_at(guard, range.start()))
    }

    /// Makes `at` a boundary: what covers it and the page below becomes two VMAs,
    /// and a PMD leaf across it 512 PTEs.
    ///
    /// # Errors
    /// ENOMEM, as for [`Self::isolate`]; nothing is changed that a program can see.
    pub(super) fn split(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        at: VirtAddr,
    ) -> Result<(), Errno> {
        let Some(vma) = guard.lookup(at).filter(|vma| vma.start() < at) else { return Ok(()) };
        if guard.space().map_count() >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        guard.lock_vma(vma);
        // No PMD leaf lies across a multiple of its size.
        if !at.is_aligned(PMD_SHIFT) {
            match self.split_pmd(guard.space(), at) {
                // A malformed entry is no PMD leaf to be split.
                Ok(_) | Err(MakeTableError::Unknown(_)) => {}
                Err(_) => return Err(Errno::ENOMEM),
            }
        }
        self.split_vma(guard, vma, at)
    }

    /// Gives the part of `vma` below `at` to a VMA of its own.
    fn split_vma(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        vma: &Vma<'m, P>,
        at: VirtAddr,
    ) -> Result<(), Errno> {
        let (whole, pgoff) = (vma.range(), vma.pgoff());
        let (low, high) = VaRange::new(whole.start(), at)
            .zip(VaRange::new(at, whole.end()))
            .unwrap_or_else(|| unreachable!("`at` is a page inside the VMA"));
        let new = NewVma::new(self, guard.space(), low, pgoff, vma.flags(), vma.file())?;
        self.anon_vma_clone(new.vma(), vma)?;
        let new = guard.insert(new)?;
        // From here on nothing can fail: the end stays, and so does the place in the tree.
        // Linked while the old one still covers it: a walk may find a leaf twice, never not at all.
        self.vma_link_file(new);
        self.adjust_vmas(&[new, vma], || vma.set_span(high, pgoff + low.pages().get()));
        guard.count(0, -low.pages().get().cast_signed());
        Ok(())
    }

    /// Makes the VMAs on both sides of `at` one, if one could say what the two say.
    ///
    /// Takes no memory.
    pub(super) fn merge_at(&self, guard: &SpaceWriteGuard<'_, 'm, P>, at: VirtAddr) {
        let (Some(low), Some(high)) = (guard.before(at), guard.lookup(at)) else { return };
        let adjacent = low.end() == at && high.start() == at;
        if adjacent
            && low.is_like(high.flags(), high.file())
            && low.pgoff() + low.pages().get() == high.pgoff()
        {
            self.merge(guard, low, high);
        }
    }

    /// Lets one of two neighbours absorb the other: the one by which the folios of
    /// both can be found. If there is none they stay two.
    fn merge(&self, guard: &SpaceWriteGuard<'_, 'm, P>, low: &Vma<'m, P>, high: &Vma<'m, P>) {
        guard.lock_vma(low);
        guard.lock_vma(high);
        let (keep, gone) = match (self.anon_vma_covers(high, low), self.anon_vma_covers(low, high))
        {
            (true, _) => (high, low),
            (false, true) => (low, high),
            (false, false) => return,
        };
        let Some(whole) = VaRange::new(low.start(), high.end()) else { return };
        let (pgoff, boundary) = (low.pgoff(), low.end());
        keep.set_flags(keep.flags() | (gone.flags() & VmFlags::SOFTDIRTY));
        self.adjust_vmas(&[keep], || keep.set_span(whole, pgoff));
        guard.absorb(keep, gone, boundary);
        self.anon_vma_unlink(gone);
        self.vma_unlink_file(gone);
        self.put_file_of(gone);
    }
}

impl<'m, P: Platform> Vma<'m, P> {
    /// Whether its rules are these, as far as merging goes.
    pub(super) fn is_like(
        &self,
        flags: VmFlags,
        file: Option<NonNull<FileMapping<'m, P>>>,
    ) -> bool {
        let differ = self.flags().symmetric_difference(flags) - VmFlags::SOFTDIRTY;
        differ.is_empty() && self.file() == file && !flags.contains(VmFlags::PFNMAP)
    }
}
