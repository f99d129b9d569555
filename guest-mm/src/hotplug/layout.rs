//! What lies where in a block.

use abi::{PAGE_SIZE, PageCount, Pfn, PfnRange};

use super::HotplugError;
use crate::memdesc::{HotBlock, Order, SECTION_ORDER, SECTION_PAGES, Word};

/// Pages of the largest block: a section, 128 MiB.
pub const MAX_BLOCK_PAGES: PageCount = SECTION_PAGES;

/// Where the header page has the types of the block's pageblocks, a byte each.
pub(super) const TYPES_OFFSET: usize = 2048;

const _: () = {
    assert!(size_of::<HotBlock>() <= TYPES_OFFSET);
    let pageblocks = SECTION_PAGES.get() >> Order::PAGEBLOCK.get();
    assert!(TYPES_OFFSET as u64 + pageblocks <= PAGE_SIZE);
    // One page of bits covers the largest block.
    assert!(SECTION_PAGES.get() == 8 * PAGE_SIZE);
};

/// The places of a block's own tables, which come first in it:
///
/// | pages | what |
/// |---|---|
/// | 1 | header; types of pageblocks |
/// | 1 | page table of the direct map, if the block's GiB has none yet |
/// | 1 | [bitmap](super::OfflineBits) of frames that are not alive |
/// | 1 to 64 | words, 8 bytes a frame |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLayout {
    range: PfnRange,
}

impl BlockLayout {
    /// The layout of the block `range`.
    ///
    /// # Errors
    /// [`HotplugError::Misaligned`], [`HotplugError::CrossesSection`].
    pub fn of(range: PfnRange) -> Result<Self, HotplugError> {
        // Larger free blocks than 4 MiB do not exist, so none crosses a block's border.
        let is_aligned = |pfn: Pfn| pfn.is_aligned(Order::MAX.get());
        if range.is_empty() || !is_aligned(range.start()) || !is_aligned(range.end()) {
            return Err(HotplugError::Misaligned(range));
        }
        let last = range.end().number() - 1;
        if range.start().number() >> SECTION_ORDER != last >> SECTION_ORDER {
            return Err(HotplugError::CrossesSection(range));
        }
        Ok(Self { range })
    }

    /// The whole block.
    pub const fn range(self) -> PfnRange {
        self.range
    }

    /// The header.
    pub const fn header(self) -> Pfn {
        self.range.start()
    }

    /// The page for the direct map.
    pub fn table(self) -> Pfn {
        self.page(1)
    }

    /// The bitmap.
    pub fn bits(self) -> Pfn {
        self.page(2)
    }

    /// The first of the words.
    pub fn words(self) -> Pfn {
        self.page(3)
    }

    /// Pages of all tables: 67 of a block of 128 MiB.
    pub const fn metadata_pages(self) -> PageCount {
        let words = self.range.len().get() * size_of::<Word>() as u64;
        PageCount::new(3 + words.div_ceil(PAGE_SIZE))
    }

    /// The tables.
    pub fn metadata(self) -> PfnRange {
        PfnRange::from_start(self.range.start(), self.metadata_pages()).unwrap_or(self.range)
    }

    /// Everything else.
    pub fn payload(self) -> PfnRange {
        PfnRange::new(self.metadata().end(), self.range.end()).unwrap_or(self.range)
    }

    fn page(self, n: u64) -> Pfn {
        let page = self.range.start().checked_add(PageCount::new(n));
        page.unwrap_or_else(|| unreachable!("a block has at least 1024 pages"))
    }
}

/// The naturally aligned blocks up to order `unit` that make up `range`.
pub(super) fn pieces(range: PfnRange, unit: Order) -> impl Iterator<Item = (Pfn, Order)> {
    let mut at = range.start();
    core::iter::from_fn(move || {
        let left = range.end().offset_from(at).filter(|left| !left.is_zero())?;
        let order = Order::alignment_of(at.number()).min(Order::fitting(left.get())).min(unit);
        let head = at;
        at = at.checked_add(order.pages())?;
        Some((head, order))
    })
}
