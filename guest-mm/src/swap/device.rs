//! What swap needs of a device.

use core::fmt;

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 4096;

/// The contents of a slot.
pub type SlotBytes = [u8; SLOT_BYTES];

/// A device could not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapIoError {
    /// There is no such slot.
    NoSlot(u32),
    /// The device failed.
    Device,
    /// A device that keeps slots in memory has none left for this one.
    NoMemory(u32),
    /// Nothing was written to the slot since it was last discarded.
    NotWritten(u32),
    /// What the device has of the slot is not what was written.
    Corrupt(u32),
}

impl fmt::Display for SwapIoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot(slot) => write!(f, "Swap device has no slot {slot}"),
            Self::Device => f.write_str("Swap device failed"),
            Self::NoMemory(slot) => write!(f, "No memory for swap slot {slot}"),
            Self::NotWritten(slot) => write!(f, "Swap slot {slot} was not written"),
            Self::Corrupt(slot) => write!(f, "Swap slot {slot} is corrupt"),
        }
    }
}

impl core::error::Error for SwapIoError {}

/// A device of page-sized slots.
///
/// Calls come from any CPU, for different slots at once, for one slot one at a
/// time. They may wait, but not for memory: they run because there is none.
/// A device that must allocate, to write a slot and for nothing else, takes from
/// the reserve ([`Gfp::MEMALLOC`]), because each page that it writes is freed
/// afterwards, and if that fails too it says so ([`SwapIoError::NoMemory`]): the
/// page then stays in memory. [`Self::discard`] may be called below page-table
/// locks: it takes no lock outside them and allocates nothing.
///
/// [`Gfp::MEMALLOC`]: crate::buddy::Gfp::MEMALLOC
pub trait SwapDevice: Sync {
    /// Its slots.
    fn slots(&self) -> u32;

    /// Whether a slot cannot be used. Asked once of each, when the device is switched on.
    fn is_bad(&self, _slot: u32) -> bool {
        false
    }

    /// Reads a slot that was written since it was last discarded.
    ///
    /// # Errors
    /// [`SwapIoError`]; `page` is garbage.
    fn read(&self, slot: u32, page: &mut SlotBytes) -> Result<(), SwapIoError>;

    /// Writes a slot, again perhaps. When it returns, a read gives these bytes.
    ///
    /// # Errors
    /// [`SwapIoError`]; the slot's contents are not needed.
    fn write(&self, slot: u32, page: &SlotBytes) -> Result<(), SwapIoError>;

    /// Nobody will read the slot before it is written again.
    fn discard(&self, slot: u32);
}
