//! What is behind the leaves of a space: folios, swap slots, counters.
//!
//! | leaf | holds | counted in |
//! |---|---|---|
//! | mapping of a folio | one mapcount, one reference | anon or file pages |
//! | special mapping (zero page) | nothing | – |
//! | swap | one count of its slot | swapped pages |
//! | migration | nothing: who moves the page holds it | anon or file pages |
//! | a device's exclusive page | one mapcount, one reference | anon pages |
//! | device memory, memory error, marker | nothing in RAM | – |

use abi::Pfn;

use super::structure::{AddressSpace, Rss};
use super::vma::Vma;
use crate::addr::VirtAddr;
use crate::buddy::Gfp;
use crate::folio::{Folio, FolioFlags, FolioKind, FolioRef};
use crate::memdesc::Order;
use crate::memory::AllocError;
use crate::mm::Mm;
use crate::pgtable::{
    Duplicate, Leaf, LeafOwner, LeafState, Location, PageProt, Pte, SizedLeaf, Softleaf, SwapSlot,
    Unmapped,
};
use crate::platform::Platform;
use crate::rmap::MappedBy;
use crate::sync::shim::{AtomicU64, Ordering};

/// What is given up after the TLB flush.
pub(super) enum Put<'m> {
    /// A leaf's reference.
    Folio(FolioRef<'m>),
    /// A leaf's count of a slot.
    Slot(SwapSlot),
}

/// Which pages a leaf counts as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Anon,
    File,
    Swap,
}

impl Rss {
    fn counter(&self, as_: Counted) -> &AtomicU64 {
        match as_ {
            Counted::Anon => &self.anon,
            Counted::File => &self.file,
            Counted::Swap => &self.swap,
        }
    }

    fn add(&self, as_: Counted, pages: u64) {
        self.counter(as_).fetch_add(pages, Ordering::Relaxed);
    }

    fn sub(&self, as_: Counted, pages: u64) {
        let before = self.counter(as_).fetch_sub(pages, Ordering::Relaxed);
        debug_assert!(before >= pages, "more pages unmapped than were mapped");
    }
}

/// The leaves of `space`, and at fork of its child.
pub(super) struct Leaves<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    space: &'a AddressSpace<'m, P>,
    /// At fork: the child's VMA, and its space.
    child: Option<(&'a Vma<'m, P>, &'a AddressSpace<'m, P>)>,
    /// At fork: a folio for the copy of a pinned page.
    spare: Option<FolioRef<'m>>,
    /// A slot's count was full: the child lacks a page.
    pub(super) lost: bool,
}

impl<'a, 'm, P: Platform> Leaves<'a, 'm, P> {
    /// Those of `space`.
    pub(super) const fn of(mm: &'a Mm<'m, P>, space: &'a AddressSpace<'m, P>) -> Self {
        Self { mm, space, child: None, spare: None, lost: false }
    }

    /// Those of `space` while a child gets `vma` of its own.
    pub(super) const fn forking(
        mm: &'a Mm<'m, P>,
        space: &'a AddressSpace<'m, P>,
        vma: &'a Vma<'m, P>,
        child: &'a AddressSpace<'m, P>,
    ) -> Self {
        Self { child: Some((vma, child)), ..Self::of(mm, space) }
    }

    /// Gives back what was fetched and not used.
    pub(super) fn finish(mut self) -> Result<(), AllocError> {
        if let Some(spare) = self.spare.take() {
            self.mm.put(spare);
        }
        if self.lost { Err(AllocError::OutOfMemory(Order::ZERO)) } else { Ok(()) }
    }

    /// The folio behind a mapping; `None` behind a special one.
    ///
    /// The leaf's reference keeps it: it maps the page, or did until now.
    fn mapped(&self, pfn: Pfn) -> Option<&'a Folio> {
        // SAFETY: the leaf's reference is this owner's until it goes to `Put`, and the
        // table's lock is held.
        unsafe { self.mm.mapped_folio(pfn) }
    }

    fn unmap_folio(&self, folio: &Folio, leaf: SizedLeaf) -> Put<'m> {
        self.space.rss.sub(kind_of(folio), leaf.pages());
        let by = if leaf.order == 0 { MappedBy::Pte } else { MappedBy::Pmd };
        Put::Folio(self.mm.remove_rmap(folio, by))
    }

    fn unmap_present(&self, pte: Pte, leaf: SizedLeaf) -> Unmapped<Put<'m>> {
        let Some(folio) = self.mapped(pte.pfn()).filter(|_| !pte.is_special()) else {
            return Unmapped::NOTHING;
        };
        let mut flush_now = false;
        if !folio.is_anon() {
            if pte.is_dirty() {
                self.mm.mark_folio_dirty(folio);
                flush_now = true;
            }
            if pte.is_young() {
                folio.set_flags(FolioFlags::REFERENCED);
            }
        }
        Unmapped { put: Some(self.unmap_folio(folio, leaf)), flush_now }
    }

    fn unmap_soft(&self, soft: Leaf, leaf: SizedLeaf) -> Option<Put<'m>> {
        match soft.kind() {
            Softleaf::Swap { slot, .. } => {
                self.space.rss.sub(Counted::Swap, leaf.pages());
                Some(Put::Slot(slot))
            }
            Softleaf::DeviceExclusive(pfn) => {
                self.mapped(pfn).map(|folio| self.unmap_folio(folio, leaf))
            }
            Softleaf::MigrationRead(pfn)
            | Softleaf::MigrationReadExclusive(pfn)
            | Softleaf::MigrationWrite(pfn) => {
                if let Some(kind) = self.moving_kind(Location::Pfn(pfn)) {
                    self.space.rss.sub(kind, leaf.pages());
                }
                None
            }
            Softleaf::None
            | Softleaf::DevicePrivateRead(_)
            | Softleaf::DevicePrivateWrite(_)
            | Softleaf::MigrationDevicePrivateRead(_)
            | Softleaf::MigrationDevicePrivateReadExclusive(_)
            | Softleaf::MigrationDevicePrivateWrite(_)
            | Softleaf::HwPoison(_)
            | Softleaf::Marker(_) => None,
        }
    }

    /// What a page on the move counts as; pages in device memory are not counted.
    fn moving_kind(&self, at: Location) -> Option<Counted> {
        match at {
            // Whoever moves the page holds it, and finishes under this table's lock.
            Location::Pfn(pfn) => self.mapped(pfn).map(kind_of),
            Location::DevOffset(_) => None,
        }
    }

    fn duplicate_present(&mut self, at: VirtAddr, pte: Pte, leaf: SizedLeaf) -> Duplicate {
        let Some((vma, child)) = self.child else { return Duplicate::Skip };
        let Some(folio) = self.mapped(pte.pfn()).filter(|_| !pte.is_special()) else {
            return Duplicate::Shared;
        };
        // Only an exclusive page is pinned for writing, or to be read while the
        // process writes: those who pin make it so.
        if folio.is_anon() && pte.is_anon_exclusive() && folio.is_pinned() {
            return match self.spare.take() {
                Some(spare) if leaf.order == 0 => self.copy(spare, folio, pte, at, vma, child),
                spare => {
                    self.spare = spare;
                    Duplicate::NeedsCopy
                }
            };
        }
        self.mm.dup_rmap(folio);
        child.rss.add(kind_of(folio), leaf.pages());
        Duplicate::Shared
    }

    /// The child's own copy of a pinned page.
    fn copy(
        &self,
        spare: FolioRef<'m>,
        folio: &Folio,
        pte: Pte,
        at: VirtAddr,
        vma: &Vma<'m, P>,
        child: &AddressSpace<'m, P>,
    ) -> Duplicate {
        let page = pte.pfn().number() - folio.pfn().number();
        self.mm.copy_folio_page((&spare, 0), (folio, page));
        spare.set_flags(FolioFlags::UPTODATE);
        let prot = vma.flags().prot();
        let Some(new) = Pte::new(spare.pfn(), prot - PageProt::WRITE) else {
            self.mm.put(spare);
            return Duplicate::Skip;
        };
        let mut new = new.mk_dirty().mk_soft_dirty().mk_anon_exclusive();
        if prot.contains(PageProt::WRITE) {
            new = new.mk_write();
        }
        self.mm.add_new_anon_rmap(spare, vma, at);
        child.rss.add(Counted::Anon, 1);
        Duplicate::Copied(new)
    }

    fn duplicate_soft(&mut self, soft: Leaf, leaf: SizedLeaf) -> Duplicate {
        let Some((_, child)) = self.child else { return Duplicate::Skip };
        match soft.kind() {
            Softleaf::Swap { slot, .. } => {
                if self.mm.swap_dup(slot).is_err() {
                    self.lost = true;
                    return Duplicate::Skip;
                }
                child.rss.add(Counted::Swap, leaf.pages());
            }
            Softleaf::MigrationRead(pfn)
            | Softleaf::MigrationReadExclusive(pfn)
            | Softleaf::MigrationWrite(pfn) => {
                if let Some(kind) = self.moving_kind(Location::Pfn(pfn)) {
                    child.rss.add(kind, leaf.pages());
                }
            }
            // Ends before the page is shared: the walk does not ask for it.
            Softleaf::DeviceExclusive(_) => return Duplicate::Skip,
            Softleaf::None
            | Softleaf::DevicePrivateRead(_)
            | Softleaf::DevicePrivateWrite(_)
            | Softleaf::MigrationDevicePrivateRead(_)
            | Softleaf::MigrationDevicePrivateReadExclusive(_)
            | Softleaf::MigrationDevicePrivateWrite(_)
            | Softleaf::HwPoison(_)
            | Softleaf::Marker(_) => {}
        }
        Duplicate::Shared
    }
}

fn kind_of(folio: &Folio) -> Counted {
    if folio.is_anon() { Counted::Anon } else { Counted::File }
}

impl<'m, P: Platform> LeafOwner for Leaves<'_, 'm, P> {
    type Put = Put<'m>;

    fn unmapped(&mut self, _at: VirtAddr, leaf: SizedLeaf) -> Unmapped<Put<'m>> {
        match leaf.state {
            LeafState::Present(pte) => self.unmap_present(pte, leaf),
            LeafState::Soft(soft) => {
                Unmapped { put: self.unmap_soft(soft, leaf), flush_now: false }
            }
        }
    }

    fn put(&mut self, put: Put<'m>) {
        match put {
            Put::Folio(folio) => self.mm.put(folio),
            Put::Slot(slot) => {
                // A slot that is not in use is counted there; nothing is lost with it.
                let put = self.mm.swap_put(slot);
                debug_assert!(put.is_ok(), "{slot:?}: {put:?}");
            }
        }
    }

    fn split(&mut self, _at: VirtAddr, leaf: SizedLeaf) {
        if let LeafState::Present(pte) = leaf.state
            && !pte.is_special()
            && let Some(folio) = self.mapped(pte.pfn())
        {
            self.mm.split_pmd_rmap(folio);
        }
    }

    fn duplicate(&mut self, at: VirtAddr, leaf: SizedLeaf) -> Duplicate {
        match leaf.state {
            LeafState::Present(pte) => self.duplicate_present(at, pte, leaf),
            LeafState::Soft(soft) => self.duplicate_soft(soft, leaf),
        }
    }

    fn prepare_copy(&mut self, _at: VirtAddr) -> Result<(), AllocError> {
        if self.spare.is_none() {
            self.spare = Some(self.mm.alloc_folio(Order::ZERO, Gfp::USER, FolioKind::Anon)?);
        }
        Ok(())
    }
}
