//! The words of all slots, and which are free.

use core::fmt;

use abi::Pfn;

use super::error::SwapError;
use super::word::{MAX_COUNT, SlotWord};
use crate::platform::Platform;
use crate::sync::shim::{AtomicU64, Ordering};
use crate::sync::{LockClass, SpinLock};

/// The slots that nobody uses.
#[derive(Debug)]
struct FreeSlots {
    top: Option<u32>,
    free: u32,
    /// No slot is handed out any more.
    is_closed: bool,
}

/// A word per slot.
///
/// A used slot's word changes by compare-and-swap, a free one's below the lock
/// of the stack.
pub struct SwapTable<'w> {
    words: &'w [AtomicU64],
    free: SpinLock<FreeSlots>,
    bad: u32,
}

/// What became of a slot that lost a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Others name it.
    Shared,
    /// None does, but the swap cache has it, in this frame.
    OnlyCached(Pfn),
    /// Nobody uses it: to be [discarded](SwapTable::give_back) by the caller, whose it is now.
    Last,
}

/// Why a folio did not become a slot's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachError {
    /// It has one, in this frame.
    Cached(Pfn),
    /// No leaf names the slot.
    NotUsed,
}

impl<'w> SwapTable<'w> {
    /// A table in which all slots are free but those of which `is_bad` says
    /// that they are never used. At most 2^32 - 2 words are used.
    pub fn new(words: &'w [AtomicU64], is_bad: &dyn Fn(u32) -> bool) -> Self {
        let slots = u32::try_from(words.len()).unwrap_or(u32::MAX - 1);
        let mut free = FreeSlots { top: None, free: 0, is_closed: false };
        // The lowest slot ends on top.
        for (word, slot) in words.iter().zip(0..slots).rev() {
            if is_bad(slot) {
                word.store(SlotWord::Bad.encode(), Ordering::Relaxed);
                continue;
            }
            word.store(SlotWord::Free { next: free.top }.encode(), Ordering::Relaxed);
            free.top = Some(slot);
            free.free += 1;
        }
        let bad = slots - free.free;
        Self { words, free: SpinLock::new(LockClass::Swap, free), bad }
    }

    /// Slots, used or not.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.words.len()).unwrap_or(u32::MAX - 1)
    }

    /// Slots that nobody uses.
    pub fn free_slots<P: Platform>(&self, platform: &P) -> u32 {
        self.free.lock(platform).free
    }

    /// Slots that are never used.
    pub const fn bad_slots(&self) -> u32 {
        self.bad
    }

    /// What the slot's word says; `None` beyond the device.
    pub fn load(&self, slot: u32) -> Option<SlotWord> {
        // Acquire pairs with the Release of whoever cached a folio.
        Some(SlotWord::decode(self.word(slot)?.load(Ordering::Acquire)))
    }

    /// The first slot from `from` on that a folio has and no leaf names.
    pub fn next_unnamed(&self, from: u32) -> Option<u32> {
        let is_unnamed =
            |&slot: &u32| matches!(self.load(slot), Some(SlotWord::Cached { count: 0, .. }));
        (from..self.slots()).find(is_unnamed)
    }

    fn word(&self, slot: u32) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(slot).ok()?)
    }

    /// Hands out a slot for the folio at `pfn`, cached, without a leaf.
    ///
    /// # Errors
    /// [`SwapError::Full`].
    pub fn alloc<P: Platform>(&self, platform: &P, pfn: Pfn) -> Result<u32, SwapError> {
        let mut free = self.free.lock(platform);
        if free.is_closed {
            return Err(SwapError::Full);
        }
        let slot = free.top.ok_or(SwapError::Full)?;
        let word = self.word(slot).ok_or(SwapError::Full)?;
        let SlotWord::Free { next } = SlotWord::decode(word.load(Ordering::Relaxed)) else {
            debug_assert!(false, "slot {slot} is on the stack and in use");
            return Err(SwapError::Full);
        };
        free.top = next;
        free.free -= 1;
        word.store(SlotWord::Cached { count: 0, pfn }.encode(), Ordering::Release);
        Ok(slot)
    }

    /// Takes back a slot whose word says that nobody uses it (`Used`, count 0), which its caller brought about.
    pub fn give_back<P: Platform>(&self, platform: &P, slot: u32) {
        let Some(word) = self.word(slot) else { return };
        let mut free = self.free.lock(platform);
        let bits = SlotWord::Free { next: free.top }.encode();
        let unused = SlotWord::Used { count: 0 }.encode();
        let given = word.compare_exchange(unused, bits, Ordering::AcqRel, Ordering::Relaxed);
        debug_assert!(given.is_ok(), "slot {slot} was given back in use");
        if given.is_ok() {
            free.top = Some(slot);
            free.free += 1;
        }
    }

    /// Changes a word as `change` says; returns it as it was.
    fn update<E>(
        &self,
        slot: u32,
        missing: E,
        change: impl Fn(SlotWord) -> Result<SlotWord, E>,
    ) -> Result<SlotWord, E> {
        let Some(word) = self.word(slot) else { return Err(missing) };
        let mut bits = word.load(Ordering::Acquire);
        loop {
            let old = SlotWord::decode(bits);
            let new = change(old)?;
            // AcqRel: a cached folio's fields are seen by who finds it here, and what
            // was done with a slot comes before its next user.
            match word.compare_exchange(bits, new.encode(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(old),
                Err(now) => bits = now,
            }
        }
    }

    /// One more leaf names the slot.
    ///
    /// # Errors
    /// [`SwapError::NotUsed`], [`SwapError::TooMany`].
    pub fn dup(&self, slot: u32) -> Result<(), SwapError> {
        self.update(slot, SwapError::NotUsed, |word| match word {
            SlotWord::Used { count: 0 } | SlotWord::Free { .. } | SlotWord::Bad => {
                Err(SwapError::NotUsed)
            }
            SlotWord::Used { count } | SlotWord::Cached { count, .. } if count == MAX_COUNT => {
                Err(SwapError::TooMany)
            }
            SlotWord::Used { count } | SlotWord::Cached { count, .. } => {
                Ok(word.with_count(count + 1))
            }
        })
        .map(drop)
    }

    /// One leaf less names the slot.
    ///
    /// # Errors
    /// [`SwapError::NotUsed`]: no leaf names it.
    pub fn put(&self, slot: u32) -> Result<Put, SwapError> {
        let old =
            self.update(slot, SwapError::NotUsed, |word| match word.count().checked_sub(1) {
                Some(count) => Ok(word.with_count(count)),
                None => Err(SwapError::NotUsed),
            })?;
        Ok(match old {
            SlotWord::Cached { count: 1, pfn } => Put::OnlyCached(pfn),
            SlotWord::Used { count: 1 } => Put::Last,
            SlotWord::Cached { .. }
            | SlotWord::Used { .. }
            | SlotWord::Free { .. }
            | SlotWord::Bad => Put::Shared,
        })
    }

    /// Makes the folio at `pfn` the slot's.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, slot: u32, pfn: Pfn) -> Result<(), AttachError> {
        self.update(slot, AttachError::NotUsed, |word| match word {
            SlotWord::Used { count: 0 } | SlotWord::Free { .. } | SlotWord::Bad => {
                Err(AttachError::NotUsed)
            }
            SlotWord::Used { count } => Ok(SlotWord::Cached { count, pfn }),
            SlotWord::Cached { pfn, .. } => Err(AttachError::Cached(pfn)),
        })
        .map(drop)
    }

    /// Takes the folio at `pfn` away from the slot. `true`: no leaf names the
    /// slot either; it is the caller's, to be [given back](Self::give_back).
    ///
    /// # Errors
    /// [`SwapError::NotUsed`]: the slot has not this folio.
    pub fn detach(&self, slot: u32, pfn: Pfn) -> Result<bool, SwapError> {
        let old = self.update(slot, SwapError::NotUsed, |word| match word {
            SlotWord::Cached { count, pfn: cached } if cached == pfn => {
                Ok(SlotWord::Used { count })
            }
            SlotWord::Cached { .. }
            | SlotWord::Used { .. }
            | SlotWord::Free { .. }
            | SlotWord::Bad => Err(SwapError::NotUsed),
        })?;
        Ok(old.count() == 0)
    }

    /// Notes that the folio at `from`, frozen, is at `to` now.
    ///
    /// # Errors
    /// [`SwapError::NotUsed`]: the slot has not this folio.
    pub fn relocate(&self, slot: u32, from: Pfn, to: Pfn) -> Result<(), SwapError> {
        self.update(slot, SwapError::NotUsed, |word| match word {
            SlotWord::Cached { count, pfn } if pfn == from => {
                Ok(SlotWord::Cached { count, pfn: to })
            }
            SlotWord::Cached { .. }
            | SlotWord::Used { .. }
            | SlotWord::Free { .. }
            | SlotWord::Bad => Err(SwapError::NotUsed),
        })
        .map(drop)
    }

    /// Hands out no slot any more, if none is in use.
    ///
    /// # Errors
    /// [`SwapError::Busy`].
    pub fn close<P: Platform>(&self, platform: &P) -> Result<(), SwapError> {
        let mut free = self.free.lock(platform);
        if free.free + self.bad != self.slots() {
            return Err(SwapError::Busy);
        }
        free.is_closed = true;
        Ok(())
    }

    /// Walks the stack of free slots: how many there are, or `None` if it does
    /// not end where it should.
    pub(super) fn count_free<P: Platform>(&self, platform: &P) -> Option<u32> {
        let free = self.free.lock(platform);
        let (mut at, mut seen) = (free.top, 0);
        while let Some(slot) = at {
            let Some(SlotWord::Free { next }) = self.load(slot) else { return None };
            seen += 1;
            if seen > free.free {
                return None;
            }
            at = next;
        }
        (seen == free.free).then_some(seen)
    }
}

impl fmt::Debug for SwapTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwapTable").field("slots", &self.slots()).finish_non_exhaustive()
    }
}
