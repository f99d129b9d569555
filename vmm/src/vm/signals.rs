//! SIGINT, SIGTERM and their kin, and SIGWINCH, as files that the event loop reads.

use std::fs::File;
use std::io::{self, Read};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vmm_sys_util::signal::{block_signal, create_sigset};

/// The signals that end the VM cleanly.
const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// The signals that end the VM, blocked in the thread that made this and in those it starts.
pub(crate) struct Signals(File);

impl Signals {
    /// Blocks the signals and opens the file.
    pub(crate) fn new() -> io::Result<Self> {
        // The change of a terminal's size is read by another file, but has to be blocked as early.
        for signal in ENDING.into_iter().chain([libc::SIGWINCH]) {
            // An error says that it is blocked already, which is what we want.
            block_signal(signal).ok();
        }
        open(&ENDING).map(Self)
    }

    /// The file to wait on.
    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The number of a signal that has arrived.
    pub(crate) fn take(&mut self) -> Option<u32> {
        take(&mut self.0)
    }
}

/// SIGWINCH: the terminal's size has changed.
pub(crate) struct ResizeSignal(File);

impl ResizeSignal {
    /// Opens the file. [`Signals::new`] has blocked the signal, or blocks it before other threads exist.
    pub(crate) fn new() -> io::Result<Self> {
        block_signal(libc::SIGWINCH).ok();
        open(&[libc::SIGWINCH]).map(Self)
    }

    /// The file to wait on.
    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes what has arrived.
    pub(crate) fn acknowledge(&mut self) {
        while take(&mut self.0).is_some() {}
    }
}

/// A file that tells of `signals`.
fn open(signals: &[libc::c_int]) -> io::Result<File> {
    let set = create_sigset(signals).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    // SAFETY: `set` is an initialised sigset, valid for reads during the call.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was opened just now and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// The number of the next signal in `file`.
fn take(file: &mut File) -> Option<u32> {
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    match file.read(&mut info) {
        // `ssi_signo` is the first member.
        Ok(len) if len == info.len() => {
            Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
        }
        Ok(_) | Err(_) => None,
    }
}
