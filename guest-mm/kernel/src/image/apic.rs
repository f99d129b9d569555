//! The local APIC (xAPIC: one store ends an interrupt, nine instructions in ring 0 would in x2APIC mode).

use guest_kernel::layout::{DEVICE_WINDOWS, SPURIOUS_VECTOR, word};

/// Register offsets.
mod register {
    /// Identity of this APIC, in the top byte.
    pub(super) const ID: u64 = 0x20;
    /// End of interrupt.
    pub(super) const EOI: u64 = 0xb0;
    /// Spurious vector and software enable.
    pub(super) const SPURIOUS: u64 = 0xf0;
    /// Interrupt command, low half.
    pub(super) const COMMAND: u64 = 0x300;
    /// Interrupt command, high half: who is interrupted.
    pub(super) const COMMAND_HIGH: u64 = 0x310;
    /// Local vector table, LINT0: where an 8259 is wired.
    pub(super) const LVT_LINT0: u64 = 0x350;
    /// Local vector table, timer.
    pub(super) const LVT_TIMER: u64 = 0x320;
    /// Timer: initial count.
    pub(super) const TIMER_INITIAL: u64 = 0x380;
    /// Timer: current count.
    pub(super) const TIMER_CURRENT: u64 = 0x390;
    /// Timer: divider.
    pub(super) const TIMER_DIVIDE: u64 = 0x3e0;
}

/// Masked entry of the local vector table.
const LVT_MASKED: u32 = 1 << 16;
/// Software enable, in [`register::SPURIOUS`].
const ENABLE: u32 = 1 << 8;

/// A register's address.
fn address(offset: u64) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut(word(DEVICE_WINDOWS + offset))
}

/// Writes a register.
fn write(offset: u64, value: u32) {
    // SAFETY: the first device window maps the local APIC from link time on; `offset` is one of `register`'s.
    unsafe { address(offset).write_volatile(value) };
}

/// Reads a register.
fn read(offset: u64) -> u32 {
    // SAFETY: as in `write`.
    unsafe { address(offset).read_volatile() }
}

/// This CPU's APIC id.
pub(super) fn id() -> u32 {
    read(register::ID) >> 24
}

/// Puts the timer into TSC-deadline mode.
pub(super) fn timer_by_deadline(vector: u8) {
    const TSC_DEADLINE: u32 = 2 << 17;
    write(register::LVT_TIMER, TSC_DEADLINE | u32::from(vector));
}

/// Puts the timer into one-shot mode, its counter running at the bus clock.
pub(super) fn timer_one_shot(vector: u8) {
    const DIVIDE_BY_1: u32 = 0b1011;
    write(register::TIMER_DIVIDE, DIVIDE_BY_1);
    write(register::LVT_TIMER, u32::from(vector));
}

/// Starts the one-shot counter; 0 stops it.
pub(super) fn start_timer(count: u32) {
    write(register::TIMER_INITIAL, count);
}

/// What is left of the one-shot counter.
pub(super) fn timer_count() -> u32 {
    read(register::TIMER_CURRENT)
}

/// Enables the APIC and shuts the 8259's way in.
pub(super) fn init() {
    write(register::SPURIOUS, ENABLE | u32::from(SPURIOUS_VECTOR));
    write(register::LVT_LINT0, LVT_MASKED);
}

/// Interrupts this CPU: an IPI to itself.
pub(super) fn send_to_self(vector: u8) {
    const TO_SELF: u32 = 1 << 18;
    const ASSERT: u32 = 1 << 14;
    write(register::COMMAND, TO_SELF | ASSERT | u32::from(vector));
}

/// Sends this CPU an NMI: by its id, since the shorthand is for vectors only.
pub(super) fn send_nmi_to_self() {
    const NMI: u32 = 4 << 8;
    const ASSERT: u32 = 1 << 14;
    write(register::COMMAND_HIGH, id() << 24);
    write(register::COMMAND, ASSERT | NMI);
}

/// Ends the interrupt in service.
pub(super) fn end_of_interrupt() {
    write(register::EOI, 0);
}
