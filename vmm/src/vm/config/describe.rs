//! A configuration as the API tells it.

use aerostat_api as api;

use super::{Kernel, VmConfig};

impl VmConfig {
    /// The configuration in Firecracker's words.
    ///
    /// One that came in those words is told in the same; sizes that are no whole MiB are rounded down.
    pub(crate) fn describe(&self) -> api::VmConfig {
        if let Some(description) = &self.description {
            return (**description).clone();
        }
        api::VmConfig {
            balloon: self.balloon.map(|balloon| api::BalloonConfig {
                amount_mib: mib(balloon.target.bytes()),
                deflate_on_oom: balloon.deflate_on_oom,
                stats_polling_interval_s: 0,
                free_page_hinting: false,
                free_page_reporting: false,
            }),
            boot_source: Some(api::BootSource {
                kernel_image_path: self.kernel.name(),
                initrd_path: self.initrd.as_ref().map(|path| path.display().to_string()),
                boot_args: self.cmdline.clone(),
            }),
            memory_hotplug: self.hotplug.map(hotplug),
            drives: self.drives.iter().map(drive).collect(),
            entropy: self.entropy.map(entropy),
            machine_config: api::MachineConfig {
                vcpu_count: self.vcpus,
                mem_size_mib: self.memory_bytes >> 20,
                ..api::MachineConfig::default()
            },
            ..api::VmConfig::default()
        }
    }
}

fn hotplug(hotplug: super::HotplugConfig) -> api::MemoryHotplugConfig {
    // All of them are whole MiB.
    api::MemoryHotplugConfig {
        total_size_mib: hotplug.total_bytes >> 20,
        block_size_mib: hotplug.block_bytes >> 20,
        slot_size_mib: hotplug.slot_bytes >> 20,
    }
}

fn entropy(entropy: super::EntropyConfig) -> api::Entropy {
    let bucket = |limit: super::RateLimit| api::TokenBucket {
        size: limit.size,
        one_time_burst: Some(limit.one_time_burst),
        refill_time: u64::try_from(limit.refill_time.as_millis()).unwrap_or(u64::MAX),
    };
    let (bandwidth, ops) = (entropy.bandwidth.map(bucket), entropy.ops.map(bucket));
    let is_limited = bandwidth.is_some() || ops.is_some();
    api::Entropy { rate_limiter: is_limited.then_some(api::RateLimiter { bandwidth, ops }) }
}

fn drive(drive: &super::DriveConfig) -> api::Drive {
    api::Drive {
        drive_id: drive.id.clone(),
        path_on_host: Some(drive.path.display().to_string()),
        is_root_device: drive.is_root_device,
        is_read_only: drive.is_read_only,
        cache_type: api::CacheType::Writeback,
        io_engine: api::IoEngine::Sync,
        partuuid: None,
        rate_limiter: None,
        socket: None,
    }
}

/// Whole MiB; more than 32 bits of them are more than a guest can have.
pub(crate) fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

impl Kernel {
    /// Path, `embedded`, or `image`.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Embedded => api::BootSource::EMBEDDED.to_owned(),
            Self::Path(path) => path.display().to_string(),
            Self::Image(_) => String::from("image"),
        }
    }
}
