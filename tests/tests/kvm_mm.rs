//! The memory manager's scenarios in the guest, on a real MMU: all of them, on one, two and four vCPUs, with three
//! seeds, and a census after each.
//!
//! The same scenarios run on the simulated machine (`guest-mm/tests/scenarios.rs`); where one ends with a digest of
//! what it left in the page tables, both machines must come to the same.

use guest_mm::scenario::sim::simulate;
use guest_mm::scenario::{Args, Name};
use system_tests::kvm::kvm_or_skip;
use system_tests::vm::{TestVm, scaled};

const RAM: u64 = 64 << 20;
/// Frames of the simulated machine that is compared with the guest.
const SIMULATED_PAGES: u64 = RAM / 4096;

/// All scenarios but the measurements, which say nothing of right and wrong, and the census, which follows each.
fn scenarios() -> impl Iterator<Item = &'static str> {
    let all = Name::ALL.iter().filter(|name| !(name.is_measurement() || **name == Name::Census));
    all.map(|name| name.spec().name)
}

fn run_all(vcpus: usize) {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(RAM, &["--vcpus", &vcpus.to_string()]);
    for seed in scaled(&["1", "2", "3"][..], &["1"]) {
        for name in scenarios() {
            let lines = vm.exec_ok(name, &["--seed", seed]);
            assert!(!lines.iter().any(|line| line.starts_with("not ok")), "{name}: {lines:#?}");
            let census = vm.exec_ok("census", &[]);
            assert!(census.iter().any(|line| line == "0 discrepancies"), "{name}: {census:#?}");
        }
    }
}

#[test]
fn every_scenario_ends_well_on_one_vcpu() {
    run_all(1);
}

#[test]
fn every_scenario_ends_well_on_two_vcpus() {
    run_all(2);
}

#[test]
fn every_scenario_ends_well_on_four_vcpus() {
    run_all(4);
}

#[test]
fn gup_without_the_second_look_at_the_word_is_noticed() {
    if !kvm_or_skip() {
        return;
    }
    // On one CPU the masked fast path cannot be overtaken.
    let vm = TestVm::start(RAM, &["--vcpus", "2"]);
    let args = ["--mutant", "no-recheck", "--rounds", "1000000"];
    let (code, lines) = vm.exec("gup-stress", &args);
    assert_eq!(code, 1, "{lines:#?}");
    let notice = "FAILED: frame of the pinned folio";
    assert!(lines.iter().any(|line| line.starts_with(notice)), "{lines:#?}");
}

#[test]
fn faults_leave_the_same_on_a_real_and_on_a_simulated_mmu() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(RAM, &[]);
    for seed in scaled(&[1, 2, 3][..], &[1]).iter().copied() {
        let here = simulate(Name::Fault, Args { seed, ..Args::default() }, SIMULATED_PAGES);
        assert_eq!(here.outcome, Ok(()), "{:#?}", here.lines);
        let there = vm.exec_ok("fault", &["--seed", &seed.to_string()]);
        let digest = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| line.contains("digest")).cloned().collect()
        };
        let digests = digest(&here.lines);
        assert!(!digests.is_empty(), "{:#?}", here.lines);
        assert_eq!(digests, digest(&there), "seed {seed}");
    }
}

#[test]
fn senseless_arguments_end_in_the_usage() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(RAM, &[]);
    for args in [&["--seed"][..], &["--seed", "x"], &["--cpus", "9"], &["--mutant", "none"], &["1"]]
    {
        let (code, lines) = vm.exec("gup-stress", args);
        assert_eq!(code, 2, "{args:?}: {lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("usage: gup-stress [--seed N]")));
    }
}

/// In a GiB whose page directory is there from the start; the device's memory lies where none is.
#[test]
fn memory_that_no_boot_map_has_comes_to_life_on_a_real_mmu() {
    if !kvm_or_skip() {
        return;
    }
    for vcpus in ["1", "2", "4"] {
        let vm = TestVm::start(2 * RAM, &["--vcpus", vcpus, "--cmdline", "spare=64M"]);
        let lines = vm.exec_ok("come-to-life", &["--seed", vcpus]);
        assert!(!lines.iter().any(|line| line.starts_with("SKIPPED")), "{lines:#?}");
        let census = vm.exec_ok("census", &[]);
        assert!(census.iter().any(|line| line == "0 discrepancies"), "{census:#?}");
        let lines = vm.exec_ok("exp-e10", &["--seed", vcpus]);
        let end = lines.iter().find(|line| line.contains("\"samples\":"));
        assert!(end.is_some_and(|end| !end.contains("\"samples\":0")), "{lines:#?}");
    }
}
