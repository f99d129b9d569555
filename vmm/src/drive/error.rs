//! Why a path cannot be a drive.

use std::io;
use std::path::PathBuf;

use abi::block::SECTOR_BYTES;

/// A drive that cannot be opened; each says which path and what would help.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// There is nothing, or it may not be looked at.
    #[error("Drive {path:?} cannot be opened")]
    Open {
        /// The path.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// It is there and may be read, but not written.
    #[error(
        "Drive {path:?} cannot be opened for writing; a read-only drive (PATH,ro) could use it"
    )]
    NotWritable {
        /// The path.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// Not something that has sectors.
    #[error("Drive {path:?} is {kind}; a drive is a regular file or a block device")]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// No whole number of sectors, or none at all.
    #[error(
        "Drive {path:?} has {bytes} B, which is no whole number of {SECTOR_BYTES}-byte sectors; {} B would be",
        .bytes.next_multiple_of(SECTOR_BYTES).max(SECTOR_BYTES)
    )]
    Size {
        /// The path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Someone else has locked it.
    #[error("Drive {path:?} is locked: another VM or drive {}", if *.for_writing { "uses it" } else { "writes to it" })]
    Locked {
        /// The path.
        path: PathBuf,
        /// Whether it was to be written.
        for_writing: bool,
    },
    /// The host itself uses the block device.
    #[error(
        "Drive {path:?} is in use: the host has mounted it, it is part of another device, or another VM writes to it"
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
}

impl DriveError {
    /// Whether the operator named something that can never be a drive, rather than one that is not free now.
    pub const fn is_bad_argument(&self) -> bool {
        match self {
            Self::Open { .. }
            | Self::NotWritable { .. }
            | Self::Kind { .. }
            | Self::Size { .. } => true,
            Self::Locked { .. } | Self::InUse { .. } => false,
        }
    }
}
