//! Removing a block: nobody finds it any more, then nobody uses it any more, then it is gone.

use abi::{Pfn, PfnRange};

use super::life::waiting;
use super::turn::Turn;
use super::{BlockLayout, HotplugError};
use crate::memdesc::{HotBlock, MigrateType, Order};
use crate::memory::Memory;
use crate::platform::Platform;

/// A block that nobody finds any more, but that some may still use. Dropping it puts it back.
#[derive(Debug)]
#[must_use = "dropping it puts the block back"]
pub struct DyingBlock<'m, P: Platform> {
    memory: &'m Memory<P>,
    layout: BlockLayout,
    /// One block at a time: its table page may serve others, and theirs it.
    _turn: Turn<'m>,
    is_gone: bool,
}

impl<P: Platform> Memory<P> {
    /// Takes the block `range` out: none of its frames has a word from now on. All of them are offline,
    /// which is looked at word by word; offline frames that are skippable need no handling besides.
    ///
    /// # Errors
    /// [`HotplugError`]; nothing has changed.
    pub fn take_block_out(&self, range: PfnRange) -> Result<DyingBlock<'_, P>, HotplugError> {
        let turn = self.hotplug_turn().take().ok_or(HotplugError::Busy)?;
        let found = self.words().sections().in_section_of(range.start()).map(HotBlock::range);
        if found != Some(range) {
            return Err(HotplugError::NotAdded(range));
        }
        let layout = BlockLayout::of(range)?;
        // The reserve for high orders is counted in pageblocks: it has none here from now on.
        for start in range.iter().step_by(1 << Order::PAGEBLOCK.get()) {
            if self.map().pageblocks.get(start) == MigrateType::HighAtomic {
                let done = self.set_pageblock(start, MigrateType::Movable);
                debug_assert!(done.is_ok(), "{done:?}");
            }
        }
        let zone = self.zone().lock(self.platform());
        self.check_idle(layout)?;
        // Whoever has set a pageblock aside is not done with it, though nothing there is his yet.
        let is_aside = |start: &Pfn| self.map().pageblocks.get(*start) == MigrateType::Isolate;
        let mut starts = range.iter().step_by(1 << Order::PAGEBLOCK.get());
        if let Some(start) = starts.find(is_aside) {
            return Err(HotplugError::SetAside(start));
        }
        let unfound = self.words().sections().take_out(range.start());
        let untyped = self.map().pageblocks.added().take_out(range.start());
        drop(zone);
        debug_assert!(
            unfound.is_some() && untyped == unfound,
            "it was there, and we have the turn"
        );
        Ok(DyingBlock { memory: self, layout, _turn: turn, is_gone: false })
    }

    /// Whether all that is not tables is offline and waits.
    fn check_idle(&self, layout: BlockLayout) -> Result<(), HotplugError> {
        let mut at = layout.payload().start();
        while at < layout.range().end() {
            let found = self.words().decode(at).map_err(HotplugError::Lookup)?;
            let order = waiting(found).ok_or(HotplugError::InUse(at, found))?;
            let Some(next) = at.checked_add(order.pages()) else { break };
            at = next;
        }
        Ok(())
    }

    /// The table page of another block in the GiB of `layout`.
    fn heir(&self, layout: BlockLayout) -> Option<Pfn> {
        /// log2 of the pages that one page directory maps.
        const DIRECTORY_ORDER: u32 = 18;
        let gib = layout.range().start().align_down(DIRECTORY_ORDER);
        let mut others = self.added_blocks();
        let other = others.find(|other| other.start().align_down(DIRECTORY_ORDER) == gib)?;
        Some(BlockLayout::of(other).ok()?.table())
    }
}

impl<P: Platform> DyingBlock<'_, P> {
    /// Its frames.
    pub const fn range(&self) -> PfnRange {
        self.layout.range()
    }

    /// Ends it: its tables go, and it leaves the direct map. The device may take its memory afterwards.
    ///
    /// # Safety
    /// A grace period has passed since the block was taken out, and everybody who looks frames up
    /// does so as `memdesc/section.rs` says.
    pub unsafe fn bury(mut self) {
        let heir = self.memory.heir(self.layout);
        let (range, table) = (self.layout.range(), self.layout.table());
        self.is_gone = true;
        // SAFETY: nobody finds the block, and who had found it is done, by the caller's word. Those
        // published are all that are mapped beside this one: it has the turn.
        unsafe { self.memory.platform().unmap_block(range, table, heir) };
    }
}

impl<P: Platform> Drop for DyingBlock<'_, P> {
    fn drop(&mut self) {
        if !self.is_gone {
            self.memory.publish(self.layout);
        }
    }
}
