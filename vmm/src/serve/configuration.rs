//! A VM that is being described: each change is checked, and done whole or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use abi::PageCount;
use abi::platform::{MAX_RAM_BYTES, MAX_VCPUS};
use aerostat_api as api;

use super::unsupported;
use crate::boot::{InitrdFile, KernelImage};
use crate::drive::DriveFile;
use crate::vm::config::hotplug::HotplugConfig;
use crate::vm::config::{
    BalloonConfig, DriveConfig, EntropyConfig, Kernel, MAX_DRIVE_ID_BYTES, MAX_DRIVES,
    MIN_RAM_BYTES, RateLimit, SerialPort, VmConfig,
};
use crate::vm::handle::{Change, VmError};
use crate::{line_file, logger};

/// What has been configured so far.
///
/// Holding one proves that each section by itself, and memory and balloon
/// together, describe something that can exist, and that the files were there
/// when they were named. What only the host can tell (whether the kernel boots,
/// whether there is memory) the start finds out.
#[derive(Debug)]
pub struct Configuration {
    id: String,
    description: api::VmConfig,
    metrics: Option<File>,
    allow_software_kvm: bool,
}

impl Configuration {
    /// Firecracker's defaults: one vCPU, 128 MiB, no devices, and nothing to boot.
    pub fn new(id: impl Into<String>) -> Self {
        let (description, metrics) = (api::VmConfig::default(), None);
        Self { id: id.into(), description, metrics, allow_software_kvm: false }
    }

    /// The same, where a Linux kernel starts even on a software KVM if `is_allowed`: no API's field, but the operator's word.
    #[must_use]
    pub fn allow_software_kvm(self, is_allowed: bool) -> Self {
        Self { allow_software_kvm: is_allowed, ..self }
    }

    /// What `description` says, checked as if each section came by itself.
    ///
    /// # Errors
    /// [`VmError::Configuration`] with the section, the field and what is allowed.
    pub fn from_description(
        id: impl Into<String>,
        description: api::VmConfig,
    ) -> Result<Self, VmError> {
        unsupported::sections(&description).map_err(VmError::Configuration)?;
        let mut configuration = Self::new(id);
        let api::VmConfig {
            balloon,
            boot_source,
            drives,
            entropy,
            logger,
            machine_config,
            memory_hotplug,
            metrics,
            serial,
            // All of these are refused above.
            cpu_config: _,
            mmds_config: _,
            network_interfaces: _,
            pmem: _,
            vsock: _,
        } = description;
        // Firecracker's order: what is wrong with the rest is logged already.
        let changes = logger
            .map(Change::Logger)
            .into_iter()
            .chain(metrics.map(Change::Metrics))
            .chain([Change::Machine(machine_config)])
            .chain(boot_source.map(Change::BootSource))
            .chain(drives.into_iter().map(Change::Drive))
            .chain(balloon.map(Change::Balloon))
            .chain(memory_hotplug.map(Change::Hotplug))
            .chain(entropy.map(Change::Entropy))
            .chain(serial.map(Change::Serial));
        for change in changes {
            configuration.change(change)?;
        }
        Ok(configuration)
    }

    /// Instance id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The configuration in Firecracker's words.
    pub fn description(&self) -> &api::VmConfig {
        &self.description
    }

    /// Changes one section.
    ///
    /// # Errors
    /// [`VmError::Configuration`] with the section, the field and what is allowed; nothing has changed.
    pub fn change(&mut self, change: Change) -> Result<(), VmError> {
        let (section, changed) = match change {
            Change::Machine(machine) => ("machine-config", self.set_machine(machine)),
            Change::UpdateMachine(update) => ("machine-config", self.update_machine(update)),
            Change::BootSource(source) => ("boot-source", self.set_boot_source(source)),
            Change::Drive(drive) => ("drives", self.set_drive(drive)),
            Change::Balloon(balloon) => ("balloon", self.set_balloon(balloon)),
            Change::Hotplug(hotplug) => ("memory-hotplug", self.set_hotplug(hotplug)),
            Change::Entropy(entropy) => ("entropy", self.set_entropy(entropy)),
            Change::Logger(logger) => ("logger", self.set_logger(logger)),
            Change::Metrics(metrics) => ("metrics", self.set_metrics(metrics)),
            Change::Serial(serial) => ("serial", self.set_serial(serial)),
        };
        changed.map_err(|reason| VmError::Configuration(format!("{section}: {reason}")))
    }

    fn update_machine(&mut self, update: api::MachineConfigUpdate) -> Result<(), String> {
        match update.apply(&self.description.machine_config) {
            Some(machine) => self.set_machine(machine),
            None => Ok(()),
        }
    }

    fn set_machine(&mut self, machine: api::MachineConfig) -> Result<(), String> {
        unsupported::machine(&machine)?;
        let vcpus = machine.vcpu_count;
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(format!("vcpu_count is {vcpus}; allowed: 1 to {MAX_VCPUS}"));
        }
        let mib = machine.mem_size_mib;
        let (least, most) = (MIN_RAM_BYTES >> 20, MAX_RAM_BYTES >> 20);
        if !(least..=most).contains(&mib) {
            return Err(format!("mem_size_mib is {mib}; allowed: {least} to {most}"));
        }
        if let Some(balloon) = &self.description.balloon
            && u64::from(balloon.amount_mib) > mib
        {
            let amount = balloon.amount_mib;
            return Err(format!(
                "mem_size_mib is {mib}, less than the balloon's amount_mib of {amount}"
            ));
        }
        self.description.machine_config = machine;
        Ok(())
    }

    fn set_boot_source(&mut self, source: api::BootSource) -> Result<(), String> {
        let kernel = kernel(&source);
        KernelImage::open(&kernel).map_err(|error| said(&error))?;
        if let Some(initrd) = &source.initrd_path {
            if matches!(kernel, Kernel::Embedded) {
                return Err("initrd_path: the embedded guest takes no initial RAM disk".into());
            }
            InitrdFile::open(Path::new(initrd)).map_err(|error| said(&error))?;
        }
        self.description.boot_source = Some(source);
        Ok(())
    }

    fn set_drive(&mut self, drive: api::Drive) -> Result<(), String> {
        let id = &drive.drive_id;
        if id.is_empty() || id.len() > MAX_DRIVE_ID_BYTES {
            return Err(format!("drive_id {id:?} is not 1 to {MAX_DRIVE_ID_BYTES} bytes long"));
        }
        unsupported::drive(&drive).map_err(|reason| format!("{id:?}: {reason}"))?;
        let Some(path) = &drive.path_on_host else {
            return Err(format!("{id:?}: path_on_host is missing"));
        };
        // Opened again at the start, and locked until the end of the VM.
        DriveFile::open(Path::new(path), drive.is_read_only)
            .map_err(|error| format!("{id:?}: path_on_host: {}", said(&error)))?;
        let drives = &mut self.description.drives;
        let others = || drives.iter().filter(|other| other.drive_id != *id);
        if let Some(root) = others().find(|other| other.is_root_device && drive.is_root_device) {
            return Err(format!("{id:?}: the root device is {:?} already", root.drive_id));
        }
        match drives.iter().position(|other| other.drive_id == *id) {
            Some(at) => drives[at] = drive,
            None if drives.len() == MAX_DRIVES => {
                return Err(format!("{id:?}: no more than {MAX_DRIVES} drives are possible"));
            }
            None => drives.push(drive),
        }
        // The guest finds the root device first, whenever it was configured. The sort is stable.
        drives.sort_by_key(|drive| !drive.is_root_device);
        Ok(())
    }

    fn set_balloon(&mut self, balloon: api::BalloonConfig) -> Result<(), String> {
        unsupported::balloon(&balloon)?;
        let (amount, most) = (balloon.amount_mib, self.description.machine_config.mem_size_mib);
        if u64::from(amount) > most {
            return Err(format!("amount_mib is {amount}; allowed: 0 to mem_size_mib, {most}"));
        }
        self.description.balloon = Some(balloon);
        Ok(())
    }

    fn set_hotplug(&mut self, hotplug: api::MemoryHotplugConfig) -> Result<(), String> {
        hotplug_config(&hotplug).validate().map_err(|error| error.to_string())?;
        self.description.memory_hotplug = Some(hotplug);
        Ok(())
    }

    fn set_entropy(&mut self, entropy: api::Entropy) -> Result<(), String> {
        self.description.entropy = Some(entropy);
        Ok(())
    }

    fn set_logger(&mut self, logger: api::Logger) -> Result<(), String> {
        logger::configure(&self.id, &logger).map_err(|error| {
            format!("log_path {:?}: {error}", logger.log_path.as_deref().unwrap_or_default())
        })?;
        let merged = self.description.logger.get_or_insert_default();
        merged.log_path = logger.log_path.or(merged.log_path.take());
        merged.level = logger.level.or(merged.level);
        merged.show_level = logger.show_level.or(merged.show_level);
        merged.show_log_origin = logger.show_log_origin.or(merged.show_log_origin);
        merged.module = logger.module.or(merged.module.take());
        Ok(())
    }

    fn set_metrics(&mut self, metrics: api::Metrics) -> Result<(), String> {
        if let Some(there) = &self.description.metrics {
            return Err(format!("metrics_path is {:?} already", there.metrics_path));
        }
        let path = &metrics.metrics_path;
        let file = line_file::open(Path::new(path))
            .map_err(|error| format!("metrics_path {path:?}: {error}"))?;
        self.metrics = Some(file);
        self.description.metrics = Some(metrics);
        Ok(())
    }

    fn set_serial(&mut self, serial: api::Serial) -> Result<(), String> {
        unsupported::rate_limiter(serial.rate_limiter.as_ref())?;
        if let Some(path) = &serial.serial_out_path {
            // Opened again at the start; what is wrong with it is said now.
            open_serial(path)?;
        }
        self.description.serial = Some(serial);
        Ok(())
    }

    /// A VM of this configuration that is started now.
    ///
    /// # Errors
    /// [`VmError::Configuration`]: nothing is to be booted, or a file that was there is gone.
    pub fn vm_config(&self) -> Result<VmConfig, VmError> {
        let refuse = |reason: String| VmError::Configuration(reason);
        let description = &self.description;
        let Some(source) = &description.boot_source else {
            return Err(refuse("boot-source is not configured: nothing is there to boot".into()));
        };
        let serial = match description.serial.as_ref().and_then(|s| s.serial_out_path.as_deref()) {
            Some(path) => {
                SerialPort::Files { input: None, output: open_serial(path).map_err(refuse)? }
            }
            None => SerialPort::Stdio,
        };
        let metrics = self.metrics.as_ref().map(File::try_clone).transpose();
        let metrics = metrics.map_err(|error| refuse(format!("metrics: {error}")))?;
        Ok(VmConfig {
            id: self.id.clone(),
            memory_bytes: description.machine_config.mem_size_mib << 20,
            vcpus: description.machine_config.vcpu_count,
            kernel: kernel(source),
            initrd: source.initrd_path.as_ref().map(PathBuf::from),
            cmdline: source.boot_args.clone(),
            allow_software_kvm: self.allow_software_kvm,
            balloon: description.balloon.as_ref().map(|balloon| BalloonConfig {
                target: PageCount::new(u64::from(balloon.amount_mib) * (1 << 20) / abi::PAGE_SIZE),
                deflate_on_oom: balloon.deflate_on_oom,
                ..BalloonConfig::default()
            }),
            hotplug: description.memory_hotplug.as_ref().map(hotplug_config),
            entropy: description.entropy.as_ref().map(entropy_config),
            drives: description.drives.iter().map(drive_config).collect(),
            serial,
            metrics,
            description: Some(Box::new(description.clone())),
            ..VmConfig::new(Instant::now())
        })
    }
}

fn kernel(source: &api::BootSource) -> Kernel {
    match source.kernel_image_path.as_str() {
        api::BootSource::EMBEDDED => Kernel::Embedded,
        path => Kernel::Path(path.into()),
    }
}

fn drive_config(drive: &api::Drive) -> DriveConfig {
    DriveConfig {
        id: drive.drive_id.clone(),
        path: drive.path_on_host.clone().unwrap_or_default().into(),
        is_read_only: drive.is_read_only,
        is_root_device: drive.is_root_device,
    }
}

/// The sizes in bytes; those that do not fit become sizes that no check lets pass.
fn hotplug_config(hotplug: &api::MemoryHotplugConfig) -> HotplugConfig {
    let bytes = |mib: u64| mib.saturating_mul(1 << 20);
    HotplugConfig {
        block_bytes: bytes(hotplug.block_size_mib),
        slot_bytes: bytes(hotplug.slot_size_mib),
        ..HotplugConfig::of_size(bytes(hotplug.total_size_mib))
    }
}

fn entropy_config(entropy: &api::Entropy) -> EntropyConfig {
    let limit = |bucket: api::TokenBucket| RateLimit {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
        refill_time: Duration::from_millis(bucket.refill_time),
    };
    let limiter = entropy.rate_limiter.unwrap_or_default();
    EntropyConfig { bandwidth: limiter.bandwidth.map(limit), ops: limiter.ops.map(limit) }
}

fn open_serial(path: &str) -> Result<File, String> {
    line_file::open(Path::new(path)).map_err(|error| format!("serial_out_path {path:?}: {error}"))
}

/// An error and its causes, each once.
pub(super) fn said(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
#[path = "configuration/tests.rs"]
mod tests;
