//! Leaves that are there and suffice, or should.

use abi::PAGE_SIZE;

use super::{Fault, FaultAccess, FaultOutcome, read_only_prot};
use crate::addr::{PMD_SHIFT, PMD_SIZE, VaRange, VirtAddr};
use crate::pgtable::{Entry, HwLeaf, LeafSize, PageProt, PmdState, PteState};
use crate::platform::{CpuSet, Platform, TlbFlush};

impl<P: Platform> Fault<'_, '_, P> {
    /// The leaf allowed the access: this CPU's translation was stale. Notes the
    /// access as the MMU would have, for machines whose MMU does not.
    pub(super) fn touch(&self, seen: Entry) -> FaultOutcome {
        self.change_pte(seen, FaultOutcome::Spurious, |entry| match entry.pte() {
            PteState::Present(pte) => self.touched(pte).entry(),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
        })
    }

    /// [`Self::touch`] of a leaf of the directory.
    pub(super) fn touch_huge(&self, seen: Entry) -> FaultOutcome {
        self.change_pmd(seen, FaultOutcome::Spurious, |entry| match entry.pmd() {
            PmdState::Present(pmd) => self.touched(pmd).entry(),
            PmdState::None | PmdState::Table(_) | PmdState::Soft(_) | PmdState::Unknown(_) => entry,
        })
    }

    /// The leaf allowed less than its VMA.
    pub(super) fn restore_rights(&self, seen: Entry) -> FaultOutcome {
        self.change_pte(seen, FaultOutcome::RightsRestored, |entry| match entry.pte() {
            PteState::Present(pte) => self.restored(pte).entry(),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
        })
    }

    /// [`Self::restore_rights`] of a leaf of the directory.
    pub(super) fn restore_huge_rights(&self, seen: Entry) -> FaultOutcome {
        self.change_pmd(seen, FaultOutcome::RightsRestored, |entry| match entry.pmd() {
            PmdState::Present(pmd) => self.restored(pmd).entry(),
            PmdState::None | PmdState::Table(_) | PmdState::Soft(_) | PmdState::Unknown(_) => entry,
        })
    }

    /// The leaf after the access.
    pub(super) fn touched<S: LeafSize>(&self, leaf: HwLeaf<S>) -> HwLeaf<S> {
        match self.access {
            FaultAccess::Write => leaf.mk_young().mk_dirty(),
            FaultAccess::Read | FaultAccess::Exec => leaf.mk_young(),
            FaultAccess::Unshare => leaf,
        }
    }

    /// The leaf after the access, writable if that is what it was about.
    pub(super) fn allowed<S: LeafSize>(&self, leaf: HwLeaf<S>) -> HwLeaf<S> {
        match self.access {
            FaultAccess::Write => {
                self.touched(leaf.clear_uffd_wp().with_prot(read_only_prot(self.flags)).mk_write())
            }
            FaultAccess::Read | FaultAccess::Exec | FaultAccess::Unshare => self.touched(leaf),
        }
    }

    fn restored<S: LeafSize>(&self, leaf: HwLeaf<S>) -> HwLeaf<S> {
        let kept = leaf.prot() & PageProt::WRITE;
        self.touched(leaf.with_prot(read_only_prot(self.flags) | kept))
    }

    /// Changes a present leaf of the PTE table if it is still there, and makes
    /// this CPU forget its translation. Others may keep theirs: they allow less,
    /// and a fault like this one mends them.
    pub(super) fn change_pte(
        &self,
        seen: Entry,
        outcome: FaultOutcome,
        change: impl FnMut(Entry) -> Entry,
    ) -> FaultOutcome {
        let Ok(mut guard) = self.tables().lock_pte(self.page) else { return FaultOutcome::Raced };
        if guard.load(self.page) != seen {
            return FaultOutcome::Raced;
        }
        guard.update(self.page, change);
        self.forget_here(self.page, PAGE_SIZE);
        outcome
    }

    fn change_pmd(
        &self,
        seen: Entry,
        outcome: FaultOutcome,
        change: impl FnMut(Entry) -> Entry,
    ) -> FaultOutcome {
        let Ok(mut guard) = self.tables().lock_pmd(self.page) else { return FaultOutcome::Raced };
        if guard.load(self.page) != seen {
            return FaultOutcome::Raced;
        }
        guard.update(self.page, change);
        self.forget_here(self.page.align_down(PMD_SHIFT), PMD_SIZE);
        outcome
    }

    /// Makes this CPU forget its translations of `bytes` from `start` on. The
    /// caller is masked, so that the CPU stays the same.
    pub(super) fn forget_here(&self, start: VirtAddr, bytes: u64) {
        let end = start.checked_add(bytes).unwrap_or(VirtAddr::END);
        let platform = self.mm.platform();
        if let Some(range) = VaRange::new(start, end) {
            let here = CpuSet::of(platform.cpu());
            platform.flush_tlb(self.space.root(), here, TlbFlush::Range(range));
        }
    }
}
