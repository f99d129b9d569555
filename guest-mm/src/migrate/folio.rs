//! Folios as entries of a batch: their first frame, with a reference that the batch owns.

use abi::Pfn;

use super::destination::Destinations;
use super::folios::{FolioIsolateError, FolioPages, IsolatedFolio, WaitingParts};
use super::ops::{MigrateError, MigrateMode};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::platform::{FaultSite, Platform};

impl<'m, P: Platform> Mm<'m, P> {
    /// Takes the folio that has frame `pfn` off the LRU; returns the batch's entry.
    pub(super) fn isolate_folio(&self, pfn: Pfn) -> Result<Pfn, FolioIsolateError> {
        self.isolate_lru_folio(pfn).map(IsolatedFolio::into_raw)
    }

    fn folio_entry(&self, head: Pfn) -> Option<IsolatedFolio<'m>> {
        // SAFETY: an entry of a batch is what `isolate_folio` returned, or what a migration
        // that failed left; each is used once.
        let folio = unsafe { self.isolated_folio(head) };
        debug_assert!(folio.is_some(), "the entry at {head:?} is no folio's");
        folio
    }

    /// Moves the isolated folio at `head` and frees the frames that it has left. A
    /// large one for which there is no destination is split, and moved by pages, of
    /// which some may come into `waiting`. Returns what became of the others; the
    /// entry is gone then.
    pub(super) fn migrate_folio(
        &self,
        head: Pfn,
        destinations: &mut dyn Destinations,
        mode: MigrateMode,
        waiting: &mut WaitingParts<'m>,
    ) -> Result<FolioPages, MigrateError> {
        let folio = self.folio_entry(head).ok_or(MigrateError::Busy)?;
        let (order, pages) = (folio.order(), folio.order().pages().get());
        let fails = self.platform().inject_fault(FaultSite::MigrateDestination);
        let destination = if fails { None } else { destinations.take(order, head) };
        let Some(destination) = destination else {
            if order == Order::ZERO {
                folio.into_raw();
                return Err(MigrateError::NoMemory);
            }
            let parts = self.migrate_in_parts(folio, destinations, mode, waiting);
            return parts.map_err(|(folio, error)| {
                folio.into_raw();
                error
            });
        };
        match self.transfer_folio(folio, destination, mode) {
            Ok(done) => {
                self.memory().free_frozen(done.source);
                Ok(match done.spare {
                    None => FolioPages { moved: pages, ..FolioPages::default() },
                    Some(spare) => {
                        destinations.give_back(spare);
                        FolioPages { freed: pages, ..FolioPages::default() }
                    }
                })
            }
            Err(failed) => {
                failed.folio.into_raw();
                if let Some(frames) = failed.destination {
                    destinations.give_back(frames);
                }
                Err(failed.error)
            }
        }
    }

    /// Gives the isolated folio at `head` back to the LRU.
    pub(super) fn putback_folio(&self, head: Pfn) {
        if let Some(folio) = self.folio_entry(head) {
            self.putback_lru_folio(folio);
        }
    }

    /// Pages of the isolated folio at `head`.
    pub(super) fn isolated_folio_pages(&self, head: Pfn) -> u64 {
        self.folio_entry(head).map_or(1, |folio| {
            let pages = folio.order().pages().get();
            folio.into_raw();
            pages
        })
    }
}
