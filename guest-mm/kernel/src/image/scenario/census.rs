//! `census`: every word, free list, slab, store entry, page table and folio, counted and compared.

use abi::PageCount;
use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::census::BalloonClaim;
use guest_mm::memdesc::{DriverId, Kind};
use guest_mm::store::PfnStore;

use crate::image::kernel::Kernel;

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn census(&mut self) -> u8 {
        let (actual, in_flight) = match self.balloon.status() {
            Some(status) => (status.actual, status.inflating.saturating_add(status.deflating)),
            None => (PageCount::ZERO, PageCount::ZERO),
        };
        let claim =
            BalloonClaim { driver: DriverId::BALLOON, store: self.store, actual, in_flight };
        self.mm.base().settle();
        let all = self.mm.census(&[claim]);
        let census = &all.memory;
        for kind in Kind::ALL {
            let (pages, blocks) = (census.pages(kind).get(), census.blocks(kind));
            if pages != 0 {
                self.print(format_args!("{:<8} {pages:>10} pages {blocks:>8} blocks", kind.name()));
            }
        }
        self.print(format_args!(
            "total {} pages, free {}, discarded by the host {}, ballooned {}",
            census.total_pages().get(),
            census.free_pages().get(),
            census.reported_pages().get(),
            census.offline_total(DriverId::BALLOON).get(),
        ));
        self.print(format_args!(
            "{} spaces, {} tables, {} leaves, {} folios",
            all.spaces, all.tables, all.leaves, all.folios,
        ));
        let discrepancies = all.discrepancies();
        for discrepancy in discrepancies.iter() {
            self.print(format_args!("DISCREPANCY: {discrepancy}"));
        }
        self.print(format_args!("{} discrepancies", discrepancies.total()));
        if all.is_consistent() { SUCCESS } else { FAILURE }
    }
}
