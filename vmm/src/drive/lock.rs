//! One writer or many readers: locks that other VMMs respect too.
//!
//! Open-file-description locks over the whole file, as QEMU and Cloud
//! Hypervisor take them: they conflict between two drives of one process, go
//! when the file is closed however that happens, and work over NFS. They are
//! advisory: they keep VMs apart, not `dd`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// What came of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Locked {
    /// It is ours until the file is closed.
    Ours,
    /// Someone else has a conflicting one.
    Taken,
}

/// Locks all of `file`: for one writer, or for readers only.
///
/// # Errors
/// The host's, where the file system knows no locks.
pub(super) fn lock(file: &File, for_writing: bool) -> io::Result<Locked> {
    let kind = if for_writing { libc::F_WRLCK } else { libc::F_RDLCK };
    let range = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0, // SEEK_SET
        l_start: 0,
        l_len: 0, // to the end, wherever that will be
        l_pid: 0, // must be 0 for these locks
    };
    // SAFETY: F_OFD_SETLK reads one `flock`, which lives until the call returns; the descriptor
    // is open, because `file` is borrowed.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    if result == 0 {
        return Ok(Locked::Ours);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(Locked::Taken),
        _ => Err(error),
    }
}
