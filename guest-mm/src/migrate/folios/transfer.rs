//! One folio to one destination.

use core::ptr::NonNull;

use abi::PfnRange;

use super::IsolatedFolio;
use crate::folio::{Folio, FolioFlags, FolioRef};
use crate::memory::{FrozenFrames, TransitFrames};
use crate::migrate::{MigrateError, MigrateMode};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::rmap::Unmap;

/// A folio that moved, or was freed since nobody used it.
#[must_use = "both blocks are the caller's to free"]
#[derive(Debug, PartialEq, Eq)]
pub struct Transferred {
    /// The frames that the folio has left.
    pub source: FrozenFrames,
    /// The destination, if the folio did not need it any more.
    pub spare: Option<FrozenFrames>,
}

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferStage {
    /// Migration leaves are in place of all leaves; the folio is not frozen yet.
    Unmapped,
    /// The folio is in its new frames, and no leaf is back.
    Relocated,
}

/// A folio that did not move, and the destination that it did not take.
#[must_use = "both are somebody's"]
#[derive(Debug)]
pub struct FailedTransfer<'m> {
    /// The folio, as it was, isolated still.
    pub folio: IsolatedFolio<'m>,
    /// The destination, frozen as before. `None` if its words were not its own:
    /// memory corruption; it is leaked.
    pub destination: Option<FrozenFrames>,
    /// Why.
    pub error: MigrateError,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Moves an isolated folio to `destination`, of the same order, and puts it back
    /// on the LRU. The frames that it has left are the caller's to free.
    ///
    /// Whoever touches the folio by a page table meanwhile sleeps until the leaf is
    /// back. A folio that nobody uses any more is freed instead.
    ///
    /// May wait for the folio's lock, but not in [`MigrateMode::Async`]; the caller
    /// holds no folio's lock and nothing of an inner class. Allocates nothing: a
    /// large folio's PMD leaves become migration leaves of the same size.
    ///
    /// # Errors
    /// [`FailedTransfer`] with `Busy`: pinned or poisoned. `Again`:
    /// locked (Async), or somebody else has a reference. `NoMemory`: the destination
    /// has another order. Leaves are back with all that they kept.
    pub fn transfer_folio(
        &self,
        isolated: IsolatedFolio<'m>,
        destination: FrozenFrames,
        mode: MigrateMode,
    ) -> Result<Transferred, FailedTransfer<'m>> {
        self.transfer_folio_delayed(isolated, destination, mode, |_| ())
    }

    /// As [`Self::transfer_folio`], with `between` called when a stage is reached: for
    /// tests of who comes then.
    ///
    /// # Errors
    /// As there.
    pub fn transfer_folio_delayed(
        &self,
        isolated: IsolatedFolio<'m>,
        destination: FrozenFrames,
        mode: MigrateMode,
        mut between: impl FnMut(TransferStage),
    ) -> Result<Transferred, FailedTransfer<'m>> {
        let fail = |folio, destination, error| FailedTransfer {
            folio: IsolatedFolio::own(folio),
            destination,
            error,
        };
        let folio = match self.take_unused(isolated.into_reference()) {
            Ok(source) => return Ok(Transferred { source, spare: Some(destination) }),
            Err(folio) => folio,
        };
        if destination.order() != folio.order() {
            return Err(fail(folio, Some(destination), MigrateError::NoMemory));
        }
        let Ok(transit) = self.memory().put_in_transit(destination) else {
            debug_assert!(false, "a destination of somebody else's");
            return Err(fail(folio, None, MigrateError::NoMemory));
        };
        match self.lock_and_transfer(&folio, &transit, mode, &mut between) {
            Ok(source) => {
                self.putback_lru_folio(IsolatedFolio::own(folio));
                Ok(Transferred { source, spare: None })
            }
            Err(error) => {
                let destination = self.memory().take_out_of_transit(transit);
                debug_assert!(destination.is_ok(), "{destination:?}");
                Err(fail(folio, destination.ok(), error))
            }
        }
    }

    /// The frames of a folio that nobody but us refers to: it need not be moved.
    fn take_unused(&self, folio: FolioRef<'m>) -> Result<FrozenFrames, FolioRef<'m>> {
        if cache_references(&folio) != 0 {
            return Err(folio);
        }
        let frozen = folio.freeze(1)?;
        self.undefer_split(&frozen);
        frozen.clear_flags(FolioFlags::ISOLATED);
        let (head, order) = (frozen.pfn(), frozen.order());
        Ok(self.dissolve(frozen).unwrap_or_else(|error| {
            unreachable!("words of the folio at {head:?}, {order:?}: {error}")
        }))
    }

    fn lock_and_transfer(
        &self,
        folio: &FolioRef<'m>,
        to: &TransitFrames,
        mode: MigrateMode,
        between: &mut impl FnMut(TransferStage),
    ) -> Result<FrozenFrames, MigrateError> {
        // Before the lock: whoever has a reference may want it, and must not find it taken
        // by one attempt after the other that can only fail.
        check_alone(folio)?;
        let locked = match mode {
            MigrateMode::Async => folio.try_lock(self.platform()).ok_or(MigrateError::Again)?,
            MigrateMode::SyncLight | MigrateMode::Sync => folio.lock(self.platform()),
        };
        let moved = self.transfer_locked(folio, to, between);
        drop(locked);
        self.free_unused_swap(folio);
        moved
    }

    /// Takes a folio out of the swap cache whose slot nobody names any more: who gave
    /// its last use up while the folio was locked has left that to who unlocked it.
    fn free_unused_swap(&self, folio: &FolioRef<'m>) {
        if folio.has(FolioFlags::SWAPCACHE)
            && !folio.is_mapped()
            && let Some(locked) = folio.try_lock(self.platform())
        {
            self.free_swap(&locked);
        }
    }

    /// What happens below the folio's lock.
    fn transfer_locked(
        &self,
        folio: &FolioRef<'m>,
        to: &TransitFrames,
        between: &mut impl FnMut(TransferStage),
    ) -> Result<FrozenFrames, MigrateError> {
        let expected = check_alone(folio)?;
        let from = folio.range();
        let leaves = folio.mapcount();
        let was_deferred = folio.has(FolioFlags::DEFERRED_SPLIT);
        let anchor = self.rmap_anchor(folio);
        if anchor.is_none() && folio.is_mapped() {
            return Err(MigrateError::Again);
        }
        let moved = self.unmap_and_relocate(folio, expected, to, between);
        if let Some(anchor) = anchor {
            // The leaves of where it was: its own still, if it did not move.
            self.restore_leaves(&anchor, folio, from.start());
            self.rmap_release(anchor);
        }
        if was_deferred || is_partly_unmapped(folio, leaves) {
            self.deferred_split_folio(folio);
        }
        moved?;
        self.retire_source(folio, from)
    }

    /// Takes the leaves away, freezes, and moves contents, words and slot.
    fn unmap_and_relocate(
        &self,
        folio: &FolioRef<'m>,
        expected: u32,
        to: &TransitFrames,
        between: &mut impl FnMut(TransferStage),
    ) -> Result<(), MigrateError> {
        if folio.is_mapped() && !self.try_to_unmap(folio, Unmap::MigrateWhole) {
            let is_pinned = folio.is_pinned();
            return Err(if is_pinned { MigrateError::Busy } else { MigrateError::Again });
        }
        between(TransferStage::Unmapped);
        // One more for the handle that is frozen.
        let count = expected + 1;
        let frozen = match folio.get().freeze(count) {
            Ok(frozen) => frozen,
            Err(extra) => {
                self.put(extra);
                return Err(MigrateError::Again);
            }
        };
        let from = frozen.range();
        self.copy_frames(from, to);
        // Its links are frame numbers. Nothing queues it again before it has leaves.
        self.undefer_split(&frozen);
        let word = frozen.kind().word_of(frozen.as_ptr());
        let left = frozen.kind().left_word_of(frozen.as_ptr());
        self.swap_cache_relocate(&frozen, to.head());
        let adopt = || {
            let adopted = self.memory().adopt_described(to, word);
            debug_assert!(adopted.is_ok(), "{to:?}: {adopted:?}");
        };
        let leave = || {
            let done = self.memory().leave_described(from, word, left);
            debug_assert!(done.is_ok(), "{from:?}: {done:?}");
        };
        self.put(frozen.relocate(to.head(), count, adopt, leave));
        between(TransferStage::Relocated);
        Ok(())
    }

    /// Copies the contents of a frozen folio, which nobody can reach.
    fn copy_frames(&self, from: PfnRange, to: &TransitFrames) {
        let source = self.platform().frame_ptr(from.start());
        let target = self.platform().frame_ptr(to.head());
        let bytes = usize::try_from(from.len().bytes())
            .unwrap_or_else(|_| unreachable!("a block is at most 4 MiB"));
        // SAFETY: both blocks are RAM of so many bytes, contiguous in the direct map, and
        // distinct: the destination was allocated. Nobody else touches either. The
        // destination is in transit; the folio is frozen, so no leaf maps it, whose TLB
        // entries were flushed before their tables were unlocked, and nobody has a
        // reference or a pin. What others did by those happened before they were given
        // up, which the freeze acquired.
        unsafe { source.copy_to_nonoverlapping(target, bytes) };
    }

    /// The frames that the folio has left: no leaf names them any more.
    fn retire_source(&self, folio: &Folio, from: PfnRange) -> Result<FrozenFrames, MigrateError> {
        let left = folio.kind().left_word_of(NonNull::from(folio));
        // SAFETY: the folio owned the block and lives in another one now.
        let source = unsafe { FrozenFrames::from_raw(from.start(), folio.order()) };
        self.memory().retire_described(source, left).map_err(|error| {
            debug_assert!(false, "words of a folio: {error}");
            MigrateError::NotTaken
        })
    }
}

/// Whether the folio can be had alone, as far as counts tell: pins, references. A
/// guess unless the folio is locked, and for references also then: the freeze decides.
/// Returns the references that are not leaves.
fn check_alone(folio: &Folio) -> Result<u32, MigrateError> {
    if folio.has(FolioFlags::HWPOISON) || folio.is_pinned() {
        return Err(MigrateError::Busy);
    }
    if folio.has(FolioFlags::WRITEBACK) {
        return Err(MigrateError::Again);
    }
    let expected = 1 + cache_references(folio);
    if folio.refcount() != expected + folio.mapcount() {
        return Err(MigrateError::Again);
    }
    Ok(expected)
}

/// Whether part of a folio seems to have been unmapped while its `leaves` were
/// migration leaves, which count nothing. A guess, as in `remove_rmap`.
fn is_partly_unmapped(folio: &Folio, leaves: u32) -> bool {
    let left = folio.mapcount();
    folio.is_anon() && left != leaves && left > 0 && u64::from(left) < folio.pages().get()
}

/// References of the cache that a locked folio is in.
fn cache_references(folio: &Folio) -> u32 {
    if folio.has(FolioFlags::SWAPCACHE) || (!folio.is_anon() && folio.has_mapping()) {
        u32::try_from(folio.pages().get()).unwrap_or(u32::MAX)
    } else {
        0
    }
}
