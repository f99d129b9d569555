//! The VM as a whole: identity, run state, configuration.

use serde::{Deserialize, Serialize};

use crate::balloon::BalloonConfig;

/// Answer to `GET /` (Firecracker's `InstanceInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Instance id.
    pub id: String,
    /// Run state.
    pub state: InstanceState,
    /// Version of this VMM.
    pub vmm_version: String,
    /// `aerostat`.
    pub app_name: String,
}

/// Run state in Firecracker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceState {
    /// Configured but never started.
    #[serde(rename = "Not started")]
    NotStarted,
    /// vCPUs run.
    Running,
    /// vCPUs are stopped.
    Paused,
}

/// Answer to `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Version of Firecracker's API that the shared endpoints follow.
    pub firecracker_version: String,
    /// Version of this VMM.
    pub aerostat_version: String,
}

/// Body of `PATCH /vm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// Wanted run state.
    pub state: RunState,
}

/// The two run states that a client can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Stop the vCPUs.
    Paused,
    /// Let them run.
    Resumed,
}

/// Body of `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// Firecracker's actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionType {
    /// Boot a configured VM; refused once it runs.
    InstanceStart,
    /// Write metrics to the configured file; refused, since metrics are read by `GET /metrics`.
    FlushMetrics,
    /// Ask the guest to power off.
    SendCtrlAltDel,
}

/// Answer to `GET /machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: u8,
    /// Guest RAM in MiB; a size that is no whole MiB is rounded down here and exact in `GET /vm/info`.
    pub mem_size_mib: u64,
    /// Simultaneous multithreading is shown to the guest.
    pub smt: bool,
    /// Dirty pages are tracked.
    pub track_dirty_pages: bool,
    /// Huge pages behind guest RAM.
    pub huge_pages: String,
}

/// Where the guest's kernel came from, in [`VmConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// Path of the kernel, or `embedded`.
    pub kernel_image_path: String,
    /// The whole guest command line.
    pub boot_args: String,
}

/// Answer to `GET /vm/config` (Firecracker's `FullVmConfiguration`), with what this VMM has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// The balloon.
    pub balloon: BalloonConfig,
    /// The kernel.
    #[serde(rename = "boot-source")]
    pub boot_source: BootSource,
    /// vCPUs and memory.
    #[serde(rename = "machine-config")]
    pub machine_config: MachineConfig,
    /// Block devices: none.
    pub drives: Vec<serde_json::Value>,
    /// Network devices: none.
    #[serde(rename = "network-interfaces")]
    pub network_interfaces: Vec<serde_json::Value>,
}

/// Answer to `GET /vm/info` (ours): what `aerostat info` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Instance id.
    pub id: String,
    /// `starting`, `running` or `paused`.
    pub state: String,
    /// Process id of the VMM.
    pub pid: u32,
    /// Version of the VMM.
    pub version: String,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Backing of guest RAM: `anon` or `memfd`.
    pub backing: String,
    /// `hardware`, or `software` where the host's KVM interprets ring 0; absolute times from a
    /// software KVM are not comparable.
    pub kvm: String,
    /// Path of the kernel, or `embedded`.
    pub kernel: String,
    /// The whole guest command line.
    pub cmdline: String,
    /// Microseconds from the start of the process's `main` to the guest's first serial byte, if there has been one.
    pub first_byte_us: Option<u64>,
    /// Microseconds from the start of the process's `main` to the guest's "ready", if it came.
    pub ready_us: Option<u64>,
}

/// Body of `PUT /vm/stop` (ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// How long the guest may take to power itself off before the VM is ended; at most
    /// [`StopRequest::MAX_TIMEOUT_MS`].
    pub timeout_ms: u64,
}

impl StopRequest {
    /// The longest wait that a stop request may ask for: ten minutes.
    pub const MAX_TIMEOUT_MS: u64 = 600_000;
}

/// Answer to `PUT /vm/stop` (ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOutcome {
    /// The guest powered itself off; otherwise the VM was ended without it.
    pub by_guest: bool,
}
