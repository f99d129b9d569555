//! The VM as a whole: identity, run state.

use serde::{Deserialize, Serialize};

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

/// Answer to `GET /vm` (ours).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// Run state.
    pub state: InstanceState,
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
    /// Boot the configured VM; refused once it runs.
    InstanceStart,
    /// Write a line to the metrics file.
    FlushMetrics,
    /// Ask the guest to power off.
    SendCtrlAltDel,
}

/// Answer to `GET /vm/info` (ours): what `aerostat info` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Instance id.
    pub id: String,
    /// `not started`, `starting`, `running` or `paused`.
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
    /// `hardware`, `unknown` before the start, or `software` where the host's KVM interprets ring 0; absolute times from a
    /// software KVM are not comparable.
    pub kvm: String,
    /// Path of the kernel, or `embedded`.
    pub kernel: String,
    /// The whole guest command line.
    pub cmdline: String,
    /// Microseconds from the start to the guest's first serial byte, if there has been one. The start is
    /// that of the process's `main`, or InstanceStart.
    pub first_byte_us: Option<u64>,
    /// Microseconds from the start to the guest's "ready", if it came.
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
