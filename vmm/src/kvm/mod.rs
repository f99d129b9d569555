//! The host's KVM: whether it can run a VM, which kind it is, and what a vCPU of it looks like.
//!
//! [`Host::open`] checks everything that can be checked before a VM exists, so
//! that a missing piece is named in one line instead of failing some ioctl later.

mod cpuid;
pub(crate) mod machine;
mod regs;

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};

/// Device node of KVM.
pub const DEVICE: &str = "/dev/kvm";

/// How the host runs ring 0 of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmKind {
    /// The CPU has VT-x or AMD-V and KVM uses it.
    Hardware,
    /// No `vmx` or `svm` in the CPU's flags although KVM works: ring 0 is interpreted.
    Software,
}

impl KvmKind {
    /// `hardware` or `software`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
        }
    }

    /// What this host's CPU flags say. The first CPU's say it for all: a host of mixed CPUs could not migrate tasks.
    ///
    /// # Errors
    /// If `/proc/cpuinfo` cannot be read.
    pub fn of_this_host() -> io::Result<Self> {
        let mut first = String::new();
        // Enough for the first CPU; on a large host the whole file is megabytes.
        fs::File::open("/proc/cpuinfo")?.take(8192).read_to_string(&mut first)?;
        Ok(Self::from_cpuinfo(&first))
    }

    /// Reads it off the text of `/proc/cpuinfo`.
    fn from_cpuinfo(cpuinfo: &str) -> Self {
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        if flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
            Self::Hardware
        } else {
            Self::Software
        }
    }
}

/// The host's KVM, checked.
pub struct Host {
    kvm: Kvm,
    kind: KvmKind,
}

impl Host {
    /// Opens [`DEVICE`] and checks all that aerostat needs of it for `vcpus` vCPUs.
    ///
    /// # Errors
    /// [`KvmError`] naming what is missing.
    pub fn open(vcpus: u8) -> Result<Self, KvmError> {
        Self::open_at(Path::new(DEVICE), vcpus)
    }

    fn open_at(device: &Path, vcpus: u8) -> Result<Self, KvmError> {
        let kvm = open_device(device)?;
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(KvmError::ApiVersion { version });
        }
        check_capabilities(|cap| kvm.check_extension(cap))?;
        let max = kvm.get_max_vcpus();
        if max < usize::from(vcpus) {
            return Err(KvmError::TooFewVcpus { max, vcpus });
        }
        let kind = KvmKind::of_this_host()
            .map_err(|source| KvmError::Ioctl { what: "reading /proc/cpuinfo", source })?;
        Ok(Self { kvm, kind })
    }

    /// How it runs ring 0.
    pub const fn kind(&self) -> KvmKind {
        self.kind
    }

    /// Checks that a VM can have `slots` memory slots.
    ///
    /// # Errors
    /// [`KvmError::TooFewSlots`].
    pub(crate) fn check_slots(&self, slots: u64) -> Result<(), KvmError> {
        let max = self.kvm.get_nr_memslots();
        if slots > max as u64 { Err(KvmError::TooFewSlots { max, slots }) } else { Ok(()) }
    }

    /// Creates a VM in the kernel, without memory.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub(crate) fn create_vm(&self) -> Result<VmFd, KvmError> {
        loop {
            match self.kvm.create_vm() {
                Ok(vm) => return Ok(vm),
                // Interrupted by a signal without having done anything.
                Err(error) if error.errno() == libc::EINTR => {}
                Err(source) => return Err(KvmError::ioctl("KVM_CREATE_VM", source)),
            }
        }
    }

    /// CPUID of a vCPU before its own id is filled in: what KVM supports and this host can run.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`], or [`KvmError::TooManyEntries`].
    pub(crate) fn cpuid(&self) -> Result<CpuId, KvmError> {
        let mut cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|source| KvmError::ioctl("KVM_GET_SUPPORTED_CPUID", source))?;
        if self.kvm.check_extension(Cap::TscDeadlineTimer) {
            cpuid::offer_tsc_deadline(cpuid.as_mut_slice());
        }
        cpuid::announce_hypervisor(cpuid.as_mut_slice());
        if self.kind == KvmKind::Software {
            cpuid::withhold_unrunnable(cpuid.as_mut_slice());
        }
        // Kept for the life of the VM: without the room that KVM did not fill.
        CpuId::from_entries(cpuid.as_slice())
            .map_err(|_| KvmError::TooManyEntries { what: "KVM_GET_SUPPORTED_CPUID" })
    }
}

fn open_device(device: &Path) -> Result<Kvm, KvmError> {
    let path = device.display().to_string();
    let c_path = std::ffi::CString::new(path.clone()).map_err(|_| KvmError::Open {
        path: path.clone(),
        source: io::ErrorKind::InvalidInput.into(),
    })?;
    Kvm::new_with_path(&c_path).map_err(|errno| match errno.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::NoDevice { path },
        libc::EACCES | libc::EPERM => KvmError::NoPermission { path },
        other => KvmError::Open { path, source: io::Error::from_raw_os_error(other) },
    })
}

/// What aerostat cannot do without, with the name in KVM's documentation and what it is for.
const REQUIRED: [(Cap, &str, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest RAM"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING", "interrupt lines that go to the I/O APIC alone"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "device interrupts"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "queue notifications"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "pausing and stopping vCPUs"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "the CPU that the guest sees"),
    (Cap::MpState, "KVM_CAP_MP_STATE", "starting secondary vCPUs"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "real mode on older Intel CPUs"),
];

fn check_capabilities(has: impl Fn(Cap) -> bool) -> Result<(), KvmError> {
    for (cap, name, purpose) in REQUIRED {
        if !has(cap) {
            return Err(KvmError::MissingCapability { name, purpose });
        }
    }
    Ok(())
}

/// The host's KVM cannot run a VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no device node.
    #[error(
        "{path} does not exist: load the kvm_intel or kvm_amd module, and enable virtualisation in the firmware \
         (inside a VM: nested virtualisation)"
    )]
    NoDevice {
        /// The device node.
        path: String,
    },
    /// The device node may not be opened.
    #[error(
        "No permission to open {path}: join the group that owns it (often `kvm`) or run as root"
    )]
    NoPermission {
        /// The device node.
        path: String,
    },
    /// The device node cannot be opened.
    #[error("Cannot open {path}")]
    Open {
        /// The device node.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// An API that this program does not speak.
    #[error("KVM API version {version} is not supported; needed: {KVM_API_VERSION}")]
    ApiVersion {
        /// What KVM said; negative when the file is no KVM device.
        version: i32,
    },
    /// A capability is missing.
    #[error("The host's KVM lacks {name}, needed for {purpose}")]
    MissingCapability {
        /// Its name in KVM's documentation.
        name: &'static str,
        /// What it is for.
        purpose: &'static str,
    },
    /// KVM supports fewer vCPUs than asked for.
    #[error("The host's KVM supports {max} vCPUs; asked for: {vcpus}")]
    TooFewVcpus {
        /// What there is.
        max: usize,
        /// What was asked.
        vcpus: u8,
    },
    /// KVM supports fewer memory slots than hotplug memory needs.
    #[error(
        "The host's KVM supports {max} memory slots; RAM and hotplug memory need {slots}: make the slots of hotplug memory larger"
    )]
    TooFewSlots {
        /// What there is.
        max: usize,
        /// What was asked.
        slots: u64,
    },
    /// A table for KVM is larger than its interface allows: a defect of this program.
    #[error("A table for {what} has too many entries")]
    TooManyEntries {
        /// The call.
        what: &'static str,
    },
    /// A call to KVM failed.
    #[error("{what} failed")]
    Ioctl {
        /// The call.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

impl KvmError {
    pub(crate) fn ioctl(what: &'static str, source: kvm_ioctls::Error) -> Self {
        Self::Ioctl { what, source: io::Error::from_raw_os_error(source.errno()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_node_is_named_with_the_remedy() {
        let error = open_device(Path::new("/nonexistent/kvm")).expect_err("no such file");
        assert!(matches!(&error, KvmError::NoDevice { path } if path == "/nonexistent/kvm"));
        assert!(error.to_string().contains("kvm_intel or kvm_amd"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_kvm_device_has_the_wrong_api_version() {
        let error = Host::open_at(Path::new("/dev/null"), 1).err().expect("no KVM");
        assert!(matches!(error, KvmError::ApiVersion { version: -1 }), "{error}");
    }

    #[test]
    fn each_missing_capability_is_named() {
        for (missing, name, _) in REQUIRED {
            let error =
                check_capabilities(|cap| cap as u32 != missing as u32).expect_err("missing");
            assert!(error.to_string().contains(name), "{error} lacks {name}");
        }
        check_capabilities(|_| true).expect("nothing is missing");
    }

    #[test]
    fn cpu_flags_tell_software_from_hardware_kvm() {
        let text = |flags: &str| format!("processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n");
        assert_eq!(KvmKind::from_cpuinfo(&text("fpu svm lm")), KvmKind::Hardware);
        assert_eq!(KvmKind::from_cpuinfo(&text("fpu vmx lm")), KvmKind::Hardware);
        assert_eq!(KvmKind::from_cpuinfo(&text("fpu svm_lock lm")), KvmKind::Software);
        assert_eq!(KvmKind::from_cpuinfo(""), KvmKind::Software);
    }
}
