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

/// Blocks outside the wanted frames that one search keeps aside while it looks on.
const ASIDE: usize = 64;

/// Destinations from the allocator, perhaps only inside or only outside a range of frames.
///
/// The allocator knows no ranges: blocks in the wrong place are kept aside until
/// one fits, at most [`ASIDE`] per page, and freed when this is dropped.
pub struct Allocated<'a, P: Platform> {
    memory: &'a Memory<P>,
    gfp: Gfp,
    within: Option<PfnRange>,
    outside: Option<PfnRange>,
    aside: [Option<FrozenFrames>; ASIDE],
}

impl<'a, P: Platform> Allocated<'a, P> {
    /// Destinations anywhere: movable memory, and the reserve, for a migration frees
    /// what it allocates and must not end in reclaim, where it began.
    pub const fn new(memory: &'a Memory<P>) -> Self {
        let gfp = Gfp::MOVABLE.union(Gfp::MEMALLOC);
        Self { memory, gfp, within: None, outside: None, aside: [const { None }; ASIDE] }
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

    fn fits(&self, frames: &FrozenFrames) -> bool {
        let block = frames.range();
        let overlaps = |range: PfnRange| block.start() < range.end() && range.start() < block.end();
        self.within.is_none_or(|range| range.contains_range(block))
            && !self.outside.is_some_and(overlaps)
    }

    fn free_aside(&mut self) {
        for frames in self.aside.iter_mut().filter_map(Option::take) {
            self.memory.free_frozen(frames);
        }
    }
}

impl<P: Platform> Destinations for Allocated<'_, P> {
    fn take(&mut self, order: Order, _src: Pfn) -> Option<FrozenFrames> {
        let mut found = None;
        for tried in 0..=ASIDE {
            let frames = self.memory.alloc_frozen(order, self.gfp).ok()?;
            if self.fits(&frames) {
                found = Some(frames);
                break;
            }
            match self.aside.get_mut(tried) {
                Some(slot) => *slot = Some(frames),
                None => self.memory.free_frozen(frames),
            }
        }
        self.free_aside();
        found
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        self.memory.free_frozen(frames);
    }
}

impl<P: Platform> Drop for Allocated<'_, P> {
    fn drop(&mut self) {
        self.free_aside();
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
