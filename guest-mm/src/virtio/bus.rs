//! Register access to one device window.

/// One device's register window, as the driver reaches it.
///
/// The kernel implements it with volatile accesses to the mapped window; the
/// simulated machine calls the device model. Each access is one exit to the
/// VMM on a real machine, so drivers avoid reads that they can do without.
pub trait MmioBus {
    /// Reads 32 bits at `offset` of the window; `offset` is 4-aligned.
    fn read32(&self, offset: u64) -> u32;

    /// Writes 32 bits at `offset` of the window; `offset` is 4-aligned.
    fn write32(&self, offset: u64, value: u32);

    /// Reads one byte at `offset` of the window.
    fn read8(&self, offset: u64) -> u8;
}

impl<B: MmioBus + ?Sized> MmioBus for &B {
    fn read32(&self, offset: u64) -> u32 {
        (**self).read32(offset)
    }

    fn write32(&self, offset: u64, value: u32) {
        (**self).write32(offset, value);
    }

    fn read8(&self, offset: u64) -> u8 {
        (**self).read8(offset)
    }
}
