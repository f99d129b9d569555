//! Anonymous pages that nobody has touched yet.

use core::sync::atomic::Ordering;

use super::{Fault, FaultOutcome, Round, Stop, read_only_prot};
use crate::buddy::Gfp;
use crate::folio::{Folio, FolioFlags, FolioKind, FolioRef};
use crate::memdesc::Order;
use crate::pgtable::{Entry, Pte, PteGuard};
use crate::platform::Platform;
use crate::space::{VmFlags, Vma};

impl<'m, P: Platform> Fault<'_, 'm, P> {
    /// Maps the zero page: read-only, special, counted nowhere.
    pub(super) fn zero_page(&self, seen: Entry, uffd_wp: bool) -> Round<'m> {
        let leaf = Pte::new(self.mm.base().zero_page, read_only_prot(self.flags))
            .unwrap_or_else(|| unreachable!("frames of RAM fit a leaf"))
            .mk_special()
            .mk_young();
        let leaf = if uffd_wp { leaf.mk_uffd_wp() } else { leaf };
        let Some(mut guard) = self.lock_same(seen)? else { return Ok(FaultOutcome::Raced) };
        guard.set(self.page, leaf.entry());
        Ok(FaultOutcome::ZeroPage)
    }

    /// Maps a page of zeros that is this leaf's alone.
    pub(super) fn new_anon_page(&self, seen: Entry) -> Round<'m> {
        let folio = self.alloc_zeroed()?;
        let mut guard = match self.lock_same(seen) {
            Ok(Some(guard)) => guard,
            Ok(None) => {
                self.mm.put(folio);
                return Ok(FaultOutcome::Raced);
            }
            Err(stop) => {
                self.mm.put(folio);
                return Err(stop);
            }
        };
        let leaf = self.anon_leaf(&folio);
        self.map_new_anon(&mut guard, leaf, folio);
        Ok(FaultOutcome::AnonPage)
    }

    /// The leaf of a page that is this leaf's alone, writable if that is what the fault is about.
    pub(super) fn anon_leaf(&self, folio: &Folio) -> Pte {
        let fresh = Pte::new(folio.pfn(), read_only_prot(self.flags))
            .unwrap_or_else(|| unreachable!("frames of RAM fit a leaf"));
        self.allowed(fresh.mk_anon_exclusive())
    }

    /// A new anonymous page of zeros, not mapped yet, and an `anon_vma` for it.
    pub(super) fn alloc_zeroed(&self) -> Result<FolioRef<'m>, Stop<'m>> {
        self.alloc_anon(Gfp::USER | Gfp::ZERO)
    }

    /// A new anonymous page of whatever contents, not mapped yet, and an `anon_vma` for it.
    pub(super) fn alloc_for_copy(&self) -> Result<FolioRef<'m>, Stop<'m>> {
        self.alloc_anon(Gfp::USER)
    }

    fn alloc_anon(&self, gfp: Gfp) -> Result<FolioRef<'m>, Stop<'m>> {
        self.prepare_anon_vma()?;
        Ok(self.mm.alloc_folio(Order::ZERO, gfp, FolioKind::Anon)?)
    }

    /// Gives the VMA what its anonymous folios are found by, if it has none yet.
    /// That looks at its neighbours, so once per VMA the space's lock is needed.
    pub(super) fn prepare_anon_vma(&self) -> Result<(), Stop<'m>> {
        if self.vma.anon_vma().is_some() {
            return Ok(());
        }
        let Some(vmas) = self.locked else { return Err(Stop::SpaceLock) };
        let near = [vmas.lookup(self.vma.end()), vmas.before(self.vma.start())];
        let near = near.into_iter().flatten().find(|near| self.may_become_one(near));
        self.mm.anon_vma_prepare(self.vma, near).map_err(Stop::from)
    }

    /// Whether `near` may be merged with the VMA some day, when it has the same
    /// access rights: then they had better share an `anon_vma`.
    fn may_become_one(&self, near: &Vma<'m, P>) -> bool {
        let (low, high) =
            if near.start() < self.vma.start() { (near, self.vma) } else { (self.vma, near) };
        let alike = |vma: &Vma<'m, P>| vma.flags() - VmFlags::ACCESS - VmFlags::SOFTDIRTY;
        near.anon_vma().is_some()
            && low.end() == high.start()
            && alike(low) == alike(high)
            && low.file() == high.file()
            && low.pgoff() + low.pages().get() == high.pgoff()
    }

    /// Maps a new anonymous folio, whose reference becomes the leaf's: rmap and
    /// counts first, so that whoever finds the leaf finds them.
    pub(super) fn map_new_anon(&self, guard: &mut PteGuard<'_, P>, leaf: Pte, folio: FolioRef<'m>) {
        folio.set_flags(FolioFlags::UPTODATE);
        self.mm.add_new_anon_rmap(folio, self.vma, self.page);
        self.space.rss.anon.fetch_add(1, Ordering::Relaxed);
        guard.set(self.page, leaf.entry());
    }
}
