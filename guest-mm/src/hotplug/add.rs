//! Adding a block: everything that can fail comes before the first word is written.

use core::sync::atomic::AtomicU64;

use abi::{PageCount, Pfn, PfnRange};

use super::layout::{TYPES_OFFSET, pieces};
use super::store::OfflineBits;
use super::{BlockLayout, HotplugError};
use crate::buddy::tail_word;
use crate::memdesc::{
    Block, BlockKind, DriverId, Hold, HotBlock, Memdesc, MigrateType, Offline, Order, Word,
    WordCell, ZONE_MAX_PAGES,
};
use crate::memory::Memory;
use crate::platform::{FaultSite, MapError, Platform};
use crate::virtio::PAGE_BYTES;

/// A block to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewBlock {
    /// Its frames: from and to multiples of 4 MiB, within 128 MiB that begin at a multiple of as much.
    pub range: PfnRange,
    /// Pages at its start that have memory behind them. The others are not touched.
    pub plugged: PageCount,
    /// The pieces in which frames will come to life.
    pub unit: Order,
}

/// The word of the head of a piece that waits to come to life.
pub(super) const fn offline_word(order: Order, hold: Hold) -> Word {
    Offline { order, driver: DriverId::HOTPLUG, hold, skippable: true }.encode()
}

impl<P: Platform> Memory<P> {
    /// Adds a block of which no map knows, with tables that lie in it. Takes no memory.
    ///
    /// Its frames are offline, skippable, and none is managed yet:
    /// [`Self::bring_to_life`] makes them free memory.
    ///
    /// # Errors
    /// [`HotplugError`]; nothing has changed.
    pub fn add_block(&self, new: NewBlock) -> Result<BlockLayout, HotplugError> {
        let _turn = self.hotplug_turn().take().ok_or(HotplugError::Busy)?;
        let layout = self.check_block(new)?;
        if self.platform().inject_fault(FaultSite::MapBlock) {
            return Err(HotplugError::Map(MapError::Injected));
        }
        self.platform().map_block(new.range, layout.table()).map_err(HotplugError::Map)?;
        self.write_tables(layout, new.unit);
        self.publish(layout);
        Ok(layout)
    }

    /// Whether [`Self::add_block`] would take a block, but for mapping it.
    ///
    /// # Errors
    /// As there.
    pub fn check_block(&self, new: NewBlock) -> Result<BlockLayout, HotplugError> {
        let NewBlock { range, plugged, .. } = new;
        let layout = BlockLayout::of(range)?;
        let words = self.words();
        let outside = HotplugError::OutsideZone { range, base: words.base() };
        let end = range.end().offset_from(words.base()).ok_or(outside)?;
        if range.start() < words.base()
            || end.get() > ZONE_MAX_PAGES
            || !words.sections().reaches(range.start())
        {
            return Err(outside);
        }
        if let Some(with) = words.regions().find_map(|r| r.range().intersection(range)) {
            return Err(HotplugError::Overlap { range, with });
        }
        if let Some(there) = words.sections().in_section_of(range.start()) {
            return Err(HotplugError::SectionTaken { range, by: there.range() });
        }
        let needed = layout.metadata_pages();
        if plugged < needed {
            return Err(HotplugError::NoRoomForTables { plugged, needed });
        }
        Ok(layout)
    }

    /// Writes the block's tables. Whatever lies there, nobody knows it.
    fn write_tables(&self, layout: BlockLayout, unit: Order) {
        let words = self.platform().frame_ptr(layout.words()).cast::<WordCell>();
        let put = |pfn: Pfn, word: Word| {
            let at = pfn.number() - layout.range().start().number();
            let at = usize::try_from(at).unwrap_or_else(|_| unreachable!("at most 2^15"));
            // SAFETY: the layout has a word for each frame of the block.
            let cell = unsafe { words.add(at) };
            // SAFETY: as above; the block is mapped and nobody else knows the address.
            unsafe { cell.write(WordCell::new(word)) };
        };
        let reserved = Memdesc::Block(Block::new(BlockKind::Reserved, Order::ZERO)).encode();
        layout.metadata().iter().for_each(|pfn| put(pfn, reserved));
        layout.payload().iter().for_each(|pfn| put(pfn, tail_word(pfn)));
        for (head, order) in pieces(layout.payload(), unit) {
            put(head, offline_word(order, Hold::Parked));
        }

        let bits = self.platform().frame_ptr(layout.bits()).cast::<AtomicU64>();
        for word in 0..PAGE_BYTES / size_of::<AtomicU64>() {
            // SAFETY: within the page of the bitmap.
            let word = unsafe { bits.add(word) };
            // SAFETY: as for the words.
            unsafe { word.write(AtomicU64::new(0)) };
        }
        self.bits_of(layout).set(layout.payload(), true);

        let header = self.platform().frame_ptr(layout.header());
        // SAFETY: within the header's page.
        let types = unsafe { header.add(TYPES_OFFSET) };
        for pageblock in 0..PAGE_BYTES - TYPES_OFFSET {
            // SAFETY: as above.
            let cell = unsafe { types.add(pageblock) };
            // SAFETY: as for the words; any byte is one.
            unsafe { cell.write(MigrateType::Movable as u8) };
        }
        // SAFETY: words and types were just written; they lie in the block, which stays
        // mapped until a grace period after it was taken out (`DyingBlock`).
        let block = unsafe { HotBlock::new(layout.range(), words, types.cast()) };
        // SAFETY: the header's page is mapped, aligned, large enough (`layout`), and nobody else knows it.
        unsafe { header.cast::<HotBlock>().write(block) };
    }

    /// Lets everybody find the block.
    pub(super) fn publish(&self, layout: BlockLayout) {
        let header = self.platform().frame_ptr(layout.header()).cast::<HotBlock>();
        let zone = self.zone().lock(self.platform());
        // Types first: a frame whose word can be found has a pageblock.
        // SAFETY: the header stays as it is until a grace period after `take_out`.
        let typed = unsafe { self.map().pageblocks.added().publish(header) };
        // SAFETY: as above.
        let found = unsafe { self.words().sections().publish(header) };
        // Where the boot table reaches over a hole, it is what counts.
        for start in layout.range().iter().step_by(1 << Order::PAGEBLOCK.get()) {
            self.map().pageblocks.set(start, MigrateType::Movable);
        }
        drop(zone);
        debug_assert!(typed && found, "the section was empty, and we have the turn");
    }

    /// The bitmap of a block that was added.
    pub(super) fn bits_of(&self, layout: BlockLayout) -> OfflineBits<'_> {
        let bits = self.platform().frame_ptr(layout.bits()).cast::<AtomicU64>();
        // SAFETY: a page of words, a bit per frame, while the block is there; who removes the block has
        // nobody else use it (`DyingBlock`).
        unsafe { OfflineBits::new(layout.range(), bits) }
    }

    /// The bitmap of the block that holds `pfn`, if one does.
    pub fn offline_bits(&self, pfn: Pfn) -> Option<OfflineBits<'_>> {
        let block = self.words().sections().in_section_of(pfn)?;
        let range = Some(block.range()).filter(|range| range.contains(pfn))?;
        Some(self.bits_of(BlockLayout::of(range).ok()?))
    }

    /// The blocks that were added, ascending.
    pub fn added_blocks(&self) -> impl DoubleEndedIterator<Item = PfnRange> {
        self.words().sections().blocks().map(HotBlock::range)
    }
}
