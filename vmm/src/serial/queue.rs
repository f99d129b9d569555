//! Bytes from the guest that the host has not written yet.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Most bytes that wait for a slow reader; more are dropped.
pub(crate) const CAPACITY: usize = 64 << 10;
/// Bytes offered to the file at once.
const CHUNK: usize = 4096;
/// Writes in one turn of the event loop: what empties a full queue.
const CHUNKS_PER_TURN: usize = CAPACITY / CHUNK;

/// A bounded byte queue that never blocks its writer.
pub(crate) struct OutputQueue {
    bytes: Mutex<VecDeque<u8>>,
    wake: EventFd,
    written: AtomicU64,
    dropped: AtomicU64,
    /// Microseconds from `started` to the first byte, at least 1; 0: no byte yet.
    first_byte_us: AtomicU64,
    started: Instant,
}

impl OutputQueue {
    /// An empty queue.
    pub(crate) fn new(started: Instant) -> io::Result<Self> {
        Ok(Self {
            bytes: Mutex::new(VecDeque::new()),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            first_byte_us: AtomicU64::new(0),
            started,
        })
    }

    /// Appends what fits and drops the rest.
    pub(crate) fn push(&self, bytes: &[u8]) {
        // Relaxed: statistics, read one by one.
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if self.first_byte_us.load(Ordering::Relaxed) == 0 {
            let us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
            self.first_byte_us.store(us, Ordering::Relaxed);
        }
        let mut queue = self.lock();
        let was_empty = queue.is_empty();
        let room = CAPACITY - queue.len();
        let taken = bytes.len().min(room);
        queue.extend(bytes.iter().take(taken));
        drop(queue);
        if taken < bytes.len() {
            self.dropped.fetch_add((bytes.len() - taken) as u64, Ordering::Relaxed);
        }
        if was_empty && taken > 0 {
            // Fails only when the counter is full, which means that a wake-up is pending.
            self.wake.write(1).ok();
        }
    }

    /// Bytes that [`Self::push`] would take.
    pub(crate) fn room(&self) -> usize {
        CAPACITY - self.lock().len()
    }

    /// Hands the front part of the queue to `write` until nothing is left, and drops what it took.
    ///
    /// `write` runs without the lock, on a copy of at most a page. A guest that
    /// fills the queue as fast as it is emptied does not hold the caller: after
    /// [`CHUNKS_PER_TURN`] the rest waits for [`Self::wake`], which is readable then.
    ///
    /// # Errors
    /// What `write` returned; the bytes that it was offered stay queued.
    pub(crate) fn drain(
        &self,
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut chunk = Vec::new();
        for _ in 0..CHUNKS_PER_TURN {
            chunk.clear();
            chunk.extend(self.lock().iter().take(CHUNK));
            if chunk.is_empty() {
                return Ok(());
            }
            let taken = write(&chunk)?.min(chunk.len());
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            // There is one reader, the event loop, so the front is still what was copied.
            self.lock().drain(..taken);
        }
        self.wake.write(1).ok();
        Ok(())
    }

    /// Readable when bytes came into the empty queue, or when a turn ended before the queue did.
    pub(crate) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Whether all has been written out.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Bytes that the guest wrote.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes lost because the reader was slow.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts bytes that were queued and can never be written.
    pub(crate) fn discard_all(&self) {
        let mut queue = self.lock();
        self.dropped.fetch_add(queue.len() as u64, Ordering::Relaxed);
        queue.clear();
    }

    /// Microseconds from the start to the guest's first byte.
    pub(crate) fn first_byte_us(&self) -> Option<u64> {
        Some(self.first_byte_us.load(Ordering::Relaxed)).filter(|&us| us != 0)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
