//! The measurements on the simulated machine, whose clock stands still: what is
//! shown is that everything runs, says what it should and gives its memory back.

use std::string::String;
use std::vec::Vec;

use crate::scenario::{Args, Name, sim};

#[test]
fn every_measurement_runs_on_the_simulated_machine_and_frees_what_it_took() {
    let args = Args { rounds: Some(1), ..Args::default() };
    let report = sim::simulate(Name::BenchMm, args, 16_384);
    assert_eq!(report.outcome, Ok(()), "{:#?}", report.lines);
    let figures: Vec<&String> = report.lines.iter().filter(|line| line.starts_with('{')).collect();
    for name in [
        "memory init",
        "buddy pair",
        "slab pair",
        "slab burst",
        "rcu read section",
        "rcu callback",
        "rcu wait",
        "fault",
        "fork",
        "exit",
        "mprotect pair",
        "munmap",
        "migrate",
        "rmap walk",
        "gup",
        "layout init",
        "layout bytes",
        "layout lookup",
    ] {
        let key = std::format!("{{\"name\":\"{name}\",");
        assert!(figures.iter().any(|line| line.starts_with(&key)), "no figure {name}");
    }
    assert!(figures.iter().all(|line| line.len() <= 512), "the host refuses longer lines");
}
