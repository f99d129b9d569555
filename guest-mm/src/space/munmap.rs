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
        guard.isolate(range)?;
        self.remove(guard, range);
        Ok(())
    }

    /// Takes the VMAs of `range`, none of which sticks out, out of the tree, and unmaps them.
    pub(super) fn remove(&self, guard: &SpaceWriteGuard<'_, 'm, P>, range: VaRange) {
        for vma in guard.overlapping(range) {
            guard.take_out(vma);
        }
    }

    /// Unmaps everything, for good.
    pub(super) fn unmap_all(&self, space: &AddressSpace<'m, P>) {
        let all = VaRange::new(VirtAddr::ZERO, VirtAddr::END);
        let all = all.unwrap_or_else(|| unreachable!("the user half is made of pages"));
        self.remove(&space.write(), all);
    }
}
