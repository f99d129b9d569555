//! The thread of hotplug memory: the device's queue, memory that comes and goes, resize operations.
//!
//! A plug or unplug asks the host for memory slots and for memory, which takes
//! milliseconds. The device is locked while one is carried out, so the guest's
//! driver, which waits for the answer anyway, is the only one to notice: the
//! event loop asks this thread, and each turn carries out one.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use abi::PageCount;
use abi::mem::GUEST_REQUEST_QUEUE;
use devices::balloon::operation::{DriverState, Observation, StallNotes};
use devices::clock::Clock;
use devices::mem::{MemoryDevice, RequestedSizeError};
use devices::virtio::QueueProgress;
use guest_ram::HostRam;

use super::balloon_worker::HostClock;
use super::event_loop::answer;
use super::handle::{HotplugStatus, OperationStatus, Reply, VmError};
use super::operations::{Operations, driver_state};
use super::poll::Poller;
use super::vcpu::VcpuEvents;
use super::window::Window;
use super::worker::{Commands, Work, Worker};

/// How often to look whether a device still accesses what has been unplugged.
const SETTLE_EVERY: Duration = Duration::from_millis(20);

/// What the event loop asks of hotplug memory.
pub(super) enum HotplugCommand {
    /// Sets the size that is requested of the guest and begins an operation.
    Request { size: PageCount, deadline: Option<Duration>, reply: Reply<OperationStatus> },
    /// Hotplug memory as it is.
    Status(Reply<HotplugStatus>),
    /// An operation by number, or the latest.
    Operation { id: Option<u64>, reply: Reply<Option<OperationStatus>> },
    /// The vCPUs were stopped, or started again.
    Paused(bool),
    /// The machine was reset.
    Reset { done: mpsc::Sender<()> },
}

/// The thread, as the event loop holds it.
pub(super) struct HotplugWorker(Worker<HotplugCommand>);

/// What the thread works on.
pub(super) struct HotplugParts {
    pub(super) window: Arc<Window<MemoryDevice>>,
    pub(super) ram: Arc<HostRam>,
    pub(super) clock: HostClock,
    /// An operation without progress for so long has stalled.
    pub(super) stall_after: Duration,
    /// Bytes of a memory slot, which only clients want to know.
    pub(super) slot_bytes: u64,
}

impl HotplugWorker {
    /// Starts the thread. `failures`: where it reports that it cannot go on.
    pub(super) fn start(parts: HotplugParts, failures: VcpuEvents) -> io::Result<Self> {
        Worker::start(failures, |commands| Hotplug::new(parts, commands)).map(Self)
    }

    /// Sends a command. If the thread is gone, the requester sees its reply dropped.
    pub(super) fn post(&self, command: HotplugCommand) {
        self.0.post(command);
    }

    /// Resets the device and unplugs everything after the vCPUs have stopped, and waits until it is done.
    pub(super) fn reset(&self) {
        self.0.wait_for(|done| HotplugCommand::Reset { done });
    }
}

/// What can wake the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Commands,
    /// A vCPU wrote the status or configuration space, or left the queue pending.
    Touched,
    /// The driver notified its queue.
    Kicked,
}

struct Hotplug {
    parts: HotplugParts,
    poller: Poller<Token>,
    commands: Commands<HotplugCommand>,
    /// The device has work that no kick will announce.
    pending: bool,
    /// Some device may still access what has been unplugged.
    lingering: bool,
    is_paused: bool,
    last_kick: Option<Instant>,
    operations: Operations,
}

impl Work for Hotplug {
    type Command = HotplugCommand;

    const NAME: &str = "hotplug";

    /// Waits once and serves what has happened: at most one plug or unplug.
    fn turn(&mut self) -> io::Result<()> {
        for token in self.poller.wait(self.deadline())? {
            // Each read only takes back a wake-up; state says what there is to do.
            match token {
                Token::Commands => self.commands.woken(),
                Token::Touched => {
                    self.parts.window.touched().read().ok();
                    self.pending |= self.parts.window.lock().progress() == QueueProgress::Pending;
                }
                Token::Kicked => {
                    for doorbell in self.parts.window.doorbells() {
                        doorbell.read().ok();
                    }
                    self.last_kick = Some(Instant::now());
                    let progress = self.parts.window.serve(GUEST_REQUEST_QUEUE);
                    self.pending |= progress == QueueProgress::Pending;
                    self.lingering = true;
                }
            }
        }
        if self.pending {
            self.pending = self.parts.window.lock().serve_pending() == QueueProgress::Pending;
            self.lingering = true;
        }
        if self.lingering {
            self.lingering = self.parts.ram.settle();
        }
        self.observe();
        Ok(())
    }

    fn commands(&self) -> &Commands<Self::Command> {
        &self.commands
    }

    fn serve(&mut self, command: HotplugCommand) {
        match command {
            HotplugCommand::Request { size, deadline, reply } => {
                let result = self.request(size, deadline);
                answer(reply, result);
            }
            HotplugCommand::Status(reply) => answer(reply, Ok(self.status())),
            HotplugCommand::Operation { id, reply } => {
                answer(reply, Ok(self.operations.find(id)));
            }
            HotplugCommand::Paused(is_paused) => {
                // Time until now counts as it was until now.
                self.observe();
                self.is_paused = is_paused;
                self.observe();
            }
            HotplugCommand::Reset { done } => {
                self.parts.window.reset();
                self.parts.window.lock().device_mut().system_reset();
                (self.pending, self.lingering, self.last_kick) = (false, true, None);
                self.observe();
                // The event loop waits for it, or has given up everything.
                done.send(()).ok();
            }
        }
    }
}

impl Hotplug {
    fn new(parts: HotplugParts, commands: Commands<HotplugCommand>) -> io::Result<Self> {
        let mut poller = Poller::new()?;
        poller.watch(commands.as_raw_fd(), Token::Commands)?;
        poller.watch(parts.window.touched().as_raw_fd(), Token::Touched)?;
        for doorbell in parts.window.doorbells() {
            poller.watch(doorbell.as_raw_fd(), Token::Kicked)?;
        }
        let notes = StallNotes::HOTPLUG;
        let operations = Operations::new(parts.stall_after, parts.ram.pages(), notes);
        Ok(Self {
            operations,
            parts,
            poller,
            commands,
            pending: false,
            lingering: false,
            is_paused: false,
            last_kick: None,
        })
    }

    /// Now if the device has work; else when something has to be looked at.
    fn deadline(&self) -> Option<Instant> {
        if self.pending {
            return Some(Instant::now());
        }
        let settle = self.lingering.then(|| Instant::now() + SETTLE_EVERY);
        let check = self.operations.next_check();
        let check = check.and_then(|check| self.parts.clock.0.checked_add(check));
        settle.into_iter().chain(check).min()
    }

    fn request(
        &mut self,
        size: PageCount,
        deadline: Option<Duration>,
    ) -> Result<OperationStatus, VmError> {
        let mut transport = self.parts.window.lock();
        transport.device_mut().request(size).map_err(refused)?;
        // An equal size is announced too: a driver that gave up tries again.
        transport.config_changed();
        drop(transport);
        let seen = (self.parts.clock.now(), self.observation());
        Ok(self.operations.begin(size, deadline, seen))
    }

    /// Tells the running operation what is seen now.
    fn observe(&mut self) {
        let seen = self.observation();
        self.operations.observe(self.parts.clock.now(), seen);
    }

    fn observation(&self) -> Observation {
        let transport = self.parts.window.lock();
        Observation {
            actual: transport.device().plugged(),
            driver: driver_state(&transport),
            is_paused: self.is_paused,
        }
    }

    fn status(&self) -> HotplugStatus {
        let host_resident_bytes = self.parts.ram.hotplug_resident_bytes().unwrap_or_else(|error| {
            log::warn!("Hotplug memory cannot be measured: {error}");
            None
        });
        let transport = self.parts.window.lock();
        let device = transport.device();
        let driver = driver_state(&transport);
        HotplugStatus {
            addr: device.region().addr(),
            total_bytes: device.region().bytes(),
            block_bytes: device.region().block_bytes(),
            slot_bytes: self.parts.slot_bytes,
            usable_bytes: device.usable_bytes(),
            plugged: device.plugged(),
            requested: device.requested(),
            host_resident_bytes,
            truth: self.parts.ram.truth_name(),
            acked_features: transport.acked_features(),
            driver_ready: driver == DriverState::Ready,
            needs_reset: driver == DriverState::NeedsReset,
            last_kick: self.last_kick.map(|at| at.elapsed()),
        }
    }
}

fn refused(error: RequestedSizeError) -> VmError {
    VmError::HotplugSize(error.to_string())
}
