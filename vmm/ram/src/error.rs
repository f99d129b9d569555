//! Why guest RAM could not be had, or could not be measured.

use std::io;

use crate::backing::BackingKind;

/// Guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HostRamError {
    /// The size is zero, not a multiple of 4 KiB, or above the platform's limit.
    #[error(
        "Guest RAM of {bytes} B is not possible: it must be a multiple of 4096 B, from 4096 B to {max_bytes} B"
    )]
    BadSize {
        /// What was asked.
        bytes: u64,
        /// The platform's limit.
        max_bytes: u64,
    },
    /// The size of hotplug memory is zero, not a multiple of 4 KiB, or above the platform's limit.
    #[error(
        "Hotplug memory of {bytes} B is not possible: it must be a multiple of 4096 B, from 4096 B to {max_bytes} B"
    )]
    BadHotplugSize {
        /// What was asked.
        bytes: u64,
        /// The platform's limit.
        max_bytes: u64,
    },
    /// The host refused the mapping.
    #[error("The host refused to map {bytes} B of {backing} memory for guest RAM ({hint})")]
    Map {
        /// Bytes of guest RAM.
        bytes: u64,
        /// The backing.
        backing: BackingKind,
        /// What usually causes this error.
        hint: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The file behind guest RAM could not be made.
    #[error("{what} failed for {bytes} B of guest RAM on {backing}")]
    File {
        /// The step.
        what: &'static str,
        /// Bytes of guest RAM.
        bytes: u64,
        /// The backing.
        backing: BackingKind,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// Prefaulting asks for more memory than the host has free.
    #[error(
        "Guest RAM of {bytes} B cannot be prefaulted: the host has {available_bytes} B of memory and swap available ({limited_by})"
    )]
    NotEnoughMemory {
        /// Bytes of guest RAM.
        bytes: u64,
        /// What the host can give now.
        available_bytes: u64,
        /// Where that figure comes from.
        limited_by: &'static str,
    },
    /// Prefaulting failed on the way.
    #[error("Prefaulting {bytes} B of guest RAM failed after {done_bytes} B")]
    Prefault {
        /// Bytes of guest RAM.
        bytes: u64,
        /// Bytes populated before the host refused.
        done_bytes: u64,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The backing did not do in the probe what a balloon needs of it.
    #[error("Backing {backing} cannot return memory to this host: {reason}")]
    CannotRelease {
        /// The backing.
        backing: BackingKind,
        /// Every release call tried, and what came of it.
        reason: String,
    },
    /// The source of truth could not be read.
    #[error("Backing {backing} cannot be measured")]
    Truth {
        /// The backing.
        backing: BackingKind,
        /// Why.
        #[source]
        source: TruthError,
    },
    /// The mappings do not form guest memory: a defect of this crate.
    #[error("The mappings of guest RAM contradict each other")]
    Regions,
}

/// The source of truth about a backing could not be read or makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum TruthError {
    /// Reading it failed.
    #[error("{what} cannot be read")]
    Read {
        /// The file or call.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// It does not describe our mappings.
    #[error("{what} does not describe guest RAM: {reason}")]
    Nonsense {
        /// The file or call.
        what: &'static str,
        /// What is odd about it.
        reason: &'static str,
    },
}
