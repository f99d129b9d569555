//! Deliberate ends, for tests of what the host makes of them.

use core::arch::asm;

use guest_kernel::scenario::FAILURE;
use guest_mm::buddy::Gfp;
use guest_mm::memdesc::Order;
use guest_mm::memory::Memory;
use guest_mm::platform::Platform;

use crate::image::platform::Machine;
use crate::image::{apic, irq, paging, time};

/// An NMI that takes longer does not come.
const NMI_PATIENCE_NS: u64 = 1_000_000_000;

/// Panics.
pub(super) fn panic() -> ! {
    panic!("deliberate: the scenario `panic`")
}

/// Reads the first page, which nothing maps.
pub(super) fn wild_read() -> u8 {
    let nothing = core::ptr::with_exposed_provenance::<u8>(0x10);
    // SAFETY: the access faults and the trap report ends the guest; nothing comes after it.
    unsafe { nothing.read_volatile() }
}

/// Sends this CPU an NMI, which the nucleus reports on a stack of its own and ends the guest.
pub(super) fn nmi() -> u8 {
    apic::send_nmi_to_self();
    let start = time::now_ns();
    while time::now_ns() - start < NMI_PATIENCE_NS {
        core::hint::spin_loop();
    }
    FAILURE
}

/// Present bit of a descriptor's first quad.
const DESCRIPTOR_PRESENT: u64 = 1 << 47;

/// Changes this CPU's descriptor table.
fn with_idt(memory: &Memory<Machine>, edit: impl FnOnce(&mut [u64; 512])) -> Option<()> {
    let frame = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).ok()?.into_raw().0;
    let mut copy = memory.platform().frame_ptr(frame).cast();
    // SAFETY: a frame just taken; any bits are quads.
    let copy = unsafe { copy.as_mut() };
    paging::replace_idt(irq::cpu(), copy, frame.gpa(), edit);
    Some(())
}

/// Takes the descriptor of the general protection fault away and causes one: a fault in the delivery of a fault.
pub(super) fn double_fault(memory: &Memory<Machine>) -> u8 {
    const GENERAL_PROTECTION: usize = 13;
    if with_idt(memory, |idt| idt[2 * GENERAL_PROTECTION] &= !DESCRIPTOR_PRESENT).is_some() {
        // SAFETY: ring 3 may not halt; the nucleus ends the guest.
        unsafe { asm!("hlt", options(nostack)) };
    }
    FAILURE
}

/// Sends an invalid opcode through the descriptor of the machine check, which a guest cannot cause by itself.
pub(super) fn machine_check(memory: &Memory<Machine>) -> u8 {
    const INVALID_OPCODE: usize = 6;
    const MACHINE_CHECK: usize = 18;
    let edited = with_idt(memory, |idt| {
        idt.copy_within(2 * MACHINE_CHECK..2 * MACHINE_CHECK + 2, 2 * INVALID_OPCODE);
    });
    if edited.is_some() {
        // SAFETY: the nucleus ends the guest.
        unsafe { asm!("ud2", options(nostack)) };
    }
    FAILURE
}
