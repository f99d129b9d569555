//! SIGINT, SIGTERM and their kin as a file that the event loop reads.

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
        let os_error =
            |error: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(error.errno());
        for signal in ENDING {
            // An error says that it is blocked already, which is what we want.
            block_signal(signal).ok();
        }
        let set = create_sigset(&ENDING).map_err(os_error)?;
        // SAFETY: `set` is an initialised sigset, valid for reads during the call.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was opened just now and nobody else owns it.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The file to wait on.
    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The number of a signal that has arrived.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match self.0.read(&mut info) {
            // `ssi_signo` is the first member.
            Ok(len) if len == info.len() => {
                Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
            }
            Ok(_) | Err(_) => None,
        }
    }
}
