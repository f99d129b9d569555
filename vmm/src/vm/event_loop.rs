//! The event loop: one thread that owns the machine and answers for it.
//!
//! It waits for requests, vCPU events, signals, the serial console and the
//! console device, and never for the guest: what needs the guest is remembered
//! (a pause, a stop, a scenario) and answered when the guest has done it.
//!
//! Threads: this one; the vCPUs, which tell it of ends and pauses; the balloon
//! worker, which serves the balloon's queues and owns its operations.

mod requests;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use devices::console::Console;
use devices::virtio::QueueProgress;
use tokio::sync::oneshot;
use vmm_sys_util::eventfd::EventFd;

use super::balloon_worker::BalloonWorker;
use super::chassis::Chassis;
use super::drives::Drives;
use super::entropy::{self, EntropyService};
use super::exit::ExitReason;
use super::handle::Reply;
use super::hotplug_worker::HotplugWorker;
use super::mailbox::Mailbox;
use super::metrics_file::MetricsFile;
use super::poll::Poller;
use super::stdio::{Stdio, Turn};
use super::vcpu::{VcpuEvent, Vcpus};
use super::window::Window;
use super::{NotStarted, OnReset, StartError, chain};
use crate::agent::{Agent, AgentEvent};
pub(crate) use requests::answer;
use requests::answer_all;

/// What can wake the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// Requests from handles.
    Requests,
    /// Events from vCPUs.
    Vcpus,
    /// A signal that ends the VM.
    Signal,
    /// The guest wrote to a console.
    SerialOutput,
    /// The consoles' output has room.
    SerialWritable,
    /// The consoles' input has bytes.
    SerialInput,
    /// The terminal has another size.
    Resized,
    /// The guest read all serial input.
    SerialDrained,
    /// The guest notified a console queue.
    ConsoleQueue(u16),
    /// A vCPU wrote a console register.
    ConsoleTouched,
    /// The guest notified the entropy device.
    EntropyQueue,
    /// A vCPU wrote a register of the entropy device.
    EntropyTouched,
}

/// Whether vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunState {
    Running,
    /// Not all have left the guest yet.
    Pausing,
    /// They have; drives carry out what the guest has made available.
    Settling,
    Paused,
}

/// A stop that the guest was asked for.
#[derive(Default)]
struct Stopping {
    /// `None`: beyond what a clock can say.
    deadline: Option<Instant>,
    replies: Vec<Reply<bool>>,
}

/// What the loop is made of at the start.
pub(super) struct Parts {
    pub(super) chassis: Chassis,
    pub(super) balloon: Option<BalloonWorker>,
    pub(super) hotplug: Option<HotplugWorker>,
    pub(super) drives: Drives,
    pub(super) stdio: Stdio,
    pub(super) mailbox: Mailbox,
    pub(super) metrics: Option<MetricsFile>,
    pub(super) vcpu_events: Receiver<VcpuEvent>,
    pub(super) vcpu_wake: Arc<EventFd>,
}

/// The loop's state.
pub(super) struct EventLoop {
    parts: Parts,
    vcpus: Vcpus,
    poller: Poller<Token>,
    agent: Agent,
    /// The guest's conversations on the agent port so far.
    agent_sessions: u64,
    run_state: RunState,
    pausing: Vec<Reply<()>>,
    stopping: Option<Stopping>,
    /// Microseconds from the start of the process to the guest's `ready`.
    ready_us: Option<u64>,
    /// Console chains are left to be served without another kick.
    console_pending: bool,
    /// The console or its output has changed: the consoles' side of the host has its turn.
    hvc_due: bool,
    entropy: Option<EntropyService>,
}

impl EventLoop {
    /// Starts the vCPUs.
    ///
    /// # Errors
    /// [`NotStarted`]: what the host refused, and the mailbox.
    pub(super) fn start(mut parts: Parts) -> Result<Self, Box<NotStarted>> {
        let (poller, vcpus) = match begin(&mut parts) {
            Ok(begun) => begun,
            Err(error) => {
                let Parts { mailbox, .. } = parts;
                return Err(Box::new(NotStarted { error, mailbox }));
            }
        };
        let entropy = parts.chassis.entropy_service();
        Ok(Self {
            parts,
            vcpus,
            poller,
            agent: Agent::default(),
            agent_sessions: 0,
            run_state: RunState::Running,
            pausing: Vec::new(),
            stopping: None,
            ready_us: None,
            console_pending: false,
            hvc_due: false,
            entropy,
        })
    }

    /// Runs to the VM's end; all threads are joined and all output is written on return.
    pub(super) fn run(mut self) -> ExitReason {
        let end = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(error) => break ExitReason::HostError(format!("Event loop: {error}")),
            }
        };
        let stopping = self.stopping.take();
        let end = self.finish(end);
        match (end, stopping) {
            (ExitReason::PowerOff, Some(stopping)) => {
                answer_all(stopping.replies, Ok(true));
                ExitReason::Stopped { by_guest: true }
            }
            (end, Some(stopping)) => {
                answer_all(stopping.replies, Ok(false));
                end
            }
            (end, None) => end,
        }
    }

    /// Waits once and serves what has happened.
    fn turn(&mut self) -> io::Result<Option<ExitReason>> {
        for token in self.poller.wait(self.wake_at())? {
            if let Some(end) = self.dispatch(token)? {
                return Ok(Some(end));
            }
        }
        if std::mem::take(&mut self.console_pending) {
            let progress = self.console().lock().serve_pending();
            self.console_served(progress);
        }
        if let Some(entropy) = &mut self.entropy {
            entropy.turn();
        }
        let late = self.parts.stdio.deadline().is_some_and(|deadline| deadline <= Instant::now());
        if std::mem::take(&mut self.hvc_due) || late {
            let turn = self.parts.stdio.serve_hvc(&mut self.poller)?;
            if let Some(end) = self.stdio_served(turn) {
                return Ok(Some(end));
            }
        }
        let expired = self.deadline().is_some_and(|deadline| deadline <= Instant::now());
        Ok(expired.then_some(ExitReason::Stopped { by_guest: false }))
    }

    /// When the loop has something to do without an event.
    fn wake_at(&self) -> Option<Instant> {
        let console = self.console_pending.then(Instant::now);
        let entropy = self.entropy.as_ref().and_then(EntropyService::deadline);
        let stdio = self.parts.stdio.deadline();
        [self.deadline(), console, entropy, stdio].into_iter().flatten().min()
    }

    /// When a stop ends the VM whatever the guest does.
    fn deadline(&self) -> Option<Instant> {
        self.stopping.as_ref()?.deadline
    }

    fn dispatch(&mut self, token: Token) -> io::Result<Option<ExitReason>> {
        let poller = &mut self.poller;
        match token {
            Token::Requests => return Ok(self.take_requests()),
            Token::Vcpus => return Ok(self.take_vcpu_events()),
            Token::Signal => {
                if let Some(signal) = self.parts.mailbox.take_signal() {
                    log::info!("signal {signal}: ending the VM");
                    return Ok(Some(ExitReason::Stopped { by_guest: false }));
                }
            }
            Token::SerialOutput | Token::SerialWritable => {
                self.parts.stdio.pump_output(poller)?;
                self.hvc_due = true;
            }
            Token::Resized => self.parts.stdio.resized(),
            Token::SerialInput => {
                let turn = self.parts.stdio.pump_input(poller)?;
                return Ok(self.stdio_served(turn));
            }
            Token::SerialDrained => {
                let turn = self.parts.stdio.drained(poller)?;
                return Ok(self.stdio_served(turn));
            }
            Token::ConsoleQueue(queue) => {
                if let Some(doorbell) = self.console().doorbells().get(usize::from(queue)) {
                    // Only a wake-up; the ring says what there is to do.
                    doorbell.read().ok();
                }
                let progress = self.console().serve(queue);
                self.console_served(progress);
            }
            Token::ConsoleTouched => {
                self.console().touched().read().ok();
                let progress = self.console().lock().progress();
                self.console_served(progress);
            }
            Token::EntropyQueue => self.entropy.iter_mut().for_each(EntropyService::kicked),
            Token::EntropyTouched => self.entropy.iter_mut().for_each(EntropyService::touched),
        }
        Ok(None)
    }

    fn console(&self) -> &Window<Console> {
        &self.parts.chassis.console
    }

    /// What a turn of the guest's consoles means for the loop.
    fn stdio_served(&mut self, turn: Turn) -> Option<ExitReason> {
        self.console_pending |= turn.more;
        turn.quit.then_some(ExitReason::Stopped { by_guest: false })
    }

    /// Moves bytes between the agent and its port after the console did something.
    fn console_served(&mut self, progress: QueueProgress) {
        self.console_pending = progress == QueueProgress::Pending;
        self.hvc_due = true;
        let mut transport = self.parts.chassis.console.lock();
        let console = transport.device_mut();
        let sessions = console.guest_sessions();
        if sessions != self.agent_sessions {
            self.agent_sessions = sessions;
            self.agent.reset();
        }
        let mut bytes = Vec::new();
        // A guest that sends without end must not hold the loop: what is left stays in the ring
        // and its next turn comes with the next pass of the loop.
        let more = console.port_read(&mut bytes) > 0 && console.port_readable() > 0;
        let event = self.agent.receive(&bytes);
        self.agent.send(|bytes| console.port_write(bytes));
        drop(transport);
        self.console_pending |= more;
        match event {
            Some(AgentEvent::Ready { free_pages }) => {
                let us = self.parts.chassis.started.elapsed().as_micros();
                self.ready_us.get_or_insert(u64::try_from(us).unwrap_or(u64::MAX));
                log::info!("guest ready: free_pages={free_pages} us={us}");
            }
            None => {}
        }
    }

    fn send_to_agent(&mut self) {
        let mut transport = self.parts.chassis.console.lock();
        let console = transport.device_mut();
        self.agent.send(|bytes| console.port_write(bytes));
    }

    fn take_vcpu_events(&mut self) -> Option<ExitReason> {
        // Only a wake-up; the channel says what there is.
        self.parts.vcpu_wake.read().ok();
        while let Ok(event) = self.parts.vcpu_events.try_recv() {
            match event {
                VcpuEvent::Paused => self.paused(),
                VcpuEvent::Ended(ExitReason::Reset)
                    if self.parts.chassis.on_reset == OnReset::Reboot
                        && self.stopping.is_none() =>
                {
                    if let Err(message) = self.reboot() {
                        return Some(ExitReason::HostError(message));
                    }
                }
                VcpuEvent::Ended(reason) => return Some(reason),
            }
        }
        None
    }

    /// Restarts the guest in place: RAM reads zero, devices are as after power-on, the balloon target survives.
    fn reboot(&mut self) -> Result<(), String> {
        log::info!("the guest reset itself: rebooting");
        let failed = |error: &dyn std::error::Error| format!("Reboot: {}", chain(error));
        self.vcpus.stop();
        // Of the machine that is gone.
        while self.parts.vcpu_events.try_recv().is_ok() {}
        if let Some(balloon) = &self.parts.balloon {
            balloon.reset();
        }
        if let Some(hotplug) = &self.parts.hotplug {
            hotplug.reset();
        }
        self.parts.drives.reset();
        self.agent.reset();
        self.ready_us = None;
        let chassis = &mut self.parts.chassis;
        chassis.reboot().map_err(|error| failed(&error))?;
        self.vcpus = chassis.start_vcpus().map_err(|error| failed(&error))?;
        if self.run_state != RunState::Running {
            // The pause that the reset overtook still holds.
            self.run_state = RunState::Pausing;
            self.vcpus.pause();
        }
        Ok(())
    }

    fn take_requests(&mut self) -> Option<ExitReason> {
        self.parts.mailbox.acknowledge();
        while let Some(request) = self.parts.mailbox.take_request() {
            if let Some(end) = self.serve(request) {
                return Some(end);
            }
        }
        None
    }

    /// Ends all threads; disks are complete, and what the guest and the counters said last is written on return.
    ///
    /// `end` again, unless a disk spoils it.
    fn finish(self, end: ExitReason) -> ExitReason {
        let last = self.parts.metrics.as_ref().and_then(|_file| {
            let (reply, metrics) = oneshot::channel();
            self.metrics(reply);
            metrics.blocking_recv().ok()?.ok()
        });
        let Self { parts, vcpus, .. } = self;
        drop(vcpus);
        let Parts { mut stdio, mailbox, metrics, drives, .. } = parts;
        let end = match (drives.finish(), end) {
            (Err(message), ExitReason::PowerOff | ExitReason::Stopped { .. }) => {
                ExitReason::HostError(message)
            }
            (Err(message), end) => {
                log::error!("{message}");
                end
            }
            (Ok(()), end) => end,
        };
        stdio.finish();
        // Whoever still waits for an answer gets none, the metrics thread too.
        drop(mailbox);
        if let Some(file) = metrics {
            file.finish(last.unwrap_or_default());
        }
        end
    }
}

/// Everything of a start that can fail.
fn begin(parts: &mut Parts) -> Result<(Poller<Token>, Vcpus), StartError> {
    let mut poller = Poller::new().map_err(|source| StartError::host("epoll", source))?;
    register(&mut poller, parts)
        .map_err(|source| StartError::host("Watching the VM's files", source))?;
    let vcpus = parts
        .chassis
        .start_vcpus()
        .map_err(|source| StartError::host("Starting the vCPUs", source))?;
    Ok((poller, vcpus))
}

fn register(poller: &mut Poller<Token>, parts: &mut Parts) -> io::Result<()> {
    parts.mailbox.register(poller, Token::Requests, Token::Signal)?;
    poller.watch(parts.vcpu_wake.as_raw_fd(), Token::Vcpus)?;
    let console = &parts.chassis.console;
    poller.watch(console.touched().as_raw_fd(), Token::ConsoleTouched)?;
    for (queue, doorbell) in (0..).zip(console.doorbells()) {
        poller.watch(doorbell.as_raw_fd(), Token::ConsoleQueue(queue))?;
    }
    if let Some(window) = &parts.chassis.entropy {
        entropy::watch(window, poller)?;
    }
    parts.stdio.register(poller)
}
