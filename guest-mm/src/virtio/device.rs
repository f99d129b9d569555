//! One virtio-mmio device (version 2): identity, negotiation, queues, interrupts.
//!
//! Source: virtio 1.2 §3.1.1 (initialisation), §4.2.2–4.2.3 (registers).

use core::fmt;

use abi::mmio;
use abi::virtio::{VIRTIO_F_VERSION_1, status};

use super::bus::MmioBus;
use super::ring::{MAX_RING_ENTRIES, RingMemory};

/// Reads of STATUS that a reset may take before it is called stuck.
const RESET_READS: u32 = 64;
/// Attempts to read configuration that does not change meanwhile.
const CONFIG_READS: u32 = 8;
/// Looks at INTERRUPT_STATUS before a device that always has a reason is left to its next edge.
const ACKNOWLEDGE_LOOKS: u32 = 8;

/// A window does not hold a device that we can drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeError {
    /// The magic value is not "virt".
    NotVirtio {
        /// What was read.
        magic: u32,
    },
    /// A legacy device (version 1); only version 2 is supported.
    Legacy,
    /// A version that we do not know.
    UnknownVersion {
        /// What was read.
        version: u32,
    },
    /// The slot is empty (device id 0).
    Empty,
    /// A device of another kind than the caller's.
    WrongDevice {
        /// The device id wanted.
        wanted: u32,
        /// The device id found.
        found: u32,
    },
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVirtio { magic } => write!(f, "No virtio-mmio device: magic {magic:#x}"),
            Self::Legacy => f.write_str(
                "A legacy virtio-mmio device (version 1) is not supported; make the VMM offer version 2",
            ),
            Self::UnknownVersion { version } => {
                write!(f, "Unknown virtio-mmio version {version}")
            }
            Self::Empty => f.write_str("The virtio-mmio slot is empty"),
            Self::WrongDevice { wanted, found } => {
                write!(f, "Virtio device id {found} found, {wanted} wanted")
            }
        }
    }
}

impl core::error::Error for ProbeError {}

/// The device could not be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetupError {
    /// The device does not finish its reset.
    ResetStuck,
    /// The device does not offer VERSION_1.
    NoVersion1,
    /// The device refused the features that we accepted.
    FeaturesRefused {
        /// The bits we accepted.
        accepted: u64,
        /// The bits that the device offers: it may insist on one of the others.
        offered: u64,
    },
    /// The device has no such queue.
    NoQueue {
        /// The queue.
        queue: u16,
    },
    /// The queue is in use although the device was reset.
    QueueBusy {
        /// The queue.
        queue: u16,
    },
    /// The device did not take the queue.
    QueueRefused {
        /// The queue.
        queue: u16,
    },
    /// The device set DEVICE_NEEDS_RESET while it was being set up.
    NeedsReset,
    /// No memory for rings or buffers.
    NoMemory,
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResetStuck => f.write_str("The device does not finish its reset"),
            Self::NoVersion1 => f.write_str("The device does not offer VIRTIO_F_VERSION_1"),
            Self::FeaturesRefused { accepted, offered } => {
                write!(f, "The device refused the features {accepted:#x} of its {offered:#x}")
            }
            Self::NoQueue { queue } => write!(f, "The device has no queue {queue}"),
            Self::QueueBusy { queue } => write!(f, "Queue {queue} is in use after a reset"),
            Self::QueueRefused { queue } => write!(f, "The device refused queue {queue}"),
            Self::NeedsReset => f.write_str("The device needs a reset before it was started"),
            Self::NoMemory => f.write_str("No memory for the device's rings or buffers"),
        }
    }
}

impl core::error::Error for SetupError {}

/// What an interrupt was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InterruptStatus {
    /// A used ring was updated.
    pub used: bool,
    /// Configuration or status changed.
    pub config: bool,
}

/// A device found at a window, in any state of initialisation.
#[derive(Debug)]
pub struct MmioDevice<B> {
    bus: B,
    id: u32,
}

impl<B: MmioBus> MmioDevice<B> {
    /// Looks at a window and identifies the device in it.
    ///
    /// # Errors
    /// [`ProbeError`], except [`ProbeError::WrongDevice`].
    pub fn probe(bus: B) -> Result<Self, ProbeError> {
        let magic = bus.read32(mmio::MAGIC_VALUE);
        if magic != mmio::MAGIC {
            return Err(ProbeError::NotVirtio { magic });
        }
        // Order of §4.2.3.1.1: the version decides what the id register means.
        match bus.read32(mmio::VERSION) {
            mmio::VERSION_2 => {}
            1 => return Err(ProbeError::Legacy),
            version => return Err(ProbeError::UnknownVersion { version }),
        }
        match bus.read32(mmio::DEVICE_ID) {
            0 => Err(ProbeError::Empty),
            id => Ok(Self { bus, id }),
        }
    }

    /// The virtio device id.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Passes the device on if it is of kind `wanted`.
    ///
    /// # Errors
    /// [`ProbeError::WrongDevice`].
    pub fn expect_id(self, wanted: u32) -> Result<Self, ProbeError> {
        if self.id == wanted {
            return Ok(self);
        }
        Err(ProbeError::WrongDevice { wanted, found: self.id })
    }

    /// The device's status bits ([`status`]).
    pub fn status(&self) -> u32 {
        self.bus.read32(mmio::STATUS)
    }

    /// Whether only a reset can mend the device.
    pub fn needs_reset(&self) -> bool {
        self.status() & status::DEVICE_NEEDS_RESET != 0
    }

    /// Asks for a reset; complete once [`Self::reset_is_complete`] (§4.2.2.2).
    pub fn begin_reset(&self) {
        self.bus.write32(mmio::STATUS, 0);
    }

    /// Whether the reset asked for is complete: the device uses no queue any more.
    pub fn reset_is_complete(&self) -> bool {
        self.status() == 0
    }

    /// Resets the device and waits for it, a bounded number of reads.
    ///
    /// # Errors
    /// [`SetupError::ResetStuck`].
    pub fn reset(&self) -> Result<(), SetupError> {
        self.begin_reset();
        if (0..RESET_READS).any(|_| self.reset_is_complete()) {
            return Ok(());
        }
        Err(SetupError::ResetStuck)
    }

    /// Negotiates from a completed reset up to FEATURES_OK and returns the
    /// accepted features: VERSION_1 and those of `supported` that are offered.
    ///
    /// Packed rings, event index and indirect descriptors are declined by not
    /// being in `supported`.
    ///
    /// # Errors
    /// [`SetupError::NoVersion1`], [`SetupError::FeaturesRefused`]; the device is marked FAILED.
    pub fn negotiate(&self, supported: u64) -> Result<u64, SetupError> {
        self.bus.write32(mmio::STATUS, status::ACKNOWLEDGE);
        self.bus.write32(mmio::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let offered = self.offered_features();
        if offered & VIRTIO_F_VERSION_1 == 0 {
            self.fail();
            return Err(SetupError::NoVersion1);
        }
        let accepted = offered & (supported | VIRTIO_F_VERSION_1);
        for (select, half) in halves(accepted) {
            self.bus.write32(mmio::DRIVER_FEATURES_SEL, select);
            self.bus.write32(mmio::DRIVER_FEATURES, half);
        }
        let wanted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.bus.write32(mmio::STATUS, wanted);
        // §3.1.1 step 6: the device may refuse by leaving FEATURES_OK clear.
        if self.status() & status::FEATURES_OK == 0 {
            self.fail();
            return Err(SetupError::FeaturesRefused { accepted, offered });
        }
        Ok(accepted)
    }

    /// The features that the device offers.
    pub fn offered_features(&self) -> u64 {
        self.bus.write32(mmio::DEVICE_FEATURES_SEL, 0);
        let low = self.bus.read32(mmio::DEVICE_FEATURES);
        self.bus.write32(mmio::DEVICE_FEATURES_SEL, 1);
        let high = self.bus.read32(mmio::DEVICE_FEATURES);
        u64::from(high) << 32 | u64::from(low)
    }

    /// The size to use for queue `queue`: the largest power of two up to both
    /// the device's limit and `limit`.
    ///
    /// # Errors
    /// [`SetupError::NoQueue`], [`SetupError::QueueBusy`].
    pub fn queue_entries(&self, queue: u16, limit: u16) -> Result<u16, SetupError> {
        self.bus.write32(mmio::QUEUE_SEL, u32::from(queue));
        if self.bus.read32(mmio::QUEUE_READY) != 0 {
            return Err(SetupError::QueueBusy { queue });
        }
        let offered = self.bus.read32(mmio::QUEUE_NUM_MAX);
        let limit = u32::from(limit.min(MAX_RING_ENTRIES));
        let entries = u16::try_from(offered.min(limit)).unwrap_or(MAX_RING_ENTRIES);
        match entries.checked_ilog2() {
            Some(log) => Ok(1 << log),
            None => Err(SetupError::NoQueue { queue }),
        }
    }

    /// Gives the device the memory of queue `queue` and enables it.
    ///
    /// # Errors
    /// [`SetupError::QueueRefused`].
    pub fn enable_queue(&self, queue: u16, ring: &RingMemory) -> Result<(), SetupError> {
        let [descriptors, driver, device] = ring.addresses();
        self.bus.write32(mmio::QUEUE_SEL, u32::from(queue));
        self.bus.write32(mmio::QUEUE_NUM, u32::from(ring.entries()));
        for (low, high, address) in [
            (mmio::QUEUE_DESC_LOW, mmio::QUEUE_DESC_HIGH, descriptors),
            (mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DRIVER_HIGH, driver),
            (mmio::QUEUE_DEVICE_LOW, mmio::QUEUE_DEVICE_HIGH, device),
        ] {
            let [(_, lower), (_, upper)] = halves(address);
            self.bus.write32(low, lower);
            self.bus.write32(high, upper);
        }
        self.bus.write32(mmio::QUEUE_READY, 1);
        if self.bus.read32(mmio::QUEUE_READY) != 1 {
            return Err(SetupError::QueueRefused { queue });
        }
        Ok(())
    }

    /// Sets DRIVER_OK: the device is live.
    ///
    /// # Errors
    /// [`SetupError::NeedsReset`] if the device cannot start.
    pub fn start(&self) -> Result<(), SetupError> {
        let status = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.bus.write32(mmio::STATUS, status | status::DRIVER_OK);
        if self.needs_reset() { Err(SetupError::NeedsReset) } else { Ok(()) }
    }

    /// Gives the device up: sets FAILED.
    pub fn fail(&self) {
        let status = self.status();
        self.bus.write32(mmio::STATUS, status | status::FAILED);
    }

    /// Tells the device that queue `queue` has buffers.
    pub fn notify(&self, queue: u16) {
        self.bus.write32(mmio::QUEUE_NOTIFY, u32::from(queue));
    }

    /// Reads and acknowledges the interrupt's reasons, until none is left.
    ///
    /// To be called before the used rings are scanned: what the device adds
    /// after the last acknowledgement raises a new edge.
    ///
    /// One look is not enough. A device may drive its line as a level, high as
    /// long as any reason is left (QEMU does). A reason that comes between the
    /// read and the acknowledgement of another keeps such a line high; the
    /// interrupt controller, which takes edges, would never hear of the device again.
    pub fn acknowledge_interrupt(&self) -> InterruptStatus {
        let mut known = 0;
        for _ in 0..ACKNOWLEDGE_LOOKS {
            let reasons = self.bus.read32(mmio::INTERRUPT_STATUS);
            let fresh = reasons & (mmio::INT_VRING | mmio::INT_CONFIG);
            if fresh == 0 {
                break;
            }
            self.bus.write32(mmio::INTERRUPT_ACK, fresh);
            known |= fresh;
        }
        InterruptStatus {
            used: known & mmio::INT_VRING != 0,
            config: known & mmio::INT_CONFIG != 0,
        }
    }

    /// Reads the 32-bit configuration field at `offset`.
    ///
    /// One aligned 32-bit field cannot tear (§2.5.3), so no generation check.
    pub fn read_config32(&self, offset: u64) -> u32 {
        u32::from_le(self.bus.read32(mmio::CONFIG + offset))
    }

    /// Reads 64-bit configuration fields, all of one generation (§2.5.3): `None` if the device changed them at
    /// each of a few attempts.
    pub fn read_config64<const N: usize>(&self, offsets: [u64; N]) -> Option<[u64; N]> {
        (0..CONFIG_READS).find_map(|_| {
            let generation = self.bus.read32(mmio::CONFIG_GENERATION);
            let fields = offsets.map(|offset| {
                let (low, high) = (self.read_config32(offset), self.read_config32(offset + 4));
                u64::from(high) << 32 | u64::from(low)
            });
            (self.bus.read32(mmio::CONFIG_GENERATION) == generation).then_some(fields)
        })
    }

    /// Writes the 32-bit configuration field at `offset`.
    pub fn write_config32(&self, offset: u64, value: u32) {
        self.bus.write32(mmio::CONFIG + offset, value.to_le());
    }
}

/// A 64-bit value as the two registers take it: (selector, 32 bits), low half first.
fn halves(value: u64) -> [(u32, u32); 2] {
    let low = u32::try_from(value & u64::from(u32::MAX)).expect("masked to 32 bits");
    let high = u32::try_from(value >> 32).expect("shifted to 32 bits");
    [(0, low), (1, high)]
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
