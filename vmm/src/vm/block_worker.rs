//! A drive's own thread: its requests and the disk they go to.
//!
//! Disks take as long as they take, so requests are carried out here, and
//! without the device's lock: neither the event loop nor a vCPU that touches the
//! drive's registers waits for one. Only a reset of the device waits, for the
//! step that is under way.

use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use devices::block::{BackendRefused, Block, BlockBackend};
use devices::virtio::QueueProgress;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::event_loop::answer;
use super::exit::ExitReason;
use super::handle::{Reply, VmError};
use super::poll::Poller;
use super::vcpu::{VcpuEvent, VcpuEvents};
use super::window::Window;
use crate::drive::{DriveError, DriveFile};

/// The request queue.
const REQUESTS: u16 = 0;
/// Turns that carry out all that a queue can hold, even if each batch is one request.
///
/// Without vCPUs a queue still need not run dry: a read may put a later available index over the
/// one that the driver left, and so on with each sector.
const DRAIN_TURNS: u32 = 1024;
/// Stack of the thread; only what is touched costs memory.
const STACK_BYTES: usize = 128 << 10;

/// What the event loop asks of a drive.
pub(super) enum BlockCommand {
    /// Carries out what the paused guest has made available, then says that pause `pause` holds.
    Settle { pause: u64 },
    /// The device was reset with the machine: forgets the work that is void.
    Forget { done: mpsc::Sender<()> },
    /// Puts another file in the place of the present one, or takes its new size.
    Replace { path: Option<PathBuf>, reply: Reply<()> },
}

/// The thread, as the event loop holds it.
pub(super) struct BlockWorker {
    window: Arc<Window<Block>>,
    commands: Option<mpsc::Sender<BlockCommand>>,
    wake: Arc<EventFd>,
    settled: Arc<AtomicU64>,
    place: Arc<Mutex<(PathBuf, u64)>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl BlockWorker {
    /// Starts the thread. `events`: where it says that it has settled, or cannot go on.
    pub(super) fn start(
        id: &str,
        window: Arc<Window<Block>>,
        file: Arc<DriveFile>,
        events: VcpuEvents,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let settled = Arc::new(AtomicU64::new(0));
        let place = Arc::new(Mutex::new(place_of(&file)));
        let (commands, receiver) = mpsc::channel();
        let mut poller = Poller::new()?;
        poller.watch(wake.as_raw_fd(), Token::Commands)?;
        poller.watch(window.touched().as_raw_fd(), Token::Touched)?;
        for doorbell in window.doorbells() {
            poller.watch(doorbell.as_raw_fd(), Token::Requests)?;
        }
        let worker = Worker {
            id: id.to_owned(),
            window: window.clone(),
            file,
            poller,
            commands: receiver,
            wake: wake.clone(),
            settled: settled.clone(),
            place: place.clone(),
            events,
            pending: false,
            settling: None,
        };
        let thread = thread::Builder::new()
            .name(format!("blk-{id}"))
            .stack_size(STACK_BYTES)
            .spawn(move || worker.main())?;
        Ok(Self { window, commands: Some(commands), wake, settled, place, thread: Some(thread) })
    }

    /// Sends a command. If the thread is gone, the requester sees its reply dropped.
    pub(super) fn post(&self, command: BlockCommand) {
        if let Some(commands) = &self.commands {
            commands.send(command).ok();
            // Fails only when the counter is full: the wake-up is pending already.
            self.wake.write(1).ok();
        }
    }

    /// The latest pause in which the drive has come to rest.
    pub(super) fn settled(&self) -> u64 {
        // Acquire: whoever copies the file next sees every write; pairs with `Worker::settle`.
        self.settled.load(Ordering::Acquire)
    }

    /// Path of the drive's file and size of the disk.
    pub(super) fn place(&self) -> (PathBuf, u64) {
        // A panic of a holder leaves a whole value behind.
        self.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resets the device after the vCPUs have stopped, and waits until the thread knows.
    ///
    /// Not by the thread itself: that would first carry out the rest of its batch, which can be
    /// hundreds of requests of gigabytes. So this waits for one step of the batch.
    pub(super) fn reset(&self) {
        self.window.lock().reset();
        let (done, wait) = mpsc::channel();
        self.post(BlockCommand::Forget { done });
        // An error means that the thread is gone, which it has reported.
        wait.recv().ok();
    }

    /// Ends and joins the thread, which first carries out what the guest has made available and
    /// makes everything permanent. Called with the vCPUs stopped.
    ///
    /// # Errors
    /// Why something that the guest has written may be lost.
    pub(super) fn finish(mut self) -> Result<(), String> {
        self.join()
    }

    fn join(&mut self) -> Result<(), String> {
        self.commands = None;
        self.wake.write(1).ok();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // A panic has been reported by the thread itself.
        thread.join().unwrap_or(Ok(()))
    }
}

impl Drop for BlockWorker {
    fn drop(&mut self) {
        if let Err(message) = self.join() {
            log::error!("{message}");
        }
    }
}

/// What can wake the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Commands,
    /// A vCPU wrote the status or configuration space, or left a queue pending.
    Touched,
    /// The driver has made requests available.
    Requests,
}

struct Worker {
    id: String,
    window: Arc<Window<Block>>,
    file: Arc<DriveFile>,
    poller: Poller<Token>,
    commands: mpsc::Receiver<BlockCommand>,
    wake: Arc<EventFd>,
    settled: Arc<AtomicU64>,
    /// What [`BlockWorker::place`] tells; its lock is held for a copy only.
    place: Arc<Mutex<(PathBuf, u64)>>,
    events: VcpuEvents,
    /// The device has work that no kick will announce.
    pending: bool,
    /// The pause that is waited for.
    settling: Option<u64>,
}

/// Whether the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Turn,
    End,
}

impl Worker {
    /// The result is that of the end: whether everything is on the disk.
    fn main(mut self) -> Result<(), String> {
        let turns = catch_unwind(AssertUnwindSafe(|| {
            loop {
                match self.turn() {
                    Ok(Next::Turn) => {}
                    Ok(Next::End) => return Ok(self.finish()),
                    Err(error) => return Err(format!("Drive {}: {error}", self.id)),
                }
            }
        }));
        let message = match turns {
            // A failure at the end is told by the event loop, which waits for it.
            Ok(Ok(finished)) => return finished,
            Ok(Err(message)) => message,
            Err(_) => format!("The worker of drive {} panicked", self.id),
        };
        self.events.send(VcpuEvent::Ended(ExitReason::HostError(message)));
        Ok(())
    }

    /// Waits once, serves what has happened, carries out at most one batch.
    fn turn(&mut self) -> io::Result<Next> {
        let deadline = self.pending.then(Instant::now);
        for token in self.poller.wait(deadline)? {
            // Each read only takes back a wake-up; state says what there is to do.
            match token {
                Token::Commands => {
                    self.wake.read().ok();
                }
                Token::Touched => {
                    self.window.touched().read().ok();
                    self.pending |= self.window.lock().progress() == QueueProgress::Pending;
                }
                Token::Requests => {
                    for doorbell in self.window.doorbells() {
                        doorbell.read().ok();
                    }
                    self.pending |= self.window.serve(REQUESTS) == QueueProgress::Pending;
                }
            }
        }
        if self.pending {
            self.advance();
        }
        let next = self.take_commands()?;
        self.report_rest();
        Ok(next)
    }

    /// Carries a batch out if one waits, and lets the device answer its driver.
    fn advance(&mut self) {
        let job = self.window.lock().device_mut().take_io();
        // The device is not locked here.
        let done = job.map(devices::block::IoJob::run);
        let mut transport = self.window.lock();
        if let Some(done) = done {
            transport.device_mut().io_done(done);
        }
        self.pending = transport.serve_pending() == QueueProgress::Pending;
    }

    fn take_commands(&mut self) -> io::Result<Next> {
        loop {
            match self.commands.try_recv() {
                Ok(BlockCommand::Settle { pause }) => {
                    // A kick may not have been read yet.
                    self.pending |= self.window.serve(REQUESTS) == QueueProgress::Pending;
                    self.settling = Some(pause);
                }
                Ok(BlockCommand::Forget { done }) => {
                    self.window.forget_kicks();
                    self.pending = false;
                    // The event loop waits for it, or has given up everything.
                    done.send(()).ok();
                }
                Ok(BlockCommand::Replace { path, reply }) => {
                    let result = self.replace(path.as_deref());
                    answer(reply, result.map_err(VmError::Drive));
                }
                Err(mpsc::TryRecvError::Empty) => return Ok(Next::Turn),
                Err(mpsc::TryRecvError::Disconnected) => return Ok(Next::End),
            }
        }
    }

    /// Carries out everything that is available. No vCPU runs any more.
    fn drain(&mut self) {
        self.pending |= self.window.serve(REQUESTS) == QueueProgress::Pending;
        for _ in 0..DRAIN_TURNS {
            if !self.pending {
                return;
            }
            self.advance();
        }
        log::warn!("drive {}: the guest's requests make new ones, the rest is void", self.id);
    }

    /// Says that a pause holds, once nothing is left to carry out.
    fn report_rest(&mut self) {
        if !self.pending
            && let Some(pause) = self.settling.take()
        {
            // Release: pairs with `BlockWorker::settled`.
            self.settled.store(pause, Ordering::Release);
            self.events.send(VcpuEvent::Paused);
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        self.drain();
        self.file.flush().map_err(|error| {
            let (id, path) = (&self.id, self.file.path());
            format!("Drive {id}: {path:?} could not be flushed, written data may be lost: {error}")
        })
    }

    /// Opens the new file, and puts it in place between two batches.
    fn replace(&mut self, path: Option<&Path>) -> Result<(), String> {
        let is_read_only = self.file.properties().is_read_only;
        let next = match path {
            Some(path) if !self.file.is_at(path) => DriveFile::open(path, is_read_only),
            Some(_) | None => self.file.remeasured(),
        };
        let next = Arc::new(next.map_err(|error: DriveError| super::chain(&error))?);
        loop {
            let job = self.window.lock().device_mut().take_io();
            let done = job.map(devices::block::IoJob::run);
            let mut transport = self.window.lock();
            if let Some(done) = done {
                transport.device_mut().io_done(done);
                self.pending = true;
            }
            match transport.device_mut().replace_backend(next.clone()) {
                Ok(()) => {
                    transport.config_changed();
                    break;
                }
                // A vCPU's register write has gathered a batch just now: it is carried out next.
                Err(BackendRefused::Busy) => {}
                Err(refused @ BackendRefused::ReadOnly) => return Err(refused.to_string()),
            }
        }
        let last = std::mem::replace(&mut self.file, next);
        if let Err(error) = last.flush() {
            log::error!("drive {}: flushing {:?} failed: {error}", self.id, last.path());
        }
        let place = place_of(&self.file);
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
        Ok(())
    }
}

fn place_of(file: &DriveFile) -> (PathBuf, u64) {
    (file.path().to_owned(), file.properties().bytes())
}

#[cfg(test)]
mod tests;
