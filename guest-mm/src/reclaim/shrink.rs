//! What becomes of folios that are looked at.

use abi::PageCount;

use super::lru::Isolated;
use super::stats::ReclaimEvent;
use crate::folio::{Folio, FolioFlags, FolioKind, FolioLockGuard, FolioRef};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::rmap::Unmap;

/// What a scan may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScanControl {
    /// Pages to free; it stops then.
    pub(super) target: u64,
    /// Take folios whether they were used or not.
    pub(super) ignore_references: bool,
}

/// What becomes of a folio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Its memory can be had.
    Reclaim,
    /// Back to where it came from, as the youngest.
    Keep,
    /// It is in use: active.
    Activate,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Frees what can be freed of isolated folios and puts the rest back. Returns pages freed.
    pub(super) fn shrink_folios(&self, mut folios: Isolated<'m>, control: ScanControl) -> u64 {
        let mut freed = 0;
        while let Some(folio) = folios.pop() {
            let pages = folio.pages().get();
            if freed >= control.target {
                self.lru_putback(&folio);
                self.put(folio);
                continue;
            }
            if folio.is_large() {
                freed += self.split_isolated(folio);
                continue;
            }
            match self.shrink_folio(folio, control) {
                Ok(()) => freed += pages,
                Err((folio, verdict)) => {
                    if verdict == Verdict::Activate {
                        folio.set_flags(FolioFlags::ACTIVE);
                        self.reclaim.count(ReclaimEvent::Activated);
                    }
                    self.lru_putback(&folio);
                    // The last reference may have become ours meanwhile.
                    self.put(folio);
                }
            }
        }
        freed
    }

    /// Splits an isolated large folio, so that its pages can be looked at one by
    /// one; those that nothing maps are freed, and counted.
    fn split_isolated(&self, folio: FolioRef<'m>) -> u64 {
        let before = folio.pages().get();
        let wanted = !folio.is_pinned()
            && (folio.is_anon() || !folio.has(FolioFlags::DIRTY))
            && folio.kind() != FolioKind::Device;
        let free_before = self.memory().free_pages().get();
        let is_split = wanted
            && folio.try_lock(self.platform()).is_some_and(|_locked| {
                self.folio_referenced(&folio) == 0 && self.split_folio(&folio, Order::ZERO).is_ok()
            });
        if is_split {
            self.reclaim.count(ReclaimEvent::Split);
        } else {
            folio.set_flags(FolioFlags::ACTIVE);
        }
        self.lru_putback(&folio);
        if is_split {
            // The other parts are in no list: they were isolated as one.
            self.list_parts(&folio, before);
        }
        self.put(folio);
        self.memory().free_pages().get().saturating_sub(free_before).min(before)
    }

    /// Puts the other pages of a block that was split on their lists.
    fn list_parts(&self, first: &Folio, pages: u64) {
        for page in 1..pages {
            let pfn = first.pfn().checked_add(PageCount::new(page));
            if let Some(Ok(part)) = pfn.map(|pfn| self.folio_of(pfn)) {
                self.lru_add(&part);
                self.put(part);
            }
        }
    }

    /// Frees one isolated folio, or says what shall become of it.
    fn shrink_folio(
        &self,
        folio: FolioRef<'m>,
        control: ScanControl,
    ) -> Result<(), (FolioRef<'m>, Verdict)> {
        let verdict = match folio.try_lock(self.platform()) {
            // Somebody works on it: a reader of its slot, another reclaimer.
            None => Verdict::Keep,
            Some(locked) => self.unmap_and_clean(&locked, control),
        };
        if verdict != Verdict::Reclaim {
            return Err((folio, verdict));
        }
        self.free_if_unused(folio)
    }

    /// Takes a locked folio's leaves away and brings its contents to safety.
    fn unmap_and_clean(&self, locked: &FolioLockGuard<'_, P>, control: ScanControl) -> Verdict {
        let folio = locked.folio();
        if let Err(verdict) = self.is_candidate(folio, control) {
            return verdict;
        }
        if folio.is_anon()
            && folio.has(FolioFlags::SWAPBACKED)
            && !folio.has(FolioFlags::SWAPCACHE)
            && self.swap_alloc(locked).is_err()
        {
            return Verdict::Activate;
        }
        if folio.is_mapped() && !self.try_to_unmap(folio, Unmap::Reclaim) {
            self.count_kept(folio);
            // A slot that no leaf names is of no use to a folio that stays.
            self.free_swap(locked);
            return Verdict::Activate;
        }
        if folio.has(FolioFlags::SWAPCACHE) && folio.has(FolioFlags::DIRTY) {
            // No leaf names the slot either: the page is nobody's, its contents need no device.
            let is_wanted = self.swap_slot_of(folio).is_some_and(|slot| self.swap_count(slot) > 0);
            if is_wanted && self.swap_write(locked).is_err() {
                return Verdict::Activate;
            }
        }
        Verdict::Reclaim
    }

    /// Whether a locked folio is worth trying.
    fn is_candidate(&self, folio: &Folio, control: ScanControl) -> Result<(), Verdict> {
        if folio.is_pinned() {
            self.reclaim.count(ReclaimEvent::Pinned);
            return Err(Verdict::Activate);
        }
        if folio.has(FolioFlags::HWPOISON) || folio.kind() == FolioKind::Device {
            return Err(Verdict::Activate);
        }
        if is_only_copy(folio) {
            // The page cache is where a file in memory is.
            return Err(Verdict::Activate);
        }
        let young = self.folio_referenced(folio);
        if control.ignore_references {
            folio.clear_flags(FolioFlags::REFERENCED);
            return Ok(());
        }
        let was_used = folio.clear_flags(FolioFlags::REFERENCED).contains(FolioFlags::REFERENCED);
        match young {
            0 if was_used && !folio.is_mapped() && !folio.is_anon() => Err(Verdict::Keep),
            0 => Ok(()),
            _ if folio.is_anon() => Err(Verdict::Activate),
            1 if !was_used => {
                // Read once through a mapping: another round on the list tells more.
                folio.set_flags(FolioFlags::REFERENCED);
                Err(Verdict::Keep)
            }
            _ => Err(Verdict::Activate),
        }
    }

    /// Frees an isolated folio that nobody but us and its cache refers to.
    fn free_if_unused(&self, folio: FolioRef<'m>) -> Result<(), (FolioRef<'m>, Verdict)> {
        let cached = cache_references(&folio);
        let frozen = folio.freeze(1 + cached).map_err(|folio| (folio, Verdict::Keep))?;
        // Between unlocking and freezing somebody may have had it, and gone again.
        let is_as_before = cache_references(&frozen) == cached
            && !frozen.is_mapped()
            && !needs_writing(&frozen, self.is_wanted(&frozen));
        if !is_as_before {
            return Err((frozen.unfreeze(1 + cached), Verdict::Keep));
        }
        if frozen.has(FolioFlags::SWAPCACHE) {
            self.swap_cache_remove(&frozen);
            self.reclaim.count(ReclaimEvent::SwapFreed);
        } else if frozen.kind() == FolioKind::File {
            self.evict_frozen(&frozen);
            self.reclaim.count(ReclaimEvent::FileFreed);
        } else {
            self.reclaim.count(ReclaimEvent::AnonFreed);
        }
        frozen.clear_flags(FolioFlags::ISOLATED);
        self.free_folio(frozen);
        Ok(())
    }

    /// Whether a leaf names the folio's slot.
    fn is_wanted(&self, folio: &Folio) -> bool {
        self.swap_slot_of(folio).is_some_and(|slot| self.swap_count(slot) > 0)
    }

    /// Why a leaf could not be taken away, as far as it can be seen now.
    fn count_kept(&self, folio: &Folio) {
        self.reclaim.count(if folio.is_pinned() {
            ReclaimEvent::Pinned
        } else if folio.has(FolioFlags::SWAPCACHE) {
            ReclaimEvent::Stuck
        } else {
            ReclaimEvent::Rewritten
        });
    }
}

/// References of the cache that the folio is in.
fn cache_references(folio: &Folio) -> u32 {
    if folio.has(FolioFlags::SWAPCACHE) {
        1
    } else if folio.kind() == FolioKind::File && folio.mapping() != 0 {
        u32::try_from(folio.pages().get()).unwrap_or(u32::MAX)
    } else {
        0
    }
}

/// Whether freeing the folio would lose what was written to it.
fn needs_writing(folio: &Folio, is_wanted: bool) -> bool {
    let is_dirty = folio.has(FolioFlags::DIRTY);
    match folio.kind() {
        FolioKind::Anon if folio.has(FolioFlags::SWAPCACHE) => is_dirty && is_wanted,
        // Not mapped and in no cache: nobody can read it again.
        FolioKind::Anon => false,
        FolioKind::File | FolioKind::Device => is_dirty && folio.mapping() != 0,
    }
}

/// A file's page that differs from zeros, of which there is no other copy.
fn is_only_copy(folio: &Folio) -> bool {
    folio.kind() == FolioKind::File && folio.has(FolioFlags::DIRTY)
}
