//! Every scenario on the simulated machine, as the guest runs it.
#![cfg(all(not(loom), feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use guest_mm::platform::FaultSite;
use guest_mm::scenario::sim::{Report, simulate, simulate_with_faults};
use guest_mm::scenario::{Args, Mutant, Name};

/// Frames of the machine: 32 MiB.
const PAGES: u64 = 8192;

fn report(name: Name, args: Args) -> Report {
    let report = simulate(name, args, PAGES);
    // Shown if the test fails.
    println!("{} {args:?}", name.spec().name);
    report.lines.iter().for_each(|line| println!("  {line}"));
    report
}

/// Runs a scenario with one, two and four CPUs, each with another seed.
fn run(name: &str) {
    let name = Name::parse(name).unwrap();
    for (cpus, seed) in [(1, 1), (2, 2), (4, 3)] {
        let args = Args { seed, cpus: Some(cpus), ..Args::default() };
        assert_eq!(report(name, args).outcome, Ok(()), "{name:?} on {cpus} CPUs, seed {seed}");
    }
}

macro_rules! scenarios {
    ($($test:ident $name:literal)*) => {
        const TESTED: &[&str] = &[$($name),*];
        $(
            #[test]
            fn $test() {
                run($name);
            }
        )*
    };
}

scenarios! {
    census "census"
    cow "cow"
    fork_cow "fork-cow"
    fault "fault"
    gup_test "gup_test"
    gup_longterm "gup_longterm"
    gup_stress "gup-stress"
    mprotect "mprotect"
    mremap "mremap"
    mremap_test "mremap_test"
    swap "swap"
    oom "oom"
    split "split"
    mkdirty "mkdirty"
    split_huge_page_test "split_huge_page_test"
    folio_split_race_test "folio_split_race_test"
    migration "migration"
    rmap "rmap"
    compaction_test "compaction_test"
    isolate_race "isolate-race"
    xarray "xarray"
    zsmalloc_migrate "zsmalloc-migrate"
    come_to_life "come-to-life"
    exp_e2 "exp-e2"
    exp_e5 "exp-e5"
    balloon_migrate "balloon-migrate"
    balloon_migrate_oom "balloon-migrate-oom"
    migrate_hammer "migrate-hammer"
    bench_mm "bench-mm"
    exp_e3 "exp-e3"
    exp_e9 "exp-e9"
    exp_e10 "exp-e10"
}

#[test]
fn every_scenario_is_tested() {
    let all: Vec<_> = Name::ALL.iter().map(|name| name.spec().name).collect();
    assert_eq!(all, TESTED);
}

/// Steps of migrations and of memory that comes to life fail at random. A scenario may fail for
/// that, where it counts what moved; it loses no page, and the books agree.
#[test]
fn whichever_steps_fail_scenarios_leave_the_machine_as_it_was() {
    let sites = [
        FaultSite::MigrateIsolate,
        FaultSite::MigrateDestination,
        FaultSite::MigrateCallback,
        FaultSite::MapBlock,
    ];
    for name in ["zsmalloc-migrate", "come-to-life", "compaction_test", "isolate-race", "migration"]
    {
        let mut struck = 0;
        for (seed, one_in, rounds) in [(4, 2, 2), (5, 29, 8)] {
            let args = Args { seed, cpus: Some(2), rounds: Some(rounds), ..Args::default() };
            let faults = sites.map(|site| (site, one_in));
            let report = simulate_with_faults(Name::parse(name).unwrap(), args, PAGES, &faults);
            let is_bad =
                |line: &&String| ["LEAK", "DISCREPANCY"].iter().any(|word| line.starts_with(word));
            let bad: Vec<_> = report.lines.iter().filter(is_bad).collect();
            assert!(bad.is_empty(), "{name}, one step in {one_in}: {bad:?} of {report:?}");
            struck += report.faults;
        }
        assert!(struck > 0, "{name}: nothing failed");
    }
}

#[test]
fn gup_without_the_second_look_at_the_word_pins_a_wrong_folio() {
    let args = Args { mutant: Some(Mutant::NoRecheck), cpus: Some(2), ..Args::default() };
    let report = report(Name::GupStress, Args { rounds: Some(100_000), ..args });
    let failure = report.outcome.unwrap_err().to_string();
    assert!(failure.starts_with("frame of the pinned folio"), "{failure}");
}
