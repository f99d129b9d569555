//! Taking all leaves of a folio away, and putting them back.

use core::ops::ControlFlow;
use core::ptr::NonNull;

use abi::PAGE_SHIFT;

use super::{FolioSpan, RmapAnchor};
use crate::addr::VaRange;
use crate::folio::{Folio, FolioFlags};
use crate::mm::Mm;
use crate::pagecache::FileMapping;
use crate::pgtable::softleaf::MigrationAccess;
use crate::pgtable::{
    Entry, Leaf, LeafFlags, LeafState, LeafWalk, Location, Pmd, Pte, PteState, SizedLeaf, Softleaf,
    Sought, SoughtLeaves, ZapRules,
};
use crate::platform::{Platform, WaitKey};
use crate::space::{AddressSpace, Rss, VmFlags, Vma};
use crate::sync::shim::Ordering;

/// What comes in place of a folio's leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmap {
    /// Nothing: the file's page is gone (truncation).
    Drop,
    /// What reclaim leaves: swap leaves for anonymous pages, whose folio has its
    /// slot; nothing for file pages, and for clean pages that MADV_FREE gave away.
    /// Stops at a VMA that is locked in memory.
    Reclaim,
    /// Migration leaves, one a page: faults wait until they are replaced.
    Migrate,
    /// Migration leaves of the size that the leaves had, of a folio that moves as a whole.
    MigrateWhole,
}

impl Unmap {
    /// Whether the leaves come back.
    const fn is_migration(self) -> bool {
        match self {
            Self::Migrate | Self::MigrateWhole => true,
            Self::Drop | Self::Reclaim => false,
        }
    }

    /// Whether a PMD leaf becomes 512 PTEs first.
    const fn splits_pmds(self) -> bool {
        match self {
            Self::Migrate | Self::Reclaim => true,
            Self::Drop | Self::MigrateWhole => false,
        }
    }
}

/// A leaf could not be taken away: pinned, no slot, no memory for a table.
#[derive(Debug)]
struct Stuck;

impl<'m, P: Platform> Mm<'m, P> {
    /// Takes the leaves of a locked folio away, TLBs flushed, their A and D noted
    /// in the folio or the new leaf. Returns whether none is left.
    ///
    /// Stops at the first leaf that cannot go, because somebody pinned the page,
    /// say: those taken away stay so; after a migration's the caller puts them
    /// back by [`Self::restore_leaves`]. The caller holds a reference.
    pub fn try_to_unmap(&self, folio: &Folio, how: Unmap) -> bool {
        debug_assert!(folio.is_locked(), "{folio:?}");
        match self.rmap_walk(folio, &mut |vma, span| self.unmap_from(vma, span, folio, how)) {
            ControlFlow::Break(Stuck) => false,
            ControlFlow::Continue(()) => !folio.is_mapped(),
        }
    }

    fn unmap_from(
        &self,
        vma: &Vma<'m, P>,
        span: FolioSpan,
        folio: &Folio,
        how: Unmap,
    ) -> ControlFlow<Stuck> {
        if how == Unmap::Reclaim && vma.flags().contains(VmFlags::LOCKED) {
            return ControlFlow::Break(Stuck);
        }
        // SAFETY: a VMA in a tree belongs to a space that has not ended.
        let space = unsafe { vma.space.as_ref() };
        let sought = Sought::Frames(folio.range());
        let mut range = span.range;
        loop {
            let mut walk = LeafWalk::new(space.tables(), range, sought, SoughtLeaves::Mapped);
            let block = loop {
                let Some((at, leaf)) = walk.next_leaf() else { return ControlFlow::Continue(()) };
                if leaf.order > 0 && how.splits_pmds() {
                    break at;
                }
                if unmap_leaf(self, &mut walk, leaf, folio, how, space).is_err() {
                    return ControlFlow::Break(Stuck);
                }
            };
            // Tables are made without locks; then the block is walked again as PTEs.
            drop(walk);
            if self.split_pmd(space, block).is_err() {
                return ControlFlow::Break(Stuck);
            }
            let from = block.max(range.start());
            range = VaRange::new(from, range.end()).unwrap_or(range);
        }
    }

    /// Makes the migration leaves of the frames from `from` on leaves that map
    /// `folio`: the same frames after a split or a migration that failed, those of
    /// the copy after one that did not. All that the leaves kept comes back.
    ///
    /// The folio is locked and not frozen; `anchor` is from before it was unmapped.
    /// Who sleeps on one of the leaves goes on.
    pub fn restore_leaves(&self, anchor: &RmapAnchor<'m, P>, folio: &Folio, from: abi::Pfn) {
        debug_assert!(folio.is_locked(), "{folio:?}");
        let Some(frames) = abi::PfnRange::from_start(from, folio.pages()) else { return };
        let walk = self.rmap_walk_from::<()>(anchor, folio, &mut |vma, span| {
            // SAFETY: a VMA in a tree belongs to a space that has not ended.
            let tables = unsafe { vma.space.as_ref() }.tables();
            let sought = Sought::Frames(frames);
            let mut walk = LeafWalk::new(tables, span.range, sought, SoughtLeaves::Migrating);
            while let Some((_, SizedLeaf { state, order })) = walk.next_leaf() {
                let LeafState::Soft(leaf) = state else { continue };
                let pte = restored(leaf, vma, folio, from);
                let entry = if order == 0 {
                    pte.map(Pte::entry)
                } else {
                    // What moved as a whole is aligned as it was.
                    pte.and_then(Pte::collapse).map(Pmd::entry)
                };
                debug_assert!(entry.is_some(), "{leaf:?} of {folio:?}");
                if let Some(entry) = entry {
                    self.dup_rmap(folio);
                    walk.replace(entry);
                }
            }
            ControlFlow::Continue(())
        });
        debug_assert_eq!(walk, ControlFlow::Continue(()));
        // Whatever became of the leaves meanwhile: none names these frames any more.
        self.platform().wake(WaitKey::frame(from), frames.len().get());
    }

    /// Zaps the pages `first..end` of a file from all that map it, private copies
    /// included: they lie beyond the file's end.
    pub(crate) fn unmap_file_range(&self, file: &FileMapping<'m, P>, first: u64, end: u64) {
        if first >= end {
            return;
        }
        let tree = file.i_mmap.read(self.platform());
        let mut visit = |vma: NonNull<Vma<'m, P>>| {
            // SAFETY: VMAs leave the tree, under the lock that is held, before they are freed.
            self.zap_pages(unsafe { vma.as_ref() }, first, end);
            ControlFlow::Continue(())
        };
        // SAFETY: the file's lock is held.
        let walk = unsafe { tree.for_each_overlap::<()>(first, end - 1, &mut visit) };
        debug_assert_eq!(walk, ControlFlow::Continue(()));
    }

    fn zap_pages(&self, vma: &Vma<'m, P>, first: u64, end: u64) {
        let (vma_first, vma_last) = super::chain::span(vma);
        let (from, to) = (first.max(vma_first) - vma_first, end.min(vma_last + 1) - vma_first);
        let at = |page: u64| vma.range().start().checked_add(page << PAGE_SHIFT);
        let range = at(from).zip(at(to)).and_then(|(from, to)| VaRange::new(from, to));
        let Some(range) = range else { return };
        // SAFETY: a VMA in a tree belongs to a space that has not ended.
        let space = unsafe { vma.space.as_ref() };
        // Without memory to split a PMD leaf across the end, the folio's own unmapping,
        // which takes the whole leaf, follows.
        if let Err(error) = self.zap_leaves(space, range, ZapRules::DISCARD) {
            debug_assert!(!matches!(error, crate::pgtable::MakeTableError::Unknown(_)), "{error}");
        }
    }
}

/// Takes the leaf that `walk` has found away.
fn unmap_leaf<'m, P: Platform>(
    mm: &Mm<'m, P>,
    walk: &mut LeafWalk<'_, P>,
    leaf: SizedLeaf,
    folio: &Folio,
    how: Unmap,
    space: &AddressSpace<'m, P>,
) -> Result<(), Stuck> {
    let rss = &space.rss;
    let LeafState::Present(seen) = leaf.state else {
        return unmap_exclusive(mm, walk, folio, how, rss);
    };
    let old = walk.clear();
    walk.note_stale();
    // A and D as they were last; a PMD leaf has the frame of its first page.
    let was = final_leaf(old).unwrap_or(seen);
    let new = match replacement(mm, was, folio, how) {
        Ok(new) => new,
        Err(Stuck) => {
            walk.replace(old);
            return Err(Stuck);
        }
    };
    if was.is_dirty() {
        mm.mark_folio_dirty(folio);
    }
    if was.is_young() && how == Unmap::Reclaim {
        folio.set_flags(FolioFlags::REFERENCED);
    }
    let pages = leaf.pages();
    if let Some(new) = new {
        walk.replace(new.entry());
    }
    if !how.is_migration() {
        let counter = if folio.is_anon() { &rss.anon } else { &rss.file };
        counter.fetch_sub(pages, Ordering::Relaxed);
        if new.is_some() {
            rss.swap.fetch_add(pages, Ordering::Relaxed);
        }
    }
    mm.forget_leaf(folio);
    Ok(())
}

/// A page that a device has to itself: only truncation takes it, others ask the
/// device first.
fn unmap_exclusive<P: Platform>(
    mm: &Mm<'_, P>,
    walk: &mut LeafWalk<'_, P>,
    folio: &Folio,
    how: Unmap,
    rss: &Rss,
) -> Result<(), Stuck> {
    if how != Unmap::Drop {
        return Err(Stuck);
    }
    walk.clear();
    let counter = if folio.is_anon() { &rss.anon } else { &rss.file };
    counter.fetch_sub(1, Ordering::Relaxed);
    mm.forget_leaf(folio);
    Ok(())
}

/// The present leaf that an entry of either level was; of a block, its first page's.
fn final_leaf(old: Entry) -> Option<Pte> {
    match (SizedLeaf::of_pmd(old), old.pte()) {
        (_, PteState::Present(pte)) => Some(pte),
        (Ok(Some(SizedLeaf { state: LeafState::Present(pte), .. })), _) => Some(pte),
        (Ok(_) | Err(_), _) => None,
    }
}

/// What comes in place of a leaf that is cleared already; `None` for nothing.
fn replacement<P: Platform>(
    mm: &Mm<'_, P>,
    was: Pte,
    folio: &Folio,
    how: Unmap,
) -> Result<Option<Leaf>, Stuck> {
    // Whoever found the leaf without a lock either sees it gone or is seen here.
    if how != Unmap::Drop && folio.is_pinned() {
        return Err(Stuck);
    }
    match how {
        Unmap::Drop => Ok(None),
        Unmap::Migrate | Unmap::MigrateWhole => Ok(Some(migration_leaf(was))),
        Unmap::Reclaim if !folio.is_anon() => Ok(None),
        Unmap::Reclaim if folio.has(FolioFlags::SWAPBACKED) => swap_leaf(mm, was, folio).map(Some),
        Unmap::Reclaim => {
            // Given away by MADV_FREE, unless somebody wrote to it or has it since.
            let others = folio.refcount().saturating_sub(folio.mapcount()) > 1;
            if was.is_dirty() || folio.has(FolioFlags::DIRTY) || others {
                folio.set_flags(FolioFlags::SWAPBACKED);
                return Err(Stuck);
            }
            Ok(None)
        }
    }
}

fn swap_leaf<P: Platform>(mm: &Mm<'_, P>, was: Pte, folio: &Folio) -> Result<Leaf, Stuck> {
    let slot = mm.swap_slot_of(folio).ok_or(Stuck)?;
    mm.swap_dup(slot).map_err(|_| Stuck)?;
    let kind = Softleaf::Swap { slot, exclusive: was.is_anon_exclusive() };
    // Dirty is the folio's now, which is written to the slot.
    Ok(Leaf::new(kind, flags_of(was).difference(LeafFlags::DIRTY | LeafFlags::YOUNG)))
}

/// The leaf of a page on the move that was mapped by `was`.
fn migration_leaf(was: Pte) -> Leaf {
    let access = if was.is_writable() {
        MigrationAccess::Write
    } else if was.is_anon_exclusive() {
        MigrationAccess::ReadExclusive
    } else {
        MigrationAccess::Read
    };
    Leaf::new(Softleaf::migration(Location::Pfn(was.pfn()), access), flags_of(was))
}

fn flags_of(was: Pte) -> LeafFlags {
    let mut flags = LeafFlags::empty();
    flags.set(LeafFlags::YOUNG, was.is_young());
    flags.set(LeafFlags::DIRTY, was.is_dirty());
    flags.set(LeafFlags::SOFT_DIRTY, was.is_soft_dirty());
    flags.set(LeafFlags::UFFD_WP, was.is_uffd_wp());
    flags
}

/// The mapping that a migration leaf of the frames from `from` on becomes.
fn restored<P: Platform>(
    leaf: Leaf,
    vma: &Vma<'_, P>,
    folio: &Folio,
    from: abi::Pfn,
) -> Option<Pte> {
    let access = leaf.kind().migration_access()?;
    let Some(Location::Pfn(pfn)) = leaf.kind().location() else { return None };
    let page = pfn.offset_from(from)?;
    let prot = vma.flags().prot();
    let mut pte = Pte::new(folio.pfn().checked_add(page)?, prot)?.wrprotect();
    if access == MigrationAccess::Write && vma.flags().contains(VmFlags::WRITE) {
        pte = pte.mk_write();
    }
    if folio.is_anon() && access != MigrationAccess::Read {
        pte = pte.mk_anon_exclusive();
    }
    let flags = leaf.flags();
    if flags.contains(LeafFlags::DIRTY) {
        pte = pte.mk_dirty();
    }
    pte = if flags.contains(LeafFlags::SOFT_DIRTY) { pte.mk_soft_dirty() } else { pte };
    pte = if flags.contains(LeafFlags::YOUNG) { pte.mk_young() } else { pte.mk_old() };
    Some(if flags.contains(LeafFlags::UFFD_WP) { pte.mk_uffd_wp() } else { pte })
}
