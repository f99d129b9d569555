//! Deadlines per CPU: by the TSC-deadline MSR, or the local APIC's one-shot counter where that is missing.
//!
//! A CPU has one timer and three uses for it ([`Slot`]); it is armed for the earliest.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_kernel::layout::{CPUS, FIRST_VECTOR};

use super::{apic, gate, irq, smp, time};

/// The timer's vector.
pub(super) const VECTOR: u8 = FIRST_VECTOR;

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// The main flow's next work, or whatever a scenario counts ticks for.
    Wake = 0,
    /// The end of a time slice.
    Slice = 1,
    /// The end of a nap.
    Nap = 2,
}

const SLOTS: usize = 3;
/// No deadline.
const NEVER: u64 = u64::MAX;
/// An interrupt this much early counts: rates are rounded.
const EARLY_NS: u64 = 1000;
/// Slices last this long at least, and up to eight times as long.
const MIN_SLICE_NS: u64 = 60_000;
/// A CPU stands still for this long at most when its slice ends and no other thread is there.
const MAX_STANDSTILL_NS: u64 = 40_000;

/// Counts per 2^16 ns of the one-shot counter; 0: TSC-deadline mode.
static COUNTS_PER_64_US: AtomicU64 = AtomicU64::new(0);
/// Seed of the slices; 0: no slices.
static SLICES: AtomicU64 = AtomicU64::new(0);

/// A CPU's deadlines in TSC ticks, what its hardware is armed for, and the state of its random numbers.
#[repr(align(64))]
struct Deadlines {
    slots: [AtomicU64; SLOTS],
    armed: AtomicU64,
    random: AtomicU64,
}

static DEADLINES: [Deadlines; CPUS] = [const {
    Deadlines {
        slots: [const { AtomicU64::new(NEVER) }; SLOTS],
        armed: AtomicU64::new(NEVER),
        random: AtomicU64::new(0),
    }
}; CPUS];

fn mine() -> &'static Deadlines {
    &DEADLINES[irq::cpu() % CPUS]
}

/// Chooses the mode, and measures the one-shot counter if that is it.
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

/// Sets another CPU's timer up in the boot CPU's mode.
pub(super) fn init_cpu() {
    if COUNTS_PER_64_US.load(Ordering::Relaxed) == 0 {
        apic::timer_by_deadline(VECTOR);
    } else {
        apic::timer_one_shot(VECTOR);
    }
}

/// Arms this CPU's timer `delay_ns` from now; an earlier deadline is forgotten.
pub(super) fn arm(delay_ns: u64) {
    set(Slot::Wake, delay_ns);
}

/// Disarms the timer; an interrupt under way still comes.
pub(super) fn disarm() {
    clear(Slot::Wake);
}

fn set(slot: Slot, delay_ns: u64) {
    let was_masked = irq::mask();
    let deadline = time::ticks().saturating_add(time::rate().ticks(delay_ns)).min(NEVER - 1);
    mine().slots[slot as usize].store(deadline, Ordering::Relaxed);
    program();
    irq::restore(was_masked);
}

fn clear(slot: Slot) {
    let was_masked = irq::mask();
    mine().slots[slot as usize].store(NEVER, Ordering::Relaxed);
    program();
    irq::restore(was_masked);
}

/// Arms the hardware for the earliest deadline, unless it is. Masked.
fn program() {
    let mine = mine();
    let earliest =
        mine.slots.iter().map(|slot| slot.load(Ordering::Relaxed)).min().unwrap_or(NEVER);
    if mine.armed.swap(earliest, Ordering::Relaxed) == earliest {
        return;
    }
    let counts = COUNTS_PER_64_US.load(Ordering::Relaxed);
    if counts == 0 {
        gate::write_tsc_deadline(if earliest == NEVER { 0 } else { earliest });
    } else if earliest == NEVER {
        apic::start_timer(0);
    } else {
        let delay_ns = time::rate().ns(earliest.saturating_sub(time::ticks()));
        let count = (u128::from(delay_ns) * u128::from(counts)) >> 16;
        apic::start_timer(u32::try_from(count).unwrap_or(u32::MAX).max(1));
    }
}

/// What a timer interrupt has to do: runs masked. `true` if it was [`arm`]'s.
pub(super) fn on_interrupt() -> bool {
    let mine = mine();
    mine.armed.store(NEVER, Ordering::Relaxed);
    let now = time::ticks().saturating_add(time::rate().ticks(EARLY_NS));
    let expired = |slot: Slot| {
        let slot = &mine.slots[slot as usize];
        let is_over = slot.load(Ordering::Relaxed) <= now;
        if is_over {
            slot.store(NEVER, Ordering::Relaxed);
        }
        is_over
    };
    let (wake, slice, _) = (expired(Slot::Wake), expired(Slot::Slice), expired(Slot::Nap));
    if slice {
        smp::request_preemption();
        stand_still();
        next_slice();
    }
    program();
    wake
}

/// Switches random slices on by a seed, on all CPUs as they switch threads, or off by 0.
pub(super) fn set_slices(seed: u64) {
    SLICES.store(seed, Ordering::Relaxed);
    for (cpu, deadlines) in (1..).zip(&DEADLINES) {
        deadlines.random.store(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(cpu) | 1,
            Ordering::Relaxed,
        );
    }
}

/// Begins a slice if slices are on and none is under way. Masked.
pub(super) fn next_slice() {
    let is_under_way = mine().slots[Slot::Slice as usize].load(Ordering::Relaxed) != NEVER;
    if is_under_way || SLICES.load(Ordering::Relaxed) == 0 {
        return;
    }
    set(Slot::Slice, MIN_SLICE_NS + random() % (7 * MIN_SLICE_NS));
}

fn random() -> u64 {
    let state = &mine().random;
    let mut value = state.load(Ordering::Relaxed);
    value ^= value << 13;
    value ^= value >> 7;
    value ^= value << 17;
    state.store(value, Ordering::Relaxed);
    value
}

/// Keeps the CPU where it is, one slice in four, for a random time: what a thread that is alone on its CPU gets of
/// preemption. Other CPUs' requests are served.
fn stand_still() {
    let chance = random();
    if !chance.is_multiple_of(4) {
        return;
    }
    let until = time::now_ns() + (chance >> 8) % MAX_STANDSTILL_NS;
    while time::now_ns() < until {
        smp::serve();
        core::hint::spin_loop();
    }
}

/// Lets the core go for `ns`, or until the next interrupt.
pub(super) fn nap(ns: u64) {
    // Masked before the timer is armed: an interrupt that comes before the halt must be pending then, not handled.
    let was_masked = irq::mask();
    set(Slot::Nap, ns);
    irq::halt_unless_pending();
    irq::restore(was_masked);
    clear(Slot::Nap);
}
