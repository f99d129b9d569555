//! What to ask the device for next.

use abi::{PageCount, Pfn, PfnRange};

use super::wire::Region;
use super::{BlockLayout, OfflineBits};
use crate::memdesc::{Order, SECTION_ORDER, SECTION_PAGES};
use crate::memory::Memory;
use crate::platform::Platform;

/// Device blocks that one request can name.
const MAX_BLOCKS: u64 = u16::MAX as u64;

/// A block, and those of its first frames that are plugged as long as it is there: its tables and what
/// is left of their last device block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seeded {
    pub(super) layout: BlockLayout,
    pub(super) seed: PfnRange,
}

impl Seeded {
    /// The block `range` of a device with blocks of `unit` pages; `None` if nothing is left beside its tables.
    pub(super) fn of(range: PfnRange, unit: PageCount) -> Option<Self> {
        let layout = BlockLayout::of(range).ok()?;
        let pages = layout.metadata_pages().get().next_multiple_of(unit.get());
        let seed = PfnRange::from_start(range.start(), PageCount::new(pages))?;
        (pages <= range.len().get() && layout.metadata() != range).then_some(Self { layout, seed })
    }

    /// The frames that come to life with the block.
    pub(super) fn first_life(self) -> PfnRange {
        PfnRange::new(self.layout.payload().start(), self.seed.end()).unwrap_or(self.seed)
    }
}

impl Region {
    /// The order of the pieces in which frames wait.
    pub(super) fn piece(self) -> Order {
        Order::fitting(self.unit.get())
    }

    /// The part of the region that is to be one block: what lies in the section from `section` on.
    fn block_in(self, section: PfnRange) -> Option<Seeded> {
        let within = self.range.intersection(section)?;
        let step = self.unit.get().max(Order::MAX.pages().get());
        let start = Pfn::new(within.start().number().next_multiple_of(step))?;
        let end = Pfn::new(within.end().number() / step * step)?;
        Seeded::of(PfnRange::new(start, end)?, self.unit)
    }

    /// The blocks that the region can hold, ascending.
    pub(super) fn blocks_of_region(self) -> impl Iterator<Item = Seeded> {
        let mut at = self.range.start().align_down(SECTION_ORDER);
        core::iter::from_fn(move || {
            let section = PfnRange::from_start(at, SECTION_PAGES)?;
            (section.start() < self.range.end()).then(|| {
                at = section.end();
                section
            })
        })
        .filter_map(move |section| self.block_in(section))
    }

    /// The first device blocks in a row, `most` pages at most, that are not plugged but could be.
    pub(super) fn unplugged_in(
        self,
        block: Seeded,
        bits: OfflineBits<'_>,
        usable: Pfn,
        most: PageCount,
    ) -> Option<PfnRange> {
        let end = block.layout.range().end().min(usable);
        let unit = self.unit.get();
        let most = (most.get() / unit).min(MAX_BLOCKS) * unit;
        let number = |pfn: Pfn| pfn.number();
        let mut starts = (number(block.seed.end())..number(end))
            .step_by(usize::try_from(unit).ok()?)
            .take_while(|start| start + unit <= number(end));
        let is_unplugged = |start: u64| Pfn::new(start).is_some_and(|start| bits.contains(start));
        let first = starts.by_ref().find(|start| is_unplugged(*start)).filter(|_| most > 0)?;
        let last = starts.take_while(|start| is_unplugged(*start) && start - first < most).last();
        PfnRange::new(Pfn::new(first)?, Pfn::new(last.unwrap_or(first) + unit)?)
    }

    /// The highest device blocks in a row below `below` that are plugged and no part of a seed: one, or more
    /// if they are smaller than a pageblock, lie in one, and are `most` pages at most.
    pub(super) fn plugged_in(
        self,
        block: Seeded,
        bits: OfflineBits<'_>,
        below: Pfn,
        most: PageCount,
    ) -> Option<PfnRange> {
        let (seed, end) = (block.seed.end(), block.layout.range().end().min(below));
        let units = end.offset_from(seed)?.get() / self.unit.get();
        let start_of = |unit: u64| seed.checked_add(PageCount::new(unit * self.unit.get()));
        let is_plugged = |unit: &u64| start_of(*unit).is_some_and(|start| !bits.contains(start));
        let top = (0..units).rev().find(is_plugged)?;
        let end = start_of(top + 1)?;
        let floor = start_of(top)?.align_down(Order::PAGEBLOCK.get());
        let is_near = |unit: &u64| {
            start_of(*unit)
                .is_some_and(|start| start >= floor && end.number() - start.number() <= most.get())
        };
        let rest = (0..top).rev().take_while(|unit| is_near(unit) && is_plugged(unit));
        PfnRange::new(start_of(rest.last().unwrap_or(top))?, end)
    }
}

impl<P: Platform> Memory<P> {
    /// The blocks of `region` that were added, ascending.
    pub(super) fn added_in(&self, region: Region) -> impl DoubleEndedIterator<Item = Seeded> {
        self.added_blocks()
            .filter(move |block| region.range.contains_range(*block))
            .filter_map(move |block| Seeded::of(block, region.unit))
    }
}
