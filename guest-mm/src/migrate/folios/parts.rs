//! Large folios for which there is no destination of their size: split, and moved page by page.

use abi::{PageCount, Pfn};

use super::{IsolatedFolio, WaitingParts};
use crate::errno::Errno;
use crate::folio::{Folio, FolioRef};
use crate::memdesc::Order;
use crate::migrate::{Destinations, MigrateError, MigrateMode};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// What became of a folio's pages, but for those that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::migrate) struct FolioPages {
    /// Elsewhere; their old frames are free.
    pub(in crate::migrate) moved: u64,
    /// Nobody used them: their frames are free.
    pub(in crate::migrate) freed: u64,
    /// Where they were, and on the LRU again.
    pub(in crate::migrate) failed: u64,
    /// Why, the last time.
    pub(in crate::migrate) error: Option<MigrateError>,
}

/// Whose part a page is, after the split.
#[derive(Clone, Copy)]
struct Whole {
    head: Pfn,
    mapping: u64,
    index: u64,
}

impl Whole {
    fn of(folio: &Folio) -> Self {
        Self { head: folio.pfn(), mapping: folio.mapping(), index: folio.index() }
    }

    fn has(self, part: &Folio, page: u64) -> bool {
        part.order() == Order::ZERO
            && part.mapping() == self.mapping
            && part.index() == self.index.wrapping_add(page)
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Splits an isolated large folio into pages, and moves each of them. Those that
    /// are to be tried again come into `waiting`.
    ///
    /// # Errors
    /// It could not be split: the folio comes back, as it was but for PMD leaves
    /// that became PTEs, isolated still.
    pub(in crate::migrate) fn migrate_in_parts(
        &self,
        folio: IsolatedFolio<'m>,
        destinations: &mut dyn Destinations,
        mode: MigrateMode,
        waiting: &mut WaitingParts<'m>,
    ) -> Result<FolioPages, (IsolatedFolio<'m>, MigrateError)> {
        let pages = folio.order().pages().get();
        let whole = Whole::of(folio.folio());
        let folio = folio.into_reference();
        if let Err(error) = self.split_isolated_folio(&folio, mode) {
            return Err((IsolatedFolio::own(folio), error));
        }
        let mut done = FolioPages::default();
        let mut migrate = |part, done: &mut FolioPages| {
            if let Some(again) = self.migrate_part(part, destinations, mode, done) {
                self.wait_for_next_pass(again, waiting);
            }
        };
        migrate(IsolatedFolio::own(folio), &mut done);
        for page in 1..pages {
            match self.isolate_part(whole, page) {
                Ok(part) => migrate(part, &mut done),
                Err(PartGone::Freed) => done.freed += 1,
                Err(PartGone::Taken) => {
                    done.failed += 1;
                    done.error = Some(MigrateError::Again);
                }
            }
        }
        Ok(done)
    }

    fn split_isolated_folio(
        &self,
        folio: &FolioRef<'m>,
        mode: MigrateMode,
    ) -> Result<(), MigrateError> {
        let _locked = match mode {
            MigrateMode::Async => folio.try_lock(self.platform()).ok_or(MigrateError::Again)?,
            MigrateMode::SyncLight | MigrateMode::Sync => folio.lock(self.platform()),
        };
        self.split_folio(folio, Order::ZERO).map_err(|error| {
            if error == Errno::EAGAIN {
                MigrateError::Again
            } else if error == Errno::ENOMEM {
                MigrateError::NoMemory
            } else {
                MigrateError::Busy
            }
        })
    }

    /// Page `page` of a folio that was isolated when it was split: on no list, unless
    /// somebody has put it on one since.
    fn isolate_part(&self, whole: Whole, page: u64) -> Result<IsolatedFolio<'m>, PartGone> {
        let pfn = whole.head.checked_add(PageCount::new(page)).ok_or(PartGone::Freed)?;
        let part = self.folio_of(pfn).map_err(|_| PartGone::Freed)?;
        if !whole.has(&part, page) {
            // Freed by the split, since nobody used it, and somebody else's by now.
            self.put(part);
            return Err(PartGone::Freed);
        }
        self.lru_add(&part);
        if !self.lru_isolate(&part) {
            self.put(part);
            return Err(PartGone::Taken);
        }
        Ok(IsolatedFolio::own(part))
    }

    /// Moves one page, or puts it back. Returns it if it is to be tried again.
    fn migrate_part(
        &self,
        part: IsolatedFolio<'m>,
        destinations: &mut dyn Destinations,
        mode: MigrateMode,
        done: &mut FolioPages,
    ) -> Option<IsolatedFolio<'m>> {
        let Some(destination) = destinations.take(Order::ZERO, part.head()) else {
            self.keep_part(part, MigrateError::NoMemory, done);
            return None;
        };
        match self.transfer_folio(part, destination, mode) {
            Ok(gone) => {
                self.memory().free_frozen(gone.source);
                match gone.spare {
                    None => done.moved += 1,
                    Some(spare) => {
                        done.freed += 1;
                        destinations.give_back(spare);
                    }
                }
                None
            }
            Err(failed) => {
                if let Some(frames) = failed.destination {
                    destinations.give_back(frames);
                }
                if failed.error == MigrateError::Again {
                    return Some(failed.folio);
                }
                self.keep_part(failed.folio, failed.error, done);
                None
            }
        }
    }

    /// Tries each waiting page once more; those that are to be tried again stay.
    pub(in crate::migrate) fn migrate_waiting(
        &self,
        waiting: &mut WaitingParts<'m>,
        destinations: &mut dyn Destinations,
        mode: MigrateMode,
    ) -> FolioPages {
        let mut done = FolioPages::default();
        let mut tried = core::mem::take(waiting);
        while let Some(part) = self.next_waiting(&mut tried) {
            if let Some(again) = self.migrate_part(part, destinations, mode, &mut done) {
                self.wait_for_next_pass(again, waiting);
            }
        }
        done
    }

    /// Puts back what waits: no pass follows.
    pub(in crate::migrate) fn putback_waiting(&self, mut waiting: WaitingParts<'m>) -> FolioPages {
        let mut done = FolioPages::default();
        while let Some(part) = self.next_waiting(&mut waiting) {
            self.keep_part(part, MigrateError::Again, &mut done);
        }
        done
    }

    fn wait_for_next_pass(&self, part: IsolatedFolio<'m>, waiting: &mut WaitingParts<'m>) {
        self.migration.folios.fetch_add(1, Ordering::Relaxed);
        waiting.push(part);
    }

    fn next_waiting(&self, waiting: &mut WaitingParts<'m>) -> Option<IsolatedFolio<'m>> {
        let part = waiting.pop()?;
        self.migration.folios.fetch_sub(1, Ordering::Relaxed);
        Some(part)
    }

    fn keep_part(&self, part: IsolatedFolio<'m>, error: MigrateError, done: &mut FolioPages) {
        done.failed += 1;
        done.error = Some(error);
        self.putback_lru_folio(part);
    }
}

/// Why a part is not isolated.
enum PartGone {
    /// Nobody used it.
    Freed,
    /// Somebody else has it.
    Taken,
}
