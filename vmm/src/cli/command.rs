//! Commands that are one request.

use std::collections::BTreeMap;

use aerostat_api::{ClientError, RunState};

use super::args::{QueryOptions, StopOptions, Target};
use super::failure::Failure;
use super::output;
use crate::exit_code;

pub(super) fn info(query: &QueryOptions) -> Result<u8, Failure> {
    let vm = query.target.client()?.vm_status()?;
    if query.json {
        output::json(&vm)?;
        return Ok(exit_code::SUCCESS);
    }
    let since_exec = |micros: Option<u64>| match micros {
        Some(micros) => format!("{}.{:03} ms after start", micros / 1000, micros % 1000),
        None => "not yet".into(),
    };
    let kvm = match vm.kvm.as_str() {
        "software" => "software (ring 0 is interpreted: absolute times do not compare)".into(),
        _ => vm.kvm,
    };
    let kernel = if vm.kernel.is_empty() { "not configured".into() } else { vm.kernel };
    output::fields(&[
        ("id", vm.id),
        ("state", vm.state),
        ("process", vm.pid.to_string()),
        ("version", vm.version),
        ("memory", output::size(vm.ram_bytes)),
        ("backing", vm.backing),
        ("vcpus", vm.vcpus.to_string()),
        ("kvm", kvm),
        ("kernel", kernel),
        ("cmdline", vm.cmdline),
        ("first byte", since_exec(vm.first_byte_us)),
        ("ready", since_exec(vm.ready_us)),
    ])?;
    Ok(exit_code::SUCCESS)
}

pub(super) fn pause(target: &Target) -> Result<u8, Failure> {
    set_run_state(target, RunState::Paused)
}

pub(super) fn resume(target: &Target) -> Result<u8, Failure> {
    set_run_state(target, RunState::Resumed)
}

fn set_run_state(target: &Target, state: RunState) -> Result<u8, Failure> {
    match target.client()?.set_run_state(state) {
        Ok(()) => Ok(exit_code::SUCCESS),
        // There are no arguments that could be wrong: the VM is not started yet, or ends.
        Err(refused @ ClientError::Refused { .. }) => Err(Failure::other(refused.to_string())),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn stop(options: &StopOptions) -> Result<u8, Failure> {
    let outcome = options.target.client()?.stop(options.timeout)?;
    if options.json {
        output::json(&outcome)?;
    } else if outcome.by_guest {
        output::line("stopped: the guest powered off")?;
    } else {
        // At once if it was paused or nobody in it listens, so no time is told.
        output::line("stopped: the guest did not power off by itself and was ended")?;
    }
    Ok(exit_code::SUCCESS)
}

pub(super) fn metrics(query: &QueryOptions) -> Result<u8, Failure> {
    let text = query.target.client()?.metrics()?;
    if query.json {
        output::json(&samples(&text)?)?
    } else {
        output::raw(&text)?
    }
    Ok(exit_code::SUCCESS)
}

/// The samples of a Prometheus text: from a name with its labels to a value.
fn samples(text: &str) -> Result<BTreeMap<&str, serde_json::Number>, Failure> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            // Labels may have spaces, a value has none.
            let sample = line.rsplit_once(' ');
            sample
                .and_then(|(name, value)| Some((name, value.parse().ok()?)))
                .ok_or_else(|| Failure::other(format!("{line:?} is no sample of a metric")))
        })
        .collect()
}
