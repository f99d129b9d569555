//! `balloon`: the driver's state and counters.

use core::fmt;

use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::store::PfnStore;

use crate::image::kernel::Kernel;

/// A quotient with two decimals; 0 without pages.
struct PerPage {
    total: u64,
    pages: u64,
}

impl fmt::Display for PerPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredths = self.total.saturating_mul(100).checked_div(self.pages).unwrap_or(0);
        write!(f, "{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

/// `total` per page.
fn per_page(total: u64, pages: u64) -> PerPage {
    PerPage { total, pages }
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn print_balloon(&mut self) -> u8 {
        let Some(status) = self.balloon.status() else {
            self.print(format_args!("no balloon"));
            return FAILURE;
        };
        let counters = status.counters;
        self.print(format_args!(
            "phase={:?} requested={} target={} actual={} inflating={} deflating={}",
            status.phase,
            status.requested.get(),
            status.target.get(),
            status.actual.get(),
            status.inflating.get(),
            status.deflating.get(),
        ));
        self.print(format_args!(
            "ns/page: inflate={} settle={} deflate={} free={}",
            per_page(counters.inflate_ns, counters.inflated_pages),
            per_page(counters.settle_ns, counters.settled_pages),
            per_page(counters.deflate_ns, counters.deflated_pages),
            per_page(counters.free_ns, counters.freed_pages),
        ));
        let (bytes, pages) = (self.store.bytes_used() as u64, self.store.pages().get());
        self.print(format_args!(
            "store: {bytes} bytes, {pages} pages in {} blocks, {} bytes/page",
            self.store.blocks(),
            per_page(bytes, pages),
        ));
        self.print(format_args!("{counters:?}"));
        if status.failure.is_some() { FAILURE } else { SUCCESS }
    }
}
