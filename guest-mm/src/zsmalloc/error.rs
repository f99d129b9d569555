//! What can go wrong with a pool.

use core::fmt;

use super::class::MAX_OBJECT_BYTES;
use super::handle::ZsHandle;
use crate::errno::Errno;
use crate::memory::AllocError;
use crate::migrate::RegisterError;

/// Why a pool did not do it. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZsError {
    /// Objects have 1 to 4096 bytes, not these.
    BadSize(usize),
    /// The handle is no object's: freed, or never was one.
    BadHandle(ZsHandle),
    /// More bytes than the object has room for.
    TooLong {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that the object can hold.
        capacity: usize,
    },
    /// What is in front of the object is not its handle, or not the next free object for one
    /// that should get this handle: somebody wrote beyond another's end.
    Corrupt(ZsHandle),
    /// No memory.
    NoMemory(AllocError),
    /// As many handles as a pool can have.
    TooManyObjects,
    /// As many pools as a manager can have.
    TooManyPools,
    /// The pool has objects.
    InUse(u64),
    /// Somebody else moves pages of this kind.
    Movable(RegisterError),
}

impl ZsError {
    /// Linux's number for it.
    pub const fn errno(self) -> Errno {
        match self {
            Self::BadSize(_) | Self::BadHandle(_) | Self::TooLong { .. } => Errno::EINVAL,
            Self::Corrupt(_) => Errno::EIO,
            Self::NoMemory(_) => Errno::ENOMEM,
            Self::TooManyObjects | Self::TooManyPools => Errno::ENOSPC,
            Self::InUse(_) => Errno::EBUSY,
            Self::Movable(error) => error.errno(),
        }
    }
}

impl fmt::Display for ZsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadSize(bytes) => {
                write!(f, "Objects have 1 to {MAX_OBJECT_BYTES} bytes, not {bytes}")
            }
            Self::BadHandle(handle) => write!(f, "No object has the handle {handle:?}"),
            Self::TooLong { bytes, capacity } => {
                write!(f, "{bytes} bytes exceed an object of {capacity}")
            }
            Self::Corrupt(handle) => write!(f, "Object {handle:?} was overwritten"),
            Self::NoMemory(error) => error.fmt(f),
            Self::TooManyObjects => f.write_str("The pool has no handle left"),
            Self::TooManyPools => f.write_str("No further pool can be made"),
            Self::InUse(objects) => write!(f, "The pool has {objects} objects"),
            Self::Movable(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ZsError {}

impl From<AllocError> for ZsError {
    fn from(error: AllocError) -> Self {
        Self::NoMemory(error)
    }
}
