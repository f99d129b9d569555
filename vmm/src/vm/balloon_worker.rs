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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use abi::PageCount;
use devices::balloon::Balloon;
use devices::balloon::operation::StallNotes;
use devices::clock::Clock;
use devices::virtio::QueueProgress;
use guest_ram::HostRam;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::event_loop::answer;
use super::exit::ExitReason;
use super::handle::{BalloonStatus, Metric, OperationStatus, Reply, VmError};
use super::operations::Operations;
use super::poll::Poller;
use super::vcpu::{VcpuEvent, VcpuEvents};
use super::window::Window;

/// Stack of the thread; only what is touched costs memory.
const STACK_BYTES: usize = 256 << 10;

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
pub(super) struct BalloonWorker {
    commands: Option<mpsc::Sender<BalloonCommand>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl BalloonWorker {
    /// Starts the thread. `failures`: where it reports that it cannot go on.
    pub(super) fn start(
        window: Arc<Window<Balloon>>,
        ram: Arc<HostRam>,
        clock: HostClock,
        stall_after: Duration,
        failures: VcpuEvents,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let (commands, receiver) = mpsc::channel();
        let mut poller = Poller::new()?;
        poller.watch(wake.as_raw_fd(), Token::Commands)?;
        poller.watch(window.touched().as_raw_fd(), Token::Touched)?;
        for (queue, doorbell) in (0..).zip(window.doorbells()) {
            poller.watch(doorbell.as_raw_fd(), Token::Queue(queue))?;
        }
        let operations = Operations::new(stall_after, ram.pages(), StallNotes::BALLOON);
        let worker = Worker {
            window,
            ram,
            clock,
            poller,
            commands: receiver,
            wake: wake.clone(),
            pending: false,
            is_paused: false,
            last_kick: None,
            operations,
        };
        let thread = thread::Builder::new()
            .name(String::from("balloon"))
            .stack_size(STACK_BYTES)
            .spawn(move || worker.main(&failures))?;
        Ok(Self { commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Sends a command. If the thread is gone, the requester sees its reply dropped.
    pub(super) fn post(&self, command: BalloonCommand) {
        if let Some(commands) = &self.commands {
            commands.send(command).ok();
            // Fails only when the counter is full: the wake-up is pending already.
            self.wake.write(1).ok();
        }
    }

    /// Resets the device after the vCPUs have stopped, and waits until it is done.
    pub(super) fn reset(&self) {
        let (done, wait) = mpsc::channel();
        self.post(BalloonCommand::Reset { done });
        // An error means that the thread is gone, which it has reported.
        wait.recv().ok();
    }
}

impl Drop for BalloonWorker {
    /// Ends and joins the thread; a release that runs is finished first.
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
    /// A vCPU wrote the status or configuration space, or left a queue pending.
    Touched,
    /// The driver notified this queue.
    Queue(u16),
}

struct Worker {
    window: Arc<Window<Balloon>>,
    ram: Arc<HostRam>,
    clock: HostClock,
    poller: Poller<Token>,
    commands: mpsc::Receiver<BalloonCommand>,
    wake: Arc<EventFd>,
    /// The device has work that no kick will announce.
    pending: bool,
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
                    Err(error) => return Err(format!("Balloon worker: {error}")),
                }
            }
        }));
        let message = match result {
            Ok(Ok(())) => return,
            Ok(Err(message)) => message,
            Err(_) => String::from("The balloon worker panicked"),
        };
        failures.send(VcpuEvent::Ended(ExitReason::HostError(message)));
    }

    /// Waits once, serves what has happened, does at most one window's release.
    fn turn(&mut self) -> io::Result<Next> {
        for token in self.poller.wait(self.deadline())? {
            // Each read only takes back a wake-up; state says what there is to do.
            match token {
                Token::Commands => {
                    self.wake.read().ok();
                }
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
        self.take_commands()
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

    fn take_commands(&mut self) -> io::Result<Next> {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.serve(command),
                Err(mpsc::TryRecvError::Empty) => return Ok(Next::Turn),
                Err(mpsc::TryRecvError::Disconnected) => return Ok(Next::End),
            }
        }
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
