//! Frames are laid to rest.

use abi::{PageCount, Pfn};

use super::add::offline_word;
use super::layout::pieces;
use super::{HotplugError, OfflineBits};
use crate::memdesc::{Hold, Order};
use crate::memory::{ContigFrames, FrozenFrames, Managed, Memory};
use crate::platform::Platform;

impl<P: Platform> Memory<P> {
    /// Makes frames of one added block, which the caller owns, offline again, in pieces of at most
    /// `unit`. Parts of them may be so already, if they were taken with `Pass::Skippable`. Takes no memory.
    ///
    /// # Errors
    /// [`HotplugError::NotAdded`], and the frames back.
    pub fn lay_to_rest(
        &self,
        frames: ContigFrames,
        unit: Order,
    ) -> Result<PageCount, (HotplugError, ContigFrames)> {
        let bits = match self.bits_around(frames.range()) {
            Ok(bits) => bits,
            Err(error) => return Err((error, frames)),
        };
        let pages = frames.pages();
        self.split_contig(frames, &mut |block| self.rest(block, unit, bits));
        self.manage(Managed::Less(pages));
        Ok(pages)
    }

    fn rest(&self, block: FrozenFrames, unit: Order, bits: OfflineBits<'_>) {
        let range = block.range();
        for (head, order) in split(self, block, unit) {
            let held = offline_word(order, Hold::Held);
            let offline = self
                .transition(head, crate::buddy::frozen_word(order), held)
                .and_then(|()| self.transition(head, held, offline_word(order, Hold::Parked)));
            debug_assert!(offline.is_ok(), "{head:?} is ours: {offline:?}");
        }
        bits.set(range, true);
    }
}

/// Gives a block up for its pieces of at most order `unit`, each frozen.
fn split<P: Platform>(
    memory: &Memory<P>,
    block: FrozenFrames,
    unit: Order,
) -> impl Iterator<Item = (Pfn, Order)> {
    let range = block.range();
    cut_down(memory, block, unit);
    pieces(range, unit)
}

fn cut_down<P: Platform>(memory: &Memory<P>, block: FrozenFrames, unit: Order) {
    if block.order() <= unit {
        // The word owns it from here on.
        block.into_raw();
        return;
    }
    match memory.split_frozen(block) {
        Ok((lower, upper)) => {
            cut_down(memory, lower, unit);
            cut_down(memory, upper, unit);
        }
        Err(error) => debug_assert!(false, "a frozen block splits: {error:?}"),
    }
}
