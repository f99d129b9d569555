//! Why a change to an array did not happen.

use core::fmt;

use super::NoMemory;

/// Why an insertion did not happen; the array is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InsertError {
    /// An entry or a reserved place overlaps the indices.
    Occupied,
    /// No memory for a node.
    NoMemory,
}

impl fmt::Display for InsertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Occupied => "XArray holds something at the index already",
            Self::NoMemory => "No memory for an XArray node",
        })
    }
}

impl core::error::Error for InsertError {}

impl From<NoMemory> for InsertError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Why no index was allocated; the array is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AllocError {
    /// Every index in the range is taken.
    Full,
    /// No memory for a node.
    NoMemory,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "XArray has no free index in the range",
            Self::NoMemory => "No memory for an XArray node",
        })
    }
}

impl core::error::Error for AllocError {}

impl From<NoMemory> for AllocError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Why a range was not stored; the array is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RangeError {
    /// An entry covers indices inside the range and outside; split it first.
    Straddles,
    /// No memory for a node.
    NoMemory,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Straddles => "XArray entry lies partly outside the range",
            Self::NoMemory => "No memory for an XArray node",
        })
    }
}

impl core::error::Error for RangeError {}

impl From<NoMemory> for RangeError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}
