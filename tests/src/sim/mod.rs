//! The simulated machine: the guest's real drivers and the host's real device
//! models over one guest RAM, in one thread, under a seeded scheduler.
//!
//! Nothing is faked between the two but what a machine would do: registers are
//! called directly, a doorbell waits until the scheduler lets the device look,
//! an interrupt waits until it lets the guest look, time passes when it says so.
//! A seed replays a run exactly. Design: `docs/simulated-machine.md`.

mod direct;
mod host;
mod platform;
mod scenario;
mod workload;

pub use direct::DirectBus;
pub use host::{Host, SimBus};
pub use platform::{SimMachine, SimPlatform};
pub use scenario::{Checks, Scenario, SimOutcome, StoreKind, Violation, run};
pub use workload::Workload;

/// Seeds that a test runs: `AEROSTAT_SIM_SEEDS=N` or `N..M`, else `default` from 0.
///
/// # Panics
/// If the variable is set to something else.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("AEROSTAT_SIM_SEEDS") else { return 0..default };
    let parse = |text: &str| {
        text.trim().parse().unwrap_or_else(|_| panic!("AEROSTAT_SIM_SEEDS={text} is no number"))
    };
    match text.split_once("..") {
        Some((from, to)) => parse(from)..parse(to),
        None => 0..parse(&text),
    }
}
