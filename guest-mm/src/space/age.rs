//! MADV_FREE and MADV_COLD: leaves that look unused.

use core::ops::ControlFlow;

use abi::PAGE_SIZE;

use super::structure::AddressSpace;
use crate::addr::{PMD_SHIFT, PMD_SIZE, VaRange, VirtAddr};
use crate::folio::{Folio, FolioFlags};
use crate::mm::Mm;
use crate::pgtable::{
    Entry, HwLeaf, LeafSize, NoTable, PmdState, PteGuard, PteState, Softleaf, SpaceLeaves,
    TlbGather,
};
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// What is said about pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aging {
    /// Nobody needs the contents.
    Free,
    /// Nobody needs them soon.
    Cold,
}

impl Aging {
    fn leaf<S: LeafSize>(self, leaf: HwLeaf<S>) -> HwLeaf<S> {
        match self {
            Self::Free => leaf.mk_old().mk_clean(),
            Self::Cold => leaf.mk_old(),
        }
    }
}

type Gather<'a, 'o, 'm, P> =
    TlbGather<'a, P, <SpaceLeaves<'o, 'm, P> as crate::pgtable::LeafOwner>::Put>;

impl<'m, P: Platform> Mm<'m, P> {
    /// Ages the leaves of `range`, TLBs flushed. The space's lock is held for reading.
    ///
    /// A hint: pages that others map too, that somebody has locked, or that are a part of
    /// a folio are left alone.
    pub(super) fn age_leaves(&self, space: &AddressSpace<'m, P>, range: VaRange, how: Aging) {
        let tables = space.tables();
        let mut owner = SpaceLeaves::new(self, space);
        let mut gather = TlbGather::new(tables);
        let mut at = range.start();
        while at < range.end() {
            at = match tables.lock_pte(at) {
                Ok(mut guard) => {
                    let until = range.end().min(guard.end());
                    let part = VaRange::new(at, until);
                    for page in part.into_iter().flat_map(VaRange::iter_pages) {
                        self.age_pte(space, &mut guard, page, how, &mut gather);
                    }
                    until
                }
                Err(NoTable::Hole { level }) => end_of(at, PMD_SHIFT + 9 * (level - 1)),
                Err(NoTable::Unknown(_)) => end_of(at, PMD_SHIFT),
                Err(NoTable::Huge(_)) => match self.age_huge(space, at, range, how, &mut gather) {
                    ControlFlow::Continue(next) => next,
                    ControlFlow::Break(()) => end_of(at, PMD_SHIFT),
                },
            };
        }
        gather.flush(&mut owner);
    }

    fn age_pte(
        &self,
        space: &AddressSpace<'m, P>,
        guard: &mut PteGuard<'_, P>,
        page: VirtAddr,
        how: Aging,
        gather: &mut Gather<'_, '_, 'm, P>,
    ) {
        match guard.load(page).pte() {
            PteState::Present(pte) if !pte.is_special() => {
                // SAFETY: the leaf is in the table, whose lock is held.
                let folio = unsafe { self.mapped_folio(pte.pfn()) };
                if !folio.is_some_and(|folio| !folio.is_large() && self.age_folio(folio, how)) {
                    return;
                }
                let old = guard.update(page, |entry| match entry.pte() {
                    PteState::Present(pte) => how.leaf(pte).entry(),
                    PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
                });
                if old != guard.load(page) {
                    gather.note(page, PAGE_SIZE);
                }
            }
            PteState::Soft(leaf) if how == Aging::Free => {
                if let Softleaf::Swap { slot, .. } = leaf.kind() {
                    guard.clear(page);
                    space.rss.swap.fetch_sub(1, Ordering::Relaxed);
                    let put = self.swap_put(slot);
                    debug_assert!(put.is_ok(), "{slot:?}: {put:?}");
                }
            }
            PteState::None | PteState::Present(_) | PteState::Soft(_) | PteState::Unknown(_) => {}
        }
    }

    /// A PMD leaf at `at`: `Continue` with the next address, also after a split.
    fn age_huge(
        &self,
        space: &AddressSpace<'m, P>,
        at: VirtAddr,
        range: VaRange,
        how: Aging,
        gather: &mut Gather<'_, '_, 'm, P>,
    ) -> ControlFlow<(), VirtAddr> {
        let next = end_of(at, PMD_SHIFT);
        let Ok(mut guard) = space.tables().lock_pmd(at) else { return ControlFlow::Break(()) };
        let PmdState::Present(pmd) = guard.load(at).pmd() else { return ControlFlow::Break(()) };
        // Of a part nothing can be said: what is behind it is one folio.
        let whole = at.is_aligned(PMD_SHIFT) && next <= range.end();
        // SAFETY: the leaf is in the table, whose lock is held.
        let folio = unsafe { self.mapped_folio(pmd.pfn()) }.filter(|_| whole && !pmd.is_special());
        if !folio.is_some_and(|folio| self.age_folio(folio, how)) {
            return ControlFlow::Break(());
        }
        let old = guard.update(at, |entry| match entry.pmd() {
            PmdState::Present(pmd) => how.leaf(pmd).entry(),
            PmdState::None | PmdState::Table(_) | PmdState::Soft(_) | PmdState::Unknown(_) => entry,
        });
        if old != Entry::NONE {
            gather.note(at, PMD_SIZE);
        }
        ControlFlow::Continue(next)
    }

    /// Notes it in a folio that one leaf maps. `false` if it shall stay as it is.
    fn age_folio(&self, folio: &Folio, how: Aging) -> bool {
        if folio.mapcount() != 1 {
            return false;
        }
        match how {
            Aging::Cold => {
                self.lru_deactivate(folio);
                true
            }
            Aging::Free => self.free_lazily(folio),
        }
    }

    /// Makes an anonymous folio one that reclaim drops unless it is written again.
    fn free_lazily(&self, folio: &Folio) -> bool {
        let Some(locked) = folio.try_lock(self.platform()).filter(|_| folio.is_anon()) else {
            return false;
        };
        if folio.has(FolioFlags::SWAPCACHE) && !self.free_swap(&locked) {
            return false;
        }
        folio.clear_flags(FolioFlags::DIRTY | FolioFlags::SWAPBACKED);
        self.lru_deactivate(folio);
        true
    }
}

/// The end of the block of `2^shift` bytes around `at`.
fn end_of(at: VirtAddr, shift: u32) -> VirtAddr {
    at.align_down(shift).checked_add(1 << shift).unwrap_or(VirtAddr::END)
}
