//! Pages to the device and back.

use core::ptr::NonNull;

use super::cache::slot_of;
use super::device::SlotBytes;
use super::error::SwapError;
use super::stats::SwapEvent;
use super::table::AttachError;
use crate::buddy::Gfp;
use crate::folio::{FolioFlags, FolioKind, FolioLockGuard, FolioRef};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::pgtable::SwapSlot;
use crate::platform::Platform;

/// What a swap-in found.
#[derive(Debug, PartialEq, Eq)]
pub struct SwappedIn<'m> {
    /// The folio with the slot's contents, unlocked. Lock it, then see whether
    /// it still has the slot ([`Mm::swap_slot_of`]) and is UPTODATE.
    pub folio: FolioRef<'m>,
    /// Whether the device was read.
    pub was_read: bool,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// The folio with the contents of `slot`, from the swap cache or the device.
    ///
    /// Holds no lock of an inner class than the folio's; may allocate and wait.
    ///
    /// # Errors
    /// [`SwapError::NotUsed`] if the leaf is gone meanwhile, or malformed;
    /// [`SwapError::NoMemory`]; [`SwapError::Io`], and the slot stays as it is.
    pub fn swap_in(&self, slot: SwapSlot) -> Result<SwappedIn<'m>, SwapError> {
        let number = self.known_slot(slot)?;
        loop {
            if let Some(folio) = self.swap_cache_get(slot) {
                self.swap.counters.count(SwapEvent::CacheHit);
                return Ok(SwappedIn { folio, was_read: false });
            }
            let folio = self.alloc_folio(Order::ZERO, Gfp::USER, FolioKind::Anon)?;
            folio.set_flags(FolioFlags::SWAPBACKED);
            let locked = folio.lock(self.platform());
            match self.swap_attach(&locked, number) {
                Ok(()) => {
                    let read = self.swap_read(&locked, number);
                    drop(locked);
                    return match read {
                        Ok(()) => Ok(SwappedIn { folio, was_read: true }),
                        Err(error) => {
                            self.put(folio);
                            Err(error)
                        }
                    };
                }
                Err(error) => {
                    drop(locked);
                    self.put(folio);
                    if error == AttachError::NotUsed {
                        // Most often a leaf that is gone meanwhile: the caller looks.
                        return Err(SwapError::NotUsed);
                    }
                    // Another CPU was faster: its folio is the one.
                }
            }
        }
    }

    /// Fills a locked folio that has just become the slot's.
    fn swap_read(&self, locked: &FolioLockGuard<'_, P>, slot: u32) -> Result<(), SwapError> {
        let mut page = self.bytes_of(locked);
        let read = self.with_slot(|area| {
            // SAFETY: the folio is locked and not up to date, so nobody maps or reads it.
            let page = unsafe { page.as_mut() };
            Ok(area.read(slot, page)?)
        });
        match read {
            Ok(()) => {
                self.swap.counters.count(SwapEvent::In);
                locked.folio().set_flags(FolioFlags::UPTODATE);
                Ok(())
            }
            Err(error) => {
                self.swap.counters.count(SwapEvent::ReadError);
                self.swap_cache_drop(locked);
                Err(error)
            }
        }
    }

    /// Writes a locked, unmapped folio to its slot; it is clean afterwards.
    ///
    /// # Errors
    /// [`SwapError::NotUsed`] if it has none; [`SwapError::Io`]: it is dirty still.
    pub fn swap_write(&self, locked: &FolioLockGuard<'_, P>) -> Result<(), SwapError> {
        let folio = locked.folio();
        let slot = self.swap_slot_of(folio).ok_or(SwapError::NotUsed)?;
        let number = self.known_slot(slot)?;
        debug_assert_eq!(slot, slot_of(number));
        folio.clear_flags(FolioFlags::DIRTY);
        let page = self.bytes_of(locked);
        let written = self.with_slot(|area| {
            // SAFETY: no leaf maps the folio and none is made while it is locked; a pin
            // would have kept it from being written out.
            let page = unsafe { page.as_ref() };
            Ok(area.write(number, page)?)
        });
        match written {
            Ok(()) => self.swap.counters.count(SwapEvent::Out),
            Err(_) => {
                self.swap.counters.count(SwapEvent::WriteError);
                folio.set_flags(FolioFlags::DIRTY);
            }
        }
        written
    }

    fn bytes_of(&self, locked: &FolioLockGuard<'_, P>) -> NonNull<SlotBytes> {
        self.platform().frame_ptr(locked.folio().pfn()).cast()
    }
}
