//! vCPU threads: running, pausing, stopping, and what their exits mean.
//!
//! The event loop owns a [`Vcpus`]; each thread owns its vCPU file. A request
//! to pause or stop is a state that every thread checks before it enters the
//! guest, and a signal that makes a thread inside the guest leave it. The
//! signal's handler sets `immediate_exit`, so that a signal which comes between
//! the check and KVM_RUN is not lost: KVM_RUN then returns at once.

mod exits;
mod kick;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::Killable;

use super::board::Board;
use super::exit::ExitReason;

/// Stack of a vCPU thread; device models run on it. Only what is touched costs memory.
const STACK_BYTES: usize = 256 << 10;

/// What a vCPU thread tells the event loop.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum VcpuEvent {
    /// All vCPUs have left the guest because of a pause.
    Paused,
    /// The machine has ended; the vCPU that says so no longer runs.
    Ended(ExitReason),
}

/// How vCPU threads reach the event loop.
#[derive(Clone)]
pub(crate) struct VcpuEvents {
    sender: mpsc::Sender<VcpuEvent>,
    wake: Arc<EventFd>,
}

impl VcpuEvents {
    /// Events go to `sender`, and `wake` is written after each.
    pub(crate) fn new(sender: mpsc::Sender<VcpuEvent>, wake: Arc<EventFd>) -> Self {
        Self { sender, wake }
    }

    /// Tells the event loop.
    pub(crate) fn send(&self, event: VcpuEvent) {
        // Either fails only when the event loop is gone, and then nobody wants to know.
        self.sender.send(event).ok();
        self.wake.write(1).ok();
    }
}

/// What the threads shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

/// Shared by the event loop and the threads.
struct Gate {
    /// A `Wanted`; written under `parked`'s lock, read without it before each KVM_RUN.
    wanted: AtomicU8,
    /// Threads that wait at the gate.
    parked: Mutex<u8>,
    changed: Condvar,
    threads: u8,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, u8> {
        // A count is never half-written.
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self) -> Wanted {
        // Acquire pairs with the Release in `want`. A stale value is harmless: a signal follows.
        match self.wanted.load(Ordering::Acquire) {
            0 => Wanted::Run,
            1 => Wanted::Pause,
            _ => Wanted::Stop,
        }
    }

    fn want(&self, wanted: Wanted) {
        let _parked = self.lock();
        self.wanted.store(wanted as u8, Ordering::Release);
        self.changed.notify_all();
    }

    /// Waits until the thread may run; `false`: it shall end.
    fn pass(&self, events: &VcpuEvents) -> bool {
        if self.wanted() == Wanted::Run {
            return true;
        }
        let mut parked = self.lock();
        *parked += 1;
        if *parked == self.threads && self.wanted() == Wanted::Pause {
            events.send(VcpuEvent::Paused);
        }
        while self.wanted() == Wanted::Pause {
            parked = self.changed.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        *parked -= 1;
        self.wanted() == Wanted::Run
    }
}

/// Exits of one vCPU by kind.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters {
    /// Port I/O.
    pub(crate) port: AtomicU64,
    /// Memory-mapped I/O.
    pub(crate) mmio: AtomicU64,
    /// KVM_RUN interrupted by a signal.
    pub(crate) interrupted: AtomicU64,
}

/// The vCPU threads of a machine.
pub(crate) struct Vcpus {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a thread for each vCPU.
    ///
    /// `counters`: one per vCPU, which outlive a reboot.
    ///
    /// # Errors
    /// When the host refuses a thread or the signal handler; none is left running.
    pub(crate) fn start(
        vcpus: Vec<VcpuFd>,
        board: &Arc<Board>,
        events: &VcpuEvents,
        counters: &[Arc<ExitCounters>],
        software_kvm: bool,
    ) -> io::Result<Self> {
        kick::install()?;
        let gate = Arc::new(Gate {
            wanted: AtomicU8::new(Wanted::Run as u8),
            parked: Mutex::new(0),
            changed: Condvar::new(),
            threads: u8::try_from(vcpus.len()).unwrap_or(u8::MAX),
        });
        let mut set = Self { gate, threads: Vec::new() };
        for (id, (vcpu, counters)) in (0..).zip(vcpus.into_iter().zip(counters)) {
            let thread = VcpuThread {
                id,
                software_kvm,
                gate: set.gate.clone(),
                board: board.clone(),
                events: events.clone(),
                counters: counters.clone(),
            };
            let spawned = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(STACK_BYTES)
                .spawn(move || thread.main(vcpu));
            // On an error `set` is dropped, which ends the threads that exist.
            set.threads.push(spawned?);
        }
        Ok(set)
    }

    /// Makes every vCPU leave the guest and wait; [`VcpuEvent::Paused`] says when all do.
    pub(crate) fn pause(&self) {
        self.gate.want(Wanted::Pause);
        self.kick();
    }

    /// Lets paused vCPUs go on.
    pub(crate) fn resume(&self) {
        self.gate.want(Wanted::Run);
    }

    /// Whether every vCPU waits at the gate.
    pub(crate) fn all_parked(&self) -> bool {
        *self.gate.lock() == self.gate.threads
    }

    /// Ends and joins all threads; their vCPU files are closed then.
    pub(crate) fn stop(&mut self) {
        self.gate.want(Wanted::Stop);
        self.kick();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread itself.
            thread.join().ok();
        }
    }

    fn kick(&self) {
        for thread in &self.threads {
            // Fails for a thread that has ended, which needs no kick.
            thread.kill(kick::signal()).ok();
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a vCPU thread works with.
struct VcpuThread {
    id: u8,
    software_kvm: bool,
    gate: Arc<Gate>,
    board: Arc<Board>,
    events: VcpuEvents,
    counters: Arc<ExitCounters>,
}

impl VcpuThread {
    fn main(self, mut vcpu: VcpuFd) {
        let end = catch_unwind(AssertUnwindSafe(|| self.run(&mut vcpu)));
        match end {
            Ok(None) => {}
            Ok(Some(reason)) => self.events.send(VcpuEvent::Ended(reason)),
            Err(_) => {
                let message = format!("The thread of vCPU {} panicked", self.id);
                self.events.send(VcpuEvent::Ended(ExitReason::HostError(message)));
            }
        }
    }

    /// Runs the vCPU until it ends the machine, or until it is told to stop (`None`).
    fn run(&self, vcpu: &mut VcpuFd) -> Option<ExitReason> {
        // SAFETY: `vcpu` is borrowed for all of this function, at whose end `kick` is dropped.
        let kick = unsafe { kick::Target::register(vcpu) };
        loop {
            // Before the gate is looked at: a kick that comes after this line is seen by KVM_RUN.
            kick.clear();
            if !self.gate.pass(&self.events) {
                return None;
            }
            if let Some(end) = self.step(vcpu) {
                return Some(end);
            }
        }
    }

    /// Enters the guest once and serves the exit.
    fn step(&self, vcpu: &mut VcpuFd) -> Option<ExitReason> {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&self.counters.port);
                self.board.port_write(port, data)
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&self.counters.port);
                self.board.port_read(port, data);
                None
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                count(&self.counters.mmio);
                self.board.mmio_read(gpa, data);
                None
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                count(&self.counters.mmio);
                self.board.mmio_write(gpa, data);
                None
            }
            Ok(VcpuExit::Intr) => None,
            Ok(other) => {
                let kind = exits::Fatal::from(other);
                Some(kind.explain(vcpu, self.id, self.software_kvm))
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(&self.counters.interrupted);
                None
            }
            Err(error) => Some(exits::run_failed(error, vcpu, self.id)),
        }
    }
}

#[cfg(test)]
mod tests;
