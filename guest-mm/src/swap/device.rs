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
}

impl fmt::Display for SwapIoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot(slot) => write!(f, "Swap device has no slot {slot}"),
            Self::Device => f.write_str("Swap device failed"),
        }
    }
}

impl core::error::Error for SwapIoError {}

/// A device of page-sized slots.
///
/// Calls come from any CPU, for different slots at once, for one slot one at a
/// time. They may wait, and must not allocate memory: they run because there is none.
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

    /// Writes a slot. When it returns, a read gives these bytes.
    ///
    /// # Errors
    /// [`SwapIoError`]; the slot's contents are not needed.
    fn write(&self, slot: u32, page: &SlotBytes) -> Result<(), SwapIoError>;

    /// Nobody will read the slot before it is written again.
    fn discard(&self, slot: u32);
}
