//! Which blocks are inflated, and in which order.

use abi::{PAGE_SIZE, PageCount, PfnRange};

use crate::bench::Param;
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{FrozenFrames, Memory};
use crate::platform::Platform;
use crate::scenario::{Failure, OrFail, Rng};
use crate::store::{Block, MAX_BLOCK_ORDER};

/// Frames at most: what fits a shuffled list of 4-byte numbers in the largest block.
const MOST_FRAMES: u64 = (PAGE_SIZE << MAX_BLOCK_ORDER) / 4;

/// How much is inflated, where and in which blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    percent: u64,
    order: u32,
    is_random: bool,
}

impl Case {
    pub(super) const ALL: [Self; 4] = [
        Self { percent: 100, order: 0, is_random: false },
        Self::TENTH,
        Self::RANDOM,
        Self { percent: 100, order: MAX_BLOCK_ORDER, is_random: false },
    ];
    pub(super) const TENTH: Self = Self { percent: 10, order: 0, is_random: false };
    pub(super) const RANDOM: Self = Self { percent: 10, order: 0, is_random: true };

    pub(super) const fn pattern(self) -> Param {
        Param::Word(if self.is_random { "random" } else { "contiguous" })
    }

    /// The same with single pages and as many as there are.
    pub(super) const fn single(self) -> Self {
        Self { percent: 100, order: 0, ..self }
    }

    pub(super) const fn params(self) -> [(&'static str, Param); 3] {
        [
            ("inflation %", Param::Number(self.percent)),
            ("order", Param::Number(self.order as u64)),
            ("pattern", self.pattern()),
        ]
    }
}

/// The frames of the machine, in order and shuffled.
pub(super) struct Pattern<'m, P: Platform> {
    memory: &'m Memory<P>,
    range: PfnRange,
    shuffled: FrozenFrames,
}

impl<'m, P: Platform> Pattern<'m, P> {
    /// Of the largest region of RAM, up to 4 GiB.
    pub(super) fn new(memory: &'m Memory<P>) -> Result<Self, Failure> {
        let regions = memory.words().regions().map(|region| region.range());
        let all = regions.max_by_key(|range| range.len()).or_fail()?;
        let below = all.start().align_down(MAX_BLOCK_ORDER);
        let above = below.checked_add(PageCount::of_order(MAX_BLOCK_ORDER)).or_fail()?;
        let start = if below == all.start() { below } else { above };
        let frames = all.end().offset_from(start).or_fail()?.get().min(MOST_FRAMES);
        let frames = frames >> MAX_BLOCK_ORDER << MAX_BLOCK_ORDER;
        let range = PfnRange::from_start(start, PageCount::new(frames)).or_fail()?;
        let order = (frames * 4).div_ceil(PAGE_SIZE).next_power_of_two().trailing_zeros();
        let order = Order::try_from(order).or_fail()?;
        let shuffled = memory.alloc_frozen(order, Gfp::KERNEL).or_fail()?;
        Ok(Self { memory, range, shuffled })
    }

    pub(super) fn free(self) {
        self.memory.free_frozen(self.shuffled);
    }

    pub(super) const fn range(&self) -> PfnRange {
        self.range
    }

    fn frames(&self) -> u64 {
        self.range.len().get()
    }

    /// Another order (Fisher and Yates).
    pub(super) fn shuffle(&mut self, rng: &mut Rng) {
        let frames = u32::try_from(self.frames()).unwrap_or(u32::MAX);
        let bytes = self.memory.bytes_mut(&mut self.shuffled);
        let (numbers, _) = bytes.as_chunks_mut::<4>();
        for (number, place) in (0..frames).zip(&mut *numbers) {
            *place = number.to_ne_bytes();
        }
        for last in (1..frames).rev() {
            let other = rng.below(u64::from(last) + 1);
            numbers.swap(last as usize, usize::try_from(other).unwrap_or(0));
        }
    }

    /// The blocks of `case`, in the order in which they are inflated.
    pub(super) fn blocks(&self, case: Case) -> impl Iterator<Item = Block> {
        let count = self.pages(case) >> case.order;
        let (numbers, _) = self.memory.bytes(&self.shuffled).as_chunks::<4>();
        let start = self.range.start();
        (0..count).zip(numbers).filter_map(move |(nth, number)| {
            let frame = if case.is_random {
                u64::from(u32::from_ne_bytes(*number))
            } else {
                nth << case.order
            };
            Block::new(start.checked_add(PageCount::new(frame))?, case.order)
        })
    }

    /// Pages of `case`.
    pub(super) fn pages(&self, case: Case) -> u64 {
        (self.frames() * case.percent / 100) >> case.order << case.order
    }
}
