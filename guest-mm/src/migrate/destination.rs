//! Where migrating pages go.

use abi::{Pfn, PfnRange};

use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{FrozenFrames, Memory};
use crate::platform::Platform;

/// Who provides destinations: compaction's free scanner, or plain allocation.
///
/// Neither method may reclaim, compact or migrate: it is called in the middle of that.
pub trait Destinations {
    /// A block of `order` for the page at `src`; `None`: there is none, and the page stays.
    fn take(&mut self, order: Order, src: Pfn) -> Option<FrozenFrames>;

    /// Takes back a block from [`Self::take`] that was not used.
    fn give_back(&mut self, frames: FrozenFrames);
}

/// Destinations of one call of migration: once there is none of an order, nobody asks for
/// that order again, nor for a larger one.
pub(super) struct Remembered<'d> {
    from: &'d mut dyn Destinations,
    /// Smallest order for which there was none.
    exhausted: Option<Order>,
}

impl<'d> Remembered<'d> {
    pub(super) const fn new(from: &'d mut dyn Destinations) -> Self {
        Self { from, exhausted: None }
    }
}

impl Destinations for Remembered<'_> {
    fn take(&mut self, order: Order, src: Pfn) -> Option<FrozenFrames> {
        if self.exhausted.is_some_and(|exhausted| order >= exhausted) {
            return None;
        }
        let frames = self.from.take(order, src);
        if frames.is_none() {
            self.exhausted = Some(order);
        }
        frames
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        self.from.give_back(frames);
    }
}

/// Destinations from the allocator, perhaps only inside or only outside a range of frames.
pub struct Allocated<'a, P: Platform> {
    memory: &'a Memory<P>,
    gfp: Gfp,
    within: Option<PfnRange>,
    outside: Option<PfnRange>,
    /// Where the next search begins.
    cursor: Pfn,
}

impl<'a, P: Platform> Allocated<'a, P> {
    /// Destinations anywhere: movable memory, and the reserve, for a migration frees
    /// what it allocates and must not end in reclaim, where it began.
    pub const fn new(memory: &'a Memory<P>) -> Self {
        let gfp = Gfp::MOVABLE.union(Gfp::MEMALLOC);
        Self { memory, gfp, within: None, outside: None, cursor: Pfn::ZERO }
    }

    /// The same with other flags.
    pub const fn with_gfp(mut self, gfp: Gfp) -> Self {
        self.gfp = gfp;
        self
    }

    /// Only blocks inside `range`.
    pub const fn within(mut self, range: PfnRange) -> Self {
        self.within = Some(range);
        self
    }

    /// Only blocks that no frame of `range` belongs to.
    pub const fn outside(mut self, range: PfnRange) -> Self {
        self.outside = Some(range);
        self
    }

    /// The allocator knows no ranges, so free blocks are looked for by their words, upwards
    /// from where the last was found; what is on CPUs' lists is not.
    fn search(&mut self, order: Order) -> Option<FrozenFrames> {
        let start = self.cursor;
        let found =
            self.search_from(start, order).or_else(|| self.search_from(Pfn::ZERO, order))?;
        self.cursor = found.range().end();
        Some(found)
    }

    fn search_from(&self, start: Pfn, order: Order) -> Option<FrozenFrames> {
        let end = Pfn::new(u64::MAX >> 12)?;
        let wanted = PfnRange::new(start, end)?;
        let wanted = self.within.map_or(Some(wanted), |within| within.intersection(wanted))?;
        let mut from = 0;
        while let Some(region) = self.memory.region_from(from) {
            from = region.end().number();
            let found = region.intersection(wanted).and_then(|r| self.search_range(r, order));
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn search_range(&self, range: PfnRange, order: Order) -> Option<FrozenFrames> {
        let pages = order.pages();
        let mut at = range.start().align_down(order.get());
        if at < range.start() {
            at = at.checked_add(pages)?;
        }
        loop {
            let block = PfnRange::from_start(at, pages)?;
            if !range.contains_range(block) {
                return None;
            }
            let is_outside =
                self.outside.is_none_or(|outside| outside.intersection(block).is_none());
            if is_outside && let Some(found) = self.memory.take_if_free(at, order, self.gfp) {
                return Some(found);
            }
            at = block.end();
        }
    }
}

impl<P: Platform> Destinations for Allocated<'_, P> {
    fn take(&mut self, order: Order, _src: Pfn) -> Option<FrozenFrames> {
        if self.within.is_none() && self.outside.is_none() {
            return self.memory.alloc_frozen(order, self.gfp).ok();
        }
        self.search(order).or_else(|| {
            self.memory.drain();
            self.search(order)
        })
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        self.memory.free_frozen(frames);
    }
}

impl<P: Platform> core::fmt::Debug for Allocated<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Allocated")
            .field("within", &self.within)
            .field("outside", &self.outside)
            .finish_non_exhaustive()
    }
}
