//! The local APIC (xAPIC: one store ends an interrupt, nine instructions in ring 0 would in x2APIC mode).

use guest_kernel::layout::{DEVICE_WINDOWS, SPURIOUS_VECTOR};

/// Register offsets.
mod register {
    /// End of interrupt.
    pub(super) const EOI: u64 = 0xb0;
    /// Spurious vector and software enable.
    pub(super) const SPURIOUS: u64 = 0xf0;
    /// Local vector table, LINT0: where an 8259 is wired.
    pub(super) const LVT_LINT0: u64 = 0x350;
}

/// Masked entry of the local vector table.
const LVT_MASKED: u32 = 1 << 16;
/// Software enable, in [`register::SPURIOUS`].
const ENABLE: u32 = 1 << 8;

/// Writes a register.
fn write(offset: u64, value: u32) {
    let register =
        core::ptr::with_exposed_provenance_mut::<u32>((DEVICE_WINDOWS + offset) as usize);
    // SAFETY: the first device window maps the local APIC from link time on; `offset` is one of `register`'s.
    unsafe { register.write_volatile(value) };
}

/// Enables the APIC and shuts the 8259's way in.
pub(super) fn init() {
    write(register::SPURIOUS, ENABLE | u32::from(SPURIOUS_VECTOR));
    write(register::LVT_LINT0, LVT_MASKED);
}

/// Ends the interrupt in service.
pub(super) fn end_of_interrupt() {
    write(register::EOI, 0);
}
