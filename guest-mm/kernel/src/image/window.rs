//! Register windows of virtio-mmio devices.

use guest_kernel::layout::word;
use guest_mm::virtio::MmioBus;
use guest_mm::virtio::discovery::MmioWindow;

use super::paging;

/// A mapped register window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    address: u64,
    bytes: u64,
}

impl Window {
    /// Maps what the command line announced; `None` when it is out of the direct map's reach or no window is left.
    pub(super) fn map(announced: &MmioWindow) -> Option<Self> {
        let address = paging::map_device(announced.base, announced.bytes)?;
        Some(Self { address, bytes: announced.bytes })
    }

    /// The register at `offset`.
    ///
    /// # Panics
    /// Outside the window: a driver's bug, or a device whose window is smaller than its registers.
    fn register<T>(&self, offset: u64) -> *mut T {
        let end = offset.checked_add(size_of::<T>() as u64);
        assert!(
            end.is_some_and(|end| end <= self.bytes),
            "register {offset:#x} is outside its window"
        );
        core::ptr::with_exposed_provenance_mut(word(self.address + offset))
    }
}

impl MmioBus for Window {
    fn read32(&self, offset: u64) -> u32 {
        // SAFETY: inside the mapped window (`register`); the trait asks for 4-aligned offsets, the base is aligned.
        u32::from_le(unsafe { self.register::<u32>(offset).read_volatile() })
    }

    fn write32(&self, offset: u64, value: u32) {
        // SAFETY: as in `read32`; what the device does with it is the driver's concern.
        unsafe { self.register::<u32>(offset).write_volatile(value.to_le()) };
    }

    fn read8(&self, offset: u64) -> u8 {
        // SAFETY: as in `read32`.
        unsafe { self.register::<u8>(offset).read_volatile() }
    }
}
