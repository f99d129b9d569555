//! Destinations in one range of frames: what a node is to Linux's tests.

use abi::{Pfn, PfnRange};

use crate::addr::PMD_ORDER;
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::memdesc::Order;
use crate::memory::{FrozenFrames, Memory};
use crate::migrate::Destinations;
use crate::platform::Platform;

/// Halves of a block that wait, one of each order, and pages that came back.
const SLOTS: usize = PMD_ORDER as usize + 32;

/// 2 MiB of frames that nobody uses yet. What is left when it is dropped is freed.
#[derive(Debug)]
pub(crate) struct Pool<'a, P: Platform> {
    memory: &'a Memory<P>,
    range: PfnRange,
    blocks: [Option<FrozenFrames>; SLOTS],
}

impl<'a, P: Platform> Pool<'a, P> {
    /// A range that no page has been in since its block was free.
    ///
    /// # Errors
    /// ENOMEM: memory is too fragmented.
    pub(crate) fn new(memory: &'a Memory<P>) -> Result<Self, Errno> {
        let order = Order::try_from(PMD_ORDER).map_err(|_| Errno::EINVAL)?;
        let block = memory.alloc_frozen(order, Gfp::USER)?;
        let range = block.range();
        let mut blocks = [const { None }; SLOTS];
        blocks[0] = Some(block);
        Ok(Self { memory, range, blocks })
    }

    /// The frames.
    pub(crate) const fn range(&self) -> PfnRange {
        self.range
    }

    fn put(&mut self, frames: FrozenFrames) {
        match self.blocks.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(frames),
            // Still in the range, but for others.
            None => self.memory.free_frozen(frames),
        }
    }
}

impl<P: Platform> Destinations for Pool<'_, P> {
    fn take(&mut self, order: Order, _src: Pfn) -> Option<FrozenFrames> {
        let fits = |slot: &&mut Option<FrozenFrames>| {
            slot.as_ref().is_some_and(|block| block.order() >= order)
        };
        let smallest = self.blocks.iter_mut().filter(fits);
        let smallest = smallest.min_by_key(|slot| slot.as_ref().map(FrozenFrames::order));
        let mut block = smallest?.take()?;
        while block.order() > order {
            let (lower, upper) = match self.memory.split_frozen(block) {
                Ok(halves) => halves,
                Err(error) => {
                    self.put(error.block);
                    return None;
                }
            };
            self.put(upper);
            block = lower;
        }
        Some(block)
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        self.put(frames);
    }
}

impl<P: Platform> Drop for Pool<'_, P> {
    fn drop(&mut self) {
        for block in self.blocks.iter_mut().filter_map(Option::take) {
            self.memory.free_frozen(block);
        }
    }
}
