//! [`SpaceLeaves`]: what is behind the leaves of an address space, and the
//! operations on ranges with it filled in.

use core::cell::Cell;
use core::fmt;

use super::entry::{PageProt, Pte};
use super::gather::TlbGather;
use super::range::{
    Duplicate, ForkError, ForkRules, LeafOwner, LeafState, MoveError, Protection, SizedLeaf,
    Unmapped, ZapRules,
};
use super::softleaf::{Leaf, Location, SwapSlot, Target};
use super::table::MakeTableError;
use crate::addr::{VaRange, VirtAddr};
use crate::buddy::Gfp;
use crate::folio::{Folio, FolioFlags, FolioKind, FolioRef};
use crate::memdesc::{Order, Tag};
use crate::memory::AllocError;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::rmap::MappedBy;
use crate::space::{AddressSpace, Rss, Vma};
use crate::sync::shim::{AtomicU64, Ordering};

/// What a cleared leaf gives up after the flush.
#[must_use = "put it after the flush"]
pub enum LeafRest<'m> {
    /// The reference of a folio.
    Folio(FolioRef<'m>),
    /// The use of a swap slot.
    Swap(SwapSlot),
}

/// The child of a fork under way.
struct Child<'a, 'm, P: Platform> {
    space: &'a AddressSpace<'m, P>,
    vma: &'a Vma<'m, P>,
    /// For the copy of a pinned page.
    copy: Option<FolioRef<'m>>,
    /// A swapped page could not be shared: the child lacks it.
    lost: Cell<bool>,
}

/// Folios, swap slots and counters behind the leaves of a space: the
/// [`LeafOwner`] of real address spaces.
pub struct SpaceLeaves<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    rss: &'a Rss,
    child: Option<Child<'a, 'm, P>>,
}

impl<'a, 'm, P: Platform> SpaceLeaves<'a, 'm, P> {
    /// What is behind the leaves of `space`.
    pub const fn new(mm: &'a Mm<'m, P>, space: &'a AddressSpace<'m, P>) -> Self {
        Self { mm, rss: &space.rss, child: None }
    }

    /// As [`Self::new`] for a fork into `vma` of the space `child`.
    pub const fn for_fork(
        mm: &'a Mm<'m, P>,
        parent: &'a AddressSpace<'m, P>,
        child: &'a AddressSpace<'m, P>,
        vma: &'a Vma<'m, P>,
    ) -> Self {
        Self {
            mm,
            rss: &parent.rss,
            child: Some(Child { space: child, vma, copy: None, lost: Cell::new(false) }),
        }
    }

    /// Gives back what a fork had prepared and not used. `false`: the child lacks
    /// a page, since its slot could not be shared once more.
    #[must_use = "a child without its pages must not run"]
    pub fn finish(mut self) -> bool {
        if let Some(copy) = self.child.as_mut().and_then(|child| child.copy.take()) {
            self.mm.put(copy);
        }
        self.child.is_none_or(|child| !child.lost.get())
    }

    /// The folio that a leaf maps, whose table is locked.
    fn folio(&self, leaf: SizedLeaf) -> Option<&'m Folio> {
        let pfn = match leaf.state {
            LeafState::Present(pte) if pte.is_special() => return None,
            LeafState::Present(pte) => pte.pfn(),
            LeafState::Soft(leaf) => match leaf.kind().target() {
                Target::Mapped(Location::Pfn(pfn)) => pfn,
                Target::Mapped(Location::DevOffset(_))
                | Target::Nothing
                | Target::Swap(_)
                | Target::Migrating(_) => return None,
            },
        };
        // SAFETY: the leaf was just taken from its table, whose lock is held, and its
        // reference is not given up before `unmapped` has made a handle of it; in
        // `split` and `duplicate` it is in the table still.
        unsafe { self.mm.mapped_folio(pfn) }
    }

    /// The counter that a leaf is in.
    fn counter<'r>(&self, rss: &'r Rss, leaf: SizedLeaf) -> Option<&'r AtomicU64> {
        let is_anon = match leaf.state {
            LeafState::Present(_) => self.folio(leaf)?.is_anon(),
            LeafState::Soft(soft) => match soft.kind().target() {
                Target::Nothing => return None,
                Target::Swap(_) => return Some(&rss.swap),
                // Device memory holds anonymous pages only.
                Target::Mapped(Location::DevOffset(_))
                | Target::Migrating(Location::DevOffset(_)) => true,
                Target::Mapped(Location::Pfn(pfn)) | Target::Migrating(Location::Pfn(pfn)) => {
                    // The tag alone: a folio on the move has no leaf that keeps it.
                    let word = self.mm.memory().words().load(pfn);
                    word.is_ok_and(|word| word.tag() == Tag::Anon)
                }
            },
        };
        Some(if is_anon { &rss.anon } else { &rss.file })
    }

    fn uncount(&self, leaf: SizedLeaf) {
        if let Some(counter) = self.counter(self.rss, leaf) {
            let before = counter.fetch_sub(leaf.pages(), Ordering::Relaxed);
            debug_assert!(before >= leaf.pages(), "{leaf:?} was not counted");
        }
    }

    fn count_child(&self, child: &Child<'_, 'm, P>, leaf: SizedLeaf) {
        if let Some(counter) = self.counter(&child.space.rss, leaf) {
            counter.fetch_add(leaf.pages(), Ordering::Relaxed);
        }
    }

    /// The child's own copy of a pinned page, if the memory for it is there.
    fn copy_pinned(&mut self, at: VirtAddr, pte: Pte, folio: &Folio) -> Duplicate {
        let Some(child) = &mut self.child else { return Duplicate::Skip };
        let Some(copy) = child.copy.take() else { return Duplicate::NeedsCopy };
        let page = pte.pfn().number() - folio.pfn().number();
        self.mm.copy_folio_page((&copy, 0), (folio, page));
        copy.set_flags(FolioFlags::UPTODATE);
        let leaf = pte.with_pfn(copy.pfn()).map(|pte| {
            let pte = pte.mk_old().mk_dirty().mk_anon_exclusive();
            // As the parent's was: writable or not.
            pte.clear_uffd_wp()
        });
        let Some(leaf) = leaf else {
            self.mm.put(copy);
            return Duplicate::Skip;
        };
        self.mm.add_new_anon_rmap(copy, child.vma, at);
        child.space.rss.anon.fetch_add(1, Ordering::Relaxed);
        Duplicate::Copied(leaf)
    }

    fn duplicate_soft(&self, child: &Child<'_, 'm, P>, leaf: SizedLeaf, soft: Leaf) -> Duplicate {
        if let Target::Swap(slot) = soft.kind().target()
            && self.mm.swap_dup(slot).is_err()
        {
            // Counted by swap. Zeros in its place would be a lie: the fork fails.
            child.lost.set(true);
            return Duplicate::Skip;
        }
        if let Some(folio) = self.folio(leaf) {
            self.mm.dup_rmap(folio);
        }
        self.count_child(child, leaf);
        Duplicate::Shared
    }
}

impl<'m, P: Platform> LeafOwner for SpaceLeaves<'_, 'm, P> {
    type Put = LeafRest<'m>;

    fn unmapped(&mut self, _: VirtAddr, leaf: SizedLeaf) -> Unmapped<LeafRest<'m>> {
        self.uncount(leaf);
        if let LeafState::Soft(soft) = leaf.state
            && let Target::Swap(slot) = soft.kind().target()
        {
            return Unmapped { put: Some(LeafRest::Swap(slot)), flush_now: false };
        }
        let Some(folio) = self.folio(leaf) else { return Unmapped::NOTHING };
        let mut flush_now = false;
        if let LeafState::Present(pte) = leaf.state
            && !folio.is_anon()
        {
            if pte.is_dirty() {
                // Whoever cleans the file page next trusts that no CPU writes it unseen.
                self.mm.mark_folio_dirty(folio);
                flush_now = true;
            }
            if pte.is_young() {
                folio.set_flags(FolioFlags::REFERENCED);
            }
        }
        let by = if leaf.order == 0 { MappedBy::Pte } else { MappedBy::Pmd };
        let reference = self.mm.remove_rmap(folio, by);
        Unmapped { put: Some(LeafRest::Folio(reference)), flush_now }
    }

    fn put(&mut self, put: LeafRest<'m>) {
        match put {
            LeafRest::Folio(folio) => self.mm.put(folio),
            LeafRest::Swap(slot) => match self.mm.swap_put(slot) {
                // A slot that nobody uses was counted by swap.
                Ok(()) | Err(_) => {}
            },
        }
    }

    fn split(&mut self, _: VirtAddr, leaf: SizedLeaf) {
        if let Some(folio) = self.folio(leaf) {
            self.mm.split_pmd_rmap(folio);
        }
    }

    fn duplicate(&mut self, at: VirtAddr, leaf: SizedLeaf) -> Duplicate {
        let Some(child) = &self.child else {
            debug_assert!(false, "not a fork");
            return Duplicate::Skip;
        };
        let pte = match leaf.state {
            LeafState::Soft(soft) => return self.duplicate_soft(child, leaf, soft),
            LeafState::Present(pte) => pte,
        };
        let Some(folio) = self.folio(leaf) else { return Duplicate::Shared };
        // Only who is exclusive can be pinned and must keep the page to itself.
        if folio.is_anon() && pte.is_anon_exclusive() && folio.is_pinned() {
            return if leaf.order == 0 {
                self.copy_pinned(at, pte, folio)
            } else {
                Duplicate::NeedsCopy
            };
        }
        self.mm.dup_rmap(folio);
        self.count_child(child, leaf);
        Duplicate::Shared
    }

    fn prepare_copy(&mut self, _: VirtAddr) -> Result<(), AllocError> {
        let Some(child) = &mut self.child else { return Ok(()) };
        if child.copy.is_none() {
            child.copy = Some(self.mm.alloc_folio(Order::ZERO, Gfp::USER, FolioKind::Anon)?);
        }
        Ok(())
    }
}

impl<P: Platform> fmt::Debug for SpaceLeaves<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpaceLeaves")
            .field("rss", self.rss)
            .field("forks", &self.child.is_some())
            .finish()
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Splits PMD leaves that lie across an end of `range`: what comes before a
    /// step on the range that must not fail.
    ///
    /// # Errors
    /// No memory for a table; nothing is lost.
    pub fn split_range_ends(
        &self,
        space: &AddressSpace<'m, P>,
        range: VaRange,
    ) -> Result<(), MakeTableError> {
        space.tables().split_ends(range, &mut SpaceLeaves::new(self, space))
    }

    /// Makes PTEs of the PMD leaf at `va`. Returns whether there was one.
    ///
    /// # Errors
    /// No memory for the table; the leaf stays.
    pub fn split_pmd(
        &self,
        space: &AddressSpace<'m, P>,
        va: VirtAddr,
    ) -> Result<bool, MakeTableError> {
        space.tables().split_pmd(va, &mut SpaceLeaves::new(self, space))
    }

    /// Takes all leaves of `range` away and what was behind them, TLBs flushed.
    ///
    /// The caller keeps the mapping from being faulted back in, or allows it
    /// (MADV_DONTNEED): the mmap lock at least for reading.
    ///
    /// # Errors
    /// A PMD leaf lies across an end of the range, and there is no memory to
    /// split it. Not after [`Self::split_range_ends`] under the same lock.
    pub fn zap_leaves(
        &self,
        space: &AddressSpace<'m, P>,
        range: VaRange,
        rules: ZapRules,
    ) -> Result<(), MakeTableError> {
        let mut owner = SpaceLeaves::new(self, space);
        let mut gather = TlbGather::new(space.tables());
        let zapped = space.tables().zap_range(range, rules, &mut gather, &mut owner);
        gather.flush(&mut owner);
        zapped
    }

    /// As [`Self::zap_leaves`] for a mapping that goes, and frees the tables that
    /// it leaves empty.
    ///
    /// # Errors
    /// As [`Self::zap_leaves`].
    pub fn unmap_leaves(
        &self,
        space: &AddressSpace<'m, P>,
        range: VaRange,
    ) -> Result<(), MakeTableError> {
        let tables = space.tables();
        let mut owner = SpaceLeaves::new(self, space);
        let mut gather = TlbGather::new(tables);
        let zapped = tables.zap_range(range, ZapRules::UNMAP, &mut gather, &mut owner);
        tables.free_tables(range, &mut gather, &mut owner);
        gather.flush(&mut owner);
        zapped
    }

    /// Gives all leaves of `range` new permissions, TLBs flushed. Returns pages changed.
    ///
    /// # Errors
    /// As [`Self::zap_leaves`].
    pub fn protect_leaves(
        &self,
        space: &AddressSpace<'m, P>,
        range: VaRange,
        to: Protection,
    ) -> Result<u64, MakeTableError> {
        let mut owner = SpaceLeaves::new(self, space);
        let mut gather = TlbGather::new(space.tables());
        let changed = space.tables().change_protection(range, to, &mut gather, &mut owner);
        gather.flush(&mut owner);
        changed
    }

    /// Moves all leaves of `range` to the addresses from `to` on. See
    /// [`Tables::move_range`](super::Tables::move_range).
    ///
    /// # Errors
    /// Out of memory; part of the range has moved.
    pub fn move_leaves(
        &self,
        space: &AddressSpace<'m, P>,
        range: VaRange,
        to: VirtAddr,
    ) -> Result<(), MoveError> {
        space.tables().move_range(range, to, false, &mut SpaceLeaves::new(self, space))
    }

    /// Copies the leaves of `range` to the child's `vma`, and flushes the
    /// parent's TLBs. See [`Tables::copy_range`](super::Tables::copy_range).
    ///
    /// # Errors
    /// [`ForkError`]; the child's part is undone by [`Self::unmap_leaves`].
    pub fn copy_leaves(
        &self,
        parent: &AddressSpace<'m, P>,
        (child, vma): (&AddressSpace<'m, P>, &Vma<'m, P>),
        range: VaRange,
        rules: ForkRules,
    ) -> Result<(), ForkError> {
        let mut owner = SpaceLeaves::for_fork(self, parent, child, vma);
        let (from, to) = (parent.tables(), child.tables());
        let mut gather = TlbGather::new(from);
        let copied = from.copy_range(&to, range, rules, &mut gather, &mut owner);
        gather.flush(&mut owner);
        if owner.finish() { copied } else { copied.and(Err(ForkError::OutOfMemory)) }
    }
}

impl PageProt {
    /// What a mapping with these rights allows.
    pub fn of(flags: crate::space::VmFlags) -> Self {
        use crate::space::VmFlags;
        let mut prot = Self::empty();
        prot.set(Self::READ, flags.contains(VmFlags::READ));
        prot.set(Self::WRITE, flags.contains(VmFlags::WRITE));
        prot.set(Self::EXEC, flags.contains(VmFlags::EXEC));
        prot
    }
}
