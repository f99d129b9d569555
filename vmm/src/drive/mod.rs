//! Files and block devices behind virtio disks.
//!
//! [`DriveFile::open`] checks a path, locks what is there and finds out what it
//! can do; the result is a [`BlockBackend`](devices::block::BlockBackend) that
//! moves bytes between the file and guest memory without a copy of its own.
//! Nothing here knows of a VM, threads or queues.
//!
//! Design: `docs/block.md`.

mod error;
mod file;
mod lock;
mod probe;
mod transfer;

#[cfg(test)]
mod tests;

pub use error::DriveError;
pub use file::DriveFile;

use devices::block::BackendError;

/// What a failed system call means for a request.
fn backend_error(error: &std::io::Error) -> BackendError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => BackendError::NoSpace(errno),
        libc::EOPNOTSUPP | libc::ENOSYS => BackendError::Unsupported,
        _ => BackendError::Host(errno),
    }
}

/// A system call that has to be made again.
const INTERRUPTED: BackendError = BackendError::Host(libc::EINTR);

/// The error that the last system call of this thread left.
fn last_error() -> BackendError {
    backend_error(&std::io::Error::last_os_error())
}

/// A write beyond the file size limit then fails with EFBIG, as one to a full disk does, instead
/// of ending the process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: ignoring a signal runs no code of ours; nothing else in the process uses SIGXFSZ.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
