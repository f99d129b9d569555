//! The fast path: no lock, nothing allocated, nothing waited for.

use abi::{PageCount, Pfn};

use super::{Grab, GupFlags, Hold, PagePin, UserPage, grab};
use crate::addr::{PMD_ORDER, VirtAddr};
use crate::errno::Errno;
use crate::folio::{FolioKind, FolioPin, FolioRef};
use crate::mm::Mm;
use crate::pgtable::{Entry, Found, HwLeaf, LeafSize, PmdState, PteState, Size2M, SlotRef, Tables};
use crate::platform::Platform;
use crate::rcu::ReadGuard;
use crate::space::AddressSpace;

/// What a leaf offers, whatever its size.
#[derive(Clone, Copy)]
struct Offer {
    /// Frame of the page.
    pfn: Pfn,
    /// The anonymous page is the mapping's own.
    is_exclusive: bool,
}

/// The fast path stops here. What was taken in vain is put once nothing is masked any more.
struct Stop<'m>(Option<FolioRef<'m>>);

impl<'m, P: Platform> Mm<'m, P> {
    /// Pins pages from `va` on, as many as can be had without a lock or a page
    /// fault (`pin_user_pages_fast_only`): fills `out` from its start and returns
    /// how many, perhaps 0. `va` is rounded down to a page.
    ///
    /// What cannot be decided without a lock is left out. Never waits; may be
    /// called masked.
    ///
    /// # Errors
    /// As [`Self::pin_user_pages`] about the range and the flags.
    pub fn pin_user_pages_fast_only(
        &self,
        space: &AddressSpace<'m, P>,
        va: u64,
        flags: GupFlags,
        out: &mut [Option<PagePin<'m>>],
    ) -> Result<usize, Errno> {
        self.pin_user_pages_fast_only_delayed(space, va, flags, out, || ())
    }

    /// As [`Self::pin_user_pages_fast_only`], with `between` called in the race's
    /// window, after a frame's word was read: for tests that want to lose it.
    ///
    /// # Errors
    /// As there.
    pub fn pin_user_pages_fast_only_delayed(
        &self,
        space: &AddressSpace<'m, P>,
        va: u64,
        flags: GupFlags,
        out: &mut [Option<PagePin<'m>>],
        between: impl Fn(),
    ) -> Result<usize, Errno> {
        let va = super::check(va, out.len(), flags, true)?;
        Ok(self.gup_fast::<FolioPin<'m>, true>(space, va, flags, out, between))
    }

    /// **The mutant**: as [`Self::pin_user_pages_fast_only_delayed`] without the
    /// second look at the frame's word. May pin another folio than the one that is
    /// mapped. For the tests that must notice, and for measuring what the look costs.
    ///
    /// # Errors
    /// As there.
    pub fn gup_fast_without_recheck(
        &self,
        space: &AddressSpace<'m, P>,
        va: u64,
        flags: GupFlags,
        out: &mut [Option<PagePin<'m>>],
        between: impl Fn(),
    ) -> Result<usize, Errno> {
        let va = super::check(va, out.len(), flags, true)?;
        Ok(self.gup_fast::<FolioPin<'m>, false>(space, va, flags, out, between))
    }

    /// The fast path for pages from `va` on, which was checked.
    pub(super) fn gup_fast<H: Hold<'m>, const RECHECK: bool>(
        &self,
        space: &AddressSpace<'m, P>,
        va: VirtAddr,
        flags: GupFlags,
        out: &mut [Option<UserPage<H>>],
        between: impl Fn(),
    ) -> usize {
        let first = va.page();
        let mut done = 0;
        while done < out.len() {
            let page = first + done as u64;
            // Masked, and in one read section, for 2 MiB at most.
            let end = ((page >> PMD_ORDER) + 1) << PMD_ORDER;
            let pages = usize::try_from(end - page).unwrap_or(usize::MAX);
            let last = done.saturating_add(pages).min(out.len());
            let walk = Walk { mm: self, tables: space.tables(), flags };
            let stop = walk.run::<H, RECHECK>(page, &mut out[done..last], &between);
            done += out[done..last].iter().take_while(|slot| slot.is_some()).count();
            if let Some(Stop(in_vain)) = stop {
                if let Some(folio) = in_vain {
                    self.put(folio);
                }
                break;
            }
        }
        done
    }
}

/// A walk over pages of one page-directory entry.
struct Walk<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    tables: Tables<'a, P>,
    flags: GupFlags,
}

/// A PTE table, by the directory's entry that led to it.
#[derive(Clone, Copy)]
struct Table<'g> {
    pmd_slot: SlotRef<'g>,
    pmd: Entry,
}

impl<'a, 'm, P: Platform> Walk<'a, 'm, P> {
    /// Fills `out` with the pages from number `first` on, until one cannot be had.
    fn run<H: Hold<'m>, const RECHECK: bool>(
        &self,
        first: u64,
        out: &mut [Option<UserPage<H>>],
        between: &impl Fn(),
    ) -> Option<Stop<'m>> {
        let platform = self.mm.platform();
        let was_masked = platform.irq_save();
        let section = self.mm.base().rcu.read(platform.cpu());
        let mut stopped = None;
        let mut table = None;
        for (slot, page) in out.iter_mut().zip(first..) {
            debug_assert!(slot.is_none(), "a held page would be lost");
            match self.page::<H, RECHECK>(&section, &mut table, page, between) {
                Ok(held) => *slot = Some(held),
                Err(stop) => {
                    stopped = Some(stop);
                    break;
                }
            }
        }
        drop(section);
        platform.irq_restore(was_masked);
        stopped
    }

    /// Takes page number `page`. `table` remembers the PTE table that the pages before it were in.
    fn page<'g, H: Hold<'m>, const RECHECK: bool>(
        &self,
        section: &'g ReadGuard<'_>,
        table: &mut Option<Table<'g>>,
        page: u64,
        between: &impl Fn(),
    ) -> Result<UserPage<H>, Stop<'m>>
    where
        'a: 'g,
    {
        let va = VirtAddr::of_page(page).ok_or(Stop(None))?;
        let (Table { pmd_slot, pmd }, slot, entry) = match self.find(section, *table, va) {
            Found::Pte { pmd_slot, pmd, slot, entry } => (Table { pmd_slot, pmd }, slot, entry),
            Found::Pmd { slot, entry } => {
                let PmdState::Present(pmd) = entry.pmd() else { return Err(Stop(None)) };
                let index = PageCount::new(page % (1 << Size2M::ORDER));
                let offer = self.offer(pmd, index).ok_or(Stop(None))?;
                return self.take::<H, RECHECK>(offer, between, || slot.is_still(entry));
            }
            Found::Hole | Found::Unknown(_) => return Err(Stop(None)),
        };
        *table = Some(Table { pmd_slot, pmd });
        let PteState::Present(pte) = entry.pte() else { return Err(Stop(None)) };
        let offer = self.offer(pte, PageCount::ZERO).ok_or(Stop(None))?;
        self.take::<H, RECHECK>(offer, between, || slot.is_still(entry) && pmd_slot.is_still(pmd))
    }

    /// The leaf for `va`: beside that of the page before, or from the root.
    fn find<'g>(
        &self,
        section: &'g ReadGuard<'_>,
        table: Option<Table<'g>>,
        va: VirtAddr,
    ) -> Found<'g>
    where
        'a: 'g,
    {
        if let Some(Table { pmd_slot, pmd }) = table
            && let Some(slot) = self.tables.slot_beside(section, pmd, va)
        {
            return Found::Pte { pmd_slot, pmd, slot, entry: slot.load() };
        }
        self.tables.walk(section, va)
    }

    /// What page `index` of a present leaf offers; `None` if that is not enough.
    fn offer<S: LeafSize>(&self, leaf: HwLeaf<S>, index: PageCount) -> Option<Offer> {
        let allowed = if self.flags.contains(GupFlags::WRITE) {
            leaf.is_writable()
        } else {
            leaf.is_readable()
        };
        if !allowed || leaf.is_special() {
            return None;
        }
        let pfn = leaf.pfn().checked_add(index)?;
        Some(Offer { pfn, is_exclusive: leaf.is_anon_exclusive() })
    }

    /// Takes the page that a leaf offers.
    fn take<H: Hold<'m>, const RECHECK: bool>(
        &self,
        offer: Offer,
        between: &impl Fn(),
        still_mapped: impl FnOnce() -> bool,
    ) -> Result<UserPage<H>, Stop<'m>> {
        let cell = self.mm.memory().words().cell(offer.pfn).map_err(|_| Stop(None))?;
        // SAFETY: `run` has a read section of the base's domain open, and the folio
        // cache is part of the base, which lives for `'m`.
        let hold = match unsafe { grab::<H, RECHECK>(cell, between, still_mapped) } {
            Grab::Held(hold) => hold,
            Grab::Missed(folio) => return Err(Stop(folio)),
        };
        if self.suits(&hold, offer) {
            Ok(UserPage::new(Some(hold), offer.pfn))
        } else {
            Err(Stop(Some(hold.untake())))
        }
    }

    /// Whether the page may be held as it is. The leaf was looked at again since
    /// the pin was counted, so its exclusiveness is that of a pinned page.
    fn suits<H: Hold<'m>>(&self, hold: &H, offer: Offer) -> bool {
        let folio = hold.folio();
        let is_longterm = self.flags.contains(GupFlags::LONGTERM);
        let is_anon = match folio.kind() {
            FolioKind::Anon => true,
            FolioKind::File | FolioKind::Device => false,
        };
        if is_anon && must_unshare::<H>(self.flags, offer.is_exclusive) {
            return false;
        }
        // Whether a private mapping would replace a file's page only its VMA can say.
        let needs_vma = is_longterm && !is_anon && !self.flags.contains(GupFlags::WRITE);
        let may_stay = !is_longterm || self.mm.check_longterm(folio, offer.pfn).is_ok();
        !needs_vma && may_stay
    }
}

/// Whether an anonymous page has to be made the process's own before it is held.
pub(super) const fn must_unshare<'m, H: Hold<'m>>(flags: GupFlags, is_exclusive: bool) -> bool {
    H::IS_PIN && !flags.contains(GupFlags::WRITE) && !is_exclusive
}
