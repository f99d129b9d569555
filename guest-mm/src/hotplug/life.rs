//! Frames come to life.

use abi::{PageCount, Pfn, PfnRange};

use super::add::offline_word;
use super::{BlockLayout, HotplugError, OfflineBits};
use crate::memdesc::{DriverId, Hold, LookupError, Memdesc, Offline, Order};
use crate::memory::{FrozenFrames, Managed, Memory};
use crate::platform::Platform;

impl<P: Platform> Memory<P> {
    /// Makes the offline frames of `range`, in one block that was added, free memory. The
    /// device has memory behind them. Takes no memory. Returns how many they are.
    ///
    /// # Errors
    /// [`HotplugError`]; nothing has changed.
    pub fn bring_to_life(&self, range: PfnRange) -> Result<PageCount, HotplugError> {
        let bits = self.bits_around(range)?;
        self.each_offline(range, &mut |_, _| Ok(()))?;
        // First, so that there are never more free pages than managed ones.
        self.manage(Managed::More(range.len()));
        bits.set(range, false);
        self.each_offline(range, &mut |head, order| {
            self.wake(head, order).map(|frames| self.free_frozen(frames))
        })?;
        Ok(range.len())
    }

    /// The offline piece at `head` as allocated memory.
    fn wake(&self, head: Pfn, order: Order) -> Result<FrozenFrames, HotplugError> {
        let step = |from, to| {
            self.transition(head, from, to).map_err(|error| HotplugError::Transition(head, error))
        };
        let held = offline_word(order, Hold::Held);
        step(offline_word(order, Hold::Parked), held)?;
        step(held, crate::buddy::frozen_word(order))?;
        // SAFETY: the piece was ours and has just become a frozen block of this order.
        Ok(unsafe { FrozenFrames::from_raw(head, order) })
    }

    /// The bitmap of the block that contains all of `range`.
    pub(super) fn bits_around(&self, range: PfnRange) -> Result<OfflineBits<'_>, HotplugError> {
        let block = self.words().sections().in_section_of(range.start());
        let block = block.map(crate::memdesc::HotBlock::range);
        let block = block.filter(|block| block.contains_range(range) && !range.is_empty());
        let layout = BlockLayout::of(block.ok_or(HotplugError::NotAdded(range))?)?;
        Ok(self.bits_of(layout))
    }

    /// Calls `each` with the pieces of `range`, which are all offline and wait to come to life.
    fn each_offline(
        &self,
        range: PfnRange,
        each: &mut dyn FnMut(Pfn, Order) -> Result<(), HotplugError>,
    ) -> Result<(), HotplugError> {
        let mut at = range.start();
        while at < range.end() {
            let found = self.words().decode(at).map_err(HotplugError::Lookup)?;
            let order = waiting(found).ok_or_else(|| self.cut(at, found))?;
            let next = at.checked_add(order.pages()).filter(|next| *next <= range.end());
            let next = next.ok_or(HotplugError::NotWhole { head: at, order })?;
            each(at, order)?;
            at = next;
        }
        Ok(())
    }

    /// What is wrong with a range in which no piece begins at `at`.
    fn cut(&self, at: Pfn, found: Memdesc) -> HotplugError {
        match self.words().head_of(at) {
            Ok((head, memdesc)) => match waiting(memdesc) {
                Some(order) => HotplugError::NotWhole { head, order },
                None => HotplugError::NotOffline(head, memdesc),
            },
            Err(LookupError::NoHead(_)) => HotplugError::NotOffline(at, found),
            Err(error) => HotplugError::Lookup(error),
        }
    }
}

/// The order of a piece that waits to come to life.
pub(super) fn waiting(found: Memdesc) -> Option<Order> {
    match found {
        Memdesc::Offline(offline) if is_waiting(offline) => Some(offline.order),
        Memdesc::Block(_)
        | Memdesc::Offline(_)
        | Memdesc::Pcp(_)
        | Memdesc::Tail(_)
        | Memdesc::Buddy(_)
        | Memdesc::Descriptor(_)
        | Memdesc::Transit(_) => None,
    }
}

/// Whether the block waits to come to life.
pub(super) const fn is_waiting(offline: Offline) -> bool {
    offline.driver.get() == DriverId::HOTPLUG.get()
        && offline.skippable
        && matches!(offline.hold, Hold::Parked)
}
