//! Pages of files.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use abi::{PageCount, Pfn};

use super::policy::fault_around;
use super::wait::Wait;
use super::{Fault, FaultError, FaultEvent, FaultOutcome, Round, Stop, read_only_prot};
use crate::addr::VirtAddr;
use crate::buddy::Gfp;
use crate::folio::{CacheGlance, Folio, FolioFlags, LockedFolio};
use crate::pagecache::{FileFault, FileMapping};
use crate::pgtable::{Entry, Pte, PteGuard, PteState, Sharing};
use crate::platform::Platform;

impl<'m, P: Platform> Fault<'_, 'm, P> {
    /// A page of `file`, which the VMA maps, that is not there.
    pub(super) fn absent_file_page(
        &self,
        seen: Entry,
        uffd_wp: bool,
        file: NonNull<FileMapping<'m, P>>,
    ) -> Round<'m> {
        // SAFETY: the VMA has a reference of its file, and is locked.
        let file = unsafe { file.as_ref() };
        match (self.access.is_write(), self.sharing()) {
            (true, Sharing::Private) => self.private_copy(seen, file),
            (true, Sharing::Shared) | (false, _) => self.map_file_page(seen, uffd_wp, file),
        }
    }

    /// The folio with the page, locked, inside the file, and readable.
    fn file_folio(&self, file: &FileMapping<'m, P>) -> Result<LockedFolio<'m, P>, Stop<'m>> {
        let index = self.vma.linear_index(self.page);
        let folio = match self.mm.file_fault_folio(file, index, Gfp::USER) {
            Ok(folio) => folio,
            Err(FileFault::BeyondEnd) => return self.fail(FaultError::Bus, None),
            Err(FileFault::OutOfMemory) => return Err(Stop::Wait(Wait::Memory)),
        };
        let error = if folio.has(FolioFlags::HWPOISON) {
            FaultError::HwPoison
        } else if !folio.has(FolioFlags::UPTODATE) {
            FaultError::Bus
        } else {
            return Ok(folio);
        };
        self.mm.put(folio.unlock());
        self.fail(error, None)
    }

    /// Maps the page cache's page: writable if it is shared and about to be written.
    fn map_file_page(&self, seen: Entry, uffd_wp: bool, file: &FileMapping<'m, P>) -> Round<'m> {
        let folio = self.file_folio(file)?;
        let mapped = self.map_locked(seen, uffd_wp, file, &folio);
        self.mm.put(folio.unlock());
        mapped
    }

    fn map_locked(
        &self,
        seen: Entry,
        uffd_wp: bool,
        file: &FileMapping<'m, P>,
        folio: &LockedFolio<'m, P>,
    ) -> Round<'m> {
        if self.access.is_write() {
            // Before anybody can write through the leaf (`page_mkwrite`).
            self.mm.mark_folio_dirty(folio);
        }
        let Some(mut guard) = self.lock_same(seen)? else { return Ok(FaultOutcome::Raced) };
        let leaf = self.allowed(self.file_leaf(folio, self.page));
        let leaf = if uffd_wp && !self.access.is_write() { leaf.mk_uffd_wp() } else { leaf };
        self.set_file_leaf(&mut guard, folio, self.page, leaf);
        if !self.access.is_write() {
            self.map_around(&mut guard, file);
        }
        Ok(FaultOutcome::FilePage)
    }

    /// The read-only leaf of the folio's page that belongs to `page`.
    fn file_leaf(&self, folio: &Folio, page: VirtAddr) -> Pte {
        Pte::new(self.frame_in(folio, page), read_only_prot(self.flags))
            .unwrap_or_else(|| unreachable!("frames of RAM fit a leaf"))
    }

    fn frame_in(&self, folio: &Folio, page: VirtAddr) -> Pfn {
        let offset = self.vma.linear_index(page) - folio.index();
        debug_assert!(offset < folio.pages().get(), "{folio:?} has no page {offset}");
        folio
            .pfn()
            .checked_add(PageCount::new(offset))
            .unwrap_or_else(|| unreachable!("a folio ends below 2^64"))
    }

    /// Maps a page of a locked folio where nothing is.
    fn set_file_leaf(
        &self,
        guard: &mut PteGuard<'_, P>,
        folio: &LockedFolio<'m, P>,
        page: VirtAddr,
        leaf: Pte,
    ) {
        self.mm.add_file_rmap(folio.reference().get());
        self.space.rss.file.fetch_add(1, Ordering::Relaxed);
        guard.set(page, leaf.entry());
    }

    /// Maps neighbours of the page that are in the cache, valid and not locked:
    /// programs read on. Never waits, and does not mark them used.
    fn map_around(&self, guard: &mut PteGuard<'_, P>, file: &FileMapping<'m, P>) {
        let Some(window) = fault_around(self.vma.range(), self.page) else { return };
        let mut mapped = 0;
        for page in window.iter_pages() {
            if guard.load(page).is_none() && self.map_neighbour(guard, file, page) {
                mapped += 1;
            }
        }
        self.mm.faults.note(self.mm.platform().cpu(), FaultEvent::FaultAround, mapped);
    }

    fn map_neighbour(
        &self,
        guard: &mut PteGuard<'_, P>,
        file: &FileMapping<'m, P>,
        page: VirtAddr,
    ) -> bool {
        let index = self.vma.linear_index(page);
        // One look: who has it frozen may be a thread that waits for this CPU, which is
        // masked by the table's lock.
        let folio = match self.mm.glance_at_cache(file, index) {
            CacheGlance::Folio(folio) => folio,
            CacheGlance::Moved(folio) => {
                self.mm.put(folio);
                return false;
            }
            CacheGlance::Absent | CacheGlance::Frozen => return false,
        };
        let folio = match folio.try_into_locked(self.mm.platform()) {
            Ok(folio) => folio,
            Err(folio) => {
                self.mm.put(folio);
                return false;
            }
        };
        let state = folio.flags() & (FolioFlags::UPTODATE | FolioFlags::HWPOISON);
        let ours = self.mm.mapping_of(&folio) == Some(NonNull::from(file));
        let inside = index < file.size_pages();
        let fits = ours && inside && state == FolioFlags::UPTODATE;
        if fits {
            let leaf = self.file_leaf(&folio, page);
            self.set_file_leaf(guard, &folio, page, leaf);
        }
        self.mm.put(folio.unlock());
        fits
    }

    /// Maps a private copy of the page cache's page.
    fn private_copy(&self, seen: Entry, file: &FileMapping<'m, P>) -> Round<'m> {
        let new = self.alloc_for_copy()?;
        let folio = match self.file_folio(file) {
            Ok(folio) => folio,
            Err(stop) => {
                self.mm.put(new);
                return Err(stop);
            }
        };
        let page = self.vma.linear_index(self.page) - folio.index();
        self.mm.copy_folio_page((&new, 0), (&folio, page));
        // Still locked: a truncation that comes now takes the copy away too.
        let locked = self.lock_same(seen);
        let mapped = match locked {
            Ok(Some(mut guard)) => {
                let leaf = self.anon_leaf(&new);
                self.map_new_anon(&mut guard, leaf, new);
                Ok(FaultOutcome::Copied)
            }
            Ok(None) => {
                self.mm.put(new);
                Ok(FaultOutcome::Raced)
            }
            Err(stop) => {
                self.mm.put(new);
                Err(stop)
            }
        };
        self.mm.put(folio.unlock());
        mapped
    }

    /// The first write through a shared, read-only leaf.
    pub(super) fn write_shared(&self, seen: Entry, pte: Pte) -> Round<'m> {
        let folio = {
            let Some(_guard) = self.lock_same(seen)? else { return Ok(FaultOutcome::Raced) };
            // SAFETY: the leaf maps the frame, and its lock is held.
            match unsafe { self.mm.mapped_folio(pte.pfn()) } {
                Some(folio) => self.mm.get(folio),
                None => return self.fail(FaultError::Bus, Some(FaultEvent::UnknownLeaf)),
            }
        };
        let folio = match folio.try_into_locked(self.mm.platform()) {
            Ok(folio) => folio,
            Err(folio) => return Err(Stop::Wait(Wait::Folio(folio))),
        };
        let outcome = if folio.has(FolioFlags::HWPOISON) {
            self.fail(FaultError::HwPoison, None)
        } else if self.mm.mapping_of(&folio) == self.vma.file() {
            self.mm.mark_folio_dirty(&folio);
            Ok(self.change_pte(seen, FaultOutcome::Reused, |entry| match entry.pte() {
                PteState::Present(pte) => self.allowed(pte).entry(),
                PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
            }))
        } else {
            // Truncated: the leaf is gone, or going.
            Ok(FaultOutcome::Raced)
        };
        self.mm.put(folio.unlock());
        outcome
    }
}
