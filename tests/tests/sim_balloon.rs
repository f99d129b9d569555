//! The real balloon driver against the real balloon device, seed after seed.
//!
//! `AEROSTAT_SIM_SEEDS=1000` runs more seeds, `AEROSTAT_SIM_SEEDS=41..42` replays one.

use guest_mm::balloon::Mutant;
use system_tests::sim::{Checks, Scenario, SimOutcome, StoreKind, Violation, run, seeds};

/// Seeds of each test in CI.
const SEEDS: u64 = 12;
/// Seeds of each test of migration, of which there are several each.
const MIGRATION_SEEDS: u64 = 5;

fn play(scenario: Scenario) -> Vec<SimOutcome> {
    play_seeds(scenario, SEEDS)
}

fn play_seeds(scenario: Scenario, default: u64) -> Vec<SimOutcome> {
    let outcomes: Vec<_> = seeds(default)
        .map(|seed| match run(scenario, seed) {
            Ok(outcome) => outcome,
            Err(violation) => panic!("seed {seed} of {scenario:?}: {violation}"),
        })
        .collect();
    let sum = |figure: fn(&SimOutcome) -> u64| outcomes.iter().map(figure).sum::<u64>();
    println!(
        "{:?}, order {}: {} pages inflated, {} freed, {} splits, {} resets, {} faults struck, {} timeouts",
        scenario.store,
        scenario.max_order,
        sum(|o| o.driver.inflated_pages),
        sum(|o| o.driver.freed_pages),
        sum(|o| o.driver.splits),
        sum(|o| o.driver.resets),
        sum(|o| o.faults),
        sum(|o| o.driver.ack_timeouts),
    );
    outcomes
}

fn both_stores(scenario: Scenario) -> Vec<SimOutcome> {
    [StoreKind::XArray, StoreKind::Bitmap]
        .into_iter()
        .flat_map(|store| play(Scenario { store, ..scenario }))
        .collect()
}

#[test]
fn no_guest_page_is_lost_under_load_with_large_blocks() {
    let outcomes = both_stores(Scenario::default());
    assert!(outcomes.iter().any(|outcome| outcome.driver.splits > 0));
    assert!(outcomes.iter().any(|outcome| outcome.driver.isolated_skips > 0));
    assert!(outcomes.iter().any(|outcome| outcome.driver.ack_timeouts > 0));
    assert!(outcomes.iter().any(|outcome| outcome.zero_pages_seen > 0));
}

#[test]
fn no_guest_page_is_lost_under_load_page_by_page() {
    both_stores(Scenario { max_order: 0, ..Scenario::default() });
}

#[test]
fn no_guest_page_is_lost_when_releases_run_beside_the_device() {
    both_stores(Scenario { deferred: true, ..Scenario::default() });
    let hostile = Scenario { is_hostile: true, deferred: true, ..Scenario::default() };
    play(hostile);
}

#[test]
fn injected_faults_leave_nothing_behind() {
    let outcomes = both_stores(Scenario { faults_one_in: 8, ..Scenario::default() });
    assert!(outcomes.iter().map(|outcome| outcome.faults).sum::<u64>() > 0);
    assert!(outcomes.iter().any(|outcome| outcome.driver.queue_failures > 0));
    assert!(outcomes.iter().any(|outcome| outcome.driver.store_failures > 0));
}

#[test]
fn hostile_devices_broken_rings_and_rebinds_cost_resets_and_no_page() {
    let outcomes =
        both_stores(Scenario { is_hostile: true, faults_one_in: 50, ..Scenario::default() });
    assert!(outcomes.iter().any(|outcome| outcome.driver.resets > 0));
    assert!(outcomes.iter().any(|outcome| outcome.driver.device_faults > 0));
}

#[test]
fn a_guest_out_of_memory_takes_pages_back_and_loses_none() {
    let scenario = Scenario { out_of_memory: true, ..Scenario::default() };
    let deferred = Scenario { deferred: true, ..scenario };
    let hostile = Scenario { is_hostile: true, faults_one_in: 50, ..scenario };
    for scenario in [scenario, deferred, hostile] {
        let outcomes = both_stores(scenario);
        let sum = |figure: fn(&SimOutcome) -> u64| outcomes.iter().map(figure).sum::<u64>();
        assert!(sum(|o| o.driver.oom_pages) > 1000, "{} pages", sum(|o| o.driver.oom_pages));
        assert!(sum(|o| o.driver.oom_timeouts) > 0);
    }
}

#[test]
fn a_run_replays_from_its_seed() {
    let scenario = Scenario { is_hostile: true, faults_one_in: 20, ..Scenario::default() };
    let [first, second] = [run(scenario, 7), run(scenario, 7)].map(|outcome| {
        let outcome = outcome.unwrap_or_else(|violation| panic!("{violation}"));
        (outcome.driver, outcome.faults, outcome.zero_pages_seen)
    });
    assert_eq!(first, second);
}

/// Scenarios in which ballooned pages migrate: plain, page by page, with releases beside the device.
fn migrations() -> [Scenario; 3] {
    let scenario = Scenario { migrates: true, out_of_memory: true, ..Scenario::default() };
    let small = Scenario { max_order: 0, ..scenario };
    [scenario, small, Scenario { deferred: true, ..scenario }]
}

#[test]
fn ballooned_pages_migrate_against_inflation_deflation_and_out_of_memory() {
    let mut released = 0;
    for scenario in migrations() {
        let outcomes: Vec<_> = [StoreKind::XArray, StoreKind::Bitmap]
            .into_iter()
            .flat_map(|store| play_seeds(Scenario { store, ..scenario }, MIGRATION_SEEDS))
            .collect();
        let sum = |figure: fn(&SimOutcome) -> u64| outcomes.iter().map(figure).sum::<u64>();
        println!(
            "{} pages moved, {} released, {} kept, {} rounds",
            sum(|o| o.driver.migrated_pages),
            sum(|o| o.driver.released_pages),
            sum(|o| o.driver.kept_pages),
            sum(|o| o.driver.migrate_rounds),
        );
        assert!(sum(|o| o.driver.migrated_pages) > 100);
        released += sum(|o| o.driver.released_pages);
        assert!(sum(|o| o.driver.kept_pages) > 0);
        assert!(sum(|o| o.driver.oom_pages) > 0);
        assert_eq!(sum(|o| o.migrated.migrated), sum(|o| o.driver.migrated_pages));
        assert_eq!(sum(|o| o.migrated.released), sum(|o| o.driver.released_pages));
        assert_eq!(sum(|o| o.migrated.kept), sum(|o| o.driver.kept_pages));
    }
    // Rare: the target has to fall between isolation and move.
    assert!(released > 0);
}

#[test]
fn migrations_that_fail_anywhere_lose_nothing() {
    for scenario in migrations() {
        let outcomes = play_seeds(Scenario { faults_one_in: 12, ..scenario }, MIGRATION_SEEDS);
        assert!(outcomes.iter().any(|outcome| outcome.driver.migrated_pages > 0));
        let hostile = Scenario { is_hostile: true, faults_one_in: 50, ..scenario };
        let outcomes = play_seeds(hostile, MIGRATION_SEEDS);
        assert!(outcomes.iter().any(|outcome| outcome.driver.resets > 0));
        assert!(outcomes.iter().any(|outcome| outcome.driver.kept_pages > 0));
    }
}

/// Seeds up to the first violation that `is_it` admits.
fn seeds_until(scenario: Scenario, is_it: impl Fn(&Violation) -> bool) -> u64 {
    let found = (0..50).find(|&seed| run(scenario, seed).is_err_and(|violation| is_it(&violation)));
    found.unwrap_or_else(|| panic!("{scenario:?} survived 50 seeds")) + 1
}

fn mutant(mutant: Mutant, checks: Checks) -> Scenario {
    Scenario { mutant: Some(mutant), checks, isolates: false, ..Scenario::default() }
}

#[test]
fn a_driver_that_makes_pages_movable_before_the_hosts_answer_loses_guest_data() {
    let blind = mutant(Mutant::MovableBeforeUsed, Checks::ContentsOnly);
    let seeds = seeds_until(blind, |violation| {
        matches!(violation, Violation::GuestPageDiscarded(_) | Violation::ReportedPageNotZero(_))
    });
    println!("guest data lost after {seeds} seeds");
    let seeds = seeds_until(mutant(Mutant::MovableBeforeUsed, Checks::All), |_| true);
    assert!(seeds <= 2, "noticed only after {seeds} seeds");
}

#[test]
fn a_driver_that_frees_pages_before_the_hosts_answer_is_noticed() {
    let seeds = seeds_until(mutant(Mutant::FreedBeforeAnswer, Checks::All), |violation| {
        matches!(violation, Violation::ClaimedNotOffline(..))
    });
    assert!(seeds <= 2, "noticed only after {seeds} seeds");
}

/// Only migration frees pages of this balloon, which never deflates.
fn only_migration(defect: Mutant, checks: Checks) -> Scenario {
    let grows = Scenario { only_grows: true, migrates: true, ..mutant(defect, checks) };
    Scenario { max_order: 0, ..grows }
}

#[test]
fn pages_movable_before_the_hosts_answer_lose_guest_data_through_migration_alone() {
    let blind = only_migration(Mutant::MovableBeforeUsed, Checks::ContentsOnly);
    let seeds = seeds_until(blind, |violation| {
        matches!(violation, Violation::GuestPageDiscarded(_) | Violation::ReportedPageNotZero(_))
    });
    println!("guest data lost after {seeds} seeds");
    // Without migration nothing else would have done it.
    for seed in 0..10 {
        let still = Scenario { migrates: false, ..blind };
        assert!(run(still, seed).is_ok(), "seed {seed} fails without migration");
    }
}

#[test]
fn a_migration_that_deflates_the_old_page_first_leaves_the_host_short() {
    let defect = only_migration(Mutant::OldDeflatedFirst, Checks::All);
    let seeds = seeds_until(defect, |violation| matches!(violation, Violation::HostShort(..)));
    assert!(seeds <= 2, "noticed only after {seeds} seeds");
}

#[test]
fn a_migration_that_frees_the_old_page_before_the_hosts_answer_is_noticed() {
    let defect = only_migration(Mutant::FreedBeforeAnswer, Checks::All);
    let seeds =
        seeds_until(defect, |violation| matches!(violation, Violation::ClaimedNotOffline(..)));
    assert!(seeds <= 2, "noticed only after {seeds} seeds");
}
