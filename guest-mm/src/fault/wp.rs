//! Write-protect faults, and unsharing, of private mappings.

use core::sync::atomic::Ordering;

use abi::PAGE_SIZE;

use super::policy::may_be_ours;
use super::{Fault, FaultError, FaultEvent, FaultOutcome, Round, Stop};
use crate::addr::VaRange;
use crate::folio::{Folio, FolioFlags, FolioRef};
use crate::pgtable::{Entry, Pte, PteGuard, PteState, Sharing};
use crate::platform::{Platform, TlbFlush};
use crate::rmap::MappedBy;

/// Who has the page of a leaf.
enum Page<'m> {
    /// The leaf alone: it may be written where it is.
    Ours,
    /// Others too, or the page cache: the reference keeps it for a copy.
    Shared(FolioRef<'m>),
    /// Everybody: the zero page.
    Zero,
}

impl<'m, P: Platform> Fault<'_, 'm, P> {
    /// A write to a present leaf without WRITE, or a page to be unshared.
    pub(super) fn write_protect(&self, seen: Entry, pte: Pte) -> Round<'m> {
        if self.sharing() == Sharing::Shared {
            return self.write_shared(seen, pte);
        }
        let Some(mut guard) = self.lock_same(seen)? else { return Ok(FaultOutcome::Raced) };
        match self.owner(&guard, pte)? {
            Page::Ours => {
                guard.update(self.page, |entry| match entry.pte() {
                    PteState::Present(pte) => self.allowed(pte.mk_anon_exclusive()).entry(),
                    PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
                });
                self.forget_here(self.page, PAGE_SIZE);
                Ok(FaultOutcome::Reused)
            }
            Page::Zero => {
                drop(guard);
                self.copy(seen, pte, None)
            }
            Page::Shared(old) => {
                drop(guard);
                let copied = self.copy(seen, pte, Some(&old));
                self.mm.put(old);
                copied
            }
        }
    }

    /// Whose the page of `pte` is; the leaf is locked.
    fn owner(&self, guard: &PteGuard<'_, P>, pte: Pte) -> Result<Page<'m>, Stop<'m>> {
        if pte.is_special() {
            return Ok(Page::Zero);
        }
        // SAFETY: the leaf maps the frame, and its lock is held.
        let Some(folio) = (unsafe { self.mm.mapped_folio(pte.pfn()) }) else {
            return self.fail(FaultError::Bus, Some(FaultEvent::UnknownLeaf));
        };
        if folio.has(FolioFlags::HWPOISON) {
            return self.fail(FaultError::HwPoison, None);
        }
        let ours = folio.is_anon() && (pte.is_anon_exclusive() || self.take_over(guard, folio));
        Ok(if ours { Page::Ours } else { Page::Shared(self.mm.get(folio)) })
    }

    /// Whether nobody but this leaf has the anonymous folio; makes it ours then.
    ///
    /// The folio lock is tried only: who has it may be a reader of the swap
    /// device, and a copy is always right.
    fn take_over(&self, guard: &PteGuard<'_, P>, folio: &Folio) -> bool {
        if folio.is_large() {
            return self.maps_all_of(guard, folio);
        }
        let cached = u32::from(folio.has(FolioFlags::SWAPCACHE));
        if !may_be_ours(folio.refcount(), cached) {
            return false;
        }
        let Some(lock) = folio.try_lock(self.mm.platform()) else { return false };
        if folio.has(FolioFlags::SWAPCACHE) {
            self.mm.free_swap(&lock);
        }
        let ours = folio.refcount() == 1;
        if ours {
            // Its other owners are gone: rmap need not look in their VMAs any more.
            self.mm.move_anon_rmap(folio, self.vma);
        }
        drop(lock);
        ours
    }

    /// Whether all leaves of a large folio are in this table, and nobody else has a
    /// reference. The lock of the table keeps it so.
    fn maps_all_of(&self, guard: &PteGuard<'_, P>, folio: &Folio) -> bool {
        let mapped = folio.mapcount();
        if folio.has(FolioFlags::SWAPCACHE) || folio.refcount() != mapped {
            return false;
        }
        let Some(table) = VaRange::new(guard.first(), guard.end()) else { return false };
        let frames = folio.range();
        let here = table.iter_pages().filter(|page| match guard.load(*page).pte() {
            PteState::Present(pte) => frames.contains(pte.pfn()),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => false,
        });
        here.count() == mapped as usize
    }

    /// Replaces the page by a copy that nobody else has; `old` is `None` for the zero page.
    fn copy(&self, seen: Entry, pte: Pte, old: Option<&FolioRef<'m>>) -> Round<'m> {
        let new = match old {
            None => self.alloc_zeroed()?,
            Some(_) => self.alloc_for_copy()?,
        };
        if let Some(old) = old {
            let page = pte.pfn().number() - old.pfn().number();
            self.mm.copy_folio_page((&new, 0), (old, page));
        }
        match self.lock_same(seen) {
            Ok(Some(guard)) => Ok(self.replace(guard, pte, old, new)),
            Ok(None) => {
                self.mm.put(new);
                Ok(FaultOutcome::Raced)
            }
            Err(stop) => {
                self.mm.put(new);
                Err(stop)
            }
        }
    }

    /// Maps `new` where `pte` is: cleared and flushed before the new leaf is set,
    /// so that no CPU reads the old page after another wrote to the new one.
    fn replace(
        &self,
        mut guard: PteGuard<'_, P>,
        pte: Pte,
        old: Option<&FolioRef<'m>>,
        new: FolioRef<'m>,
    ) -> FaultOutcome {
        let cleared = guard.clear(self.page);
        if let Some(range) = VaRange::page_of(self.page) {
            self.tables().flush(TlbFlush::Range(range));
        }
        let leaf = self.leaf_of_copy(&new, pte, cleared);
        self.map_new_anon(&mut guard, leaf, new);
        let unmapped = old.map(|old| self.forget_old(old));
        drop(guard);
        if let Some(mapping) = unmapped {
            self.mm.put(mapping);
        }
        FaultOutcome::Copied
    }

    /// Takes the old page's leaf off its counts.
    fn forget_old(&self, old: &Folio) -> FolioRef<'m> {
        let counter = if old.is_anon() { &self.space.rss.anon } else { &self.space.rss.file };
        counter.fetch_sub(1, Ordering::Relaxed);
        self.mm.remove_rmap(old, MappedBy::Pte)
    }

    fn leaf_of_copy(&self, new: &Folio, old: Pte, cleared: Entry) -> Pte {
        let fresh = self.anon_leaf(new);
        if self.access.is_write() {
            return fresh;
        }
        let young = match cleared.pte() {
            PteState::Present(pte) => pte.is_young(),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => false,
        };
        let fresh = if young { fresh.mk_young() } else { fresh };
        let fresh = if old.is_soft_dirty() { fresh.mk_soft_dirty() } else { fresh };
        if old.is_uffd_wp() { fresh.mk_uffd_wp() } else { fresh }
    }
}
