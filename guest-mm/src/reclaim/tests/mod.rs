//! Reclaim on the host.

mod lru;
mod pressure;
mod world;

use crate::buddy::Gfp;
use crate::folio::{FolioFlags, FolioKind, FolioRef};
use crate::memdesc::Order;
use crate::mm::{Base, Mm};
use crate::scenario::{Args, Name, sim};
use crate::testing::{self, TestPlatform};

type TestMm<'m> = Mm<'m, TestPlatform>;

fn with_mm(pages: u64, test: impl FnOnce(&TestMm<'_>)) {
    let base = Base::new(testing::memory(pages)).unwrap();
    let mm = Mm::new(&base);
    test(&mm);
    assert!(mm.lru_census(&mut |folio, is_here| assert!(is_here, "{folio:?}")));
    assert_eq!(mm.lru_counts().total_pages(), 0, "folios stayed on lists");
}

/// A folio that the test alone has, on its inactive list.
fn listed<'m>(mm: &TestMm<'m>, kind: FolioKind) -> FolioRef<'m> {
    let folio = mm.alloc_folio(Order::ZERO, Gfp::USER, kind).unwrap();
    folio.set_flags(FolioFlags::UPTODATE);
    mm.lru_add(&folio);
    folio
}

/// Runs a scenario on the simulated machine.
fn simulate(name: Name, args: Args, pages: u64) {
    let report = sim::simulate(name, args, pages);
    assert!(report.outcome.is_ok(), "{:?}: {:#?}", report.outcome, report.lines);
}

#[test]
fn the_swap_scenario_passes_on_one_two_and_four_cpus() {
    for (seed, cpus) in [(1, 1), (2, 2), (3, 4)] {
        let args = Args { seed, cpus: Some(cpus), ..Args::default() };
        simulate(Name::Swap, args, 4096);
    }
}

#[test]
fn the_oom_scenario_passes_on_one_two_and_four_cpus() {
    for (seed, cpus) in [(1, 1), (2, 2), (3, 4)] {
        let args = Args { seed, cpus: Some(cpus), ..Args::default() };
        simulate(Name::Oom, args, 4096);
    }
}
