//! Every scenario on the simulated machine, as the guest runs it.
#![cfg(all(not(loom), feature = "testing"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use guest_mm::scenario::sim::{Report, simulate};
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

fn run(name: Name, cpus: usize, seed: u64) -> Report {
    let args = Args { seed, cpus: Some(cpus), ..Args::default() };
    let report = report(name, args);
    assert_eq!(report.outcome, Ok(()), "{} on {cpus} CPUs, seed {seed}", name.spec().name);
    report
}

#[test]
fn every_scenario_ends_well_with_one_two_and_four_cpus_and_three_seeds() {
    for name in Name::ALL.iter().copied() {
        for cpus in [1, 2, 4] {
            for seed in [1, 2, 3] {
                run(name, cpus, seed);
            }
        }
    }
}

#[test]
fn gup_without_the_second_look_at_the_word_pins_a_wrong_folio() {
    let args = Args { mutant: Some(Mutant::NoRecheck), cpus: Some(2), ..Args::default() };
    let report = report(Name::GupStress, Args { rounds: Some(100_000), ..args });
    let failure = report.outcome.unwrap_err().to_string();
    assert!(failure.starts_with("frame of the pinned folio"), "{failure}");
}
