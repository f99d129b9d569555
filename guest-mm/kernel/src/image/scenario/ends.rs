//! Deliberate ends, for tests of what the host makes of them.

/// Panics.
pub(super) fn panic() -> ! {
    panic!("deliberate: the scenario `panic`")
}

/// Reads the first page, which nothing maps.
pub(super) fn fault() -> u8 {
    let nothing = core::ptr::with_exposed_provenance::<u8>(0x10);
    // SAFETY: the access faults and the trap report ends the guest; nothing comes after it.
    unsafe { nothing.read_volatile() }
}
