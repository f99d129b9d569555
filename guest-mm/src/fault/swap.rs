//! Pages that come back from swap.

use core::sync::atomic::Ordering;

use super::wait::Wait;
use super::{Fault, FaultError, FaultEvent, FaultOutcome, Round, Seen, Stop, read_only_prot};
use crate::folio::{Folio, FolioFlags, FolioLockGuard, FolioRef};
use crate::pgtable::{Entry, Leaf, Pte, SwapSlot};
use crate::platform::Platform;
use crate::swap::{SwapError, SwappedIn};

/// What a swap leaf says.
#[derive(Clone, Copy)]
pub(super) struct SwapLeaf {
    /// As it stands in the table.
    pub(super) entry: Entry,
    /// The state that the page gets back.
    pub(super) leaf: Leaf,
    /// Where the contents are.
    pub(super) slot: SwapSlot,
    /// Whether no other leaf names the slot.
    pub(super) exclusive: bool,
}

impl<'m, P: Platform> Fault<'_, 'm, P> {
    /// Maps the page of a swap leaf, from the swap cache or the device.
    pub(super) fn swap_in(&self, swapped: SwapLeaf) -> Round<'m> {
        self.prepare_anon_vma()?;
        let found = match self.mm.swap_in(swapped.slot) {
            Ok(found) => found,
            Err(error) => return self.swap_failed(swapped, error),
        };
        let SwappedIn { folio, was_read } = found;
        let Some(locked) = folio.try_lock(self.mm.platform()) else {
            return Err(Stop::Wait(Wait::Folio(folio)));
        };
        let mapped = self.map_swapped(swapped, &folio, &locked);
        drop(locked);
        self.mm.put(folio);
        if !mapped? {
            return Ok(FaultOutcome::Raced);
        }
        if self.access.is_write()
            && let Seen::Pte(seen) = self.look()?
        {
            // Nothing to do if it was mapped writable; else others have the page too.
            self.serve_pte(seen)?;
        }
        Ok(if was_read { FaultOutcome::SwapMajor } else { FaultOutcome::SwapMinor })
    }

    fn swap_failed(&self, swapped: SwapLeaf, error: SwapError) -> Round<'m> {
        match error {
            SwapError::NoMemory(_) => Err(Stop::Wait(Wait::Memory)),
            SwapError::NotUsed => match self.lock_same(swapped.entry)? {
                // Another CPU had the page mapped, or the range unmapped, meanwhile.
                None => Ok(FaultOutcome::Raced),
                Some(_guard) => {
                    self.mm.count_unknown(error);
                    self.fail(FaultError::Bus, Some(FaultEvent::UnknownLeaf))
                }
            },
            SwapError::NoDevice
            | SwapError::Busy
            | SwapError::BadSize
            | SwapError::Full
            | SwapError::TooMany
            | SwapError::Pool(_)
            | SwapError::Io(_) => self.fail(FaultError::Bus, None),
        }
    }

    /// Sets the leaf of a locked folio; `false` if that is not what is wanted any more.
    fn map_swapped(
        &self,
        swapped: SwapLeaf,
        folio: &FolioRef<'m>,
        locked: &FolioLockGuard<'_, P>,
    ) -> Result<bool, Stop<'m>> {
        if self.mm.swap_slot_of(folio) != Some(swapped.slot) {
            return Ok(false);
        }
        if folio.has(FolioFlags::HWPOISON) {
            return self.fail(FaultError::HwPoison, None);
        }
        if !folio.has(FolioFlags::UPTODATE) {
            return self.fail(FaultError::Bus, None);
        }
        let Some(mut guard) = self.lock_same(swapped.entry)? else { return Ok(false) };
        // The leaf's count; the folio is locked, so it stays in the cache for now.
        if self.mm.swap_put(swapped.slot).is_err() {
            return self.fail(FaultError::Bus, Some(FaultEvent::UnknownLeaf));
        }
        let alone = swapped.exclusive || self.is_alone(folio, swapped.slot);
        let leaf = self.leaf_of_swapped(folio, swapped.leaf, alone);
        self.mm.add_anon_rmap(folio.get(), self.vma, self.page, alone);
        self.space.rss.swap.fetch_sub(1, Ordering::Relaxed);
        self.space.rss.anon.fetch_add(1, Ordering::Relaxed);
        guard.set(self.page, leaf.entry());
        drop(guard);
        // Nobody else will ask for the slot: the page is the only copy from now on.
        self.mm.free_swap(locked);
        Ok(true)
    }

    /// Whether no other leaf, of the folio or of its slot, is left, and nobody
    /// has a reference but the swap cache and this fault. The folio's lock keeps it so.
    fn is_alone(&self, folio: &Folio, slot: SwapSlot) -> bool {
        !folio.is_mapped() && self.mm.swap_count(slot) == 0 && folio.refcount() == 2
    }

    fn leaf_of_swapped(&self, folio: &Folio, was: Leaf, alone: bool) -> Pte {
        let leaf = Pte::new(folio.pfn(), read_only_prot(self.flags))
            .unwrap_or_else(|| unreachable!("frames of RAM fit a leaf"));
        let leaf = if was.is_soft_dirty() { leaf.mk_soft_dirty() } else { leaf };
        let leaf = if was.is_uffd_wp() { leaf.mk_uffd_wp() } else { leaf };
        if !alone {
            return leaf.mk_young();
        }
        self.allowed(leaf.mk_anon_exclusive())
    }
}
