//! `demo`: one VM from boot to power-off, and what the host got back on the way.
//!
//! The VM is an ordinary `aerostat run` in a process of its own, commanded
//! through its control socket like any other; every number is read from it.

mod report;

use std::time::{Duration, Instant};

use aerostat_api::{
    BalloonStatus, Client, ExecEvent, ExecRequest, OperationRequest, OperationState,
};

use super::args::DemoOptions;
use super::failure::Failure;
use super::output;
use super::own_vm::OwnVm;
use super::resize::Subject;
use crate::exit_code;
use crate::kvm::Host;
use crate::vm::StartError;
use report::{Report, Step};

/// How long one resize may take before the demo gives up on it.
const RESIZE_TIME: Duration = Duration::from_secs(20);
/// How long the guest may take to power off.
const STOP_TIME: Duration = Duration::from_secs(5);
/// What the host must get back of the balloon for the demo to have worked, in percent.
const WANTED_PERCENT: f64 = 95.0;

/// Runs the demo.
pub(super) fn demo(options: &DemoOptions) -> Result<u8, Failure> {
    // A host without KVM says so itself and not through a process that failed.
    drop(Host::open(1).map_err(StartError::from)?);
    let began = Instant::now();
    let own = OwnVm::start(&options.memory, 1)?;
    let client = own.client();
    let vm = client.vm_status()?;
    let mut report = Report::new(&vm, options.json)?;
    let mut stage = Stage { client: &client, report: &mut report, began };

    stage.step("boot until the guest is ready", |_client| Ok(()))?;
    let full = stage.step("touch all, then free it", |client| exec(client, "touch", &["all"]))?;
    let half = vm.ram_bytes / 2 / abi::PAGE_SIZE * abi::PAGE_SIZE;
    let inflated = stage.step("inflate by half", |client| set_target(client, half))?;
    stage.step("deflate", |client| set_target(client, 0))?;
    stage.step("verify the guest's memory", |client| exec(client, "verify", &[]))?;
    stage.began = Instant::now();
    client.stop(STOP_TIME)?;
    own.wait_for_end()?;
    let stop_time = stage.began.elapsed();
    report.end(stop_time, &full, &inflated)?;

    match report.freed_percent() {
        Some(percent) if percent < WANTED_PERCENT => Err(Failure::other(format!(
            "The host got back only {percent:.1} % of the balloon; at least {WANTED_PERCENT} % \
             was to be freed"
        ))),
        Some(_) | None => Ok(exit_code::SUCCESS),
    }
}

/// Takes the steps and reports each with the balloon as it stands after it.
struct Stage<'a> {
    client: &'a Client,
    report: &'a mut Report,
    began: Instant,
}

impl Stage<'_> {
    fn step(
        &mut self,
        name: &'static str,
        act: impl FnOnce(&Client) -> Result<(), Failure>,
    ) -> Result<BalloonStatus, Failure> {
        act(self.client)?;
        let took = self.began.elapsed();
        let status = self.client.balloon_status()?;
        self.report.step(Step::new(name, took, &status))?;
        self.began = Instant::now();
        Ok(status)
    }
}

/// Runs a scenario that has to succeed.
fn exec(client: &Client, scenario: &str, args: &[&str]) -> Result<(), Failure> {
    let args = args.iter().map(ToString::to_string).collect();
    let mut said = Vec::new();
    for event in client.exec(&ExecRequest { scenario: scenario.into(), args })? {
        match event? {
            ExecEvent::Line { line } => said.push(line),
            ExecEvent::Exit { exit: 0, .. } => return Ok(()),
            ExecEvent::Exit { exit, .. } => {
                return Err(Failure::other(format!(
                    "The scenario {scenario} failed with exit code {exit}: {}",
                    said.join("; ")
                )));
            }
        }
    }
    Err(Failure::other(format!("The VM ended in the scenario {scenario}")))
}

/// Resizes the balloon and waits until it is there.
fn set_target(client: &Client, target_bytes: u64) -> Result<(), Failure> {
    let timeout_ms = u64::try_from(RESIZE_TIME.as_millis()).ok();
    let begun = client.begin_operation(&OperationRequest { target_bytes, timeout_ms })?;
    let ended = Subject::BALLOON.wait(client, begun, false)?;
    match ended.state {
        OperationState::Reached => Ok(()),
        OperationState::Running
        | OperationState::Stalled
        | OperationState::TimedOut
        | OperationState::Superseded => Err(Failure::other(format!(
            "The balloon is at {} instead of {}: {}",
            output::size(ended.actual_bytes),
            output::size(ended.target_bytes),
            ended.state
        ))),
    }
}
