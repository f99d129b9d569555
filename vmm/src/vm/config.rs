//! What a VM is made of, and the check that such a VM can exist.

pub(crate) mod describe;
pub mod hotplug;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use abi::platform::{MAX_RAM_BYTES, MAX_VCPUS};
use abi::{PAGE_SIZE, PageCount};
use guest_ram::BackingKind;

use hotplug::{HotplugConfig, HotplugError};

/// Smallest guest RAM: boot structures live below 1 MiB, the kernel above it.
pub const MIN_RAM_BYTES: u64 = 2 << 20;

/// Most drives: balloon, console, entropy device and hotplug memory have the other slots.
pub const MAX_DRIVES: usize = abi::platform::VIRTIO_MMIO_SLOTS as usize - 4;

/// Longest id of a drive, in bytes.
pub const MAX_DRIVE_ID_BYTES: usize = 64;

/// A VM as its operator describes it.
#[derive(Debug)]
pub struct VmConfig {
    /// Instance id, shown by `info`.
    pub id: String,
    /// Guest RAM: a multiple of 4 KiB from [`MIN_RAM_BYTES`] to [`MAX_RAM_BYTES`].
    pub memory_bytes: u64,
    /// vCPUs: 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// What boots.
    pub kernel: Kernel,
    /// Initial RAM disk for a kernel from a file.
    pub initrd: Option<PathBuf>,
    /// Added to the command line before the device announcements; `None`: the kernel's default.
    pub cmdline: Option<String>,
    /// Start a Linux kernel although the host has a software KVM, which cannot run one.
    pub allow_software_kvm: bool,
    /// Host memory behind guest RAM.
    pub backing: BackingKind,
    /// Populate guest RAM before the guest starts.
    pub prefault: bool,
    /// What a guest reset does.
    pub on_reset: OnReset,
    /// Hotplug memory, if there is any.
    pub hotplug: Option<HotplugConfig>,
    /// The balloon device, if there is one.
    pub balloon: Option<BalloonConfig>,
    /// The entropy device, if there is one.
    pub entropy: Option<EntropyConfig>,
    /// Block devices in the order in which the guest finds them; at most [`MAX_DRIVES`].
    pub drives: Vec<DriveConfig>,
    /// Where the guest's consoles go.
    pub serial: SerialPort,
    /// Which of them has the input.
    pub console: GuestConsole,
    /// Where metrics are written, if anywhere: a file or FIFO in non-blocking mode.
    pub metrics: Option<File>,
    /// The configuration in the words that it came in; `None`: it is put into words from the other fields.
    pub description: Option<Box<aerostat_api::VmConfig>>,
    /// When the process began, or when it was told to start: the origin of `first_byte_us` and `ready_us`.
    pub started: Instant,
}

impl VmConfig {
    /// 256 MiB, one vCPU, the embedded guest, serial console on stdio.
    pub fn new(started: Instant) -> Self {
        Self {
            id: String::from("aerostat"),
            memory_bytes: 256 << 20,
            vcpus: 1,
            kernel: Kernel::Embedded,
            initrd: None,
            cmdline: None,
            allow_software_kvm: false,
            backing: BackingKind::Anon,
            prefault: false,
            on_reset: OnReset::Exit,
            hotplug: None,
            balloon: Some(BalloonConfig::default()),
            entropy: Some(EntropyConfig::default()),
            drives: Vec::new(),
            serial: SerialPort::Stdio,
            console: GuestConsole::default(),
            metrics: None,
            description: None,
            started,
        }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first value that is out of range, and the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(ConfigError::Vcpus { vcpus: self.vcpus });
        }
        let bytes = self.memory_bytes;
        if !(MIN_RAM_BYTES..=MAX_RAM_BYTES).contains(&bytes) {
            return Err(ConfigError::MemoryRange { bytes });
        }
        if !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(ConfigError::MemoryAlignment { bytes });
        }
        if let Some(BalloonConfig { target, .. }) = self.balloon
            && target.get() > bytes / PAGE_SIZE
        {
            return Err(ConfigError::BalloonTarget { target, ram_bytes: bytes });
        }
        if let Some(hotplug) = &self.hotplug {
            hotplug.validate()?;
        }
        if let (Kernel::Embedded, Some(path)) = (&self.kernel, &self.initrd) {
            return Err(ConfigError::InitrdForEmbedded { path: path.display().to_string() });
        }
        if self.drives.len() > MAX_DRIVES {
            return Err(ConfigError::Drives { drives: self.drives.len() });
        }
        self.validate_drives()
    }

    fn validate_drives(&self) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for DriveConfig { id, .. } in &self.drives {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            if id.is_empty() || id.len() > MAX_DRIVE_ID_BYTES || !id.bytes().all(is_plain) {
                return Err(ConfigError::DriveId { id: id.clone() });
            }
            if !seen.insert(id.as_str()) {
                return Err(ConfigError::SameDriveId { id: id.clone() });
            }
        }
        let mut roots = self.drives.iter().filter(|drive| drive.is_root_device);
        if let (Some(first), Some(second)) = (roots.next(), roots.next()) {
            let (first, second) = (first.id.clone(), second.id.clone());
            return Err(ConfigError::TwoRootDevices { first, second });
        }
        Ok(())
    }

    /// The drives in the order in which the guest finds them, `/dev/vda` first: as they were named,
    /// but the root device before all others, as in Firecracker.
    pub fn drives_in_order(&self) -> Vec<DriveConfig> {
        let mut drives = self.drives.clone();
        // Stable, and false sorts before true.
        drives.sort_by_key(|drive| !drive.is_root_device);
        drives
    }

    /// What the kernel is told about its root file system, if a drive has it.
    pub fn root_words(&self) -> Option<&'static str> {
        let root = self.drives.iter().find(|drive| drive.is_root_device)?;
        Some(if root.is_read_only { "root=/dev/vda ro" } else { "root=/dev/vda rw" })
    }

    /// Guest RAM in pages.
    pub const fn ram(&self) -> PageCount {
        PageCount::new(self.memory_bytes / PAGE_SIZE)
    }
}

/// What boots.
#[derive(Debug, Clone)]
pub enum Kernel {
    /// The guest that is part of this program.
    Embedded,
    /// An ELF file or a Linux bzImage.
    Path(PathBuf),
    /// Such a file in memory, for tests.
    Image(Arc<[u8]>),
}

/// What a guest reset does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnReset {
    /// Ends the VM, as in Firecracker.
    #[default]
    Exit,
    /// Restarts the guest in place: RAM reads zero, devices are reset, the balloon target survives.
    Reboot,
}

/// Options of the balloon device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Absolute target that the device starts with.
    pub target: PageCount,
    /// The guest may take pages back by itself rather than run out of memory.
    pub deflate_on_oom: bool,
    /// A resize operation without progress for this long is stalled.
    pub stall_after: Duration,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self { target: PageCount::ZERO, deflate_on_oom: false, stall_after: Duration::from_secs(2) }
    }
}

/// Options of the entropy device: how much the guest may ask of the host; by default as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntropyConfig {
    /// Limit on bytes.
    pub bandwidth: Option<RateLimit>,
    /// Limit on requests.
    pub ops: Option<RateLimit>,
}

/// A token bucket as Firecracker describes one; it limits nothing when `size` or `refill_time` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Tokens (bytes or requests) in a full bucket.
    pub size: u64,
    /// Further tokens that can be taken once.
    pub one_time_burst: u64,
    /// From empty to full.
    pub refill_time: Duration,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    /// Name by which the operator speaks of it.
    pub id: String,
    /// A raw image file or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub is_read_only: bool,
    /// Whether the kernel is told on its command line that its root file system is here.
    pub is_root_device: bool,
}

/// The console of a guest that its operator speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuestConsole {
    /// The serial port: Linux's `ttyS0`. What the guest writes to `hvc0` is not shown.
    #[default]
    Serial,
    /// Port 0 of the virtio console: Linux's `hvc0`. What the guest writes to the serial port is shown as well.
    Virtio,
}

/// Where the guest's consoles go.
#[derive(Debug)]
pub enum SerialPort {
    /// Standard input and output; raw mode when both are a terminal in the foreground.
    Stdio,
    /// These files; no input when `input` is `None`.
    Files {
        /// Bytes for the guest.
        input: Option<File>,
        /// Bytes from the guest.
        output: File,
    },
    /// Output is counted and dropped.
    Null,
}

/// A value that no VM can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Number of vCPUs out of range.
    #[error("{vcpus} vCPUs are not possible; allowed: 1 to {MAX_VCPUS}")]
    Vcpus {
        /// What was asked.
        vcpus: u8,
    },
    /// Guest RAM out of range.
    #[error(
        "{bytes} B of memory are not possible; allowed: {MIN_RAM_BYTES} B (2 MiB) to {MAX_RAM_BYTES} B (64 GiB)"
    )]
    MemoryRange {
        /// What was asked.
        bytes: u64,
    },
    /// Guest RAM that is no whole number of pages.
    #[error("{bytes} B of memory are not a multiple of the 4 KiB page")]
    MemoryAlignment {
        /// What was asked.
        bytes: u64,
    },
    /// Hotplug memory that cannot be.
    #[error(transparent)]
    Hotplug(#[from] HotplugError),
    /// An initrd for the guest that has everything in itself.
    #[error("Initrd {path} is for a kernel from a file; the embedded guest takes none")]
    InitrdForEmbedded {
        /// Its path.
        path: String,
    },
    /// More drives than there are places.
    #[error("{drives} drives are not possible; allowed: 0 to {MAX_DRIVES}")]
    Drives {
        /// What was asked.
        drives: usize,
    },
    /// A drive's id that could not stand in a path of the API or in a metric.
    #[error(
        "{id:?} cannot be a drive's id; allowed: 1 to {MAX_DRIVE_ID_BYTES} letters, digits, '_' and '-'"
    )]
    DriveId {
        /// What was asked.
        id: String,
    },
    /// Two drives of one id.
    #[error("Two drives have the id {id:?}")]
    SameDriveId {
        /// The id.
        id: String,
    },
    /// Two drives that shall have the root file system.
    #[error("Drives {first:?} and {second:?} are both root devices; there can be one")]
    TwoRootDevices {
        /// The first.
        first: String,
        /// The second.
        second: String,
    },
    /// An initial target above RAM.
    #[error("Balloon target of {} B is above guest RAM; allowed: 0 to {ram_bytes} B", .target.bytes())]
    BalloonTarget {
        /// What was asked.
        target: PageCount,
        /// The most there is.
        ram_bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig::new(Instant::now())
    }

    #[test]
    fn the_default_is_valid() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn vcpus_outside_one_to_four_are_refused_with_the_range() {
        for vcpus in [0, 5, 255] {
            let error = VmConfig { vcpus, ..config() }.validate().expect_err("refused");
            assert_eq!(error, ConfigError::Vcpus { vcpus });
            assert!(error.to_string().contains("1 to 4"), "{error}");
        }
    }

    #[test]
    fn memory_outside_its_range_is_refused_with_the_range() {
        for bytes in [0, MIN_RAM_BYTES - PAGE_SIZE, 65 << 30, u64::MAX] {
            let error =
                VmConfig { memory_bytes: bytes, ..config() }.validate().expect_err("refused");
            assert_eq!(error, ConfigError::MemoryRange { bytes });
        }
        for memory_bytes in [MIN_RAM_BYTES, MAX_RAM_BYTES] {
            assert_eq!(VmConfig { memory_bytes, ..config() }.validate(), Ok(()));
        }
    }

    #[test]
    fn memory_that_is_no_multiple_of_a_page_is_refused_not_rounded() {
        let bytes = (256 << 20) + 1;
        assert_eq!(
            VmConfig { memory_bytes: bytes, ..config() }.validate(),
            Err(ConfigError::MemoryAlignment { bytes })
        );
    }

    fn drive(id: &str, is_read_only: bool, is_root_device: bool) -> DriveConfig {
        DriveConfig { id: id.into(), path: "/x".into(), is_read_only, is_root_device }
    }

    #[test]
    fn drives_need_plain_and_different_ids_and_one_root_at_most() {
        let with = |drives: Vec<DriveConfig>| VmConfig { drives, ..config() }.validate();
        for id in ["", "a b", "a/b", "ä", "x\"y", &"x".repeat(65)] {
            assert_eq!(
                with(vec![drive(id, false, false)]),
                Err(ConfigError::DriveId { id: id.into() })
            );
        }
        let long = "x".repeat(64);
        assert_eq!(with(vec![drive(&long, true, true), drive("a-1_B", false, false)]), Ok(()));
        assert_eq!(
            with(vec![drive("a", false, false), drive("a", true, false)]),
            Err(ConfigError::SameDriveId { id: "a".into() })
        );
        assert_eq!(
            with(vec![drive("a", false, true), drive("b", true, true)]),
            Err(ConfigError::TwoRootDevices { first: "a".into(), second: "b".into() })
        );
        let most = (0..=MAX_DRIVES).map(|n| drive(&format!("d{n}"), true, false)).collect();
        assert_eq!(with(most), Err(ConfigError::Drives { drives: MAX_DRIVES + 1 }));
    }

    #[test]
    fn the_root_device_is_vda_and_the_kernel_is_told() {
        let drives =
            vec![drive("a", false, false), drive("b", false, false), drive("c", true, true)];
        let mut config = VmConfig { drives, ..config() };
        let order = |config: &VmConfig| {
            config.drives_in_order().iter().map(|drive| drive.id.clone()).collect::<String>()
        };
        assert_eq!((order(&config), config.root_words()), ("cab".into(), Some("root=/dev/vda ro")));
        config.drives[2].is_read_only = false;
        assert_eq!(config.root_words(), Some("root=/dev/vda rw"));
        config.drives[2].is_root_device = false;
        assert_eq!((order(&config), config.root_words()), ("abc".into(), None));
    }

    #[test]
    fn an_initrd_for_the_embedded_guest_is_refused_by_its_name() {
        let initrd = Some(PathBuf::from("/x/initrd"));
        let error =
            VmConfig { initrd: initrd.clone(), ..config() }.validate().expect_err("refused");
        assert!(error.to_string().contains("/x/initrd"), "{error}");
        let kernel = Kernel::Path(PathBuf::from("/x/vmlinux"));
        assert_eq!(VmConfig { initrd, kernel, ..config() }.validate(), Ok(()));
    }

    #[test]
    fn an_initial_target_above_ram_is_refused() {
        let mut config = config();
        let target = PageCount::new(config.ram().get() + 1);
        config.balloon = Some(BalloonConfig { target, ..BalloonConfig::default() });
        let error = config.validate().expect_err("refused");
        assert!(matches!(error, ConfigError::BalloonTarget { .. }));
        assert!(error.to_string().contains("268439552 B is above"), "{error}");
    }
}
