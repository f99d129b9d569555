//! The local APIC (xAPIC: one store ends an interrupt, nine instructions in ring 0 would in x2APIC mode).

use core::sync::atomic::{AtomicU32, Ordering};

use guest_kernel::layout::{CPUS, DEVICE_WINDOWS, SPURIOUS_VECTOR, word};

use super::irq;

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

/// Interrupt command: level assert.
const ASSERT: u32 = 1 << 14;

/// APIC ids by CPU number.
static IDS: [AtomicU32; CPUS] = [const { AtomicU32::new(0) }; CPUS];

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
    write(register::COMMAND, TO_SELF | ASSERT | u32::from(vector));
}

/// Notes the APIC id of `cpu`.
pub(super) fn note_id(cpu: usize, id: u32) {
    if let Some(slot) = IDS.get(cpu) {
        slot.store(id, Ordering::Relaxed);
    }
}

/// The APIC id of `cpu`, as noted.
pub(super) fn id_of(cpu: usize) -> u32 {
    IDS.get(cpu).map_or(0, |id| id.load(Ordering::Relaxed))
}

/// Sends a command to one CPU. Two stores that no handler's may come between; a virtual APIC has taken the command when
/// the second is done.
fn command(id: u32, command: u32) {
    let was_masked = irq::mask();
    write(register::COMMAND_HIGH, id << 24);
    write(register::COMMAND, command);
    irq::restore(was_masked);
}

/// Interrupts another CPU.
pub(super) fn send(cpu: usize, vector: u8) {
    command(id_of(cpu), ASSERT | u32::from(vector));
}

/// Puts a CPU into the state in which it waits for [`send_startup`].
pub(super) fn send_init(cpu: usize) {
    const INIT: u32 = 5 << 8;
    command(id_of(cpu), ASSERT | INIT);
}

/// Starts a CPU that waits for it, in real mode at page number `page`.
pub(super) fn send_startup(cpu: usize, page: u8) {
    const STARTUP: u32 = 6 << 8;
    command(id_of(cpu), ASSERT | STARTUP | u32::from(page));
}

/// Sends this CPU an NMI: by its id, since the shorthand is for vectors only.
pub(super) fn send_nmi_to_self() {
    const NMI: u32 = 4 << 8;
    command(id(), ASSERT | NMI);
}

/// Ends the interrupt in service.
pub(super) fn end_of_interrupt() {
    write(register::EOI, 0);
}
