//! Requests that configure a VM, and those that only some configurations answer.

use aerostat_api as api;

use super::answer::{self, Answer, Refusal};
use super::router::{BalloonExtra, Section};
use super::routes::{Call, decode};
use super::server::Control;
use crate::vm::handle::{Change, VmError, VmRequest, VmState};

/// Changes a section of the configuration.
pub(super) async fn change(
    control: &Control,
    section: Section,
    call: &Call,
) -> Result<Answer, Refusal> {
    let body = &call.body;
    let change = match section {
        Section::Machine => Change::Machine(decode(body)?),
        Section::MachineUpdate => Change::UpdateMachine(machine_update(body)?),
        Section::BootSource => Change::BootSource(decode(body)?),
        Section::Drive => Change::Drive(drive(call)?),
        Section::Balloon => Change::Balloon(decode(body)?),
        Section::Hotplug => Change::Hotplug(decode(body)?),
        Section::Entropy => Change::Entropy(decode(body)?),
        Section::Logger => Change::Logger(decode(body)?),
        Section::Metrics => Change::Metrics(decode(body)?),
        Section::Serial => Change::Serial(decode(body)?),
    };
    let change = Box::new(change);
    control.ask(|reply| VmRequest::Configure { change, reply }).await?;
    Ok(answer::no_content())
}

fn machine_update(body: &[u8]) -> Result<api::MachineConfigUpdate, Refusal> {
    let update: api::MachineConfigUpdate = decode(body)?;
    if update == api::MachineConfigUpdate::default() {
        return Err(Refusal::bad_request("Empty PATCH request."));
    }
    Ok(update)
}

fn drive(call: &Call) -> Result<api::Drive, Refusal> {
    check_name(&call.name)?;
    let drive: api::Drive = decode(&call.body)?;
    check_names_agree(&call.name, &drive.drive_id)?;
    Ok(drive)
}

/// Puts another file behind a drive of a running VM, or takes the new size of the present one.
pub(super) async fn update_drive(control: &Control, call: &Call) -> Result<Answer, Refusal> {
    check_name(&call.name)?;
    let update: api::DriveUpdate = decode(&call.body)?;
    check_names_agree(&call.name, &update.drive_id)?;
    if update.rate_limiter.is_some() {
        return Err(Refusal::bad_request("rate_limiter is not supported by aerostat"));
    }
    let api::DriveUpdate { drive_id: id, path_on_host, .. } = update;
    let path = path_on_host.map(Into::into);
    control.ask(|reply| VmRequest::UpdateDrive { id, path, reply }).await?;
    Ok(answer::no_content())
}

/// Why a part of the balloon does not answer: no balloon has it.
pub(super) async fn balloon_extra(control: &Control, extra: BalloonExtra, body: &[u8]) -> Refusal {
    let decoded = match extra {
        BalloonExtra::SetStatisticsInterval => decode(body).map(|_: api::BalloonStatsUpdate| ()),
        BalloonExtra::StartHinting if !body.is_empty() => {
            decode(body).map(|_: api::HintingStart| ())
        }
        BalloonExtra::Statistics | BalloonExtra::StartHinting | BalloonExtra::Hinting => Ok(()),
    };
    if let Err(refusal) = decoded {
        return refusal;
    }
    if let Err(refusal) = running(control).await {
        return refusal;
    }
    match control.ask(VmRequest::Configuration).await {
        Err(refusal) => refusal,
        Ok(configuration) if configuration.balloon.is_none() => VmError::NoBalloon.into(),
        Ok(_) => Refusal::bad_request(match extra {
            BalloonExtra::Statistics | BalloonExtra::SetStatisticsInterval => {
                "This VM's balloon was configured without statistics."
            }
            BalloonExtra::StartHinting | BalloonExtra::Hinting => {
                "This VM's balloon was configured without free page hinting."
            }
        }),
    }
}

async fn running(control: &Control) -> Result<(), Refusal> {
    match control.ask(VmRequest::Info).await?.state {
        VmState::NotStarted => Err(VmError::NotStarted.into()),
        VmState::Starting | VmState::Running | VmState::Paused => Ok(()),
    }
}

/// Checks a name in a path against Firecracker's rule.
fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() {
        return Err(Refusal::bad_request("The ID cannot be empty."));
    }
    if !name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) {
        return Err(Refusal::bad_request(format!(
            "The ID {name:?} is not allowed: letters, digits and underscores only."
        )));
    }
    Ok(())
}

fn check_names_agree(in_path: &str, in_body: &str) -> Result<(), Refusal> {
    if in_path != in_body {
        return Err(Refusal::bad_request(format!(
            "The ID in the path, {in_path:?}, is not the one in the body, {in_body:?}."
        )));
    }
    Ok(())
}
