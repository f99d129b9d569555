//! The free scanner: finds free pages to move to, from the top of the zone down.

use core::fmt;

use abi::{Pfn, PfnRange};

use crate::memdesc::{MigrateType, Order};
use crate::memory::{FreeWant, FrozenFrames, Memory};
use crate::migrate::Destinations;
use crate::mm::Base;
use crate::platform::Platform;
use crate::rcu::ReadGuard;

/// Blocks that the scanner holds at most.
const HELD: usize = 32;
/// Pages that it takes at a time.
const BATCH_PAGES: u64 = 32;
/// Free blocks are cut to this order: a batch of pages needs no more.
const LARGEST: Order = Order::saturating(5);

/// Free frames, frozen, and where they came from: the destinations of a compaction.
///
/// Goes down by pageblocks until it meets the migrate scanner. In each it goes up, as
/// the allocator's blocks do. What it holds when it is dropped is freed.
pub(super) struct FreeScanner<'a, P: Platform> {
    base: &'a Base<P>,
    memory: &'a Memory<P>,
    /// First frame of the pageblock that it is in, or where it ended.
    block: Pfn,
    /// Where in it.
    at: Pfn,
    /// The migrate scanner's pageblock: the end.
    limit: Pfn,
    zone: PfnRange,
    rules: FreeRules,
    held: [Option<FrozenFrames>; HELD],
    /// Blocks were taken from this pageblock.
    has_taken: bool,
    pub(super) outcome: FreeOutcome,
}

/// How the scanner looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FreeRules {
    /// Looks at pageblocks too in which nothing was found before.
    pub(super) ignore_skips: bool,
    /// Does not wait for the zone lock.
    pub(super) try_only: bool,
    /// Stops when about so many words were looked at.
    pub(super) budget: Option<u64>,
}

/// What it has found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FreeOutcome {
    /// Words looked at.
    pub(super) scanned: u64,
    /// Pages taken.
    pub(super) isolated: u64,
    /// The zone lock was busy.
    pub(super) contended: bool,
    /// Taking more would leave less than the *min* watermark.
    pub(super) starved: bool,
}

impl<'a, P: Platform> FreeScanner<'a, P> {
    /// A scanner that begins in the pageblock of `from`, which is below the end of `zone`.
    pub(super) fn new(base: &'a Base<P>, zone: PfnRange, from: Pfn, rules: FreeRules) -> Self {
        let block = from.align_down(Order::PAGEBLOCK.get());
        Self {
            base,
            memory: &base.memory,
            block,
            at: block,
            limit: zone.start(),
            zone,
            rules,
            held: [const { None }; HELD],
            has_taken: false,
            outcome: FreeOutcome::default(),
        }
    }

    /// The last pageblock below the end of `zone`: where a scanner begins.
    pub(super) fn top(zone: PfnRange) -> Pfn {
        let last = zone.end().number().checked_sub(1).and_then(Pfn::new).unwrap_or(zone.end());
        last.align_down(Order::PAGEBLOCK.get())
    }

    /// Where the next run's begins: in the pageblock from which frames were not used
    /// too, if there are any.
    pub(super) fn cached(&self) -> Pfn {
        let unused = self.held.iter().flatten().map(FrozenFrames::head).max();
        unused.map_or(self.block, |head| head.align_down(Order::PAGEBLOCK.get()).max(self.block))
    }

    /// Says where the migrate scanner is.
    pub(super) fn set_limit(&mut self, migrate: Pfn) {
        self.limit = migrate;
    }

    /// Whether the scanners have met: the pageblock that is emptied gives no destinations.
    pub(super) fn has_met(&self) -> bool {
        self.block <= self.limit.align_down(Order::PAGEBLOCK.get())
    }

    /// Whether it has looked at as many words as it may.
    pub(super) fn is_spent(&self) -> bool {
        self.rules.budget.is_some_and(|budget| self.outcome.scanned >= budget)
    }

    fn held_pages(&self) -> u64 {
        self.held.iter().flatten().map(|frames| frames.pages().get()).sum()
    }

    /// Takes about a batch of pages, unless the scanners meet before.
    fn refill(&mut self, order: Order) {
        while !self.has_met()
            && !self.outcome.starved
            && !self.outcome.contended
            && !self.is_spent()
            && self.held_pages() < BATCH_PAGES.max(order.pages().get())
            && self.held.iter().any(Option::is_none)
        {
            if self.is_target() && !self.scan_block(order) {
                return;
            }
            if self.at >= self.block_end() {
                self.go_down();
            }
        }
    }

    /// Takes free blocks of this pageblock. `false`: it has to stop in the middle.
    fn scan_block(&mut self, order: Order) -> bool {
        let Some(range) = PfnRange::new(self.at, self.block_end()) else { return false };
        let began_at_start = self.at == self.block;
        let want = FreeWant {
            pages: BATCH_PAGES.max(order.pages().get()).saturating_sub(self.held_pages()),
            blocks: self.held.iter().filter(|slot| slot.is_none()).count(),
            largest: order.max(LARGEST),
            try_only: self.rules.try_only,
        };
        let held = &mut self.held;
        let scan = self.memory.take_free_in(range, want, &mut |frames| match held
            .iter_mut()
            .find(|slot| slot.is_none())
        {
            Some(slot) => *slot = Some(frames),
            None => unreachable!("as many blocks as there are free slots"),
        });
        let Some(scan) = scan else {
            self.outcome.contended = true;
            return false;
        };
        self.outcome.scanned += scan.scanned;
        self.outcome.isolated += scan.taken;
        self.outcome.starved |= scan.starved;
        self.has_taken |= scan.taken > 0;
        self.at = scan.stopped_at;
        if self.at >= self.block_end() && began_at_start && !self.has_taken && !scan.starved {
            let _section = self.read();
            self.memory.map().pageblocks.set_skipped(self.block);
        }
        true
    }

    /// What is kept of a hot-plugged pageblock goes with it.
    fn read(&self) -> ReadGuard<'a> {
        self.base.rcu.read(self.memory.platform().cpu())
    }

    fn is_target(&mut self) -> bool {
        let _section = self.read();
        let pageblocks = &self.memory.map().pageblocks;
        let is_target = pageblocks.get(self.block) == MigrateType::Movable
            && (self.rules.ignore_skips || !pageblocks.is_skipped(self.block));
        if !is_target {
            self.at = self.block_end();
        }
        is_target
    }

    fn block_end(&self) -> Pfn {
        let end = self.block.checked_add(Order::PAGEBLOCK.pages()).unwrap_or(self.block);
        end.min(self.zone.end())
    }

    fn go_down(&mut self) {
        let below = self.block.number().checked_sub(Order::PAGEBLOCK.pages().get());
        // Below the first pageblock there is nothing: the scanners have met there.
        self.block = below.and_then(Pfn::new).unwrap_or(Pfn::ZERO);
        self.at = self.block;
        self.has_taken = false;
    }

    /// The smallest held block of at least `order`, out of its slot.
    fn pick(&mut self, order: Order) -> Option<FrozenFrames> {
        let fits = |slot: &&mut Option<FrozenFrames>| {
            slot.as_ref().is_some_and(|frames| frames.order() >= order)
        };
        let order_of = |slot: &&mut Option<FrozenFrames>| {
            slot.as_ref().map_or(Order::MAX, FrozenFrames::order)
        };
        self.held.iter_mut().filter(fits).min_by_key(order_of)?.take()
    }

    /// Cuts a block down to `order` and keeps the rest.
    fn cut(&mut self, mut frames: FrozenFrames, order: Order) -> Option<FrozenFrames> {
        while frames.order() > order {
            match self.memory.split_frozen(frames) {
                Ok((lower, upper)) => {
                    self.give_back(upper);
                    frames = lower;
                }
                Err(error) => {
                    debug_assert!(false, "a frozen block of {order:?} or more: {:?}", error.cause);
                    self.memory.free_frozen(error.block);
                    return None;
                }
            }
        }
        Some(frames)
    }
}

impl<P: Platform> Destinations for FreeScanner<'_, P> {
    fn take(&mut self, order: Order, _src: Pfn) -> Option<FrozenFrames> {
        let frames = match self.pick(order) {
            Some(frames) => frames,
            None => {
                self.refill(order);
                self.pick(order)?
            }
        };
        self.cut(frames, order)
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        match self.held.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(frames),
            None => self.memory.free_frozen(frames),
        }
    }
}

impl<P: Platform> Drop for FreeScanner<'_, P> {
    fn drop(&mut self) {
        for frames in self.held.iter_mut().filter_map(Option::take) {
            self.memory.free_frozen(frames);
        }
    }
}

impl<P: Platform> fmt::Debug for FreeScanner<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreeScanner")
            .field("block", &self.block)
            .field("limit", &self.limit)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
}
