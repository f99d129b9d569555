//! Whether a folio was used: its leaves' accessed bits, by the reverse map.

use core::ops::ControlFlow;

use crate::addr::VirtAddr;
use crate::folio::Folio;
use crate::mm::Mm;
use crate::pgtable::{NoTable, PmdState, PteState};
use crate::platform::Platform;
use crate::rmap::FolioSpan;
use crate::space::{VmFlags, Vma};

/// What the leaves of a folio say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct References {
    /// Leaves through which it was used since the last look.
    pub(super) young: u32,
    /// A VMA keeps it in memory (mlock).
    pub(super) is_locked: bool,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Counts the leaves through which a locked folio was used, and makes them
    /// old. No TLB is flushed: an entry that a CPU has cached may be used for a
    /// while without being noticed, which costs a wrong guess at most.
    pub(super) fn leaf_references(&self, folio: &Folio) -> References {
        let mut found = References::default();
        if !folio.is_mapped() {
            return found;
        }
        let walk = self.rmap_walk(folio, &mut |vma, span| {
            if vma.flags().contains(VmFlags::LOCKED) {
                found.is_locked = true;
                return ControlFlow::Break(());
            }
            found.young += self.young_leaves(folio, vma, span);
            ControlFlow::Continue(())
        });
        debug_assert_eq!(walk.is_break(), found.is_locked);
        found
    }

    /// Leaves of `folio` in one VMA that were young, which they are no more.
    fn young_leaves(&self, folio: &Folio, vma: &Vma<'m, P>, span: FolioSpan) -> u32 {
        // SAFETY: the reverse map's lock keeps the VMA, and the VMA its space.
        let space = unsafe { vma.space.as_ref() };
        let frames = folio.range();
        let (mut young, mut page) = (0, span.range.start());
        while page < span.range.end() {
            let next = match space.tables().lock_pte(page) {
                Ok(mut guard) => {
                    if let PteState::Present(pte) = guard.load(page).pte()
                        && frames.contains(pte.pfn())
                        && pte.is_young()
                    {
                        guard.update(page, |entry| match entry.pte() {
                            PteState::Present(pte) => pte.mk_old().entry(),
                            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
                        });
                        young += 1;
                    }
                    page.checked_add(abi::PAGE_SIZE)
                }
                Err(NoTable::Huge(_)) => {
                    young += self.young_pmd(folio, vma, page);
                    next_directory_entry(page)
                }
                Err(NoTable::Hole { .. } | NoTable::Unknown(_)) => next_directory_entry(page),
            };
            let Some(next) = next else { break };
            page = next;
        }
        young
    }

    fn young_pmd(&self, folio: &Folio, vma: &Vma<'m, P>, page: VirtAddr) -> u32 {
        // SAFETY: as in `young_leaves`.
        let space = unsafe { vma.space.as_ref() };
        let Ok(mut guard) = space.tables().lock_pmd(page) else { return 0 };
        let PmdState::Present(pmd) = guard.load(page).pmd() else { return 0 };
        if pmd.pfn() != folio.pfn() || !pmd.is_young() {
            return 0;
        }
        guard.update(page, |entry| match entry.pmd() {
            PmdState::Present(pmd) => pmd.mk_old().entry(),
            PmdState::None | PmdState::Table(_) | PmdState::Soft(_) | PmdState::Unknown(_) => entry,
        });
        1
    }
}

/// Where the next entry of the page directory begins.
fn next_directory_entry(page: VirtAddr) -> Option<VirtAddr> {
    page.align_down(crate::addr::PMD_SHIFT).checked_add(crate::addr::PMD_SIZE)
}
