//! The only way into a running VM: typed requests posted to its event loop.
//!
//! The control thread never touches a device: it posts a [`VmRequest`] and
//! awaits the reply. The event loop answers at once with what it knows; an
//! answer that needs the guest (an operation, a scenario) comes through the
//! channel in the request when the guest has delivered it.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use abi::PageCount;
use aerostat_api as api;
use tokio::sync::{mpsc as stream, oneshot};
use vmm_sys_util::eventfd::EventFd;

/// Where the answer goes, or why there is none. A requester that is gone is no error.
pub type Reply<T> = oneshot::Sender<Result<T, VmError>>;

/// Something a client asks of the VM.
pub enum VmRequest {
    /// State, sizes and the host's KVM kind.
    Info(Reply<VmInfo>),
    /// The whole configuration, with the balloon's present target.
    Configuration(Reply<Box<api::VmConfig>>),
    /// Changes the configuration of a VM that has not been started.
    Configure {
        /// How.
        change: Box<Change>,
        /// Sent when it is done; a change that is refused has changed nothing.
        reply: Reply<()>,
    },
    /// Builds and starts the VM that has been configured.
    Start(Reply<()>),
    /// Stops the vCPUs; a paused VM stays paused.
    Pause(Reply<()>),
    /// Starts the vCPUs again; a running VM stays running.
    Resume(Reply<()>),
    /// Sets the balloon's absolute target and starts a resize operation that supersedes the one under way.
    SetBalloonTarget {
        /// Absolute size of the balloon.
        target: PageCount,
        /// When the operation ends as timed out; `None`: never.
        deadline: Option<Duration>,
        /// The operation as it began.
        reply: Reply<OperationStatus>,
    },
    /// The balloon as the device and the backing see it.
    Balloon(Reply<BalloonStatus>),
    /// A resize operation, if there has been one.
    Operation {
        /// Which; `None`: the latest. An event loop remembers at least the last 8.
        id: Option<u64>,
        /// Where it stands; `None` when it is unknown or forgotten.
        reply: Reply<Option<OperationStatus>>,
    },
    /// Sets the size of hotplug memory that the guest is asked for and starts a resize operation that supersedes the one
    /// under way.
    RequestHotplug {
        /// Absolute size.
        size: PageCount,
        /// When the operation ends as timed out; `None`: never.
        deadline: Option<Duration>,
        /// The operation as it began.
        reply: Reply<OperationStatus>,
    },
    /// Hotplug memory as the device and the backing see it.
    Hotplug(Reply<HotplugStatus>),
    /// A resize operation of hotplug memory, if there has been one; as [`Self::Operation`].
    HotplugOperation {
        /// Which; `None`: the latest.
        id: Option<u64>,
        /// Where it stands.
        reply: Reply<Option<OperationStatus>>,
    },
    /// Runs a scenario in the guest.
    Exec {
        /// Its name.
        scenario: String,
        /// Its arguments.
        args: Vec<String>,
        /// Whether it began.
        reply: Reply<()>,
        /// Its output; bounded, and a reader that lets it fill up loses the rest (said in the end event).
        events: stream::Sender<ExecEvent>,
    },
    /// The scenarios that the guest announced.
    Scenarios(Reply<Vec<String>>),
    /// Asks the guest to power off, by its agent or the ACPI power button; what it makes of it is its own affair.
    PressPowerButton(Reply<()>),
    /// Asks the guest to power off; after the timeout, or at once if nobody listens, the VM is ended anyway.
    Stop {
        /// How long the guest may take.
        timeout: Duration,
        /// Sent when the VM has begun to end, `true` if the guest did it itself.
        reply: Reply<bool>,
    },
    /// Puts another file behind a drive while the guest runs, as in Firecracker, and tells the guest.
    UpdateDrive {
        /// Which.
        id: String,
        /// The file; `None`: the present one, whose size may have changed.
        path: Option<PathBuf>,
        /// Whether it was done.
        reply: Reply<()>,
    },
    /// Every counter, as (name with labels in Prometheus form, value).
    Metrics(Reply<Vec<Metric>>),
    /// Writes a line to the metrics file.
    FlushMetrics(Reply<()>),
}

impl VmRequest {
    /// Answers the request with `error`, whatever it is.
    pub fn refuse(self, error: VmError) {
        // A requester that is gone is no error.
        match self {
            Self::Info(reply) => reply.send(Err(error)).is_ok(),
            Self::Configuration(reply) => reply.send(Err(error)).is_ok(),
            Self::Configure { reply, .. }
            | Self::Pause(reply)
            | Self::Resume(reply)
            | Self::Start(reply)
            | Self::FlushMetrics(reply)
            | Self::UpdateDrive { reply, .. }
            | Self::Exec { reply, .. } => reply.send(Err(error)).is_ok(),
            Self::SetBalloonTarget { reply, .. } | Self::RequestHotplug { reply, .. } => {
                reply.send(Err(error)).is_ok()
            }
            Self::Hotplug(reply) => reply.send(Err(error)).is_ok(),
            Self::Balloon(reply) => reply.send(Err(error)).is_ok(),
            Self::Operation { reply, .. } | Self::HotplugOperation { reply, .. } => {
                reply.send(Err(error)).is_ok()
            }
            Self::Scenarios(reply) => reply.send(Err(error)).is_ok(),
            Self::PressPowerButton(reply) => reply.send(Err(error)).is_ok(),
            Self::Stop { reply, .. } => reply.send(Err(error)).is_ok(),
            Self::Metrics(reply) => reply.send(Err(error)).is_ok(),
        };
    }
}

/// A change to the configuration of a VM that has not been started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// vCPUs and memory.
    Machine(api::MachineConfig),
    /// Some of vCPUs and memory.
    UpdateMachine(api::MachineConfigUpdate),
    /// What boots.
    BootSource(api::BootSource),
    /// A drive, new or in place of the one of the same name.
    Drive(api::Drive),
    /// The balloon.
    Balloon(api::BalloonConfig),
    /// Hotplug memory.
    Hotplug(api::MemoryHotplugConfig),
    /// The entropy device.
    Entropy(api::Entropy),
    /// Where and what to log.
    Logger(api::Logger),
    /// Where metrics are written.
    Metrics(api::Metrics),
    /// Where the serial console goes.
    Serial(api::Serial),
}

/// Posts requests to the event loop; cheap to clone.
#[derive(Clone)]
pub struct VmHandle {
    requests: mpsc::Sender<VmRequest>,
    wake: std::sync::Arc<EventFd>,
}

impl VmHandle {
    /// A handle over the event loop's channel and the eventfd that wakes it.
    pub fn new(requests: mpsc::Sender<VmRequest>, wake: std::sync::Arc<EventFd>) -> Self {
        Self { requests, wake }
    }

    /// Posts `request`.
    ///
    /// # Errors
    /// [`VmError::Gone`] when the VM has ended.
    pub fn post(&self, request: VmRequest) -> Result<(), VmError> {
        self.requests.send(request).map_err(|_| VmError::Gone)?;
        self.wake.write(1).map_err(|_| VmError::Gone)
    }
}

/// Whether the vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// There is a configuration, and no machine yet.
    NotStarted,
    /// vCPUs run, the guest has not yet said that it is ready.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs are stopped.
    Paused,
}

/// What `aerostat info` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmInfo {
    /// Instance id.
    pub id: String,
    /// Run state.
    pub state: VmState,
    /// Guest RAM.
    pub ram: PageCount,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Name of the backing: `anon` or `memfd`.
    pub backing: &'static str,
    /// `software` when the host's KVM interprets ring 0, else `hardware`; `unknown` before the start.
    pub kvm: &'static str,
    /// Microseconds from the start to the guest's first serial byte, if there has been one.
    pub first_byte_us: Option<u64>,
    /// Microseconds from the start to the guest's `ready`, if it came.
    pub ready_us: Option<u64>,
    /// Kernel path, or `embedded`.
    pub kernel: String,
    /// The whole guest command line.
    pub cmdline: String,
}

/// The balloon as the device and the backing see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Guest RAM.
    pub ram: PageCount,
    /// Absolute target.
    pub target: PageCount,
    /// What the driver says the balloon holds.
    pub actual: PageCount,
    /// Pages that discards claimed to have released since start.
    pub claimed: PageCount,
    /// Bytes of guest RAM that the backing's source of truth says the host holds now; `None`: unverified.
    pub host_resident_bytes: Option<u64>,
    /// Name of that source of truth.
    pub truth: &'static str,
    /// Feature bits offered.
    pub offered_features: u64,
    /// Feature bits acknowledged; `None` until the driver has negotiated.
    pub acked_features: Option<u64>,
    /// Whether the driver has set DRIVER_OK and the device needs no reset.
    pub driver_ready: bool,
    /// DEVICE_NEEDS_RESET is set.
    pub needs_reset: bool,
    /// Time since the driver's last kick.
    pub last_kick: Option<Duration>,
}

/// Hotplug memory as the device and the backing see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotplugStatus {
    /// Guest-physical address of the region.
    pub addr: u64,
    /// Bytes of the region.
    pub total_bytes: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Bytes of a memory slot.
    pub slot_bytes: u64,
    /// Bytes in which the guest may plug blocks now.
    pub usable_bytes: u64,
    /// What is plugged.
    pub plugged: PageCount,
    /// What the guest is asked for.
    pub requested: PageCount,
    /// Bytes that the backing's source of truth says the host holds for it now; `None`: unverified.
    pub host_resident_bytes: Option<u64>,
    /// Name of that source of truth.
    pub truth: &'static str,
    /// Feature bits acknowledged; `None` until the driver has negotiated.
    pub acked_features: Option<u64>,
    /// Whether the driver has set DRIVER_OK and the device needs no reset.
    pub driver_ready: bool,
    /// DEVICE_NEEDS_RESET is set.
    pub needs_reset: bool,
    /// Time since the driver's last kick.
    pub last_kick: Option<Duration>,
}

/// How a resize operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationState {
    /// The driver is at it.
    Running,
    /// `actual` equals the target.
    Reached,
    /// No progress for the stall time; the target stays and the driver may still get there.
    Stalled,
    /// The deadline passed first.
    TimedOut,
    /// A later target took its place.
    Superseded,
}

/// A resize operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationStatus {
    /// Counts from 1.
    pub id: u64,
    /// Where it stands.
    pub state: OperationState,
    /// `actual` when it began.
    pub from: PageCount,
    /// Absolute target.
    pub target: PageCount,
    /// `actual` now, or when it ended.
    pub actual: PageCount,
    /// Guest RAM.
    pub ram: PageCount,
    /// Since it began, or until it ended.
    pub elapsed: Duration,
    /// Since `actual` last moved towards the target, or since it began.
    pub since_progress: Duration,
    /// Why it stands where it stands, for a person: `driver missing`, `VM is paused`, ...
    pub note: Option<&'static str>,
}

/// Output of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// A line, without its newline.
    Line(String),
    /// The end: its exit code, and lines lost because the reader was slow.
    Exit {
        /// Exit code of the scenario.
        code: i32,
        /// Lines not delivered.
        lost: u64,
    },
}

/// One counter or gauge.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Prometheus name, without labels.
    pub name: &'static str,
    /// Label pairs, already escaped: `device="balloon"`, or empty.
    pub labels: String,
    /// What it counts, for `# HELP`.
    pub help: &'static str,
    /// Whether it only grows.
    pub is_counter: bool,
    /// The value.
    pub value: f64,
}

impl Metric {
    /// Name and labels, as Prometheus writes them.
    pub fn full_name(&self) -> String {
        match self.labels.as_str() {
            "" => self.name.to_owned(),
            labels => format!("{}{{{labels}}}", self.name),
        }
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmError {
    /// The VM has ended.
    #[error("The VM has ended")]
    Gone,
    /// It needs a VM that has been started.
    #[error("The requested operation is not supported before starting the microVM.")]
    NotStarted,
    /// It needs a VM that has not been started.
    #[error("The requested operation is not supported after starting the microVM.")]
    AlreadyStarted,
    /// The VM cannot be configured so; nothing has changed.
    #[error("{0}")]
    Configuration(String),
    /// The VM that has been configured cannot be started; it can still be configured.
    #[error("The VM cannot be started: {0}")]
    CannotStart(String),
    /// Metrics were to be written and nobody has said where.
    #[error("No metrics file is configured; PUT /metrics before the start, or read GET /metrics")]
    NoMetricsFile,
    /// The target is above guest RAM.
    #[error("Balloon target {target_bytes} B is above guest RAM; allowed: 0 to {ram_bytes} B")]
    TargetAboveRam {
        /// What was asked.
        target_bytes: u64,
        /// The most there is.
        ram_bytes: u64,
    },
    /// The VM was configured without a balloon.
    #[error("This VM has no balloon")]
    NoBalloon,
    /// The VM was configured without hotplug memory.
    #[error("This VM has no hotplug memory; configure it before the start")]
    NoHotplug,
    /// The guest cannot be asked for so much hotplug memory.
    #[error("{0}")]
    HotplugSize(String),
    /// No drive has this id.
    #[error("This VM has no drive {id:?}; it has: {known}")]
    NoSuchDrive {
        /// What was asked.
        id: String,
        /// What there is, comma-separated.
        known: String,
    },
    /// What a drive was to become cannot be one.
    #[error("{0}")]
    Drive(String),
    /// The guest has announced no agent, or its port is closed.
    #[error(
        "The guest has no agent on port org.aerostat.agent; scenarios need aerostat's own guest"
    )]
    NoAgent,
    /// Nobody in the guest would notice that it is asked to power off.
    #[error(
        "The guest has no agent and has not enabled the ACPI power button: nobody there listens"
    )]
    NoPowerButton,
    /// A scenario is running already.
    #[error("Scenario {running:?} is running; one at a time")]
    Busy {
        /// Its name.
        running: String,
    },
    /// The guest does not know this scenario.
    #[error("The guest has no scenario {name:?}; it has: {known}")]
    NoSuchScenario {
        /// What was asked.
        name: String,
        /// What there is, comma-separated.
        known: String,
    },
    /// The scenario's name and arguments do not fit into a line of the agent port.
    #[error("The request takes {len} B on the agent port; at most {max} B are possible")]
    RequestTooLong {
        /// What it takes.
        len: usize,
        /// The most there can be.
        max: usize,
    },
    /// The VM is paused.
    #[error("The VM is paused; resume it first")]
    Paused,
    /// The host failed.
    #[error("{0}")]
    Host(String),
}
