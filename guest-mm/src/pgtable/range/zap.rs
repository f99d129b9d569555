//! Unmapping: munmap, MADV_DONTNEED, truncation, exit.

use super::super::entry::{Entry, PteState};
use super::super::gather::TlbGather;
use super::super::softleaf::MarkerZap;
use super::super::table::{MakeTableError, PteGuard, Tables};
use super::{LeafOwner, LeafState, SizedLeaf, Step, entry_end, is_whole, pages};
use crate::addr::{PMD_SIZE, VaRange, VirtAddr};
use crate::platform::Platform;

/// What a zap takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZapRules {
    /// Whether markers go too.
    pub markers: MarkerZap,
}

impl ZapRules {
    /// The mapping goes: munmap, exit.
    pub const UNMAP: Self = Self { markers: MarkerZap::Drop };
    /// The pages go, the mapping stays: MADV_DONTNEED, truncation.
    pub const DISCARD: Self = Self { markers: MarkerZap::Keep };
}

impl<'a, P: Platform> Tables<'a, P> {
    /// Clears every leaf of `range`. What was behind them goes to `owner`, by way
    /// of `gather`, which is left for the caller to flush.
    ///
    /// A malformed entry is cleared and counted; what it stood for is unknown. One in a
    /// directory goes whole, whatever part of it lies in the range.
    ///
    /// # Errors
    /// A PMD leaf lies across an end of the range and there is no memory to split
    /// it: what lies before it is cleared. [`Tables::split_ends`] beforehand
    /// makes this infallible.
    pub fn zap_range<O: LeafOwner>(
        &self,
        range: VaRange,
        rules: ZapRules,
        gather: &mut TlbGather<'a, P, O::Put>,
        owner: &mut O,
    ) -> Result<(), MakeTableError> {
        let (mut at, end) = (range.start(), range.end());
        while at < end {
            if gather.is_full() {
                gather.flush(owner);
            }
            match self.step(at, end) {
                Step::Hole(next) => at = next,
                Step::Pte(guard, until) => {
                    at = self.zap_table(guard, (at, until), rules, gather, owner);
                }
                Step::Pmd(mut pmd, next) => {
                    let leaf = SizedLeaf::of_pmd(pmd.load(at));
                    if matches!(leaf, Ok(Some(_))) && !is_whole(at, end) {
                        drop(pmd);
                        self.split_pmd(at, owner)?;
                        continue;
                    }
                    let old = pmd.clear(at);
                    gather.note(at.align_down(crate::addr::PMD_SHIFT), PMD_SIZE);
                    if let Ok(Some(leaf)) = SizedLeaf::of_pmd(old) {
                        self.release(at, leaf, gather, owner);
                    }
                    at = end.min(next);
                }
            }
        }
        Ok(())
    }

    /// Clears leaves of one table until it ends or the batch is full. Returns
    /// where to go on.
    fn zap_table<O: LeafOwner>(
        &self,
        mut guard: PteGuard<'a, P>,
        (at, until): (VirtAddr, VirtAddr),
        rules: ZapRules,
        gather: &mut TlbGather<'a, P, O::Put>,
        owner: &mut O,
    ) -> VirtAddr {
        for page in pages(at, until) {
            if guard.live() == 0 {
                break;
            }
            if gather.is_full() {
                return page;
            }
            if is_kept(guard.load(page), rules) {
                continue;
            }
            let old = guard.clear(page);
            match SizedLeaf::of_pte(old) {
                Ok(Some(leaf)) => self.release(page, leaf, gather, owner),
                Ok(None) => {}
                Err(unknown) => {
                    self.base().note_unknown(unknown);
                    // If it was present, a TLB may have it.
                    gather.note(page, abi::PAGE_SIZE);
                }
            }
        }
        until
    }

    /// What follows a cleared leaf, its table's lock held.
    fn release<O: LeafOwner>(
        &self,
        at: VirtAddr,
        leaf: SizedLeaf,
        gather: &mut TlbGather<'a, P, O::Put>,
        owner: &mut O,
    ) {
        if matches!(leaf.state, LeafState::Present(_)) {
            gather.note(at, leaf.pages() << abi::PAGE_SHIFT);
        }
        let rest = owner.unmapped(at, leaf);
        if let Some(put) = rest.put {
            gather.add(put);
        }
        if rest.flush_now {
            gather.flush_tlb();
        }
    }

    /// The end of the directory entry that spans `at`: for callers that go on
    /// table by table.
    pub fn table_end(&self, at: VirtAddr) -> VirtAddr {
        entry_end(at, 1)
    }
}

/// Whether a zap leaves the entry alone.
fn is_kept(entry: Entry, rules: ZapRules) -> bool {
    match entry.pte() {
        PteState::None => true,
        PteState::Present(_) | PteState::Unknown(_) => false,
        PteState::Soft(leaf) => !leaf.kind().is_zapped(rules.markers),
    }
}
