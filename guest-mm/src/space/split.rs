//! Splitting and merging VMAs.

use super::lookup::SpaceWriteGuard;
use super::object::NewVma;
use super::structure::MAX_MAP_COUNT;
use super::vma::Vma;
use crate::addr::{VaRange, VirtAddr};
use crate::errno::Errno;
use crate::platform::Platform;

impl<'m, P: Platform> SpaceWriteGuard<'_, 'm, P> {
    /// Splits VMAs so that none has pages both in `range` and outside.
    ///
    /// # Errors
    /// ENOMEM: no memory, or the space has [`MAX_MAP_COUNT`] VMAs. A split that was
    /// made stays, which changes nothing that a program can see.
    pub(super) fn isolate(&self, range: VaRange) -> Result<(), Errno> {
        // A hole in the middle of one VMA makes two of it in the end, and three meanwhile.
        self.split(range.start())?;
        self.split(range.end())
    }

    /// Makes `at` a boundary: what covers it and the page below becomes two VMAs.
    ///
    /// # Errors
    /// ENOMEM, as for [`Self::isolate`]; nothing is changed.
    pub(super) fn split(&self, at: VirtAddr) -> Result<(), Errno> {
        let Some(vma) = self.lookup(at).filter(|vma| vma.start() < at) else { return Ok(()) };
        if self.space().map_count() >= MAX_MAP_COUNT {
            return Err(Errno::ENOMEM);
        }
        self.split_vma(vma, at)
    }

    /// Gives the part of `vma` below `at` to a VMA of its own.
    fn split_vma(&self, vma: &Vma<'m, P>, at: VirtAddr) -> Result<(), Errno> {
        let (whole, pgoff) = (vma.range(), vma.pgoff());
        let (low, high) = VaRange::new(whole.start(), at)
            .zip(VaRange::new(at, whole.end()))
            .unwrap_or_else(|| unreachable!("`at` is a page inside the VMA"));
        let new = NewVma::new(self.space(), low, pgoff, vma.flags(), vma.file())?;
        self.lock_vma(vma);
        self.insert(new)?;
        // The end stays, so this takes no memory.
        self.set_range(vma, high, pgoff + low.pages().get())
    }
}
