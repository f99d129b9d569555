//! Writing guest output to a file without ever waiting for its reader.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use super::OutputQueue;

/// Where guest output goes.
#[derive(Debug)]
pub(crate) struct Output {
    mode: Mode,
    /// Kept open when the output is closed: whoever polls it can still unregister it.
    file: Option<File>,
}

/// How a file takes bytes without making us wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A regular file or the null device: writes never wait for a reader.
    Direct,
    /// A terminal, FIFO or pipe with a file description of our own in non-blocking mode: the one that
    /// we were given, if it was so already; else another, for the shell must not find its own
    /// non-blocking afterwards.
    NonBlocking,
    /// A socket, or a file that may not be opened again: `MSG_DONTWAIT`, or a poll before each write.
    Polled,
    /// Nowhere; bytes are counted as dropped.
    Closed,
}

/// Largest write that a reader's room is tested for: a pipe is writable when it has room for PIPE_BUF bytes.
const POLLED_WRITE_BYTES: usize = 512;

impl Output {
    /// Looks at what kind of file it is.
    ///
    /// # Errors
    /// When the file cannot be examined.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if kind.is_file() {
            return Ok(Self { mode: Mode::Direct, file: Some(file) });
        }
        if is_non_blocking(&file)? {
            return Ok(Self { mode: Mode::NonBlocking, file: Some(file) });
        }
        if kind.is_char_device() || kind.is_fifo() {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let own = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(path);
            if let Ok(own) = own {
                return Ok(Self { mode: Mode::NonBlocking, file: Some(own) });
            }
        }
        Ok(Self { mode: Mode::Polled, file: Some(file) })
    }

    /// Drops everything.
    pub(crate) fn closed() -> Self {
        Self { mode: Mode::Closed, file: None }
    }

    /// Whether bytes go nowhere, because the reader left or there never was one.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.mode == Mode::Closed
    }

    /// The file to wait on when [`Self::drain`] left something; `None`: it never does.
    pub(crate) fn poll_fd(&self) -> Option<RawFd> {
        let file = self.file.as_ref().filter(|_| self.mode != Mode::Direct)?;
        Some(file.as_raw_fd())
    }

    /// Writes what the file takes in one turn. Returns whether the file took all that it was offered.
    ///
    /// A reader that is gone closes the output: later bytes are dropped.
    pub(crate) fn drain(&mut self, queue: &OutputQueue) -> bool {
        let result = match (self.mode, &mut self.file) {
            (Mode::Direct | Mode::NonBlocking, Some(file)) => {
                queue.drain(|bytes| file.write(bytes))
            }
            (Mode::Polled, Some(file)) => queue.drain(|bytes| write_if_ready(file, bytes)),
            (Mode::Closed, _) | (_, None) => {
                queue.discard_all();
                return true;
            }
        };
        match result {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(error) => {
                log::warn!("console: output failed, later output is dropped: {error}");
                self.mode = Mode::Closed;
                queue.discard_all();
                true
            }
        }
    }

    /// Writes what is left, waiting for the reader for at most `timeout_ms` each time it is slow.
    pub(crate) fn finish(&mut self, queue: &OutputQueue, timeout_ms: i32) {
        loop {
            if self.drain(queue) {
                if queue.is_empty() {
                    return;
                }
                continue;
            }
            let Some(fd) = self.poll_fd() else { return };
            if !poll_writable(fd, timeout_ms) {
                log::warn!("console: the reader is stuck, output is dropped");
                self.mode = Mode::Closed;
                queue.discard_all();
                return;
            }
        }
    }
}

fn is_non_blocking(file: &File) -> io::Result<bool> {
    // SAFETY: reads the flags of an open file; no argument is a pointer.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } {
        flags if flags < 0 => Err(io::Error::last_os_error()),
        flags => Ok(flags & libc::O_NONBLOCK != 0),
    }
}

/// One bounded write, or `WouldBlock`.
fn write_if_ready(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    if !poll_writable(file.as_raw_fd(), 0) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let bytes = &bytes[..bytes.len().min(POLLED_WRITE_BYTES)];
    // SAFETY: `bytes` is readable for its length during the call.
    let sent = unsafe {
        libc::send(
            file.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    match usize::try_from(sent) {
        Ok(sent) => Ok(sent),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOTSOCK) => file.write(bytes),
            error => Err(error),
        },
    }
}

/// Whether `fd` takes bytes (or has failed, which a write then tells) within the timeout.
fn poll_writable(fd: RawFd, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one `pollfd`, valid for the call.
    unsafe { libc::poll(&mut poll, 1, timeout_ms) > 0 }
}
