//! The swap cache: which folio has a slot's contents.
//!
//! A folio enters and leaves it locked (or frozen), and the cache has one
//! reference to it. Lookups take no lock.

use abi::Pfn;

use super::area::SwapArea;
use super::error::SwapError;
use super::stats::SwapEvent;
use super::table::{AttachError, Put};
use super::{SwapStats, SwapTable};
use crate::folio::{Folio, FolioFlags, FolioLockGuard, FolioRef, NoFolio};
use crate::mm::Mm;
use crate::pgtable::SwapSlot;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

impl<'m, P: Platform> Mm<'m, P> {
    /// What swap has done, and how full it is.
    pub fn swap_stats(&self) -> SwapStats {
        let counted = self.swap.counters.snapshot();
        self.with_area(|area| SwapStats {
            slots: area.table.slots(),
            free_slots: area.table.free_slots(self.platform()),
            bad_slots: area.table.bad_slots(),
            ..counted
        })
        .unwrap_or(counted)
    }

    /// Whether a folio could be swapped out now.
    pub fn swap_has_room(&self) -> bool {
        self.with_area(|area| area.table.free_slots(self.platform()) > 0).unwrap_or(false)
    }

    /// Gives a folio of one page a slot and puts it into the swap cache, dirty.
    /// No leaf names the slot yet.
    ///
    /// # Errors
    /// [`SwapError::NoDevice`], [`SwapError::Full`].
    pub fn swap_alloc(&self, locked: &FolioLockGuard<'_, P>) -> Result<SwapSlot, SwapError> {
        let folio = locked.folio();
        debug_assert!(folio.is_anon() && !folio.is_large(), "{folio:?} cannot be swapped");
        debug_assert!(!folio.has(FolioFlags::SWAPCACHE), "{folio:?} has a slot");
        let slot = self
            .with_area(|area| area.table.alloc(self.platform(), folio.pfn()))
            .unwrap_or(Err(SwapError::NoDevice))
            .inspect_err(|_| self.swap.counters.count(SwapEvent::Full))?;
        folio.set_flags(FolioFlags::DIRTY);
        Ok(self.enter_cache(folio, slot))
    }

    /// Notes in a locked folio that it has `slot`, whose word says so already.
    fn enter_cache(&self, folio: &Folio, slot: u32) -> SwapSlot {
        folio.private.store(u64::from(slot), Ordering::Relaxed);
        // The cache's reference; `swap_cache_drop` has its handle again.
        let _ = self.get(folio).into_raw();
        folio.set_flags(FolioFlags::SWAPCACHE);
        slot_of(slot)
    }

    /// Makes a locked, unpublished folio the slot's, whose contents are to be read.
    pub(super) fn swap_attach(
        &self,
        locked: &FolioLockGuard<'_, P>,
        slot: u32,
    ) -> Result<(), AttachError> {
        let folio = locked.folio();
        self.with_area(|area| area.table.attach(slot, folio.pfn()))
            .unwrap_or(Err(AttachError::NotUsed))?;
        self.enter_cache(folio, slot);
        Ok(())
    }

    /// The folio that has the contents of `slot`, if one does.
    ///
    /// Whoever locks it then looks whether it [still has it](Self::swap_slot_of).
    pub fn swap_cache_get(&self, slot: SwapSlot) -> Option<FolioRef<'m>> {
        let slot = self.known_slot(slot).ok()?;
        loop {
            let pfn = self.with_area(|area| cached_at(&area.table, slot))??;
            match self.cached_folio(slot, pfn) {
                Found::Folio(folio) => return Some(folio),
                // Somebody freezes it to take it out of the cache, or to move it.
                Found::Again => self.platform().relax(),
            }
        }
    }

    /// The folio at `pfn` if it is the slot's.
    fn cached_folio(&self, slot: u32, pfn: Pfn) -> Found<'m> {
        let folio = match self.folio_of(pfn) {
            Ok(folio) => folio,
            Err(NoFolio::Busy | NoFolio::NotFolio(_) | NoFolio::OutOfMap(_)) => {
                return Found::Again;
            }
        };
        // The cache's reference was on the folio that we have one on, if the word has
        // not changed since: it changes before that reference goes.
        if self.with_area(|area| cached_at(&area.table, slot)) == Some(Some(pfn)) {
            return Found::Folio(folio);
        }
        self.put(folio);
        Found::Again
    }

    /// The slot that a locked folio has.
    pub fn swap_slot_of(&self, folio: &Folio) -> Option<SwapSlot> {
        if !folio.has(FolioFlags::SWAPCACHE) {
            return None;
        }
        SwapSlot::new(folio.private())
    }

    /// Leaves that name `slot`.
    pub fn swap_count(&self, slot: SwapSlot) -> u32 {
        let Ok(slot) = self.known_slot(slot) else { return 0 };
        self.with_area(|area| area.table.load(slot).map_or(0, |word| word.count())).unwrap_or(0)
    }

    /// Takes a locked or frozen folio out of the swap cache. The cache's
    /// reference stays, and is the caller's now.
    pub(crate) fn swap_cache_remove(&self, folio: &Folio) {
        let Some(slot) = self.swap_slot_of(folio).and_then(|slot| self.known_slot(slot).ok())
        else {
            return;
        };
        folio.clear_flags(FolioFlags::SWAPCACHE);
        folio.private.store(0, Ordering::Relaxed);
        let removed = self.with_area(|area| {
            let is_unused = area.table.detach(slot, folio.pfn())?;
            if is_unused {
                area.free_slot(self.platform(), slot);
            }
            Ok::<_, SwapError>(())
        });
        debug_assert_eq!(removed, Some(Ok(())), "slot {slot} had not {folio:?}");
    }

    /// Notes in the slot of a frozen folio, if it has one, that the folio moves
    /// from its frame to `to`. Lookups wait meanwhile, and then find it there.
    pub(crate) fn swap_cache_relocate(&self, folio: &Folio, to: Pfn) {
        let Some(slot) = self.swap_slot_of(folio).and_then(|slot| self.known_slot(slot).ok())
        else {
            return;
        };
        let moved = self.with_area(|area| area.table.relocate(slot, folio.pfn(), to));
        debug_assert_eq!(moved, Some(Ok(())), "slot {slot} had not {folio:?}");
    }

    /// Takes a locked folio out of the swap cache if no leaf names its slot;
    /// returns whether it is out. It is dirty then: nothing else has its contents.
    ///
    /// The caller has a reference of its own.
    pub fn free_swap(&self, locked: &FolioLockGuard<'_, P>) -> bool {
        let folio = locked.folio();
        let Some(slot) = self.swap_slot_of(folio) else { return true };
        // Only its own leaves could be duplicated, and there are none; new ones are made below the folio's lock.
        if self.swap_count(slot) != 0 {
            return false;
        }
        folio.set_flags(FolioFlags::DIRTY);
        self.swap_cache_drop(locked);
        true
    }

    /// Takes a locked folio out of the swap cache and gives the cache's reference up.
    pub(crate) fn swap_cache_drop(&self, locked: &FolioLockGuard<'_, P>) {
        let folio = locked.folio();
        if !folio.has(FolioFlags::SWAPCACHE) {
            return;
        }
        self.swap_cache_remove(folio);
        // SAFETY: the cache's reference, whose handle `enter_cache` gave up; nobody
        // else can take it back, since the flag was set and the folio is locked.
        let cache = unsafe { FolioRef::from_raw(core::ptr::NonNull::from(folio)) };
        self.put(cache);
    }

    /// One more leaf names `slot`: a copy by fork, or one that replaces a mapping.
    /// May be called below a page-table lock.
    ///
    /// # Errors
    /// [`SwapError::NotUsed`], counted; [`SwapError::TooMany`].
    pub fn swap_dup(&self, slot: SwapSlot) -> Result<(), SwapError> {
        let known = self.known_slot(slot)?;
        let done = self.with_area(|area| area.table.dup(known)).unwrap_or(Err(SwapError::NotUsed));
        done.inspect_err(|error| self.count_unknown(*error))
    }

    /// One leaf less names `slot`; the last one frees it, and the cached folio
    /// if nobody else has that. May be called below a page-table lock.
    ///
    /// # Errors
    /// [`SwapError::NotUsed`], counted: no leaf named it.
    pub fn swap_put(&self, slot: SwapSlot) -> Result<(), SwapError> {
        let known = self.known_slot(slot)?;
        let put = self.with_area(|area| {
            let put = area.table.put(known)?;
            if put == Put::Last {
                area.free_slot(self.platform(), known);
            }
            Ok(put)
        });
        match put.unwrap_or(Err(SwapError::NotUsed)) {
            Ok(Put::Shared | Put::Last) => Ok(()),
            Ok(Put::OnlyCached(pfn)) => {
                self.drop_unused(known, pfn);
                Ok(())
            }
            Err(error) => {
                self.count_unknown(error);
                Err(error)
            }
        }
    }

    /// Takes the folio of a slot that no leaf names out of the cache, unless it is busy: then reclaim will.
    fn drop_unused(&self, slot: u32, pfn: Pfn) {
        let Found::Folio(folio) = self.cached_folio(slot, pfn) else { return };
        if let Some(locked) = folio.try_lock(self.platform())
            && self.swap_slot_of(&folio) == Some(slot_of(slot))
        {
            self.free_swap(&locked);
        }
        self.put(folio);
    }

    /// Takes every folio out of the cache whose slot no leaf names: those that were busy when the last leaf went.
    /// Locks folios.
    pub(super) fn drop_all_unused(&self) {
        let mut from = 0;
        while let Some(slot) = self.with_area(|area| area.table.next_unnamed(from)).flatten() {
            if let Some(folio) = self.swap_cache_get(slot_of(slot)) {
                let locked = folio.lock(self.platform());
                if self.swap_slot_of(&folio) == Some(slot_of(slot)) {
                    self.free_swap(&locked);
                }
                drop(locked);
                self.put(folio);
            }
            from = slot + 1;
        }
    }

    /// The slot's number, if a device can have it.
    pub(super) fn known_slot(&self, slot: SwapSlot) -> Result<u32, SwapError> {
        u32::try_from(slot.get()).map_err(|_| {
            self.count_unknown(SwapError::NotUsed);
            SwapError::NotUsed
        })
    }

    /// Counts that a leaf named a slot that nobody uses.
    pub(crate) fn count_unknown(&self, error: SwapError) {
        if error == SwapError::NotUsed {
            self.swap.counters.count(SwapEvent::BadSlot);
        }
    }

    /// Runs `act` on the area of a slot that is in use.
    pub(super) fn with_slot<R>(
        &self,
        act: impl FnOnce(&SwapArea<'m, P>) -> Result<R, SwapError>,
    ) -> Result<R, SwapError> {
        self.with_area(act).unwrap_or(Err(SwapError::NotUsed))
    }
}

/// What a look at a cached frame gave.
enum Found<'m> {
    Folio(FolioRef<'m>),
    Again,
}

fn cached_at(table: &SwapTable<'_>, slot: u32) -> Option<Pfn> {
    table.load(slot)?.cached_at()
}

pub(super) fn slot_of(slot: u32) -> SwapSlot {
    SwapSlot::new(u64::from(slot)).unwrap_or_else(|| unreachable!("32 bits fit 52"))
}
