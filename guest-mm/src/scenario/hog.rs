//! [`Hog`]: memory that a scenario takes away, so that little is left.

use core::fmt;
use core::ptr::NonNull;

use abi::Pfn;

use super::Machine;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::FrozenFrames;
use crate::mm::Mm;

/// Memory that is taken away: blocks that each name the next in their first
/// bytes, so that holding any number of them takes none.
#[must_use = "what it holds is given back by `free` only"]
pub(super) struct Hog {
    first: Option<(Pfn, Order)>,
}

/// What the first bytes of a block say: the next one's frame, and its order + 1; 0 for none.
type Link = [u64; 2];

impl Hog {
    /// Nothing yet.
    pub(super) const fn new() -> Self {
        Self { first: None }
    }

    /// Takes pages, the largest blocks first, until only `left` are free or `gfp`
    /// allows no more.
    pub(super) fn take_until<M: Machine>(&mut self, mm: &Mm<'_, M>, left: u64, gfp: Gfp) {
        let memory = mm.memory();
        let mut order = Order::MAX;
        loop {
            let excess = memory.free_pages().get().saturating_sub(left);
            if excess == 0 {
                return;
            }
            order = order.min(Order::fitting(excess));
            match memory.alloc_frozen(order, gfp) {
                Ok(frames) => self.push(mm, frames),
                Err(_) => match order.down() {
                    Some(lower) => order = lower,
                    None => return,
                },
            }
        }
    }

    /// Takes a block over.
    pub(super) fn push<M: Machine>(&mut self, mm: &Mm<'_, M>, frames: FrozenFrames) {
        let (pfn, order) = frames.into_raw();
        let next =
            self.first.map_or([0, 0], |(pfn, order)| [pfn.number(), u64::from(order.get()) + 1]);
        let place: NonNull<Link> = mm.platform().frame_ptr(pfn).cast();
        // SAFETY: a block of ours that nobody else uses.
        unsafe { place.write(next) };
        self.first = Some((pfn, order));
    }

    /// Gives everything back.
    pub(super) fn free<M: Machine>(mut self, mm: &Mm<'_, M>) {
        while let Some((pfn, order)) = self.first {
            let place: NonNull<Link> = mm.platform().frame_ptr(pfn).cast();
            // SAFETY: a block of ours, written by `push`.
            let [next, next_order] = unsafe { place.read() };
            // SAFETY: the handle that `push` gave up.
            let frames = unsafe { FrozenFrames::from_raw(pfn, order) };
            mm.memory().free_frozen(frames);
            let next_order = next_order.checked_sub(1).and_then(|order| u32::try_from(order).ok());
            self.first =
                next_order.and_then(|order| Some((Pfn::new(next)?, Order::try_from(order).ok()?)));
        }
    }
}

impl fmt::Debug for Hog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hog").field("first", &self.first).finish_non_exhaustive()
    }
}
