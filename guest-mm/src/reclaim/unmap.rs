//! Taking the leaves of a folio away, so that its memory can be had.

use core::ops::ControlFlow;

use crate::addr::{VaRange, VirtAddr};
use crate::folio::{Folio, FolioFlags};
use crate::mm::Mm;
use crate::pgtable::{Entry, Leaf, LeafFlags, Marker, Pte, PteGuard, PteState, Softleaf, SwapSlot};
use crate::platform::{Platform, TlbFlush};
use crate::rmap::{FolioSpan, MappedBy};
use crate::space::{AddressSpace, Vma};
use crate::sync::shim::Ordering;

/// Why a folio keeps a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Somebody has it pinned.
    Pinned,
    /// It was to be dropped, but was written since.
    Written,
    /// Its slot counts no further leaf.
    NoSlot,
}

/// What takes the place of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replacement {
    /// The page is in this slot.
    Swap(SwapSlot),
    /// Nothing: the contents may be lost.
    Lazyfree,
    /// Nothing: the file has the page.
    File,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Takes all leaves of a locked folio of one page away. Dirty bits go to the
    /// folio. On an error those that came before it are gone already, which is harmless.
    ///
    /// # Errors
    /// [`Kept`]; the leaf at which it was noticed is as it was.
    pub(super) fn unmap_to_reclaim(&self, folio: &Folio) -> Result<(), Kept> {
        debug_assert!(folio.is_locked() && !folio.is_large(), "{folio:?}");
        let by = match (folio.is_anon(), self.swap_slot_of(folio)) {
            (true, Some(slot)) => Replacement::Swap(slot),
            (true, None) => Replacement::Lazyfree,
            (false, _) => Replacement::File,
        };
        let walk = self.rmap_walk(folio, &mut |vma, span| self.unmap_one(folio, by, vma, span));
        match walk {
            ControlFlow::Break(kept) => Err(kept),
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    fn unmap_one(
        &self,
        folio: &Folio,
        by: Replacement,
        vma: &Vma<'m, P>,
        span: FolioSpan,
    ) -> ControlFlow<Kept> {
        // SAFETY: the reverse map's lock keeps the VMA, and the VMA its space.
        let space = unsafe { vma.space.as_ref() };
        let page = span.range.start();
        let Ok(mut guard) = space.tables().lock_pte(page) else {
            return ControlFlow::Continue(());
        };
        let PteState::Present(pte) = guard.load(page).pte() else {
            return ControlFlow::Continue(());
        };
        if pte.is_special() || pte.pfn() != folio.pfn() {
            return ControlFlow::Continue(());
        }
        let old = take_leaf(space, &mut guard, page).unwrap_or(pte);
        // Whoever pinned it by this leaf without a lock has seen it gone, or is seen here.
        let replaced =
            if folio.is_pinned() { Err(Kept::Pinned) } else { self.leaf_instead(folio, by, old) };
        match replaced {
            Ok(leaf) => {
                if !leaf.is_none() {
                    guard.set(page, leaf);
                }
                self.note_dirty(folio, old);
                count_out(space, by);
                // The flush is done, and the caller has a reference of its own.
                self.put(self.remove_rmap(folio, MappedBy::Pte));
                ControlFlow::Continue(())
            }
            Err(kept) => {
                guard.set(page, old.entry());
                ControlFlow::Break(kept)
            }
        }
    }

    /// What stands in the place of the leaf that was taken away.
    fn leaf_instead(&self, folio: &Folio, by: Replacement, old: Pte) -> Result<Entry, Kept> {
        match by {
            Replacement::Swap(slot) => {
                self.swap_dup(slot).map_err(|_| Kept::NoSlot)?;
                let kind = Softleaf::Swap { slot, exclusive: old.is_anon_exclusive() };
                Ok(Leaf::new(kind, flags_of(old)).entry())
            }
            Replacement::Lazyfree => {
                // References: the caller's, and a leaf's each. More, and somebody looks at it.
                let is_shared = folio.refcount() != 1 + folio.mapcount();
                if old.is_dirty() || folio.has(FolioFlags::DIRTY) || is_shared {
                    // Written after it was given up: an ordinary page again.
                    folio.set_flags(FolioFlags::SWAPBACKED);
                    return Err(Kept::Written);
                }
                Ok(Entry::NONE)
            }
            Replacement::File if old.is_uffd_wp() => {
                Ok(Leaf::from(Softleaf::Marker(Marker::UFFD_WP)).entry())
            }
            Replacement::File => Ok(Entry::NONE),
        }
    }

    fn note_dirty(&self, folio: &Folio, old: Pte) {
        if old.is_dirty() {
            self.mark_folio_dirty(folio);
        }
    }
}

/// Clears the leaf at `page` and makes all CPUs forget it; what it was, with its final bits.
fn take_leaf<P: Platform>(
    space: &AddressSpace<'_, P>,
    guard: &mut PteGuard<'_, P>,
    page: VirtAddr,
) -> Option<Pte> {
    let old = guard.clear(page);
    if let Some(end) = page.checked_add(abi::PAGE_SIZE)
        && let Some(range) = VaRange::new(page, end)
    {
        space.tables().flush(TlbFlush::Range(range));
    }
    match old.pte() {
        PteState::Present(pte) => Some(pte),
        PteState::None | PteState::Soft(_) | PteState::Unknown(_) => None,
    }
}

/// The state that a swap leaf keeps of a mapping. Dirt goes to the folio.
fn flags_of(old: Pte) -> LeafFlags {
    let mut flags = LeafFlags::empty();
    flags.set(LeafFlags::SOFT_DIRTY, old.is_soft_dirty());
    flags.set(LeafFlags::UFFD_WP, old.is_uffd_wp());
    flags
}

/// Moves a page from one of the space's counters to another.
fn count_out<P: Platform>(space: &AddressSpace<'_, P>, by: Replacement) {
    let rss = &space.rss;
    match by {
        Replacement::Swap(_) => {
            rss.anon.fetch_sub(1, Ordering::Relaxed);
            rss.swap.fetch_add(1, Ordering::Relaxed);
        }
        Replacement::Lazyfree => {
            rss.anon.fetch_sub(1, Ordering::Relaxed);
        }
        Replacement::File => {
            rss.file.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
