//! `bench mm`: measures the guest's memory manager inside the guest.
//!
//! The VM is an ordinary `aerostat run` in a process of its own. The guest's
//! scenario `bench-mm` prints a figure a line, by the guest's own clock.

use std::time::Duration;

use aerostat_api::{ExecEvent, ExecRequest, VmStatus};
use serde::Serialize;

use super::super::args::BenchMmOptions;
use super::super::failure::Failure;
use super::super::output;
use super::super::own_vm::OwnVm;
use super::figure::{Figure, Table};
use crate::exit_code;
use crate::kvm::Host;
use crate::vm::StartError;

/// The scenario that measures.
const SCENARIO: &str = "bench-mm";
/// How long the guest may take to power off.
const STOP_TIME: Duration = Duration::from_secs(5);

/// The measured VM and its figures.
#[derive(Debug, Serialize)]
struct Report {
    version: String,
    kvm: String,
    ram_bytes: u64,
    backing: String,
    vcpus: u8,
    figures: Vec<Figure>,
}

/// Measures, and prints a table as it goes or one JSON object at the end.
pub(super) fn mm(options: &BenchMmOptions) -> Result<u8, Failure> {
    // A host without KVM says so itself and not through a process that failed.
    drop(Host::open(options.vcpus).map_err(StartError::from)?);
    let own = OwnVm::start(&options.memory, options.vcpus)?;
    let client = own.client();
    let vm = client.vm_status()?;
    let mut table = if options.json { None } else { Some(begin_table(&vm)?) };
    let mut figures = Vec::new();
    let args = vec!["--rounds".into(), options.rounds.to_string()];
    let request = ExecRequest { scenario: SCENARIO.into(), args };
    let mut said = Vec::new();
    let mut exit = None;
    for event in client.exec(&request)? {
        match event? {
            ExecEvent::Line { line } => match Figure::parse(&line) {
                Some(figure) => {
                    table.as_mut().map_or(Ok(()), |table| table.row(&figure))?;
                    figures.push(figure);
                }
                None => said.push(line),
            },
            ExecEvent::Exit { exit: code, lost: 0 } => exit = Some(code),
            ExecEvent::Exit { lost, .. } => {
                return Err(Failure::other(format!("{lost} lines of output were lost")));
            }
        }
    }
    match exit {
        Some(0) if !figures.is_empty() => {}
        Some(code) => {
            return Err(Failure::other(format!(
                "The scenario {SCENARIO} ended with exit code {code} after {} figures: {}",
                figures.len(),
                said.join("; ")
            )));
        }
        None => return Err(Failure::other("The VM ended before its scenario did")),
    }
    client.stop(STOP_TIME)?;
    own.wait_for_end()?;
    if options.json {
        let VmStatus { version, kvm, ram_bytes, backing, vcpus, .. } = vm;
        output::json(&Report { version, kvm, ram_bytes, backing, vcpus, figures })?;
    }
    Ok(exit_code::SUCCESS)
}

/// Says what is measured, and how much its times mean.
fn begin_table(vm: &VmStatus) -> Result<Table, Failure> {
    let (ram, vcpus, kvm) = (output::human(vm.ram_bytes), vm.vcpus, &vm.kvm);
    output::line(format!("{ram} of {} memory, {vcpus} vCPUs, {kvm} KVM", vm.backing))?;
    if vm.kvm == "software" {
        output::line(
            "Ring 0 is interpreted here: what enters it (page faults, flushes, interrupts) takes longer.",
        )?;
    }
    Table::begin()
}
