//! Taking the leaves of a folio away.

use crate::folio::LockedFolio;
use crate::mm::Mm;
use crate::pagecache::FileMapping;
use crate::platform::Platform;

impl<'m, P: Platform> Mm<'m, P> {
    pub(crate) fn unmap_folio(&self, folio: &LockedFolio<'m, P>) {
        debug_assert!(!folio.is_mapped(), "{folio:?}");
    }

    pub(crate) fn unmap_file_range(&self, file: &FileMapping<'m, P>, first: u64, end: u64) {
        // Until VMAs of files have page tables, nothing can be mapped.
        debug_assert!(file.i_mmap.read(self.platform()).is_empty(), "{first}..{end}");
    }
}
