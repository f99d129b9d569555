//! How much of which list is looked at.

use super::lru::{BATCH, Isolated, LruList};
use super::shrink::ScanControl;
use super::stats::ReclaimEvent;
use crate::folio::FolioFlags;
use crate::mm::Mm;
use crate::platform::Platform;

/// Where a scan begins: one 4096th of each list. Priority 0 is all of it.
const FIRST_PRIORITY: u32 = 12;
/// Pages that one reclaim frees at least if it can (Linux `SWAP_CLUSTER_MAX`).
pub(super) const RECLAIM_BATCH: u64 = 32;

impl<'m, P: Platform> Mm<'m, P> {
    /// Frees about `target` pages from the LRU lists: a little of each list, then
    /// more, until it has them or has looked at everything once. Returns pages freed.
    ///
    /// The caller holds no lock of a class inside the folio lock's; other folios
    /// may be locked, since folio locks are tried only. Allocates nothing.
    pub(super) fn shrink_lists(&self, target: u64) -> u64 {
        let mut freed = 0;
        for priority in (0..=FIRST_PRIORITY).rev() {
            freed += self.shrink_at(priority, target - freed);
            if freed >= target {
                break;
            }
        }
        freed
    }

    fn shrink_at(&self, priority: u32, target: u64) -> u64 {
        let counts = self.lru_counts();
        let control = ScanControl { target, ignore_references: priority == 0 };
        let pairs = [
            (LruList::InactiveFile, LruList::ActiveFile),
            (LruList::InactiveAnon, LruList::ActiveAnon),
        ];
        let mut freed = 0;
        for (inactive, active) in pairs {
            let [of_inactive, of_active] =
                [inactive, active].map(|list| counts.folios[list as usize]);
            // Without this a list that is all active would never be looked at.
            if of_inactive <= of_active {
                self.age(active, share(of_active, priority));
            }
            // Folios that became inactive just now count too, in the last rounds.
            let folios = if priority == 0 { of_inactive + of_active } else { of_inactive };
            let left = ScanControl { target: target.saturating_sub(freed), ..control };
            freed += self.shrink_list(inactive, share(folios, priority), left);
            if freed >= target {
                break;
            }
        }
        freed
    }

    /// Looks at `most` folios of an inactive list. Returns pages freed.
    fn shrink_list(&self, list: LruList, most: u64, control: ScanControl) -> u64 {
        let (mut seen, mut freed) = (0, 0);
        while seen < most && freed < control.target {
            let batch = usize::try_from(most - seen).unwrap_or(BATCH).min(BATCH);
            let mut folios = Isolated::new();
            let looked = self.lru_isolate_oldest(list, batch, &mut folios);
            if looked == 0 {
                break;
            }
            seen += looked;
            self.reclaim.add(ReclaimEvent::Scanned, looked);
            let left = ScanControl { target: control.target - freed, ..control };
            freed += self.shrink_folios(folios, left);
        }
        freed
    }

    /// Makes `most` folios from the old end of an active list inactive, but for
    /// those that were used since the last look.
    fn age(&self, active: LruList, most: u64) {
        let mut seen = 0;
        while seen < most {
            let mut folios = Isolated::new();
            let batch = usize::try_from(most - seen).unwrap_or(BATCH).min(BATCH);
            let looked = self.lru_isolate_oldest(active, batch, &mut folios);
            if looked == 0 {
                break;
            }
            seen += looked;
            self.reclaim.add(ReclaimEvent::Scanned, looked);
            while let Some(folio) = folios.pop() {
                let was_used = match folio.try_lock(self.platform()) {
                    Some(_locked) => self.folio_referenced(&folio) > 0,
                    None => true,
                };
                if !was_used {
                    folio.clear_flags(FolioFlags::ACTIVE | FolioFlags::REFERENCED);
                    self.reclaim.count(ReclaimEvent::Deactivated);
                }
                self.lru_putback(&folio);
                self.put(folio);
            }
        }
    }
}

/// The part of a list that a priority looks at: at least a batch in the end.
fn share(folios: u64, priority: u32) -> u64 {
    let part = folios >> priority;
    if part == 0 && priority < FIRST_PRIORITY / 2 { folios.min(RECLAIM_BATCH) } else { part }
}
