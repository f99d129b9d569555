//! `census`: every word, free list, slab and store entry, counted and compared.

use abi::PageCount;
use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::census::{BalloonClaim, CensusScope};
use guest_mm::memdesc::{DriverId, Kind};
use guest_mm::store::PfnStore;

use crate::image::kernel::Kernel;

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn census(&mut self) -> u8 {
        let (actual, in_flight) = match self.balloon().map(|balloon| balloon.status()) {
            Some(status) => (status.actual, status.inflating.saturating_add(status.deflating)),
            None => (PageCount::ZERO, PageCount::ZERO),
        };
        let claim =
            BalloonClaim { driver: DriverId::BALLOON, store: self.store, actual, in_flight };
        let caches = self.mm.base().caches.all();
        let scope = CensusScope { balloons: &[claim], caches: &caches };
        let census = self.memory.census_of(&scope);
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
        let discrepancies = census.discrepancies();
        for discrepancy in discrepancies.iter() {
            self.print(format_args!("DISCREPANCY: {discrepancy}"));
        }
        self.print(format_args!("{} discrepancies", discrepancies.total()));
        if census.is_consistent() { SUCCESS } else { FAILURE }
    }
}
