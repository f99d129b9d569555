//! The ways a guest ends: power off, reset, panic.

use abi::platform::{
    I8042_COMMAND_PORT, I8042_RESET, PM1A_CONTROL_PORT, PM1A_SLEEP_S5, PVPANIC_PANICKED,
    PVPANIC_PORT,
};

use guest_kernel::layout::{KERNEL_BASE, PAGE, word};

use super::{gate, irq, port};

/// Powers off; where there is no such register (Firecracker), resets, which ends the VM there.
pub(super) fn off() -> ! {
    port::write16(PM1A_CONTROL_PORT, PM1A_SLEEP_S5);
    reset()
}

/// Pulses the reset line; where there is none (QEMU microvm), shuts the CPU down, which every VMM notices.
pub(super) fn reset() -> ! {
    port::write8(I8042_COMMAND_PORT, I8042_RESET);
    triple_fault()
}

/// A page of zeros for a root table.
#[repr(align(4096))]
struct EmptyTable([u8; word(PAGE)]);

static EMPTY_TABLE: EmptyTable = EmptyTable([0; word(PAGE)]);

/// Loads page tables that map nothing: the next fetch faults, so does the fault's handler, and the CPU shuts down.
pub(super) fn triple_fault() -> ! {
    let root = EMPTY_TABLE.0.as_ptr().expose_provenance() as u64 - KERNEL_BASE;
    // SAFETY: no instruction follows that could see the missing mappings.
    unsafe { gate::load_cr3(root) };
    halt_for_good()
}

/// Tells the host that the guest has panicked, then resets.
pub(super) fn panicked() -> ! {
    port::write8(PVPANIC_PORT, PVPANIC_PANICKED);
    reset()
}

/// For a machine that does not end when told to, and for a CPU while another ends it.
pub(super) fn halt_for_good() -> ! {
    irq::mask();
    loop {
        gate::halt();
        // Masked interrupts stay pending and would end every HLT at once.
        irq::shared().pending.store(0, core::sync::atomic::Ordering::Relaxed);
    }
}
