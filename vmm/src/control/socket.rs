//! The control socket's path: taken over without a race, unlinked at a clean end.
//!
//! Takeover, under an exclusive `flock` of the directory so that two VMs that
//! find the same stale socket cannot both replace it:
//!
//! 1. nothing at the path: bind;
//! 2. a symlink or anything else than a socket: refuse, touch nothing;
//! 3. a socket that accepts a connection (or whose queue is full): a live VM, refuse;
//! 4. a socket that refuses: its VM died without a clean end: unlink, bind.
//!
//! The mode is set on the socket before `bind` gives it a name (the kernel
//! takes the inode's mode over), so there is no moment at which others could connect.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// Longest path: `sockaddr_un.sun_path` holds 108 bytes with its NUL (unix(7)).
const PATH_LIMIT: usize = 107;
/// Clients that may wait for `accept`.
const BACKLOG: i32 = 128;
/// How long another VM may hold the directory while it takes its own socket.
const LOCK_TIME: Duration = Duration::from_secs(2);

/// A bound and listening control socket; unlinks its path when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the path's entry: what is there at the end is unlinked only if it is this.
    identity: (u64, u64),
}

impl ControlSocket {
    /// Takes `path`: mode 0600, listening from now on.
    ///
    /// # Errors
    /// [`SocketError`], each naming the path and what is in the way.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, SocketError> {
        let path = path.into();
        check_length(&path)?;
        let _lock = lock_directory_of(&path)?;
        let fail = |source| SocketError::Bind { path: path.clone(), source };
        if occupant(&path)? == Occupant::Stale {
            log::info!("Replacing the stale socket {}", path.display());
            fs::remove_file(&path).map_err(fail)?;
        }
        let listener = listen(&path).map_err(fail)?;
        let entry = fs::symlink_metadata(&path).map_err(fail)?;
        Ok(Self { identity: (entry.dev(), entry.ino()), listener, path })
    }

    /// Checks that `path` could be taken now, and leaves it as it is.
    ///
    /// # Errors
    /// As [`ControlSocket::bind`], which can still fail later.
    pub fn check(path: &Path) -> Result<(), SocketError> {
        check_length(path)?;
        drop(lock_directory_of(path)?);
        occupant(path).map(|_free_or_stale| ())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, for the server's runtime.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|entry| (entry.dev(), entry.ino()) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("Cannot unlink {}: {error}", self.path.display());
        }
    }
}

/// Where sockets are when nothing is said: `$XDG_RUNTIME_DIR/aerostat`, else `/tmp/aerostat-UID`.
pub fn runtime_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir.join("aerostat"),
        Some(_) | None => PathBuf::from(format!("/tmp/aerostat-{}", user_id())),
    }
}

/// The socket of VM `id` in the runtime directory, which is made if need be and must be private.
///
/// # Errors
/// [`SocketError::Directory`] when it cannot be made; [`SocketError::NotPrivate`] when it is a
/// symlink, another user's, or open to others.
pub fn default_socket(id: &str) -> Result<PathBuf, SocketError> {
    let directory = runtime_dir();
    make_private(&directory)?;
    Ok(directory.join(format!("{id}.sock")))
}

/// Makes `directory` with mode 0700, or checks the one that is there.
fn make_private(directory: &Path) -> Result<(), SocketError> {
    let fail = |source| SocketError::Directory { directory: directory.to_owned(), source };
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(fail(error)),
    }
    // Not followed: a symlink that another user put there is seen as one.
    let entry = fs::symlink_metadata(directory).map_err(fail)?;
    let problem = if !entry.is_dir() {
        "it is no directory"
    } else if entry.uid() != user_id() {
        "it belongs to another user"
    } else if entry.mode() & 0o077 != 0 {
        "other users can enter it; its mode must be 0700"
    } else {
        return Ok(());
    };
    Err(SocketError::NotPrivate { directory: directory.to_owned(), problem })
}

/// Holds the directory of `path` while the socket is taken; released when dropped.
fn lock_directory_of(path: &Path) -> Result<File, SocketError> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(SocketError::NotASocket { path: path.to_owned(), what: "a directory" }),
    };
    let fail = |source| SocketError::Directory { directory: directory.to_owned(), source };
    let handle = File::open(directory).map_err(fail)?;
    let start = Instant::now();
    loop {
        match handle.try_lock() {
            Ok(()) => return Ok(handle),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_TIME => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => return Err(fail(io::ErrorKind::ResourceBusy.into())),
            Err(TryLockError::Error(error)) => return Err(fail(error)),
        }
    }
}

fn check_length(path: &Path) -> Result<(), SocketError> {
    let length = path.as_os_str().as_bytes().len();
    if length > PATH_LIMIT {
        return Err(SocketError::TooLong { path: path.to_owned(), length });
    }
    Ok(())
}

/// What is at a path that can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Nothing,
    /// A socket whose VM died without a clean end.
    Stale,
}

/// What is at `path`, or why it cannot be taken.
fn occupant(path: &Path) -> Result<Occupant, SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    let kind = match fs::symlink_metadata(path) {
        Ok(entry) => entry.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(fail(error)),
    };
    let what = if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if !kind.is_socket() {
        "a file"
    } else if is_live(path).map_err(fail)? {
        return Err(SocketError::Taken { path: path.to_owned() });
    } else {
        return Ok(Occupant::Stale);
    };
    Err(SocketError::NotASocket { path: path.to_owned(), what })
}

/// Whether something listens at `path`. Never blocks, so a full queue cannot hang the caller.
pub(crate) fn is_live(path: &Path) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        // A full queue belongs to a listener.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let handle: OwnedFd = socket.as_fd().try_clone_to_owned()?;
    File::from(handle).set_permissions(Permissions::from_mode(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}

fn user_id() -> u32 {
    // SAFETY: `geteuid` takes nothing, touches no memory and cannot fail (geteuid(2)).
    unsafe { libc::geteuid() }
}

/// Why a control socket could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit a socket address.
    #[error("Socket path is {length} bytes long, the limit is {PATH_LIMIT}: {}", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// A live VM listens there.
    #[error("{} is taken by a running VM; stop it or use another --api-sock", path.display())]
    Taken {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{} is {what}, not a socket; it is left alone", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// The directory cannot be made, opened or locked.
    #[error("Cannot use the directory {} for the socket: {source}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system says; already told in the message.
        source: io::Error,
    },
    /// The default directory is not the user's own.
    #[error("{} is not safe for the socket: {problem}", directory.display())]
    NotPrivate {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The system refused to look at, replace or bind the path.
    #[error("Cannot bind {}: {source}", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the system says; already told in the message.
        source: io::Error,
    },
}

#[cfg(test)]
#[path = "socket/tests.rs"]
mod tests;
