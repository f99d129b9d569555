//! Port I/O. The I/O permission bitmap in the TSS allows the ports of `abi::platform` and the PIT; any other faults.

use core::arch::asm;

/// Writes a byte.
pub(super) fn write8(port: u16, value: u8) {
    // SAFETY: the ports that the bitmap allows are devices that touch no memory of ours.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Writes 16 bits.
pub(super) fn write16(port: u16, value: u16) {
    // SAFETY: as in `write8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

/// Reads a byte.
pub(super) fn read8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as in `write8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}
