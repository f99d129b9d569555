//! Memory mixed at random: every page that can move goes to a random free frame.

use core::fmt;

use abi::{PageCount, Pfn, PfnRange};

use crate::compaction::ScanRules;
use crate::memdesc::Order;
use crate::memory::{FrozenFrames, Memory};
use crate::migrate::{Destinations, MigrateBatch, MigrateMode};
use crate::platform::Platform;
use crate::scenario::rng::Rng;
use crate::scenario::{Ctx, Machine, Outcome, check};

/// Random frames that are tried for one page.
const TRIES: u32 = 2048;
/// Frames between two turns of the devices.
const PIECE: u64 = 4096;

/// Mixes memory, by the scenario's random numbers.
pub(super) fn mix<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mm = ctx.mm;
    let span = mm.zone_span();
    let mut moved = 0;
    let mut at = span.start();
    while at < span.end() {
        mm.memory().drain();
        let end = at.checked_add(PageCount::new(PIECE)).unwrap_or(span.end()).min(span.end());
        let mut random = RandomFree { memory: mm.memory(), span, rng: ctx.rng.clone() };
        let mut batch: MigrateBatch<'_, '_, M> = MigrateBatch::new(mm);
        while at < end {
            let Some(rest) = PfnRange::new(at, end) else { break };
            at = mm.isolate_movable(rest, ScanRules::EVERYTHING_SMALL, &mut batch).at;
            if !batch.is_empty() {
                moved += mm.migrate_pages(&mut batch, &mut random, MigrateMode::Sync).vacated();
            }
        }
        ctx.rng = random.rng;
        ctx.serve();
    }
    mm.memory().drain();
    check(moved > 0, "some page was moved")
}

/// Free frames at random places.
struct RandomFree<'a, P: Platform> {
    memory: &'a Memory<P>,
    span: PfnRange,
    rng: Rng,
}

impl<P: Platform> Destinations for RandomFree<'_, P> {
    fn take(&mut self, order: Order, _src: Pfn) -> Option<FrozenFrames> {
        if order != Order::ZERO {
            return None;
        }
        let pages = self.span.len().get();
        (0..TRIES).find_map(|_| {
            let offset = PageCount::new(self.rng.below(pages));
            let pfn = self.span.start().checked_add(offset)?;
            // Of whatever type, or what the first arm finds whole the second one does not.
            let is_ordinary = self.memory.map().pageblocks.get(pfn).is_mergeable();
            is_ordinary.then(|| self.memory.take_free_page(pfn)).flatten()
        })
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        self.memory.free_frozen(frames);
    }
}

impl<P: Platform> fmt::Debug for RandomFree<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RandomFree").field("span", &self.span).finish_non_exhaustive()
    }
}
