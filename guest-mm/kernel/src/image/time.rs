//! Time: nanoseconds since boot from the TSC.
//!
//! Ring 3 reads the TSC natively; only its rate has to be found. KVM tells it
//! in its clock page (read once, then switched off), some hypervisors and CPUs
//! in CPUID, and an 8254 lets us measure it.

use core::arch::x86_64::_rdtsc;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_kernel::clock::{PitLook, TscRate};
use guest_kernel::layout::KERNEL_BASE;

use super::{gate, port};

/// TSC at boot.
static START: AtomicU64 = AtomicU64::new(0);
/// The rate as [`TscRate::hz`]'s argument; 0 until known.
static HZ: AtomicU64 = AtomicU64::new(0);

/// How the rate was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// KVM's clock page.
    Kvmclock,
    /// CPUID leaf 0x4000_0010.
    HypervisorLeaf,
    /// CPUID leaf 0x15.
    CrystalLeaf,
    /// Measured against the 8254.
    Pit,
    /// Not found: 1 GHz is assumed.
    Assumed,
}

/// The TSC now.
pub(super) fn ticks() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// The rate; 1 GHz until [`init`].
pub(super) fn rate() -> TscRate {
    const ASSUMED: TscRate = match TscRate::from_hz(1_000_000_000) {
        Some(rate) => rate,
        None => unreachable!(),
    };
    TscRate::from_hz(HZ.load(Ordering::Relaxed)).unwrap_or(ASSUMED)
}

/// Monotonic nanoseconds since [`init`].
pub(super) fn now_ns() -> u64 {
    rate().ns(ticks().wrapping_sub(START.load(Ordering::Relaxed)))
}

/// Starts the clock, and finds the rate.
pub(super) fn init() -> Source {
    START.store(ticks(), Ordering::Relaxed);
    let (source, rate) = find_rate();
    HZ.store(rate.map_or(0, TscRate::hz), Ordering::Relaxed);
    source
}

fn find_rate() -> (Source, Option<TscRate>) {
    let [highest, b, c, d] = gate::cpuid(0x4000_0000);
    let is_kvm = [b, c, d] == [0x4b4d_564b, 0x564b_4d56, 0x4d]; // "KVMKVMKVM"
    if is_kvm
        && gate::cpuid(0x4000_0001)[0] & (1 << 3) != 0
        && let Some(rate) = kvmclock_rate()
    {
        return (Source::Kvmclock, Some(rate));
    }
    if (0x4000_0010..0x4001_0000).contains(&highest) {
        let khz = u64::from(gate::cpuid(0x4000_0010)[0]);
        if let Some(rate) = TscRate::from_hz(khz * 1000) {
            return (Source::HypervisorLeaf, Some(rate));
        }
    }
    if gate::cpuid(0)[0] >= 0x15 {
        let [denominator, numerator, crystal, _] = gate::cpuid(0x15).map(u64::from);
        if let Some(rate) =
            (crystal * numerator).checked_div(denominator).and_then(TscRate::from_hz)
        {
            return (Source::CrystalLeaf, Some(rate));
        }
    }
    match measure_with_pit().and_then(TscRate::from_hz) {
        Some(rate) => (Source::Pit, Some(rate)),
        None => (Source::Assumed, None),
    }
}

/// `struct pvclock_vcpu_time_info`: version, pad, tsc_timestamp, system_time, mul and shift.
#[repr(C, align(64))]
struct ClockPage(UnsafeCell<[u32; 8]>);

// SAFETY: only `kvmclock_rate` touches it, once, by volatile reads; the host writes it meanwhile.
unsafe impl Sync for ClockPage {}

static CLOCK_PAGE: ClockPage = ClockPage(UnsafeCell::new([0; 8]));

/// Has KVM fill the clock page once.
fn kvmclock_rate() -> Option<TscRate> {
    let page = CLOCK_PAGE.0.get();
    let gpa = page.expose_provenance() as u64 - KERNEL_BASE;
    // SAFETY: the page is a static that nothing else uses.
    unsafe { gate::write_kvm_system_time(gpa | 1) };
    // SAFETY: a static; the host's concurrent writes are why the read is volatile.
    let words = unsafe { page.read_volatile() };
    // SAFETY: switches the clock off.
    unsafe { gate::write_kvm_system_time(0) };
    let [version, .., mul, shift] = words;
    if version == 0 || version % 2 == 1 {
        return None;
    }
    TscRate::from_kvmclock(mul, shift.to_le_bytes()[0].cast_signed())
}

/// Counts TSC ticks while channel 2 of the 8254 counts 10 ms down; `None` where there is none.
///
/// The counter is read rather than its output: a VMM may have the channel and not port 0x61, which shows the output and
/// opens the gate (QEMU microvm).
fn measure_with_pit() -> Option<u64> {
    const ATTEMPTS: u32 = 4;
    const COUNT: u16 = 11_932;
    /// Looks without a change that show that nothing counts; each takes longer than a period.
    const STILL: u32 = 200;
    const GATE: u8 = 1;
    let control = port::read8(0x61) & 0xfc;
    port::write8(0x61, control | GATE);
    for _ in 0..ATTEMPTS {
        port::write8(0x43, 0xb0); // channel 2, low then high byte, mode 0
        port::write8(0x42, 0xff);
        port::write8(0x42, 0xff);
        let first = look_at_pit();
        let mut last = first;
        let mut still = 0;
        while last.counted_since(first) < COUNT && still < STILL {
            let next = look_at_pit();
            still = if next.left == last.left { still + 1 } else { 0 };
            last = next;
        }
        if still == STILL {
            return None;
        }
        if let Some(hz) = last.hz_since(first) {
            return Some(hz);
        }
    }
    None
}

/// Latches and reads channel 2.
fn look_at_pit() -> PitLook {
    let before = ticks();
    port::write8(0x43, 0x80);
    let after = ticks();
    let left = u16::from_le_bytes([port::read8(0x42), port::read8(0x42)]);
    PitLook { left, before, after }
}
