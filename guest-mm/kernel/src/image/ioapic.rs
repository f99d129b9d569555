//! The I/O APIC: edge-triggered pins to vectors of the boot CPU.

use guest_kernel::layout::{DEVICE_WINDOWS, LARGE_PAGE, word};

use super::{apic, paging};

/// Where every PC has it.
const BASE: u64 = 0xfec0_0000;
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Register: version and number of pins.
const VERSION: u32 = 1;
/// First redirection entry, two registers each.
const REDIRECTION: u32 = 0x10;

/// A GSI that the I/O APIC does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoSuchPin;

/// The I/O APIC's registers.
pub(super) struct IoApic {
    base: u64,
    pins: u32,
}

impl IoApic {
    /// Maps it and counts its pins; `None` without a free device window.
    pub(super) fn new() -> Option<Self> {
        let base = paging::map_device(BASE, 0x20)?;
        debug_assert!(base >= DEVICE_WINDOWS + LARGE_PAGE);
        let mut this = Self { base, pins: 0 };
        this.pins = ((this.read(VERSION) >> 16) & 0xff) + 1;
        Some(this)
    }

    fn register(&self, offset: u64) -> *mut u32 {
        core::ptr::with_exposed_provenance_mut(word(self.base + offset))
    }

    fn read(&self, index: u32) -> u32 {
        // SAFETY: `new` mapped the registers; selecting one has no other effect.
        unsafe { self.register(SELECT).write_volatile(index) };
        // SAFETY: as above.
        unsafe { self.register(WINDOW).read_volatile() }
    }

    fn write(&self, index: u32, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.register(SELECT).write_volatile(index) };
        // SAFETY: routes an interrupt to a vector of ours.
        unsafe { self.register(WINDOW).write_volatile(value) };
    }

    /// Sends `gsi` to `vector` of this CPU: fixed delivery, edge-triggered, active high, unmasked.
    ///
    /// # Errors
    /// [`NoSuchPin`].
    pub(super) fn route(&self, gsi: u32, vector: u8) -> Result<(), NoSuchPin> {
        if gsi >= self.pins {
            return Err(NoSuchPin);
        }
        let index = REDIRECTION + 2 * gsi;
        self.write(index + 1, apic::id() << 24);
        self.write(index, u32::from(vector));
        Ok(())
    }
}
