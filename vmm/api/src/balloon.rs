//! The balloon: Firecracker's configuration view, our exact view, and resize operations.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The balloon in Firecracker's shape: body of `PUT` and answer to `GET /balloon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Target in MiB; a target that is no whole MiB is rounded down here and exact in `GET /balloon/status`.
    pub amount_mib: u32,
    /// The guest may take pages back when it runs out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between statistics; 0: off, which is all that is supported.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Free page hinting is offered; not supported.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Free page reporting is offered; not supported.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// Body of `PATCH /balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// Absolute target in MiB.
    pub amount_mib: u32,
}

/// Body of `PATCH /balloon/statistics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// Seconds between statistics.
    pub stats_polling_interval_s: u16,
}

/// Body of `PATCH /balloon/hinting/start`; it may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HintingStart {
    /// The device acknowledges by itself when the guest is done.
    #[serde(default)]
    pub acknowledge_on_stop: bool,
}

/// Answer to `GET /balloon/status` (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStatus {
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Absolute target in bytes.
    pub target_bytes: u64,
    /// What the driver says the balloon holds, in bytes.
    pub actual_bytes: u64,
    /// Guest RAM less `actual_bytes`.
    pub guest_left_bytes: u64,
    /// Bytes that discards claimed to have released since start; a page that is released twice counts twice.
    pub claimed_bytes: u64,
    /// Bytes of guest RAM that the host really holds now, by `truth`; absent when that cannot be verified.
    pub host_resident_bytes: Option<u64>,
    /// The source of truth behind `host_resident_bytes`.
    pub truth: String,
    /// How far the guest's driver has come.
    pub driver: DriverState,
    /// Features that the device offers.
    pub offered_features: FeatureSet,
    /// Features that the driver acknowledged; absent until it has negotiated.
    pub acked_features: Option<FeatureSet>,
    /// Milliseconds since the driver's last kick, if there has been one.
    pub last_kick_ms: Option<u64>,
    /// The latest resize operation, if there has been one.
    pub operation: Option<Operation>,
}

/// How far the guest's balloon driver has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverState {
    /// No driver has acknowledged features.
    Missing,
    /// Features are acknowledged, DRIVER_OK is not set.
    Negotiating,
    /// DRIVER_OK is set.
    Ready,
    /// The driver broke the device; it needs a reset.
    NeedsReset,
}

impl fmt::Display for DriverState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Negotiating => "negotiating",
            Self::Ready => "ready",
            Self::NeedsReset => "needs reset",
        })
    }
}

/// A set of virtio feature bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureSet {
    /// All bits, as `0x` and 16 hexadecimal digits.
    pub bits: String,
    /// Names of the bits; `bit-N` for one without a name.
    pub names: Vec<String>,
}

impl FeatureSet {
    /// The balloon's feature bits by name (VirtIO 1.2 §5.5.3, §6).
    const BALLOON: [(u32, &'static str); 11] = [
        (0, "must-tell-host"),
        (1, "stats-vq"),
        (2, "deflate-on-oom"),
        (3, "free-page-hint"),
        (4, "page-poison"),
        (5, "page-reporting"),
        (28, "indirect-desc"),
        (29, "event-idx"),
        (32, "version-1"),
        (33, "access-platform"),
        (34, "ring-packed"),
    ];

    /// The memory device's feature bits by name (VirtIO 1.2 §5.15.3, §6).
    const MEM: [(u32, &'static str); 8] = [
        (0, "acpi-pxm"),
        (1, "unplugged-inaccessible"),
        (2, "persistent-suspend"),
        (28, "indirect-desc"),
        (29, "event-idx"),
        (32, "version-1"),
        (33, "access-platform"),
        (34, "ring-packed"),
    ];

    /// Names the balloon feature bits in `bits`.
    pub fn of_balloon(bits: u64) -> Self {
        Self::named(bits, &Self::BALLOON)
    }

    /// Names the memory device's feature bits in `bits`.
    pub fn of_mem(bits: u64) -> Self {
        Self::named(bits, &Self::MEM)
    }

    fn named(bits: u64, names: &[(u32, &str)]) -> Self {
        let name = |bit| match names.iter().find(|(known, _)| *known == bit) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("bit-{bit}"),
        };
        let names = (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1).map(name).collect();
        Self { bits: format!("{bits:#018x}"), names }
    }
}

/// Body of `PUT /balloon/operation` and `PUT /hotplug/memory/operation` (ours): begins a resize that supersedes the one under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationRequest {
    /// Absolute target in bytes: a multiple of 4096, of hotplug memory a multiple of the block size.
    pub target_bytes: u64,
    /// When the operation ends as timed out; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// How a resize operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// The driver is at it.
    Running,
    /// `actual_bytes` equals the target.
    Reached,
    /// No progress for the stall time; the target stays and the driver may still get there.
    Stalled,
    /// The deadline passed first.
    TimedOut,
    /// A later target took its place.
    Superseded,
}

impl OperationState {
    /// The operation has ended.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Running => false,
            Self::Reached | Self::Stalled | Self::TimedOut | Self::Superseded => true,
        }
    }
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Reached => "reached",
            Self::Stalled => "stalled",
            Self::TimedOut => "timed out",
            Self::Superseded => "superseded",
        })
    }
}

/// A resize operation: answer to `PUT` and `GET /balloon/operation`, and `/hotplug/memory/operation` (ours).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Counts from 1.
    pub id: u64,
    /// Where it stands.
    pub state: OperationState,
    /// Balloon, or hotplug memory that is plugged, in bytes when it began.
    pub from_bytes: u64,
    /// Absolute target in bytes.
    pub target_bytes: u64,
    /// The same now, or when it ended.
    pub actual_bytes: u64,
    /// Distance from target to `actual_bytes`, in either direction.
    pub deficit_bytes: u64,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Guest RAM less `actual_bytes` of the balloon, or with `actual_bytes` of hotplug memory.
    pub guest_left_bytes: u64,
    /// Since it began, or until it ended.
    pub elapsed_ms: u64,
    /// Since that last moved towards the target, or since it began.
    pub since_progress_ms: u64,
    /// Why it stands where it stands, for a person.
    pub note: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_names_cover_known_and_unknown_bits() {
        let set = FeatureSet::of_balloon(1 << 63 | 1 << 32 | 1);
        assert_eq!(set.names, ["must-tell-host", "version-1", "bit-63"]);
        assert_eq!(set.bits, "0x8000000100000001");
    }

    #[test]
    fn an_update_with_an_unknown_field_is_refused_by_name() {
        let error = serde_json::from_str::<BalloonUpdate>(r#"{"amount_mib":1,"amount":2}"#);
        assert!(error.unwrap_err().to_string().contains("`amount`"));
    }

    #[test]
    fn an_amount_beyond_32_bits_is_refused() {
        assert!(serde_json::from_str::<BalloonUpdate>(r#"{"amount_mib":4294967296}"#).is_err());
        assert!(serde_json::from_str::<BalloonUpdate>(r#"{"amount_mib":-1}"#).is_err());
        assert!(serde_json::from_str::<BalloonUpdate>(r#"{"amount_mib":1.5}"#).is_err());
    }
}
