//! Every slot's word against the leaves and the cache.

use core::fmt;

use abi::Pfn;

use super::word::SlotWord;
use crate::folio::FolioFlags;
use crate::mm::Mm;
use crate::pgtable::SwapSlot;
use crate::platform::Platform;

/// What somebody who has walked all page tables knows of slots.
pub trait SlotClaims {
    /// Leaves found that name `slot`.
    fn leaves(&self, slot: SwapSlot) -> u32;
}

/// No page table was walked: leaves are not compared.
impl SlotClaims for () {
    fn leaves(&self, _slot: SwapSlot) -> u32 {
        0
    }
}

/// What does not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapDiscrepancy {
    /// A slot counts other leaves than there are.
    Count {
        /// The slot.
        slot: u32,
        /// By its word.
        counted: u32,
        /// In the page tables.
        leaves: u32,
    },
    /// A slot is in use, or being freed, and nobody names it.
    Unnamed(u32),
    /// The folio in this frame does not know that it has the slot.
    NotCached(u32, Pfn),
    /// The stack of free slots is torn, or has not all of them.
    FreeSlots,
}

impl fmt::Display for SwapDiscrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count { slot, counted, leaves } => {
                write!(f, "swap slot {slot} counts {counted} leaves, there are {leaves}")
            }
            Self::Unnamed(slot) => write!(f, "swap slot {slot} is used by nobody"),
            Self::NotCached(slot, pfn) => {
                write!(f, "swap slot {slot} is cached at {pfn:?}, whose folio denies it")
            }
            Self::FreeSlots => f.write_str("the stack of free swap slots is torn"),
        }
    }
}

/// What a census of swap found. Exact when nobody faults or reclaims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwapCensus {
    /// Slots that nobody uses.
    pub free: u32,
    /// Slots in use without a folio.
    pub used: u32,
    /// Slots with a folio in the cache.
    pub cached: u32,
    /// Slots that are never used again.
    pub bad: u32,
    /// Leaves that the words count.
    pub leaves: u64,
    /// Discrepancies.
    pub discrepancies: u32,
}

impl<P: Platform> Mm<'_, P> {
    /// Walks every slot and compares it with the swap cache and, unless `claims`
    /// is `()`, with the leaves. Calls `tell` with each discrepancy.
    pub fn swap_census(
        &self,
        claims: Option<&dyn SlotClaims>,
        tell: &mut dyn FnMut(SwapDiscrepancy),
    ) -> SwapCensus {
        let mut census = SwapCensus::default();
        let mut wrong = |discrepancy| {
            census.discrepancies += 1;
            tell(discrepancy);
        };
        let slots = self.with_area(|area| area.table.slots()).unwrap_or(0);
        let (mut free, mut used, mut cached, mut bad, mut leaves) = (0, 0, 0, 0, 0);
        for slot in 0..slots {
            let Some(Some(word)) = self.with_area(|area| area.table.load(slot)) else { break };
            leaves += u64::from(word.count());
            match word {
                SlotWord::Free { .. } => free += 1,
                SlotWord::Bad => bad += 1,
                SlotWord::Used { count } => {
                    used += 1;
                    if count == 0 {
                        wrong(SwapDiscrepancy::Unnamed(slot));
                    }
                }
                SlotWord::Cached { pfn, .. } => {
                    cached += 1;
                    if !self.knows_its_slot(pfn, slot) {
                        wrong(SwapDiscrepancy::NotCached(slot, pfn));
                    }
                }
            }
            let found = claims.map(|claims| claims.leaves(super::cache::slot_of(slot)));
            if let Some(leaves) = found.filter(|found| *found != word.count()) {
                wrong(SwapDiscrepancy::Count { slot, counted: word.count(), leaves });
            }
        }
        let listed = self.with_area(|area| area.table.count_free(self.platform()));
        if listed.is_some_and(|listed| listed != Some(free)) {
            wrong(SwapDiscrepancy::FreeSlots);
        }
        SwapCensus { free, used, cached, bad, leaves, ..census }
    }

    /// Calls `each` with every slot and the leaves that its word counts.
    pub(crate) fn for_each_swap_count(&self, each: &mut dyn FnMut(SwapSlot, u32)) {
        let slots = self.with_area(|area| area.table.slots()).unwrap_or(0);
        for slot in 0..slots {
            let Some(Some(word)) = self.with_area(|area| area.table.load(slot)) else { return };
            each(super::cache::slot_of(slot), word.count());
        }
    }

    fn knows_its_slot(&self, pfn: Pfn, slot: u32) -> bool {
        let Ok(folio) = self.folio_of(pfn) else { return false };
        let knows = folio.has(FolioFlags::SWAPCACHE) && folio.private() == u64::from(slot);
        self.put(folio);
        knows
    }
}
