//! Why swap did not do it.

use core::fmt;

use super::device::SwapIoError;
use crate::memory::AllocError;
#[cfg(not(loom))]
use crate::zsmalloc::ZsError;

/// Why swap did not do it. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapError {
    /// No device is switched on.
    NoDevice,
    /// Another device is on, or slots of this one are in use.
    Busy,
    /// The device has no slot, or more than a table can have words for.
    BadSize,
    /// Every slot is in use.
    Full,
    /// Nobody uses the slot: the leaf that named it is gone, or malformed.
    NotUsed,
    /// More leaves than a slot counts.
    TooMany,
    /// No memory.
    NoMemory(AllocError),
    /// The device failed.
    Io(SwapIoError),
    /// No pool for compressed pages.
    #[cfg(not(loom))]
    Pool(ZsError),
}

impl fmt::Display for SwapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("No swap device is on"),
            Self::Busy => f.write_str("Swap is in use"),
            Self::BadSize => f.write_str("Swap device has too few or too many slots"),
            Self::Full => f.write_str("Every swap slot is in use"),
            Self::NotUsed => f.write_str("Swap slot is not in use"),
            Self::TooMany => f.write_str("Swap slot has too many users"),
            Self::NoMemory(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
            #[cfg(not(loom))]
            Self::Pool(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SwapError {}

impl From<AllocError> for SwapError {
    fn from(error: AllocError) -> Self {
        Self::NoMemory(error)
    }
}

impl From<SwapIoError> for SwapError {
    fn from(error: SwapIoError) -> Self {
        Self::Io(error)
    }
}

#[cfg(not(loom))]
impl From<ZsError> for SwapError {
    fn from(error: ZsError) -> Self {
        if let ZsError::NoMemory(error) = error { Self::NoMemory(error) } else { Self::Pool(error) }
    }
}
