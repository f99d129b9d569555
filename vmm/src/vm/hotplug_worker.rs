//! The thread of hotplug memory: the device's queue, memory that comes and goes, resize operations.
//!
//! A plug or unplug asks the host for memory slots and for memory, which takes
//! milliseconds. The device is locked while one is carried out, so the guest's
//! driver, which waits for the answer anyway, is the only one to notice: the
//! event loop asks this thread, and each turn carries out one.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use abi::PageCount;
use abi::mem::GUEST_REQUEST_QUEUE;
use devices::balloon::operation::{DriverState, Observation, StallNotes};
use devices::clock::Clock;
use devices::mem::{MemoryDevice, RequestedSizeError};
use devices::virtio::QueueProgress;
use guest_ram::HostRam;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::balloon_worker::HostClock;
use super::event_loop::answer;
use super::exit::ExitReason;
use super::handle::{HotplugStatus, OperationStatus, Reply, VmError};
use super::operations::{Operations, driver_state};
use super::poll::Poller;
use super::vcpu::{VcpuEvent, VcpuEvents};
use super::window::Window;

/// Stack of the thread; only what is touched costs memory.
const STACK_BYTES: usize = 256 << 10;
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
pub(super) struct HotplugWorker {
    commands: Option<mpsc::Sender<HotplugCommand>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

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
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let (commands, receiver) = mpsc::channel();
        let mut poller = Poller::new()?;
        poller.watch(wake.as_raw_fd(), Token::Commands)?;
        poller.watch(parts.window.touched().as_raw_fd(), Token::Touched)?;
        for doorbell in parts.window.doorbells() {
            poller.watch(doorbell.as_raw_fd(), Token::Kicked)?;
        }
        let notes = StallNotes::HOTPLUG;
        let worker = Worker {
            operations: Operations::new(parts.stall_after, parts.ram.pages(), notes),
            parts,
            poller,
            commands: receiver,
            wake: wake.clone(),
            pending: false,
            lingering: false,
            is_paused: false,
            last_kick: None,
        };
        let thread = thread::Builder::new()
            .name(String::from("hotplug"))
            .stack_size(STACK_BYTES)
            .spawn(move || worker.main(&failures))?;
        Ok(Self { commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Sends a command. If the thread is gone, the requester sees its reply dropped.
    pub(super) fn post(&self, command: HotplugCommand) {
        if let Some(commands) = &self.commands {
            commands.send(command).ok();
            // Fails only when the counter is full: the wake-up is pending already.
            self.wake.write(1).ok();
        }
    }

    /// Resets the device and unplugs everything after the vCPUs have stopped, and waits until it is done.
    pub(super) fn reset(&self) {
        let (done, wait) = mpsc::channel();
        self.post(HotplugCommand::Reset { done });
        // An error means that the thread is gone, which it has reported.
        wait.recv().ok();
    }
}

impl Drop for HotplugWorker {
    /// Ends and joins the thread.
    fn drop(&mut self) {
        self.commands = None;
        self.wake.write(1).ok();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread itself.
            thread.join().ok();
        }
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

struct Worker {
    parts: HotplugParts,
    poller: Poller<Token>,
    commands: mpsc::Receiver<HotplugCommand>,
    wake: Arc<EventFd>,
    /// The device has work that no kick will announce.
    pending: bool,
    /// Some device may still access what has been unplugged.
    lingering: bool,
    is_paused: bool,
    last_kick: Option<Instant>,
    operations: Operations,
}

/// Whether the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Turn,
    End,
}

impl Worker {
    fn main(mut self, failures: &VcpuEvents) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                match self.turn() {
                    Ok(Next::Turn) => {}
                    Ok(Next::End) => return Ok(()),
                    Err(error) => return Err(format!("Hotplug worker: {error}")),
                }
            }
        }));
        let message = match result {
            Ok(Ok(())) => return,
            Ok(Err(message)) => message,
            Err(_) => String::from("The hotplug worker panicked"),
        };
        failures.send(VcpuEvent::Ended(ExitReason::HostError(message)));
    }

    /// Waits once and serves what has happened: at most one plug or unplug.
    fn turn(&mut self) -> io::Result<Next> {
        for token in self.poller.wait(self.deadline())? {
            // Each read only takes back a wake-up; state says what there is to do.
            match token {
                Token::Commands => {
                    self.wake.read().ok();
                }
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
        self.take_commands()
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

    fn take_commands(&mut self) -> io::Result<Next> {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.serve(command),
                Err(mpsc::TryRecvError::Empty) => return Ok(Next::Turn),
                Err(mpsc::TryRecvError::Disconnected) => return Ok(Next::End),
            }
        }
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
