//! Faults on 2 MiB at once.

use core::sync::atomic::Ordering;

use super::policy::{huge_range, may_be_ours};
use super::{Fault, FaultError, FaultEvent, FaultOutcome, Round, Seen, Stop, read_only_prot};
use crate::addr::{PMD_ORDER, PMD_SHIFT, PMD_SIZE};
use crate::buddy::Gfp;
use crate::folio::{Folio, FolioFlags, FolioKind, FolioRef};
use crate::memdesc::Order;
use crate::pgtable::{Entry, Pmd, PmdState};
use crate::platform::Platform;
use crate::space::VmFlags;

/// Pages that a leaf of a directory maps.
const HUGE_PAGES: u64 = 1 << PMD_ORDER;

impl<'m, P: Platform> Fault<'_, 'm, P> {
    /// Maps 2 MiB of zeros around the page, if the policy allows and there is
    /// memory; `None` if PTEs have to do. Nothing stands in the directory.
    ///
    /// Reads get their own memory too, as on Linux without a huge zero page:
    /// small zero pages would leave a PTE table behind, and nothing huge after it.
    pub(super) fn map_huge(&self) -> Result<Option<FaultOutcome>, Stop<'m>> {
        let vma = self.vma;
        if huge_range(vma.range(), self.flags, vma.is_anonymous(), self.page).is_none() {
            return Ok(None);
        }
        self.prepare_anon_vma()?;
        let Some(folio) = self.alloc_huge() else {
            self.mm.note_fault(FaultEvent::ThpFallback);
            return Ok(None);
        };
        self.set_huge(folio).map(Some)
    }

    /// Sets the leaf, unless somebody was faster.
    fn set_huge(&self, folio: FolioRef<'m>) -> Round<'m> {
        let head = self.page.align_down(PMD_SHIFT);
        let mut guard = match self.tables().alloc_lock_pmd(head) {
            Ok(guard) => guard,
            Err(error) => {
                self.mm.put(folio);
                return Err(error.into());
            }
        };
        if !guard.load(head).is_none() {
            drop(guard);
            self.mm.put(folio);
            return Ok(FaultOutcome::Raced);
        }
        if self.space.is_dead() {
            // As in `lock_same`.
            drop(guard);
            self.mm.put(folio);
            return Err(FaultError::Oom.into());
        }
        let leaf = self.leaf_of_huge(&folio);
        folio.set_flags(FolioFlags::UPTODATE);
        self.mm.add_new_anon_rmap(folio, self.vma, head);
        self.space.rss.anon.fetch_add(HUGE_PAGES, Ordering::Relaxed);
        guard.set(head, leaf.entry());
        Ok(FaultOutcome::AnonHuge)
    }

    /// 2 MiB of zeros. A favour: not from the reserves, and without reclaim. Pages are moved
    /// for it, without waiting unless the program has asked for huge pages.
    fn alloc_huge(&self) -> Option<FolioRef<'m>> {
        let order = Order::try_from(PMD_ORDER).ok()?;
        let asked_for = self.flags.contains(VmFlags::HUGEPAGE);
        let compact = if asked_for { Gfp::COMPACT_SYNC } else { Gfp::COMPACT };
        let gfp = Gfp::USER | Gfp::ZERO | Gfp::OPTIONAL | compact;
        self.mm.alloc_folio(order, gfp, FolioKind::Anon).ok()
    }

    fn leaf_of_huge(&self, folio: &Folio) -> Pmd {
        let fresh = Pmd::new(folio.pfn(), read_only_prot(self.flags))
            .unwrap_or_else(|| unreachable!("a folio of order 9 is aligned to it"))
            .mk_anon_exclusive()
            .mk_young();
        // The first write to each of 512 pages shall not fault.
        let writable = self.flags.contains(VmFlags::WRITE);
        if writable { fresh.mk_write().mk_dirty() } else { fresh }
    }

    /// A write to a leaf of a directory without WRITE, or pages to be unshared.
    pub(super) fn write_protect_huge(&self, seen: Entry, pmd: Pmd) -> Round<'m> {
        let Ok(mut guard) = self.tables().lock_pmd(self.page) else {
            return Ok(FaultOutcome::Raced);
        };
        if guard.load(self.page) != seen {
            return Ok(FaultOutcome::Raced);
        }
        // SAFETY: the leaf maps the frame, and its lock is held.
        let Some(folio) = (unsafe { self.mm.mapped_folio(pmd.pfn()) }) else {
            return self.fail(FaultError::Bus, Some(FaultEvent::UnknownLeaf));
        };
        if folio.has(FolioFlags::HWPOISON) {
            return self.fail(FaultError::HwPoison, None);
        }
        if folio.is_anon() && (pmd.is_anon_exclusive() || self.take_over_huge(folio)) {
            guard.update(self.page, |entry| match entry.pmd() {
                PmdState::Present(pmd) => self.allowed(pmd.mk_anon_exclusive()).entry(),
                PmdState::None | PmdState::Table(_) | PmdState::Soft(_) | PmdState::Unknown(_) => {
                    entry
                }
            });
            self.forget_here(self.page.align_down(PMD_SHIFT), PMD_SIZE);
            return Ok(FaultOutcome::Reused);
        }
        drop(guard);
        self.split_and_go_on()
    }

    /// Whether nobody but this leaf has the folio; makes it ours then.
    fn take_over_huge(&self, folio: &Folio) -> bool {
        if folio.has(FolioFlags::SWAPCACHE) || !may_be_ours(folio.refcount(), 0) {
            return false;
        }
        let Some(lock) = folio.try_lock(self.mm.platform()) else { return false };
        let ours = folio.refcount() == 1;
        if ours {
            self.mm.move_anon_rmap(folio, self.vma);
        }
        drop(lock);
        ours
    }

    /// The pages are others' too: only the one that was written is copied.
    fn split_and_go_on(&self) -> Round<'m> {
        if self.mm.split_pmd(self.space, self.page)? {
            self.mm.note_fault(FaultEvent::PmdSplit);
        }
        match self.look()? {
            Seen::Pte(seen) => self.serve_pte(seen),
            Seen::Hole | Seen::Pmd(_) => Ok(FaultOutcome::Raced),
        }
    }
}
