//! One deadline per CPU: by the TSC-deadline MSR, or the local APIC's one-shot counter where that is missing.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_kernel::layout::FIRST_VECTOR;

use super::{apic, gate, time};

/// The timer's vector.
pub(super) const VECTOR: u8 = FIRST_VECTOR;

/// Counts per 2^16 ns of the one-shot counter; 0: TSC-deadline mode.
static COUNTS_PER_64_US: AtomicU64 = AtomicU64::new(0);

/// Chooses the mode.
pub(super) fn init() {
    let has_deadline = gate::cpuid(1)[2] & (1 << 24) != 0;
    if has_deadline {
        apic::timer_by_deadline(VECTOR);
        return;
    }
    apic::timer_one_shot(VECTOR);
    // Measure its clock for a millisecond.
    apic::start_timer(u32::MAX);
    let start = time::now_ns();
    let mut elapsed = 0;
    while elapsed < 1_000_000 {
        elapsed = time::now_ns() - start;
    }
    let counted = u64::from(u32::MAX - apic::timer_count());
    apic::start_timer(0);
    COUNTS_PER_64_US.store(((counted << 16) / elapsed).max(1), Ordering::Relaxed);
}

/// Arms the timer `delay_ns` from now; an earlier deadline is forgotten.
pub(super) fn arm(delay_ns: u64) {
    let counts = COUNTS_PER_64_US.load(Ordering::Relaxed);
    if counts == 0 {
        gate::write_tsc_deadline(time::ticks().saturating_add(time::rate().ticks(delay_ns)));
    } else {
        let count = (u128::from(delay_ns) * u128::from(counts)) >> 16;
        apic::start_timer(u32::try_from(count).unwrap_or(u32::MAX).max(1));
    }
}

/// Disarms the timer; an interrupt under way still comes.
pub(super) fn disarm() {
    if COUNTS_PER_64_US.load(Ordering::Relaxed) == 0 {
        gate::write_tsc_deadline(0);
    } else {
        apic::start_timer(0);
    }
}
