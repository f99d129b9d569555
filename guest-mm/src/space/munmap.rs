//! munmap: taking mappings away.

use super::lookup::SpaceWriteGuard;
use super::structure::AddressSpace;
use crate::addr::{VaRange, VirtAddr};
use crate::errno::Errno;
use crate::mm::Mm;
use crate::platform::Platform;

impl<'m, P: Platform> Mm<'m, P> {
    /// Unmaps the pages of `bytes` bytes from `start`. A range without VMAs is unmapped already.
    ///
    /// # Errors
    /// * EINVAL: `start` is not page-aligned, `bytes` is 0, or the range leaves the user half.
    /// * ENOMEM: a VMA would have to be split and there is no memory, or no VMA left to have.
    ///   Everything is still mapped.
    pub fn munmap(&self, space: &AddressSpace<'m, P>, start: u64, bytes: u64) -> Result<(), Errno> {
        let range = VaRange::from_call(start, bytes)?;
        self.unmap_locked(&space.write(), range)
    }

    /// As [`Self::munmap`], with the lock held.
    pub(super) fn unmap_locked(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        range: VaRange,
    ) -> Result<(), Errno> {
        self.isolate(guard, range)?;
        self.remove(guard, range);
        Ok(())
    }

    /// Takes the VMAs of `range`, none of which sticks out, away, and what they map:
    ///
    /// 1. out of the tree, so that no fault finds them, each after its readers have left;
    /// 2. leaves cleared and empty tables unlinked, TLBs flushed, references given up,
    ///    tables freed after a grace period;
    /// 3. out of the reverse maps, which led to those leaves.
    ///
    /// VMAs are freed after a grace period, once the guard is gone.
    pub(super) fn remove(&self, guard: &SpaceWriteGuard<'_, 'm, P>, range: VaRange) {
        let mut removed = 0;
        for vma in guard.overlapping(range) {
            guard.take_out(vma);
            removed += 1;
        }
        self.end_removed(guard, range, removed);
    }

    /// What [`Self::remove`] does after its first step, for the last `removed` VMAs
    /// that were taken out, all in `range`.
    pub(super) fn end_removed(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        range: VaRange,
        removed: usize,
    ) {
        if removed == 0 {
            return;
        }
        let unmapped = self.unmap_leaves(guard.space(), range);
        debug_assert!(unmapped.is_ok(), "PMD leaves were split where VMAs end: {unmapped:?}");
        for vma in guard.removed().take(removed) {
            self.anon_vma_unlink(vma);
            self.vma_unlink_file(vma);
            self.put_file_of(vma);
        }
    }

    /// Unmaps everything, for good.
    pub(super) fn unmap_all(&self, space: &AddressSpace<'m, P>) {
        let all = VaRange::new(VirtAddr::ZERO, VirtAddr::END);
        let all = all.unwrap_or_else(|| unreachable!("the user half is made of pages"));
        self.remove(&space.write(), all);
    }
}
