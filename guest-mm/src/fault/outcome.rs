//! How a fault ends.

use core::fmt;

/// What a fault that succeeded did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FaultOutcome {
    /// The leaf allowed the access: a stale translation, or another CPU was faster.
    Spurious,
    /// The leaf changed while the fault was prepared for; the access shows what is there now.
    Raced,
    /// The zero page was mapped.
    ZeroPage,
    /// A new anonymous page was mapped.
    AnonPage,
    /// A new anonymous 2 MiB folio was mapped.
    AnonHuge,
    /// A page of the page cache was mapped.
    FilePage,
    /// A page was made writable, or exclusive, in place.
    Reused,
    /// A page was replaced by a private copy.
    Copied,
    /// A page came back from swap; [`FaultOutcome::SwapMajor`] if it was read.
    SwapMinor,
    /// A page was read from swap.
    SwapMajor,
    /// The leaf had lost the VMA's rights and has them again.
    RightsRestored,
    /// A device gave a page back.
    Device,
}

impl FaultOutcome {
    /// Number of outcomes.
    pub const COUNT: usize = Self::ALL.len();
    /// Every outcome, by number.
    pub const ALL: [Self; 12] = [
        Self::Spurious,
        Self::Raced,
        Self::ZeroPage,
        Self::AnonPage,
        Self::AnonHuge,
        Self::FilePage,
        Self::Reused,
        Self::Copied,
        Self::SwapMinor,
        Self::SwapMajor,
        Self::RightsRestored,
        Self::Device,
    ];

    /// The number, below [`Self::COUNT`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether something was read from a device to serve the fault.
    pub const fn is_major(self) -> bool {
        matches!(self, Self::SwapMajor | Self::Device)
    }

    /// The outcome's lower-case name, for tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spurious => "spurious",
            Self::Raced => "raced",
            Self::ZeroPage => "zero-page",
            Self::AnonPage => "anon",
            Self::AnonHuge => "anon-huge",
            Self::FilePage => "file",
            Self::Reused => "reused",
            Self::Copied => "copied",
            Self::SwapMinor => "swap-minor",
            Self::SwapMajor => "swap-major",
            Self::RightsRestored => "rights-restored",
            Self::Device => "device",
        }
    }
}

/// Why a fault could not be served: the signal that the program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultError {
    /// Nothing is mapped there: SIGSEGV, `SEGV_MAPERR`.
    SegvMapErr,
    /// The mapping forbids the access: SIGSEGV, `SEGV_ACCERR`.
    SegvAccErr,
    /// The page cannot be had: beyond the end of the file, unreadable, or what
    /// stands in the table makes no sense. SIGBUS, `BUS_ADRERR`.
    Bus,
    /// No memory, after all attempts to free some; or the process was chosen to be killed.
    Oom,
    /// The page has a memory error: SIGBUS, `BUS_MCEERR_AR`.
    HwPoison,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SegvMapErr => "Nothing is mapped at the address",
            Self::SegvAccErr => "The mapping forbids the access",
            Self::Bus => "The page cannot be had",
            Self::Oom => "Out of memory",
            Self::HwPoison => "The page has a memory error",
        })
    }
}

impl core::error::Error for FaultError {}
