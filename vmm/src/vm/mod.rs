//! A running virtual machine and the handle that commands it.
//!
//! [`Vm::build`] makes the machine, [`Vm::run`] is its event loop. Threads,
//! lock order and failure cases: `docs/vmm.md`.

mod balloon_worker;
mod block_worker;
mod board;
mod chassis;
pub mod config;
pub(crate) mod drives;
mod entropy;
pub(crate) mod event_loop;
pub mod exit;
pub mod handle;
mod hotplug;
mod hotplug_worker;
mod hvc;
mod mailbox;
mod metrics;
mod metrics_file;
mod operations;
pub(crate) mod poll;
mod signals;
mod slots;
mod stdio;
mod vcpu;
mod window;
mod worker;

use std::io;
use std::sync::{Arc, mpsc};

use devices::balloon::TargetError;
use guest_ram::HostRamError;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use balloon_worker::BalloonWorker;
use chassis::Chassis;
pub(crate) use chassis::planned_command_line;
use config::{ConfigError, OnReset, VmConfig};
use drives::Drives;
use event_loop::{EventLoop, Parts};
use exit::ExitReason;
use handle::VmHandle;
use hotplug_worker::HotplugWorker;
pub use mailbox::{Letter, Mailbox};
use metrics_file::MetricsFile;
use stdio::Stdio;
use vcpu::{VcpuEvent, VcpuEvents};

use crate::acpi::AcpiError;
use crate::boot::BootError;
use crate::drive::DriveError;
use crate::exit_code;
use crate::kvm::KvmError;

/// A virtual machine, built and not yet running.
pub struct Vm {
    parts: Parts,
}

impl Vm {
    /// Builds the machine: RAM, KVM, devices, kernel, terminal.
    ///
    /// Call it on the main thread before any other thread exists: it blocks the
    /// signals that end the VM in the calling thread, so that threads which are
    /// started later inherit that and the event loop receives them.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn build(config: VmConfig) -> Result<Self, StartError> {
        limit_malloc_arenas();
        // Until the mailbox is there a signal ends the process.
        let (machinery, mailbox) =
            Machinery::build(config, || Mailbox::new().map(|mailbox| (mailbox.handle(), mailbox)))?;
        Ok(Self { parts: machinery.with(mailbox) })
    }

    /// Builds a machine for a mailbox that exists already, and starts its vCPUs.
    ///
    /// # Errors
    /// [`NotStarted`]: why not, and the mailbox, whose owner may try again; nothing else is left behind.
    pub fn start(config: VmConfig, mailbox: Mailbox) -> Result<StartedVm, Box<NotStarted>> {
        match Machinery::build(config, || Ok((mailbox.handle(), ()))) {
            Ok((machinery, ())) => EventLoop::start(machinery.with(mailbox)).map(StartedVm),
            Err(error) => Err(Box::new(NotStarted { error, mailbox })),
        }
    }

    /// Posts requests to the event loop; usable before and while [`Self::run`] runs.
    pub fn handle(&self) -> VmHandle {
        self.parts.mailbox.handle()
    }

    /// Runs the machine to its end, on the calling thread.
    ///
    /// On return all threads of the VM are joined, the guest's output is
    /// written and the terminal is restored.
    pub fn run(self) -> ExitReason {
        return_free_heap();
        match EventLoop::start(self.parts) {
            Ok(event_loop) => event_loop.run(),
            Err(refused) => ExitReason::HostError(chain(&refused.error)),
        }
    }
}

/// A virtual machine whose vCPUs run.
pub struct StartedVm(EventLoop);

impl StartedVm {
    /// Runs the machine to its end, as [`Vm::run`] does.
    pub fn run(self) -> ExitReason {
        return_free_heap();
        self.0.run()
    }
}

/// A VM that could not be started, and the mailbox that was meant for it.
pub struct NotStarted {
    /// Why.
    pub error: StartError,
    /// Still usable.
    pub mailbox: Mailbox,
}

/// Everything of a VM but its mailbox.
struct Machinery {
    chassis: Chassis,
    balloon: Option<BalloonWorker>,
    hotplug: Option<HotplugWorker>,
    drives: Drives,
    stdio: Stdio,
    metrics: Option<MetricsFile>,
    vcpu_events: mpsc::Receiver<VcpuEvent>,
    vcpu_wake: Arc<EventFd>,
}

impl Machinery {
    /// Builds it; `before_threads` comes before the first thread that lasts, and gives a handle to the
    /// mailbox that will be the VM's.
    fn build<T>(
        config: VmConfig,
        before_threads: impl FnOnce() -> io::Result<(VmHandle, T)>,
    ) -> Result<(Self, T), StartError> {
        let eventfd = || {
            EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map(Arc::new)
                .map_err(|source| StartError::host("Creating an eventfd", source))
        };
        let (vcpu_wake, drained) = (eventfd()?, eventfd()?);
        let (vcpu_sender, vcpu_events) = mpsc::channel();
        let events = VcpuEvents::new(vcpu_sender, vcpu_wake.clone());
        let mut chassis = Chassis::build(&config, events, drained.clone())?;
        let (handle, before) = before_threads()
            .map_err(|source| StartError::host("Opening the VM's mailbox", source))?;
        let balloon = chassis
            .start_balloon(config.balloon.unwrap_or_default().stall_after)
            .map_err(|source| StartError::host("Starting the balloon worker", source))?;
        let hotplug = chassis
            .start_hotplug(&config)
            .map_err(|source| StartError::host("Starting the hotplug worker", source))?;
        let drives = chassis
            .start_drives()
            .map_err(|source| StartError::host("Starting a drive's worker", source))?;
        let start_metrics = |file| MetricsFile::start(file, handle, metrics_file::PERIOD);
        let metrics = config
            .metrics
            .map(start_metrics)
            .transpose()
            .map_err(|source| StartError::host("Starting the metrics thread", source))?;
        // Last: the terminal becomes raw.
        let com1 = (chassis.com1.clone(), drained);
        let stdio = Stdio::open(config.serial, config.console, com1, chassis.console.clone())
            .map_err(|source| StartError::host("Connecting the serial console", source))?;
        let machinery =
            Self { chassis, balloon, hotplug, drives, stdio, metrics, vcpu_events, vcpu_wake };
        Ok((machinery, before))
    }

    fn with(self, mailbox: Mailbox) -> Parts {
        let Self { chassis, balloon, hotplug, drives, stdio, metrics, vcpu_events, vcpu_wake } =
            self;
        Parts { chassis, balloon, hotplug, drives, stdio, mailbox, metrics, vcpu_events, vcpu_wake }
    }
}

/// An error and all its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// One malloc arena for all threads: each further one would cost private memory, and none of our
/// threads allocates on a path where a lock matters.
pub(crate) fn limit_malloc_arenas() {
    // SAFETY: sets a number; called before the VM's threads exist. On refusal the default stays.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Gives the host back what configuration and construction needed of the heap and do not need any more.
fn return_free_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches free heap memory only.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// A VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration describes no possible VM.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The balloon cannot have this target.
    #[error(transparent)]
    Target(TargetError),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Its firmware tables cannot be made: a defect of this program.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// A drive cannot be used.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// The host's KVM cannot run it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host does not give the memory.
    #[error(transparent)]
    Ram(#[from] HostRamError),
    /// The host refused something else.
    #[error("{what} failed")]
    Host {
        /// The step.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
}

impl StartError {
    fn host(what: &'static str, source: std::io::Error) -> Self {
        Self::Host { what, source }
    }

    /// The process's exit code for this failure; see [`exit_code`].
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Boot(BootError::SoftwareKvm { .. }) => exit_code::KVM_CANNOT_RUN_GUEST,
            Self::Config(_) | Self::Target(_) | Self::Boot(_) => exit_code::BAD_ARGUMENTS,
            Self::Drive(error) if error.is_bad_argument() => exit_code::BAD_ARGUMENTS,
            Self::Drive(_) | Self::Acpi(_) | Self::Kvm(_) | Self::Ram(_) | Self::Host { .. } => {
                exit_code::HOST_ERROR
            }
        }
    }
}
