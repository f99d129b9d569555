//! Hotplug memory (virtio-mem): Firecracker's view, and our exact one.

use serde::{Deserialize, Serialize};

use crate::balloon::{DriverState, FeatureSet, Operation};

/// Hotplug memory in Firecracker's shape: body of `PUT /hotplug/memory`, before the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugConfig {
    /// Most hotplug memory that there can be, in MiB: a multiple of `slot_size_mib`.
    pub total_size_mib: u64,
    /// What the guest plugs and unplugs at a time, in MiB: a power of two from 2 to 2048.
    #[serde(default = "default_block_size_mib")]
    pub block_size_mib: u64,
    /// What the host opens to the guest and closes at a time, in MiB: a multiple of `block_size_mib`.
    #[serde(default = "default_slot_size_mib")]
    pub slot_size_mib: u64,
}

const fn default_block_size_mib() -> u64 {
    2
}

const fn default_slot_size_mib() -> u64 {
    128
}

/// Answer to `GET /hotplug/memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHotplugStatus {
    /// As configured.
    pub total_size_mib: u64,
    /// As configured.
    pub block_size_mib: u64,
    /// As configured.
    pub slot_size_mib: u64,
    /// What is plugged, in MiB.
    pub plugged_size_mib: u64,
    /// What the guest is asked for, in MiB.
    pub requested_size_mib: u64,
}

/// Body of `PATCH /hotplug/memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugSizeUpdate {
    /// What the guest is to plug, in MiB: a multiple of the block size, at most `total_size_mib`.
    pub requested_size_mib: u64,
}

/// Answer to `GET /hotplug/memory/status` (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugStatus {
    /// Guest-physical address of the region.
    pub addr: u64,
    /// Most hotplug memory that there can be, in bytes.
    pub total_bytes: u64,
    /// What the guest plugs and unplugs at a time, in bytes.
    pub block_bytes: u64,
    /// What the host opens to the guest and closes at a time, in bytes.
    pub slot_bytes: u64,
    /// Bytes from `addr` on in which the guest may plug blocks now.
    pub usable_bytes: u64,
    /// What is plugged, in bytes.
    pub plugged_bytes: u64,
    /// What the guest is asked for, in bytes.
    pub requested_bytes: u64,
    /// Bytes that the host really holds for it now, by `truth`; absent when that cannot be verified.
    pub host_resident_bytes: Option<u64>,
    /// The source of truth behind `host_resident_bytes`.
    pub truth: String,
    /// How far the guest's driver has come.
    pub driver: DriverState,
    /// Features that the driver acknowledged; absent until it has negotiated.
    pub acked_features: Option<FeatureSet>,
    /// Milliseconds since the driver's last kick, if there has been one.
    pub last_kick_ms: Option<u64>,
    /// The latest resize operation, if there has been one.
    pub operation: Option<Operation>,
}
