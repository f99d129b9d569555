//! What the driver tells.

use core::fmt;

use abi::{PageCount, PfnRange};

use super::HotplugError;
use super::wire::RegionError;
use crate::virtio::{ProbeError, QueueError, SetupError};

/// The device cannot be used (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverError {
    /// The window holds no memory device.
    Probe(ProbeError),
    /// The device could not be set up.
    Setup(SetupError),
    /// The device's region makes no sense.
    Region(RegionError),
    /// The device broke the rules of its queue too often.
    Queue(QueueError),
    /// The device asked for a reset too often.
    NeedsReset,
    /// After a reset the device had another amount plugged than the driver: memory in use may be gone.
    StateLost {
        /// Pages that the device says are plugged.
        device: PageCount,
        /// Pages that the driver had plugged.
        driver: PageCount,
    },
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe(_) => f.write_str("No memory device"),
            Self::Setup(_) => f.write_str("The memory device could not be set up"),
            Self::Region(_) => f.write_str("The memory device describes no usable region"),
            Self::Queue(_) => f.write_str("The memory device broke the rules of its virtqueue"),
            Self::NeedsReset => f.write_str("The memory device needed a reset too often"),
            Self::StateLost { device, driver } => write!(
                f,
                "The memory device has {} pages plugged after a reset, it had {}",
                device.get(),
                driver.get()
            ),
        }
    }
}

impl core::error::Error for DriverError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Probe(source) => Some(source),
            Self::Setup(source) => Some(source),
            Self::Region(source) => Some(source),
            Self::Queue(source) => Some(source),
            Self::NeedsReset | Self::StateLost { .. } => None,
        }
    }
}

/// Where the driver stands with its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HotplugPhase {
    /// Following the device's wish.
    Running,
    /// The device does not answer.
    Degraded,
    /// The device called a request wrong: it is asked for nothing any more.
    Refused,
    /// The device resets.
    Resetting,
    /// Given up. What is alive stays.
    Failed,
}

impl HotplugPhase {
    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Refused => "refused",
            Self::Resetting => "resetting",
            Self::Failed => "failed",
        }
    }
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HotplugCounters {
    /// Requests sent.
    pub requests: u64,
    /// Those that the device refused for the moment: NACK, BUSY.
    pub refusals: u64,
    /// Those that it called wrong, or answered with nonsense.
    pub errors: u64,
    /// Pages that came to life.
    pub woken_pages: u64,
    /// Pages laid to rest.
    pub rested_pages: u64,
    /// Blocks added.
    pub added_blocks: u64,
    /// Blocks removed.
    pub removed_blocks: u64,
    /// Blocks that could not be added although the device had given memory.
    pub failed_blocks: u64,
    /// Device blocks left plugged because something in them cannot move now.
    pub busy_units: u64,
    /// Times that nothing was unplugged because memory is short.
    pub short_of_memory: u64,
    /// Interrupts that had a reason.
    pub interrupts: u64,
    /// Interrupts without one.
    pub spurious_interrupts: u64,
    /// Resets of the device by the driver, its start not counted.
    pub resets: u64,
    /// Times the device broke a rule or asked for a reset.
    pub device_faults: u64,
    /// Times the device was silent for too long.
    pub answer_timeouts: u64,
    /// Steps that only memory corruption makes fail; should stay 0.
    pub inconsistencies: u64,
}

/// A snapshot of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugStatus {
    /// Where it stands.
    pub phase: HotplugPhase,
    /// Why it gave up.
    pub failure: Option<DriverError>,
    /// Why a block was last not added.
    pub last_refusal: Option<HotplugError>,
    /// The device's region.
    pub region: PfnRange,
    /// Pages of a device block.
    pub unit: PageCount,
    /// Pages that the device would like to be plugged.
    pub requested: PageCount,
    /// Pages that are.
    pub plugged: PageCount,
    /// Of these, pages that came to life: all but the blocks' own tables.
    pub alive: PageCount,
    /// Blocks.
    pub blocks: u64,
    /// What happened so far.
    pub counters: HotplugCounters,
}

/// What the driver can be told at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugOptions {
    /// Silence after which the device counts as degraded, in nanoseconds.
    pub answer_timeout_ns: u64,
}

impl Default for HotplugOptions {
    fn default() -> Self {
        Self { answer_timeout_ns: 5_000_000_000 }
    }
}
