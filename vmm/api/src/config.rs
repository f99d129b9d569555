//! What a VM is made of, in Firecracker's words.
//!
//! The same objects are bodies of requests, answers, and sections of a
//! configuration file, so all of them refuse unknown fields by name. Fields
//! that aerostat does not support are named here, so that they are refused as
//! what they are instead of as unknown.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::balloon::BalloonConfig;
use crate::hotplug::MemoryHotplugConfig;

/// vCPUs and memory: body of `PUT` and answer to `GET /machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpu_count: u8,
    /// Guest RAM in MiB; a size that is no whole MiB is rounded down here and exact in `GET /vm/info`.
    pub mem_size_mib: u64,
    /// Simultaneous multithreading is shown to the guest; not supported.
    #[serde(default)]
    pub smt: bool,
    /// CPU features of an instance type; not supported but for `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Dirty pages are tracked; not supported.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Huge pages behind guest RAM; not supported but for `None`.
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    /// Firecracker's: one vCPU, 128 MiB.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// Body of `PATCH /machine-config`: what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfigUpdate {
    /// Number of vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u8>,
    /// Guest RAM in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// As in [`MachineConfig`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// As in [`MachineConfig`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// As in [`MachineConfig`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// As in [`MachineConfig`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

impl MachineConfigUpdate {
    /// `config` with what this changes; `None` when it changes nothing.
    pub fn apply(self, config: &MachineConfig) -> Option<MachineConfig> {
        if self == Self::default() {
            return None;
        }
        Some(MachineConfig {
            vcpu_count: self.vcpu_count.unwrap_or(config.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(config.mem_size_mib),
            smt: self.smt.unwrap_or(config.smt),
            cpu_template: self.cpu_template.or(config.cpu_template),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(config.track_dirty_pages),
            huge_pages: self.huge_pages.unwrap_or(config.huge_pages),
        })
    }
}

/// CPU features of an instance type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "names of Amazon's instance types")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    /// No template: what the host's KVM offers.
    None,
}

/// Huge pages behind guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HugePages {
    /// 4 KiB pages.
    #[default]
    None,
    /// 2 MiB pages of hugetlbfs.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
    /// Transparent huge pages.
    Transparent,
}

/// What boots: body of `PUT /boot-source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// Path of the kernel, or [`BootSource::EMBEDDED`].
    pub kernel_image_path: String,
    /// Path of the initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// Kernel command line before the device announcements; absent: the kernel's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

impl BootSource {
    /// Stands for the guest that is part of aerostat. A file of that name is `./embedded`.
    pub const EMBEDDED: &str = "embedded";
}

/// A block device: body of `PUT /drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Name: letters, digits and underscores.
    pub drive_id: String,
    /// A raw image file or a block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// The kernel is told that its root file system is here.
    pub is_root_device: bool,
    /// The guest may only read; absent or `null`: it may write too.
    #[serde(default, deserialize_with = "null_as_default")]
    pub is_read_only: bool,
    /// Who makes writes last; see [`CacheType`].
    #[serde(default)]
    pub cache_type: CacheType,
    /// How the host does I/O; only `Sync` is supported.
    #[serde(default, deserialize_with = "null_as_default")]
    pub io_engine: IoEngine,
    /// Boot partition by its id; not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// How much the guest may ask for; only one that limits nothing is supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// Socket of a vhost-user backend; not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// Who makes a drive's writes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CacheType {
    /// Nobody needs to. aerostat honours the guest's flushes all the same.
    #[default]
    Unsafe,
    /// The guest flushes, and the host syncs.
    Writeback,
}

/// How the host does a drive's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IoEngine {
    /// Reads and writes of a worker thread.
    #[default]
    Sync,
    /// io_uring; not supported.
    Async,
}

/// Body of `PATCH /drives/{drive_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Name of the drive.
    pub drive_id: String,
    /// Another image file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// Not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<Value>,
}

/// An entropy device: body of `PUT /entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// How much the guest may ask for; absent: as much as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// Limits that hold together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// A token is a byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// A token is a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// It limits something.
    pub fn limits(self) -> bool {
        self.bandwidth.is_some_and(TokenBucket::limits) || self.ops.is_some_and(TokenBucket::limits)
    }
}

/// A limit; none when `size` or `refill_time` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens in a full bucket.
    pub size: u64,
    /// Further tokens that can be taken once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds from empty to full.
    pub refill_time: u64,
}

impl TokenBucket {
    /// It limits something.
    pub const fn limits(self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
}

/// Where and what to log: body of `PUT /logger`. What is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// A file, made if need be and appended to, or a FIFO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<String>,
    /// Least severe messages to log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Lines say their level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Lines say the source file and line that they come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only messages of this module of the program: `aerostat::control`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// Severity of log messages; read in upper and lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum LogLevel {
    /// Nothing is logged.
    Off,
    /// What an operator asked for failed.
    Error,
    /// Abnormal but contained.
    Warning,
    /// Rare changes of state.
    Info,
    /// For developers.
    Debug,
    /// For developers, in detail.
    Trace,
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const NAMES: [&str; 7] = ["Off", "Error", "Warning", "Warn", "Info", "Debug", "Trace"];
        const LEVELS: [LogLevel; 7] = [
            LogLevel::Off,
            LogLevel::Error,
            LogLevel::Warning,
            LogLevel::Warning,
            LogLevel::Info,
            LogLevel::Debug,
            LogLevel::Trace,
        ];
        let said = String::deserialize(deserializer)?;
        let mut known = NAMES.iter().zip(LEVELS);
        known
            .find(|(name, _)| name.eq_ignore_ascii_case(&said))
            .map(|(_, level)| level)
            .ok_or_else(|| serde::de::Error::unknown_variant(&said, &NAMES))
    }
}

/// Where metrics are written: body of `PUT /metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// A file, made if need be and appended to, or a FIFO.
    pub metrics_path: String,
}

/// Where the serial console goes: body of `PUT /serial`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// A file, made if need be and appended to, or a FIFO; absent: standard input and output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<String>,
    /// Not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<Value>,
}

/// A whole configuration: answer to `GET /vm/config`, and the file of `--config-file`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmConfig {
    /// The balloon, if there is one.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// What boots.
    #[serde(default)]
    pub boot_source: Option<BootSource>,
    /// Not supported.
    #[serde(default)]
    pub cpu_config: Option<Value>,
    /// Block devices.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// The entropy device, if there is one.
    #[serde(default)]
    pub entropy: Option<Entropy>,
    /// Where and what to log.
    #[serde(default)]
    pub logger: Option<Logger>,
    /// vCPUs and memory.
    #[serde(default, deserialize_with = "null_as_default")]
    pub machine_config: MachineConfig,
    /// Hotplug memory, if there is any.
    #[serde(default)]
    pub memory_hotplug: Option<MemoryHotplugConfig>,
    /// Where metrics are written.
    #[serde(default)]
    pub metrics: Option<Metrics>,
    /// Not supported.
    #[serde(default)]
    pub mmds_config: Option<Value>,
    /// Not supported.
    #[serde(default)]
    pub network_interfaces: Vec<Value>,
    /// Not supported.
    #[serde(default)]
    pub pmem: Vec<Value>,
    /// Where the serial console goes.
    #[serde(default)]
    pub serial: Option<Serial>,
    /// Not supported.
    #[serde(default)]
    pub vsock: Option<Value>,
}

/// Takes `null` for what is absent, where Firecracker does: its own answers say `null` there.
fn null_as_default<'de, T: Default + Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Firecracker answers to `GET /vm/config` used to be refused as a configuration file.
    #[test]
    fn nulls_that_firecracker_answers_are_taken_as_absent() {
        let config: VmConfig = serde_json::from_str(
            r#"{"balloon":null,"drives":[{"drive_id":"a","partuuid":null,"is_root_device":true,
                "cache_type":"Unsafe","is_read_only":null,"path_on_host":"b","rate_limiter":null,
                "io_engine":null,"socket":null}],"boot-source":null,"cpu-config":null,"logger":null,
                "machine-config":null,"metrics":null,"mmds-config":null,"network-interfaces":[],
                "vsock":null,"entropy":null,"pmem":[],"memory-hotplug":null,"serial":null}"#,
        )
        .unwrap();
        let [drive] = config.drives.as_slice() else { panic!("one drive: {config:?}") };
        assert_eq!((drive.is_read_only, drive.io_engine), (false, IoEngine::Sync));
        assert_eq!(config, VmConfig { drives: config.drives.clone(), ..VmConfig::default() });
    }

    #[test]
    fn a_limiter_limits_when_one_of_its_buckets_does() {
        for (text, limits) in [
            ("{}", false),
            (r#"{"bandwidth":null,"ops":null}"#, false),
            (r#"{"ops":{"size":0,"one_time_burst":9,"refill_time":1}}"#, false),
            (r#"{"bandwidth":{"size":1,"refill_time":0}}"#, false),
            (r#"{"bandwidth":{"size":1,"refill_time":1},"ops":null}"#, true),
            (r#"{"bandwidth":null,"ops":{"size":1,"refill_time":1}}"#, true),
        ] {
            assert_eq!(
                serde_json::from_str::<RateLimiter>(text).unwrap().limits(),
                limits,
                "{text}"
            );
        }
    }

    #[test]
    fn a_level_is_read_in_any_case_and_by_firecrackers_names_only() {
        for (said, level) in [
            ("warning", LogLevel::Warning),
            ("WARN", LogLevel::Warning),
            ("Off", LogLevel::Off),
            ("tRaCe", LogLevel::Trace),
        ] {
            assert_eq!(serde_json::from_value::<LogLevel>(said.into()).unwrap(), level);
        }
        let error = serde_json::from_str::<LogLevel>(r#""loud""#).unwrap_err().to_string();
        assert!(error.contains("`loud`") && error.contains("`Warning`"), "{error}");
    }

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let config = MachineConfig { vcpu_count: 2, mem_size_mib: 256, ..MachineConfig::default() };
        assert_eq!(MachineConfigUpdate::default().apply(&config), None);
        let update = MachineConfigUpdate { mem_size_mib: Some(512), ..Default::default() };
        assert_eq!(update.apply(&config), Some(MachineConfig { mem_size_mib: 512, ..config }));
    }

    #[test]
    fn the_least_that_firecracker_takes_is_taken() {
        let drive: Drive =
            serde_json::from_str(r#"{"drive_id":"a","path_on_host":"b","is_root_device":false}"#)
                .unwrap();
        assert_eq!((drive.is_read_only, drive.cache_type), (false, CacheType::Unsafe));
        let machine: MachineConfig =
            serde_json::from_str(r#"{"vcpu_count":1,"mem_size_mib":128}"#).unwrap();
        assert_eq!(machine, MachineConfig::default());
        let nothing: VmConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(nothing, VmConfig::default());
    }

    #[test]
    fn an_answer_is_a_configuration_again() {
        let config = VmConfig {
            boot_source: Some(BootSource {
                kernel_image_path: BootSource::EMBEDDED.into(),
                initrd_path: None,
                boot_args: Some("quiet".into()),
            }),
            logger: Some(Logger { level: Some(LogLevel::Warning), ..Default::default() }),
            ..VmConfig::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""machine-config":{"vcpu_count":1"#), "{text}");
        assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
    }
}
