//! From what the event loop says to what the API says.

use std::time::Duration;

use abi::PageCount;
use aerostat_api as api;

use crate::vm::handle::{
    BalloonStatus, HotplugStatus, OperationState, OperationStatus, VmInfo, VmState,
};

/// Version of Firecracker's API that the shared endpoints follow.
const FIRECRACKER_API: &str = "1.14.1";

pub(super) fn instance(vm: VmInfo) -> api::Instance {
    api::Instance {
        id: vm.id,
        state: instance_state(vm.state),
        vmm_version: env!("CARGO_PKG_VERSION").into(),
        app_name: "aerostat".into(),
    }
}

pub(super) fn vm_state(vm: &VmInfo) -> api::VmState {
    api::VmState { state: instance_state(vm.state) }
}

const fn instance_state(state: VmState) -> api::InstanceState {
    match state {
        VmState::NotStarted => api::InstanceState::NotStarted,
        VmState::Starting | VmState::Running => api::InstanceState::Running,
        VmState::Paused => api::InstanceState::Paused,
    }
}

pub(super) fn version() -> api::Version {
    api::Version {
        firecracker_version: FIRECRACKER_API.into(),
        aerostat_version: env!("CARGO_PKG_VERSION").into(),
    }
}

pub(super) fn vm_status(vm: VmInfo) -> api::VmStatus {
    api::VmStatus {
        id: vm.id,
        state: match vm.state {
            VmState::NotStarted => "not started",
            VmState::Starting => "starting",
            VmState::Running => "running",
            VmState::Paused => "paused",
        }
        .into(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        ram_bytes: vm.ram.bytes(),
        vcpus: vm.vcpus,
        backing: vm.backing.into(),
        kvm: vm.kvm.into(),
        kernel: vm.kernel,
        cmdline: vm.cmdline,
        first_byte_us: vm.first_byte_us,
        ready_us: vm.ready_us,
    }
}

pub(super) fn balloon_status(
    balloon: BalloonStatus,
    operation: Option<OperationStatus>,
) -> api::BalloonStatus {
    let driver = driver(balloon.needs_reset, balloon.driver_ready, balloon.acked_features);
    api::BalloonStatus {
        ram_bytes: balloon.ram.bytes(),
        target_bytes: balloon.target.bytes(),
        actual_bytes: balloon.actual.bytes(),
        guest_left_bytes: balloon.ram.saturating_sub(balloon.actual).bytes(),
        claimed_bytes: balloon.claimed.bytes(),
        host_resident_bytes: balloon.host_resident_bytes,
        truth: balloon.truth.into(),
        driver,
        offered_features: api::FeatureSet::of_balloon(balloon.offered_features),
        acked_features: balloon.acked_features.map(api::FeatureSet::of_balloon),
        last_kick_ms: balloon.last_kick.map(millis),
        operation: operation.map(self::operation),
    }
}

const fn driver(needs_reset: bool, is_ready: bool, acked: Option<u64>) -> api::DriverState {
    match (needs_reset, is_ready, acked) {
        (true, _, _) => api::DriverState::NeedsReset,
        (false, true, _) => api::DriverState::Ready,
        (false, false, Some(_)) => api::DriverState::Negotiating,
        (false, false, None) => api::DriverState::Missing,
    }
}

/// Hotplug memory in Firecracker's words.
pub(super) fn memory_hotplug(hotplug: &HotplugStatus) -> api::MemoryHotplugStatus {
    api::MemoryHotplugStatus {
        total_size_mib: hotplug.total_bytes >> 20,
        block_size_mib: hotplug.block_bytes >> 20,
        slot_size_mib: hotplug.slot_bytes >> 20,
        plugged_size_mib: hotplug.plugged.bytes() >> 20,
        requested_size_mib: hotplug.requested.bytes() >> 20,
    }
}

pub(super) fn hotplug_status(
    hotplug: HotplugStatus,
    operation: Option<OperationStatus>,
) -> api::HotplugStatus {
    api::HotplugStatus {
        addr: hotplug.addr,
        total_bytes: hotplug.total_bytes,
        block_bytes: hotplug.block_bytes,
        slot_bytes: hotplug.slot_bytes,
        usable_bytes: hotplug.usable_bytes,
        plugged_bytes: hotplug.plugged.bytes(),
        requested_bytes: hotplug.requested.bytes(),
        host_resident_bytes: hotplug.host_resident_bytes,
        truth: hotplug.truth.into(),
        driver: driver(hotplug.needs_reset, hotplug.driver_ready, hotplug.acked_features),
        acked_features: hotplug.acked_features.map(api::FeatureSet::of_mem),
        last_kick_ms: hotplug.last_kick.map(millis),
        operation: operation.map(hotplug_operation),
    }
}

/// An operation whose `actual` is what the guest has beside its RAM.
pub(super) fn hotplug_operation(status: OperationStatus) -> api::Operation {
    let guest_left_bytes = status.ram.saturating_add(status.actual).bytes();
    api::Operation { guest_left_bytes, ..operation(status) }
}

pub(super) fn operation(status: OperationStatus) -> api::Operation {
    api::Operation {
        id: status.id,
        state: match status.state {
            OperationState::Running => api::OperationState::Running,
            OperationState::Reached => api::OperationState::Reached,
            OperationState::Stalled => api::OperationState::Stalled,
            OperationState::TimedOut => api::OperationState::TimedOut,
            OperationState::Superseded => api::OperationState::Superseded,
        },
        from_bytes: status.from.bytes(),
        target_bytes: status.target.bytes(),
        actual_bytes: status.actual.bytes(),
        deficit_bytes: distance(status.target, status.actual).bytes(),
        ram_bytes: status.ram.bytes(),
        guest_left_bytes: status.ram.saturating_sub(status.actual).bytes(),
        elapsed_ms: millis(status.elapsed),
        since_progress_ms: millis(status.since_progress),
        note: status.note.map(Into::into),
    }
}

fn distance(a: PageCount, b: PageCount) -> PageCount {
    if a > b { a.saturating_sub(b) } else { b.saturating_sub(a) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
