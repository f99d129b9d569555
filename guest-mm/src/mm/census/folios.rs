//! Every folio: its words, its references.

use core::ops::ControlFlow;
use core::ptr::NonNull;

use abi::Pfn;

use super::{MmDiscrepancy, Taking, folio_weight};
use crate::folio::{Folio, FolioFlags, NoFolio};
use crate::platform::Platform;

impl<P: Platform> Taking<'_, '_, P> {
    /// Checks every folio and adds up what they say of themselves.
    pub(super) fn folios(&mut self) {
        self.for_each_folio(&mut |taking, folio| {
            taking.folio(folio);
            ControlFlow::Continue(())
        });
    }

    /// Calls `each` with every folio of RAM, on which this holds a reference meanwhile.
    fn for_each_folio(&mut self, each: &mut dyn FnMut(&mut Self, &Folio) -> ControlFlow<()>) {
        let mm = self.mm;
        let mut from = 0;
        while let Some(region) = mm.memory().region_from(from) {
            from = region.end().number();
            let mut at = region.start();
            while region.contains(at) {
                let mut pages = 1;
                match mm.folio_of(at) {
                    Ok(folio) => {
                        pages = folio.pages().get();
                        let stop = if folio.pfn() == at {
                            each(self, &folio).is_break()
                        } else {
                            self.census.discrepancies.add(MmDiscrepancy::Words(at));
                            false
                        };
                        mm.put(folio);
                        if stop {
                            return;
                        }
                    }
                    Err(NoFolio::Busy) => {
                        self.census.discrepancies.add(MmDiscrepancy::Frozen(at));
                    }
                    Err(NoFolio::NotFolio(_) | NoFolio::OutOfMap(_)) => {}
                }
                let Some(next) = at.checked_add(abi::PageCount::new(pages)) else { break };
                at = next;
            }
        }
    }

    fn folio(&mut self, folio: &Folio) {
        let head = folio.pfn();
        let words = self.mm.memory().words();
        let own = folio.kind().word_of(NonNull::from(folio));
        let whole = folio.range().iter().all(|pfn| words.load(pfn) == Ok(own));
        self.check(whole && head.is_aligned(folio.order().get()), || MmDiscrepancy::Words(head));

        let pages = folio.pages().get();
        let mapcount = u64::from(folio.mapcount());
        let is_member = !folio.is_anon() && folio.has_mapping();
        let in_swap_cache = folio.has(FolioFlags::SWAPCACHE);
        // One reference is this walk's own.
        let counted = folio.refcount().saturating_sub(1);
        let explained = mapcount
            + u64::from(folio.pincount())
            + if is_member { pages } else { 0 }
            + if in_swap_cache { pages } else { 0 };
        self.check(u64::from(counted) == explained, || MmDiscrepancy::References {
            folio: head,
            counted,
            explained,
        });

        self.check(!folio.is_locked(), || MmDiscrepancy::Locked(head));

        self.census.folios += 1;
        self.census.pins += u64::from(folio.pincount());
        self.sums.deferred += u64::from(folio.has(FolioFlags::DEFERRED_SPLIT));
        self.sums.swap_cached += u64::from(in_swap_cache);
        let weight = folio_weight(head);
        self.sums.mapped += mapcount;
        self.sums.mapcounts = self.sums.mapcounts.wrapping_add(weight.wrapping_mul(mapcount));
        if folio.has(FolioFlags::LRU) {
            self.sums.on_lru = self.sums.on_lru.wrapping_add(weight);
        }
        if is_member {
            self.sums.members = self.sums.members.wrapping_add(weight);
        }
    }

    /// Names folios whose mapcount is not the number of their leaves: a walk over
    /// all page tables for each folio, so only when something is wrong.
    pub(super) fn find_wrong_mapcounts(&mut self) {
        let mut left = 16u32;
        self.for_each_folio(&mut |taking, folio| {
            let (head, counted) = (folio.pfn(), folio.mapcount());
            let leaves = taking.count_leaves(head);
            if leaves != u64::from(counted) {
                taking.census.discrepancies.add(MmDiscrepancy::Mapcount {
                    folio: head,
                    counted,
                    leaves,
                });
                left -= 1;
            }
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }

    /// The head of the folio that has `frame`.
    pub(super) fn head_of(&self, frame: Pfn) -> Option<Pfn> {
        let folio = self.mm.folio_of(frame).ok()?;
        let head = folio.pfn();
        self.mm.put(folio);
        Some(head)
    }
}
