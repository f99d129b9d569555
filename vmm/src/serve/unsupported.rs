//! What Firecracker takes and aerostat does not: refused by name, so that nobody believes to have it.
//!
//! A value that asks for nothing (`false`, 0, `None`, an empty list) is no request for it.

use aerostat_api as api;
use serde_json::Value;

fn refuse(what: &str) -> Result<(), String> {
    Err(format!("{what} is not supported by aerostat"))
}

/// Whole sections of a configuration.
pub(super) fn sections(description: &api::VmConfig) -> Result<(), String> {
    let asked = [
        ("cpu-config", description.cpu_config.is_some()),
        ("mmds-config", description.mmds_config.is_some()),
        ("network-interfaces", !description.network_interfaces.is_empty()),
        ("pmem", !description.pmem.is_empty()),
        ("vsock", description.vsock.is_some()),
    ];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        Some((name, _)) => refuse(name),
        None => Ok(()),
    }
}

pub(super) fn machine(machine: &api::MachineConfig) -> Result<(), String> {
    if machine.smt {
        return refuse("smt: true");
    }
    if machine.track_dirty_pages {
        return refuse("track_dirty_pages: true");
    }
    match machine.huge_pages {
        api::HugePages::None => {}
        api::HugePages::Hugetlbfs2M => return refuse("huge_pages: \"2M\""),
        api::HugePages::Transparent => return refuse("huge_pages: \"Transparent\""),
    }
    match machine.cpu_template {
        None | Some(api::CpuTemplate::None) => Ok(()),
        Some(template) => refuse(&format!("cpu_template: \"{template:?}\"")),
    }
}

pub(super) fn drive(drive: &api::Drive) -> Result<(), String> {
    if drive.socket.is_some() {
        return refuse("socket (a vhost-user backend)");
    }
    if drive.partuuid.is_some() {
        return refuse("partuuid");
    }
    if drive.io_engine == api::IoEngine::Async {
        return refuse("io_engine: \"Async\"");
    }
    match drive.rate_limiter {
        Some(limiter) if limiter.limits() => refuse("rate_limiter"),
        Some(_) | None => Ok(()),
    }
}

pub(super) fn balloon(balloon: &api::BalloonConfig) -> Result<(), String> {
    if balloon.stats_polling_interval_s != 0 {
        return refuse("stats_polling_interval_s other than 0");
    }
    if balloon.free_page_hinting {
        return refuse("free_page_hinting: true");
    }
    if balloon.free_page_reporting {
        return refuse("free_page_reporting: true");
    }
    Ok(())
}

pub(super) fn rate_limiter(limiter: Option<&Value>) -> Result<(), String> {
    match limiter {
        None => Ok(()),
        Some(_) => refuse("rate_limiter"),
    }
}
