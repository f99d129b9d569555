//! Every file's cache.

use super::{MmDiscrepancy, Taking, folio_weight};
use crate::folio::CacheGlance;
use crate::pagecache::FileMapping;
use crate::platform::Platform;
use crate::xarray::Found;

impl<'m, P: Platform> Taking<'_, 'm, P> {
    /// Checks each entry of each cache against the folio that it names.
    pub(super) fn files(&mut self) {
        let mm = self.mm;
        let mut files = 0;
        mm.for_each_file(&mut |file| {
            files += 1;
            let mut found = 0;
            let mut from = 0;
            while let Some(entry) = file.pages.find(from..=u64::MAX) {
                let Found { index, order, .. } = entry;
                let pages = 1u64 << order;
                found += pages;
                self.census.cached += 1;
                let fits = self.cached(file, index, pages);
                self.check(fits, || MmDiscrepancy::Cached { file: file.id(), index });
                let Some(next) = index.checked_add(pages) else { break };
                from = next;
            }
            let counted = file.cached_pages();
            self.check(counted == found, || MmDiscrepancy::CachedPages {
                file: file.id(),
                counted,
                found,
            });
        });
        self.objects(&mm.base().caches.file, files);
    }

    /// Whether the folio at `index` says that it is there. One look: a lookup would
    /// wait for a folio that says otherwise, or is frozen, for ever.
    fn cached(&mut self, file: &FileMapping<'m, P>, index: u64, pages: u64) -> bool {
        match self.mm.glance_at_cache(file, index) {
            CacheGlance::Folio(folio) => {
                let fits = folio.index() == index && folio.pages().get() == pages;
                let weight = folio_weight(folio.pfn());
                self.sums.cached = self.sums.cached.wrapping_add(weight);
                self.mm.put(folio);
                fits
            }
            CacheGlance::Moved(folio) => {
                self.mm.put(folio);
                false
            }
            CacheGlance::Absent | CacheGlance::Frozen => false,
        }
    }
}
