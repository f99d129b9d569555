//! Deliberate ends, for tests of what the host makes of them.

use guest_kernel::scenario::FAILURE;

use crate::image::{apic, time};

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
