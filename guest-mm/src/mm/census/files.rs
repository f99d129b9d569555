//! Every file's cache.

use super::{MmDiscrepancy, Taking, folio_weight};
use crate::platform::Platform;
use crate::xarray::Found;

impl<P: Platform> Taking<'_, '_, P> {
    /// Checks each entry of each cache against the folio that it names.
    pub(super) fn files(&mut self) {
        let mm = self.mm;
        mm.for_each_file(&mut |file| {
            let mut found = 0;
            let mut from = 0;
            while let Some(entry) = file.pages.find(from..=u64::MAX) {
                let Found { index, order, .. } = entry;
                let pages = 1u64 << order;
                found += pages;
                self.census.cached += 1;
                match mm.find_get_folio(file, index) {
                    Some(folio) => {
                        let fits = folio.index() == index && folio.pages().get() == pages;
                        let weight = folio_weight(folio.pfn());
                        self.sums.cached = self.sums.cached.wrapping_add(weight);
                        mm.put(folio);
                        self.check(fits, || MmDiscrepancy::Cached { file: file.id(), index });
                    }
                    None => self
                        .census
                        .discrepancies
                        .add(MmDiscrepancy::Cached { file: file.id(), index }),
                }
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
    }
}
