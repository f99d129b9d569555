//! Free frames at a given place, for compaction's free scanner.

use abi::{PageCount, Pfn, PfnRange};

use super::Memory;
use super::frames::FrozenFrames;
use crate::buddy::free_block_around;
use crate::memdesc::{Memdesc, Order, Word};
use crate::platform::Platform;

/// What a look at a range of frames for free ones gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreeScan {
    /// Words looked at.
    pub(crate) scanned: u64,
    /// Pages taken.
    pub(crate) taken: u64,
    /// A free block was left because less than the *min* watermark would be free.
    pub(crate) starved: bool,
    /// Where the next look begins: the range's end if all of it was seen.
    pub(crate) stopped_at: Pfn,
}

impl<P: Platform> Memory<P> {
    /// Takes free blocks smaller than a pageblock in `range`, from the bottom up, until `want` pages are taken or
    /// `room` blocks, and hands them to `each`, frozen. Blocks larger than `largest` are cut first.
    ///
    /// Leaves free memory above the *min* watermark: what is taken here comes free elsewhere only later.
    /// `None`: `try_only`, and the zone lock is busy.
    pub(crate) fn take_free_in(
        &self,
        range: PfnRange,
        want: FreeWant,
        each: &mut dyn FnMut(FrozenFrames),
    ) -> Option<FreeScan> {
        let mut zone = if want.try_only {
            self.zone.try_lock(&self.platform)?
        } else {
            self.zone.lock(&self.platform)
        };
        let mut scan = FreeScan { scanned: 0, taken: 0, starved: false, stopped_at: range.start() };
        let min = self.watermarks().min;
        let mut blocks = 0;
        let mut at = range.start();
        while at < range.end() && scan.taken < want.pages && blocks < want.blocks {
            scan.scanned += 1;
            let order = self.words().load(at).ok().and_then(Word::as_buddy).map(|b| b.order);
            let Some(order) = order else {
                let Some(next) = at.checked_add(PageCount::new(1)) else { break };
                at = next;
                continue;
            };
            debug_assert_eq!(free_block_around(&self.map, at), Some((at, order)));
            if order >= Order::PAGEBLOCK {
                // What compaction is for, already there.
                let Some(next) = at.checked_add(order.pages()) else { break };
                at = next;
                continue;
            }
            let take = order.min(want.largest);
            let left = zone.available().checked_sub(take.pages().get());
            scan.starved = left.is_none_or(|left| left < min);
            if scan.starved {
                break;
            }
            // What a corrupt list refuses is passed over: the scan ends all the same.
            if let Some(frames) = self.take_at(&mut zone, at, take) {
                each(frames);
                blocks += 1;
                scan.taken += take.pages().get();
            }
            let Some(next) = at.checked_add(take.pages()) else { break };
            at = next;
        }
        scan.stopped_at = at.min(range.end());
        self.counters.note_available(&zone);
        Some(scan)
    }

    /// Takes the frame `pfn` if it is free, whatever stays free.
    pub(crate) fn take_free_page(&self, pfn: Pfn) -> Option<FrozenFrames> {
        // Most are not: no lock for a look.
        let found = self.words().head_of(pfn);
        if !matches!(found, Ok((_, Memdesc::Buddy(_)))) {
            return None;
        }
        let mut zone = self.zone.lock(&self.platform);
        let frames = self.take_at(&mut zone, pfn, Order::ZERO);
        self.counters.note_available(&zone);
        frames
    }

    /// Takes the block of `order` at `pfn` if it is free as a whole and leaves
    /// `reserve` pages free; empties this CPU's lists first, where part of it may be.
    pub(crate) fn take_free_at(
        &self,
        pfn: Pfn,
        order: Order,
        reserve: u64,
    ) -> Option<FrozenFrames> {
        self.drain_cpu(self.platform.cpu());
        let mut zone = self.zone.lock(&self.platform);
        if zone.available() < order.pages().get() + reserve
            || !self.map.pageblocks.get(pfn).is_mergeable()
        {
            return None;
        }
        let frames = self.take_at(&mut zone, pfn, order);
        self.counters.note_available(&zone);
        frames
    }
}

/// What [`Memory::take_free_in`] shall take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreeWant {
    /// Pages, at least, unless there are fewer.
    pub(crate) pages: u64,
    /// Blocks, at most.
    pub(crate) blocks: usize,
    /// Order of the largest block.
    pub(crate) largest: Order,
    /// Not to wait for the zone lock.
    pub(crate) try_only: bool,
}
