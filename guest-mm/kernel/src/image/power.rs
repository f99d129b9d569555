//! The ways a guest ends: power off, reset, panic.

use abi::platform::{
    I8042_COMMAND_PORT, I8042_RESET, PM1A_CONTROL_PORT, PM1A_SLEEP_S5, PVPANIC_PANICKED,
    PVPANIC_PORT,
};

use super::{gate, irq, port};

/// Powers off; where there is no such register (Firecracker), resets, which ends the VM there.
pub(super) fn off() -> ! {
    port::write16(PM1A_CONTROL_PORT, PM1A_SLEEP_S5);
    reset()
}

/// Pulses the reset line.
pub(super) fn reset() -> ! {
    port::write8(I8042_COMMAND_PORT, I8042_RESET);
    halt_for_good()
}

/// Tells the host that the guest has panicked, then resets.
pub(super) fn panicked() -> ! {
    port::write8(PVPANIC_PORT, PVPANIC_PANICKED);
    reset()
}

/// For a machine that does not end when told to.
fn halt_for_good() -> ! {
    irq::mask();
    loop {
        gate::halt();
        // Masked interrupts stay pending and would end every HLT at once.
        irq::shared().pending.store(0, core::sync::atomic::Ordering::Relaxed);
    }
}
