//! Counting the leaves that map a folio.
//!
//! Every leaf, a PTE or a PMD that maps 2 MiB, has one count in `mapcount` and
//! one reference. Counts are per folio, not per page; which page a process alone
//! may write is in its leaf (anon-exclusive).
//!
//! A leaf's reference comes from a handle when the leaf is made and becomes one
//! again when it is taken away, to be put once no CPU can reach the page by an
//! old translation any more.

use core::ptr::NonNull;

use super::AnonVma;
use crate::addr::VirtAddr;
use crate::folio::{Folio, FolioFlags, FolioRef};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::space::Vma;
use crate::sync::shim::Ordering;

/// How a leaf maps its folio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappedBy {
    /// A 4 KiB leaf: one page of it.
    Pte,
    /// A 2 MiB leaf: all 512 pages of it.
    Pmd,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Notes the first leaf of a new anonymous folio, which nobody else can find
    /// yet; the leaf takes over the reference.
    ///
    /// `head` is where the folio's first page is, or would be, in `vma`, which has
    /// its `AnonVma` (`anon_vma_prepare`). The folio becomes swap-backed.
    ///
    /// # Panics
    /// In debug builds, if the VMA has none, or the folio is not new and anonymous.
    pub fn add_new_anon_rmap(&self, folio: FolioRef<'m>, vma: &Vma<'m, P>, head: VirtAddr) {
        debug_assert!(folio.is_anon() && !folio.is_mapped(), "{folio:?} is not new");
        folio.set_flags(FolioFlags::SWAPBACKED);
        self.set_anon(&folio, vma, head, true);
        self.lru_add(&folio);
        self.add_leaf(folio);
    }

    /// Notes a leaf of an anonymous folio that others may know: one that came from
    /// swap. The leaf takes over the reference. The folio is locked.
    ///
    /// If the folio belongs to no `AnonVma` yet, it joins that of `vma` if `vma`'s
    /// process alone has it (`exclusive`), else the family's root, where all find it.
    pub fn add_anon_rmap(
        &self,
        folio: FolioRef<'m>,
        vma: &Vma<'m, P>,
        head: VirtAddr,
        exclusive: bool,
    ) {
        debug_assert!(folio.is_anon() && folio.is_locked(), "{folio:?}");
        if folio.mapping.load(Ordering::Relaxed) == 0 {
            self.set_anon(&folio, vma, head, exclusive);
        }
        self.lru_add(&folio);
        self.add_leaf(folio);
    }

    /// Lets walks for an anonymous folio look in `vma`'s own `AnonVma` alone: the
    /// caller knows that no VMA but `vma` maps it any more. The folio is locked.
    pub fn move_anon_rmap(&self, folio: &Folio, vma: &Vma<'m, P>) {
        debug_assert!(folio.is_anon() && folio.is_locked(), "{folio:?}");
        let own = vma.anon_vma.load(Ordering::Acquire);
        debug_assert!(!own.is_null(), "a VMA without anon_vma");
        if !own.is_null() {
            // Release: as in `set_anon`. The index is the same in all of them.
            folio.mapping.store(own.expose_provenance() as u64, Ordering::Release);
        }
    }

    /// Notes a leaf of a page-cache folio; the leaf takes over the reference.
    pub fn add_file_rmap(&self, folio: FolioRef<'m>) {
        debug_assert!(!folio.is_anon(), "{folio:?}");
        self.add_leaf(folio);
    }

    /// Notes one more leaf of a folio that the caller knows to be mapped: fork.
    pub fn dup_rmap(&self, folio: &Folio) {
        self.add_leaf(self.get(folio));
    }

    /// Notes that a PMD leaf was replaced by a leaf for each of the folio's pages.
    pub fn split_pmd_rmap(&self, folio: &Folio) {
        for _ in 1..folio.pages().get() {
            self.dup_rmap(folio);
        }
    }

    /// Notes that a leaf was taken away, and hands its reference over: to be put
    /// after the TLB flush.
    ///
    /// A large anonymous folio that seems to be mapped in part only is queued to be split.
    #[must_use = "the leaf's reference is put after the flush"]
    pub fn remove_rmap(&self, folio: &Folio, by: MappedBy) -> FolioRef<'m> {
        // Release: what was done by the leaf comes before whoever finds no leaf.
        let before = folio.mapcount.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before != 0, "{folio:?} was not mapped");
        let left = u64::from(before.saturating_sub(1));
        if by == MappedBy::Pte && left > 0 && left < folio.pages().get() && folio.is_anon() {
            self.deferred_split_folio(folio);
        }
        // SAFETY: the leaf held a reference, which nobody has any more.
        unsafe { FolioRef::from_raw(NonNull::from(folio)) }
    }

    /// As [`Self::remove_rmap`] for who has a reference of his own and unmaps all
    /// of the folio: gives the leaf's reference up, and queues nothing.
    pub(super) fn forget_leaf(&self, folio: &Folio) {
        let before = folio.mapcount.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before != 0, "{folio:?} was not mapped");
        folio.drop_refs(1);
    }

    fn add_leaf(&self, folio: FolioRef<'m>) {
        // Relaxed: the page-table lock that the leaf is stored under publishes it.
        folio.mapcount.fetch_add(1, Ordering::Relaxed);
        // The leaf's from here on; `remove_rmap` makes it a handle again.
        folio.into_raw();
    }

    fn set_anon(&self, folio: &Folio, vma: &Vma<'m, P>, head: VirtAddr, exclusive: bool) {
        let own = NonNull::new(vma.anon_vma.load(Ordering::Acquire));
        debug_assert!(own.is_some(), "a VMA without anon_vma");
        let Some(own) = own else { return };
        // SAFETY: the VMA keeps it, and the caller the VMA.
        let own_ref: &AnonVma<'m, P> = unsafe { own.as_ref() };
        let anon_vma = if exclusive { own } else { NonNull::from(own_ref.root()) };
        folio.index.store(vma.linear_index(head), Ordering::Relaxed);
        // Release: who finds the AnonVma finds the index.
        folio.mapping.store(anon_vma.as_ptr().expose_provenance() as u64, Ordering::Release);
    }
}
