//! All of free memory in one hand, without an allocation to remember it by.

use core::fmt;

use abi::{PageCount, Pfn};

use super::Rng;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{FrozenFrames, Memory};
use crate::platform::Platform;

/// Blocks held: each says in its first bytes which one was taken before it. Frees all when dropped.
pub(super) struct Hoard<'m, P: Platform> {
    memory: &'m Memory<P>,
    top: Option<(Pfn, Order)>,
    pages: PageCount,
}

impl<P: Platform> fmt::Debug for Hoard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hoard").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl<'m, P: Platform> Hoard<'m, P> {
    /// Nothing yet.
    pub(super) const fn new(memory: &'m Memory<P>) -> Self {
        Self { memory, top: None, pages: PageCount::ZERO }
    }

    /// Takes all that is free, in blocks of at most `largest`.
    pub(super) fn take_all(&mut self, largest: Order) {
        let mut order = largest;
        loop {
            match self.memory.alloc_frozen(order, Gfp::MEMALLOC | Gfp::MOVABLE) {
                Ok(frames) => self.push(frames),
                Err(_) => match order.down() {
                    Some(smaller) => order = smaller,
                    None => return,
                },
            }
        }
    }

    /// Pages held.
    pub(super) const fn pages(&self) -> PageCount {
        self.pages
    }

    pub(super) fn push(&mut self, mut frames: FrozenFrames) {
        let link = match self.top {
            None => [0; 2],
            Some((pfn, order)) => [pfn.number(), u64::from(order.get()) + 1],
        };
        let bytes = self.memory.bytes_mut(&mut frames);
        for (to, from) in bytes.iter_mut().zip(link.into_iter().flat_map(u64::to_le_bytes)) {
            *to = from;
        }
        self.pages = self.pages.saturating_add(frames.pages());
        self.top = Some(frames.into_raw());
    }

    pub(super) fn pop(&mut self) -> Option<FrozenFrames> {
        let (head, order) = self.top?;
        // SAFETY: `push` gave the handle up and kept it here.
        let frames = unsafe { FrozenFrames::from_raw(head, order) };
        let bytes = self.memory.bytes(&frames);
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_le_bytes(bytes.unwrap_or([0; 8]))
        };
        let order = word(8).checked_sub(1).and_then(|order| u32::try_from(order).ok());
        let order = order.and_then(|order| Order::try_from(order).ok());
        self.top = Pfn::new(word(0)).zip(order);
        self.pages = self.pages.saturating_sub(frames.pages());
        Some(frames)
    }

    /// Frees `pages` of its single pages, chosen at random; those that are larger stay.
    pub(super) fn free_some(&mut self, pages: u64, rng: &mut Rng) {
        let mut kept = Self::new(self.memory);
        let mut left = pages;
        while let Some(frames) = self.pop() {
            if left > 0 && frames.order() == Order::ZERO && rng.once_in(4) {
                self.memory.free_frozen(frames);
                left -= 1;
            } else {
                kept.push(frames);
            }
        }
        core::mem::swap(self, &mut kept);
        if left > 0 && left < pages {
            self.free_some(left, rng);
        }
    }
}

impl<P: Platform> Drop for Hoard<'_, P> {
    fn drop(&mut self) {
        while let Some(frames) = self.pop() {
            self.memory.free_frozen(frames);
        }
    }
}
