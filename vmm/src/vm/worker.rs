//! A thread of its own for a device whose work takes long, with commands from the event loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::exit::ExitReason;
use super::vcpu::{VcpuEvent, VcpuEvents};

/// Stack of the thread; only what is touched costs memory.
const STACK_BYTES: usize = 256 << 10;

/// What a worker's thread does.
pub(super) trait Work: Send + 'static {
    /// What the event loop asks of it.
    type Command: Send + 'static;

    /// Names the thread and what it reports.
    const NAME: &str;

    /// Waits once, for [`Commands`] among others, and serves what has happened.
    ///
    /// # Errors
    /// If the thread cannot go on, which ends the VM.
    fn turn(&mut self) -> io::Result<()>;

    /// Where its commands come from.
    fn commands(&self) -> &Commands<Self::Command>;

    /// Carries out one of them.
    fn serve(&mut self, command: Self::Command);
}

/// The thread's end of its commands.
pub(super) struct Commands<C> {
    receiver: mpsc::Receiver<C>,
    wake: Arc<EventFd>,
}

impl<C> Commands<C> {
    /// Takes back the wake-up; what there is to do is in the commands.
    pub(super) fn woken(&self) {
        self.wake.read().ok();
    }
}

impl<C> AsRawFd for Commands<C> {
    /// Readable when a command has come, or no more will.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

/// The thread, as the event loop holds it. Dropped, it is joined; what it is at is finished first.
pub(super) struct Worker<C> {
    commands: Option<mpsc::Sender<C>>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl<C: Send + 'static> Worker<C> {
    /// Starts the thread. `failures`: where it reports that it cannot go on.
    ///
    /// # Errors
    /// `work`'s, or if there is no event counter or thread to be had.
    pub(super) fn start<W: Work<Command = C>>(
        failures: VcpuEvents,
        work: impl FnOnce(Commands<C>) -> io::Result<W>,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let (commands, receiver) = mpsc::channel();
        let work = work(Commands { receiver, wake: wake.clone() })?;
        let thread = thread::Builder::new()
            .name(String::from(W::NAME))
            .stack_size(STACK_BYTES)
            .spawn(move || main(work, &failures))?;
        Ok(Self { commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Sends a command. If the thread is gone, the requester sees its reply dropped.
    pub(super) fn post(&self, command: C) {
        if let Some(commands) = &self.commands {
            commands.send(command).ok();
            // Fails only when the counter is full: the wake-up is pending already.
            self.wake.write(1).ok();
        }
    }

    /// Sends a command and waits until it says that it is done.
    pub(super) fn wait_for(&self, command: impl FnOnce(mpsc::Sender<()>) -> C) {
        let (done, wait) = mpsc::channel();
        self.post(command(done));
        // An error means that the thread is gone, which it has reported.
        wait.recv().ok();
    }
}

impl<C> Drop for Worker<C> {
    fn drop(&mut self) {
        self.commands = None;
        self.wake.write(1).ok();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the thread itself.
            thread.join().ok();
        }
    }
}

fn main<W: Work>(mut work: W, failures: &VcpuEvents) {
    let message = match catch_unwind(AssertUnwindSafe(|| turns(&mut work))) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("The {} worker cannot go on: {error}", W::NAME),
        Err(_) => format!("The {} worker panicked", W::NAME),
    };
    failures.send(VcpuEvent::Ended(ExitReason::HostError(message)));
}

/// Turns until the event loop has let go.
fn turns<W: Work>(work: &mut W) -> io::Result<()> {
    loop {
        work.turn()?;
        loop {
            let command = work.commands().receiver.try_recv();
            match command {
                Ok(command) => work.serve(command),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}
