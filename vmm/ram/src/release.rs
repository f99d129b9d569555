//! Releasing many pieces of guest RAM with few system calls.
//!
//! `process_madvise` takes up to 1,024 pieces and flushes the TLB once per
//! call, which with a running vCPU saves an IPI per piece. Which way to call it
//! the kernel allows is found out by `probe`; a kernel that allows none gets one
//! release call per piece.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::backing::Backing;
use crate::mapping::HostRange;

/// Pieces that one call takes (UIO_MAXIOV).
pub(crate) const PIECES_PER_CALL: usize = 1024;
/// Linux 6.14: "this process" without opening a descriptor (`PIDFD_SELF_THREAD`).
const PIDFD_SELF: libc::c_int = -10000;
/// How often an interrupted call is made again before its error counts.
const RETRIES: u32 = 16;

/// A way to call the kernel.
#[derive(Debug)]
pub(crate) enum Method {
    /// `process_madvise(PIDFD_SELF, ..)`.
    BatchedSelf,
    /// `process_madvise` through a descriptor of this process.
    BatchedPidfd(OwnedFd),
    /// The backing's own call, once per piece.
    PerPiece,
}

impl Method {
    /// `process_madvise` through a descriptor, if the kernel gives one (Linux 5.3).
    pub(crate) fn open_pidfd() -> io::Result<Self> {
        // SAFETY: getpid has no preconditions.
        let own_pid = unsafe { libc::getpid() };
        // SAFETY: pidfd_open takes two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, own_pid, 0) };
        match libc::c_int::try_from(fd) {
            Ok(fd) if fd >= 0 => {
                // SAFETY: the call returned a new descriptor that nothing else owns.
                Ok(Self::BatchedPidfd(unsafe { OwnedFd::from_raw_fd(fd) }))
            }
            Ok(_) | Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Its name, for people.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::BatchedSelf => "process_madvise (PIDFD_SELF)",
            Self::BatchedPidfd(_) => "process_madvise (pidfd)",
            Self::PerPiece => "madvise",
        }
    }

    fn pidfd(&self) -> Option<libc::c_int> {
        match self {
            Self::BatchedSelf => Some(PIDFD_SELF),
            Self::BatchedPidfd(fd) => Some(fd.as_raw_fd()),
            Self::PerPiece => None,
        }
    }
}

/// The calls that [`release_pieces`] makes; tests fake them.
pub(crate) trait ReleaseCalls {
    /// Whether [`Self::release_many`] works here.
    fn can_batch(&self) -> bool;
    /// Releases up to [`PIECES_PER_CALL`] pieces in order; returns the bytes done before the first that failed.
    fn release_many(&self, pieces: &[HostRange]) -> io::Result<usize>;
    /// Releases one piece.
    fn release_one(&self, piece: HostRange) -> io::Result<()>;
}

/// The calls of one backing, by one method.
pub(crate) struct HostCalls<'a> {
    backing: &'a dyn Backing,
    method: &'a Method,
}

impl<'a> HostCalls<'a> {
    /// # Safety
    /// All pieces given to the value later lie in live mappings of guest RAM
    /// on `backing`, at page boundaries, and no Rust reference covers them.
    pub(crate) const unsafe fn new(backing: &'a dyn Backing, method: &'a Method) -> Self {
        Self { backing, method }
    }
}

impl ReleaseCalls for HostCalls<'_> {
    fn can_batch(&self) -> bool {
        self.method.pidfd().is_some() && self.backing.batch_advice().is_some()
    }

    fn release_many(&self, pieces: &[HostRange]) -> io::Result<usize> {
        let unsupported = || io::Error::from_raw_os_error(libc::ENOSYS);
        let pidfd = self.method.pidfd().ok_or_else(unsupported)?;
        let advice = self.backing.batch_advice().ok_or_else(unsupported)?;
        let iovec = |piece: &HostRange| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(piece.start),
            iov_len: piece.len,
        };
        let vector: Vec<libc::iovec> = pieces.iter().map(iovec).collect();
        // SAFETY: the vector is live and `len` long, and the call only reads it; that the pieces
        // may be discarded is the contract of `HostCalls::new`.
        let done = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd,
                vector.as_ptr(),
                vector.len(),
                advice,
                0,
            )
        };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn release_one(&self, piece: HostRange) -> io::Result<()> {
        // SAFETY: the contract of `HostCalls::new` is the callee's.
        unsafe { self.backing.release_one(piece) }
    }
}

/// What [`release_pieces`] did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Bytes whose release the host accepted.
    pub(crate) bytes: u64,
    /// System calls made.
    pub(crate) calls: u64,
    /// The first piece refused, by index, and the reason.
    pub(crate) refused: Option<(usize, io::Error)>,
}

impl Outcome {
    fn refuse(&mut self, index: usize, error: io::Error) {
        self.refused.get_or_insert((index, error));
    }
}

/// Releases every piece that the host will release.
///
/// A batch that stops short names its culprit only by the byte count, so the
/// piece at which it stopped is tried alone: that either gets past a passing
/// obstacle or gives the true reason. The pieces after it are tried in any case.
pub(crate) fn release_pieces(calls: &impl ReleaseCalls, pieces: &[HostRange]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut first = 0;
    while let Some(rest) = pieces.get(first..).filter(|rest| !rest.is_empty()) {
        let batch = rest.get(..PIECES_PER_CALL).unwrap_or(rest);
        if batch.len() == 1 || !calls.can_batch() {
            alone(calls, first, rest[0], &mut outcome);
            first += 1;
            continue;
        }
        outcome.calls += 1;
        // An error here is that of the first piece, which then is tried alone.
        let done = calls.release_many(batch).unwrap_or(0);
        let (whole, left) = split_at_byte(batch, done);
        outcome.bytes += done_bytes(batch, done);
        first += whole;
        if let Some(stopped) = left {
            alone(calls, first, stopped, &mut outcome);
            first += 1;
        }
    }
    outcome
}

/// Releases one piece, again while the host says that it was interrupted.
fn alone(calls: &impl ReleaseCalls, index: usize, piece: HostRange, outcome: &mut Outcome) {
    for attempt in 0..=RETRIES {
        outcome.calls += 1;
        match calls.release_one(piece) {
            Ok(()) => {
                outcome.bytes += piece.len() as u64;
                return;
            }
            Err(error) if is_passing(&error) && attempt < RETRIES => {}
            Err(error) => return outcome.refuse(index, error),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Bytes to count for a batch of which the host claims `done`: never more than were asked.
fn done_bytes(batch: &[HostRange], done: usize) -> u64 {
    let asked: u64 = batch.iter().map(|piece| piece.len() as u64).sum();
    asked.min(done as u64)
}

/// How many pieces `done` bytes cover whole, and what is left of the next one, if any.
fn split_at_byte(batch: &[HostRange], mut done: usize) -> (usize, Option<HostRange>) {
    for (index, piece) in batch.iter().enumerate() {
        if done < piece.len() {
            return (index, Some(piece.without_first(done)));
        }
        done -= piece.len();
    }
    (batch.len(), None)
}

#[cfg(test)]
mod tests;
