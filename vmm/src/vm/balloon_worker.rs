//! The balloon's own thread: queues, releases, resize operations.
//!
//! Releases take tens of milliseconds, so they run here, and without the
//! device's lock: neither the event loop nor a vCPU that reads the balloon's
//! registers waits for one. Everything else about the balloon is a command to
//! this thread, in order with its releases; a requester waits at most for one
//! window's release.

mod status;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use abi::PageCount;
use devices::balloon::Balloon;
use devices::balloon::operation::StallNotes;
use devices::clock::Clock;
use devices::virtio::QueueProgress;
use guest_ram::HostRam;

use super::event_loop::answer;
use super::handle::{BalloonStatus, Metric, OperationStatus, Reply, VmError};
use super::operations::Operations;
use super::poll::Poller;
use super::vcpu::VcpuEvents;
use super::window::Window;
use super::worker::{Commands, Work, Worker};

/// The host's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostClock(pub(super) Instant);

impl Clock for HostClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What the event loop asks of the balloon.
pub(super) enum BalloonCommand {
    /// Sets the target and begins an operation.
    SetTarget { target: PageCount, deadline: Option<Duration>, reply: Reply<OperationStatus> },
    /// The balloon as it is.
    Status(Reply<BalloonStatus>),
    /// An operation by number, or the latest.
    Operation { id: Option<u64>, reply: Reply<Option<OperationStatus>> },
    /// Adds the balloon's metrics to `own`.
    Metrics { own: Vec<Metric>, reply: Reply<Vec<Metric>> },
    /// The vCPUs were stopped, or started again.
    Paused(bool),
    /// The machine was reset.
    Reset { done: mpsc::Sender<()> },
}

/// The thread, as the event loop holds it.
pub(super) struct BalloonWorker(Worker<BalloonCommand>);

/// What the thread works on.
pub(super) struct BalloonParts {
    pub(super) window: Arc<Window<Balloon>>,
    pub(super) ram: Arc<HostRam>,
    pub(super) clock: HostClock,
    /// An operation without progress for so long has stalled.
    pub(super) stall_after: Duration,
}

impl BalloonWorker {
    /// Starts the thread. `failures`: where it reports that it cannot go on.
    pub(super) fn start(parts: BalloonParts, failures: VcpuEvents) -> io::Result<Self> {
        Worker::start(failures, |commands| BalloonWork::new(parts, commands)).map(Self)
    }

    /// Sends a command. If the thread is gone, the requester sees its reply dropped.
    pub(super) fn post(&self, command: BalloonCommand) {
        self.0.post(command);
    }

    /// Resets the device after the vCPUs have stopped, and waits until it is done.
    pub(super) fn reset(&self) {
        self.0.wait_for(|done| BalloonCommand::Reset { done });
    }
}

/// What can wake the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Commands,
    /// A vCPU wrote the status or configuration space, or left a queue pending.
    Touched,
    /// The driver notified this queue.
    Queue(u16),
}

struct BalloonWork {
    window: Arc<Window<Balloon>>,
    ram: Arc<HostRam>,
    clock: HostClock,
    poller: Poller<Token>,
    commands: Commands<BalloonCommand>,
    /// The device has work that no kick will announce.
    pending: bool,
    is_paused: bool,
    last_kick: Option<Instant>,
    operations: Operations,
}

impl Work for BalloonWork {
    type Command = BalloonCommand;

    const NAME: &str = "balloon";

    /// Waits once, serves what has happened, does at most one window's release.
    fn turn(&mut self) -> io::Result<()> {
        for token in self.poller.wait(self.deadline())? {
            // Each read only takes back a wake-up; state says what there is to do.
            match token {
                Token::Commands => self.commands.woken(),
                Token::Touched => {
                    self.window.touched().read().ok();
                    self.pending |= self.window.lock().progress() == QueueProgress::Pending;
                }
                Token::Queue(queue) => {
                    if let Some(doorbell) = self.window.doorbells().get(usize::from(queue)) {
                        doorbell.read().ok();
                    }
                    self.last_kick = Some(Instant::now());
                    self.pending |= self.window.serve(queue) == QueueProgress::Pending;
                }
            }
        }
        if self.pending {
            self.advance();
        }
        self.observe();
        Ok(())
    }

    fn commands(&self) -> &Commands<Self::Command> {
        &self.commands
    }

    fn serve(&mut self, command: BalloonCommand) {
        match command {
            BalloonCommand::SetTarget { target, deadline, reply } => {
                let result = self.set_target(target, deadline);
                answer(reply, result);
            }
            BalloonCommand::Status(reply) => answer(reply, Ok(self.status())),
            BalloonCommand::Operation { id, reply } => answer(reply, Ok(self.operations.find(id))),
            BalloonCommand::Metrics { mut own, reply } => {
                self.add_metrics(&mut own);
                answer(reply, Ok(own));
            }
            BalloonCommand::Paused(is_paused) => {
                // Time until now counts as it was until now.
                self.observe();
                self.is_paused = is_paused;
                self.observe();
            }
            BalloonCommand::Reset { done } => {
                self.reset();
                // The event loop waits for it, or has given up everything.
                done.send(()).ok();
            }
        }
    }
}

impl BalloonWork {
    fn new(parts: BalloonParts, commands: Commands<BalloonCommand>) -> io::Result<Self> {
        let BalloonParts { window, ram, clock, stall_after } = parts;
        let mut poller = Poller::new()?;
        poller.watch(commands.as_raw_fd(), Token::Commands)?;
        poller.watch(window.touched().as_raw_fd(), Token::Touched)?;
        for (queue, doorbell) in (0..).zip(window.doorbells()) {
            poller.watch(doorbell.as_raw_fd(), Token::Queue(queue))?;
        }
        let operations = Operations::new(stall_after, ram.pages(), StallNotes::BALLOON);
        Ok(Self {
            window,
            ram,
            clock,
            poller,
            commands,
            pending: false,
            is_paused: false,
            last_kick: None,
            operations,
        })
    }

    /// Now if the device has work; else when the running operation wants to be looked at.
    fn deadline(&self) -> Option<Instant> {
        if self.pending {
            return Some(Instant::now());
        }
        let check = self.operations.next_check()?;
        self.clock.0.checked_add(check)
    }

    /// Runs a release if one waits, and lets the device answer its driver.
    fn advance(&mut self) {
        let job = self.window.lock().device_mut().take_release();
        // The device is not locked here.
        let done = job.map(devices::balloon::ReleaseJob::run);
        let mut transport = self.window.lock();
        if let Some(done) = done {
            transport.device_mut().release_done(done);
        }
        self.pending = transport.serve_pending() == QueueProgress::Pending;
    }

    fn set_target(
        &mut self,
        target: PageCount,
        deadline: Option<Duration>,
    ) -> Result<OperationStatus, VmError> {
        let mut transport = self.window.lock();
        let set = transport.device_mut().set_target(target);
        set.map_err(|error| VmError::TargetAboveRam {
            target_bytes: error.requested.checked_bytes().unwrap_or(u64::MAX),
            ram_bytes: error.max.bytes(),
        })?;
        // An equal target is announced too: a driver that ran out of memory tries again.
        transport.config_changed();
        drop(transport);
        let seen = (self.clock.now(), self.observation());
        Ok(self.operations.begin(target, deadline, seen))
    }

    /// Tells the running operation what is seen now.
    fn observe(&mut self) {
        let seen = self.observation();
        self.operations.observe(self.clock.now(), seen);
    }

    fn reset(&mut self) {
        self.window.reset();
        self.pending = false;
        self.last_kick = None;
        self.observe();
    }
}
