//! What each CPU does: probes, rounds of faults under interrupts, halts.

use core::sync::atomic::{AtomicUsize, Ordering};

use abi::trap_stress as page;

use super::windows;
use super::{
    FIRST_HOST_VECTOR, HALT_SHARE, HOST_VECTORS, IPI_VECTOR, LOST_NS, POINTER_QUAD, QUADS, TICK_NS,
    count, page_quad, probe, set_phase, shared, trap_stress_round,
};
use crate::image::log::warning;
use crate::image::{apic, gate, irq, smp, time, timer};

/// A small generator: the stress needs variety, not quality.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What a run finds.
pub(super) struct Findings {
    pub(super) rounds: u64,
    pub(super) corrupt: u64,
    /// The first quad that differed, for the report.
    pub(super) first_corrupt: Option<usize>,
    pub(super) lost: u64,
    pub(super) halts: u64,
    /// Interrupts on vectors that nobody owns.
    pub(super) stray: u32,
}

/// An interrupt that has been sent and not seen.
#[derive(Clone, Copy, Default)]
struct Outstanding {
    sequence: u64,
    since_ns: u64,
}

/// One run, as all CPUs share it: they go through its phases together.
pub(super) struct Course {
    cpus: usize,
    total_ns: u64,
    /// CPUs that have come to a meeting, all meetings together.
    arrived: AtomicUsize,
    /// Meetings that are over.
    passed: AtomicUsize,
}

impl Course {
    pub(super) fn new(cpus: usize, total_ns: u64) -> Self {
        Self { cpus, total_ns, arrived: AtomicUsize::new(0), passed: AtomicUsize::new(0) }
    }

    /// Waits until every CPU is here for the `times`th time, and enters a phase with the last.
    fn meet(&self, times: usize, phase: u32) {
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.cpus * times {
            set_phase(phase);
            self.passed.store(times, Ordering::Release);
        }
        while self.passed.load(Ordering::Acquire) < times {
            smp::relax();
        }
    }

    /// The calling CPU's part; `serve` is called now and then.
    pub(super) fn run(&self, serve: &mut dyn FnMut()) -> Findings {
        let mut findings = Findings::NONE;
        probe::all(&mut findings);
        self.meet(1, page::PHASE_FLOOD);
        self.flood(self.total_ns - self.total_ns / HALT_SHARE, &mut findings, serve);
        self.meet(2, page::PHASE_HALT);
        self.halt(self.total_ns / HALT_SHARE, &mut findings, serve);
        timer::disarm();
        findings.stray = irq::shared().stray.load(Ordering::Relaxed);
        findings
    }

    /// Rounds of faults under interrupts.
    fn flood(&self, duration_ns: u64, findings: &mut Findings, serve: &mut dyn FnMut()) {
        let start = time::now_ns();
        let mut random = Random((start << 2 | irq::cpu() as u64) << 1 | 1);
        let mut pattern = [0u64; QUADS];
        let mut found = [0u64; QUADS];
        let mut outstanding = [Outstanding::default(); HOST_VECTORS as usize];
        shared().last_tick.store(start, Ordering::Relaxed);
        shared().is_flood.store(true, Ordering::Relaxed);
        timer::arm(TICK_NS);
        while time::now_ns() - start < duration_ns {
            pattern.fill_with(|| random.next());
            // Arithmetic flags and DF at random; IF and bit 1 as they are; TF and ID clear.
            pattern[13] = 0x202 | (random.next() & 0xcd5);
            let window = shared().windows.round_start(random.next());
            // SAFETY: both arrays have 64 quads; the eight pages of the window are mapped by our fault handler.
            unsafe { trap_stress_round(pattern.as_ptr(), found.as_mut_ptr(), window) };
            findings.rounds += 1;
            findings.compare(&pattern, &found);
            shared().windows.unmap_round(window);
            if findings.rounds.is_multiple_of(16) {
                count(&shared().ipis_sent);
                apic::send_to_self(IPI_VECTOR);
                Self::account(&mut outstanding, findings);
            }
            if findings.rounds.is_multiple_of(256) {
                serve();
            }
        }
        shared().is_flood.store(false, Ordering::Relaxed);
        timer::disarm();
    }

    /// Looks for interrupts that were sent and did not come.
    fn account(outstanding: &mut [Outstanding], findings: &mut Findings) {
        let now = time::now_ns();
        for (index, waiting) in (0..HOST_VECTORS).zip(outstanding) {
            let sequence = page_quad(page::SEQUENCE_OFFSET, index);
            let acknowledged = page_quad(page::ACKNOWLEDGED_OFFSET, index);
            let seen = acknowledged.load(Ordering::Acquire);
            let sent = sequence.load(Ordering::Acquire);
            if sent == seen || waiting.sequence != seen {
                // Nothing outstanding, or something came since: start anew.
                *waiting = Outstanding { sequence: seen, since_ns: now };
            } else if now - waiting.since_ns > LOST_NS {
                warning!(
                    "trap-stress: vector {:#x} lost, sent {sent} seen {seen}",
                    FIRST_HOST_VECTOR + index
                );
                findings.lost += 1;
                acknowledged.store(sent, Ordering::Release);
            }
        }
        // A tick that came after `now` was taken makes the difference negative.
        if now.saturating_sub(shared().last_tick.load(Ordering::Relaxed)) > LOST_NS {
            warning!("trap-stress: the timer stopped");
            findings.lost += 1;
            shared().last_tick.store(now, Ordering::Relaxed);
            timer::arm(TICK_NS);
        }
        let start = now;
        while shared().ipis_seen.load(Ordering::Acquire)
            != shared().ipis_sent.load(Ordering::Relaxed)
        {
            if time::now_ns() - start > LOST_NS {
                warning!("trap-stress: an IPI is lost");
                findings.lost += 1;
                shared()
                    .ipis_seen
                    .store(shared().ipis_sent.load(Ordering::Relaxed), Ordering::Release);
            }
            core::hint::spin_loop();
        }
    }

    /// Halts as often as it can while the host sends one MSI at a time. The pause between the look and the HLT is the
    /// window in which a missing check would lose a wake-up; the host sees that as an acknowledgement that is late.
    fn halt(&self, duration_ns: u64, findings: &mut Findings, serve: &mut dyn FnMut()) {
        /// Ends the phase when no host sends; longer than the host's patience, so that it never hides a loss.
        const GUARD_NS: u64 = 10_000_000_000;
        let start = time::now_ns();
        timer::arm(GUARD_NS.min(duration_ns));
        let mut ticks = shared().ticks.load(Ordering::Relaxed);
        while time::now_ns() - start < duration_ns {
            irq::mask();
            if irq::shared().pending.load(Ordering::Relaxed) == 0 {
                findings.halts += 1;
                for _ in 0..findings.halts % 64 {
                    core::hint::spin_loop();
                }
                gate::halt();
            }
            irq::unmask();
            if findings.halts.is_multiple_of(256) {
                serve();
            }
            let now = shared().ticks.load(Ordering::Relaxed);
            if now != ticks {
                ticks = now;
                timer::arm(GUARD_NS.min(duration_ns));
            }
        }
        timer::disarm();
    }
}

impl Findings {
    /// Nothing found yet.
    pub(super) const NONE: Self =
        Self { rounds: 0, corrupt: 0, first_corrupt: None, lost: 0, halts: 0, stray: 0 };

    /// Compares what a round found with what it began with.
    fn compare(&mut self, pattern: &[u64; QUADS], found: &[u64; QUADS]) {
        for (at, (expected, found)) in pattern.iter().zip(found).enumerate() {
            let expected = if at == POINTER_QUAD { windows::ROUND_BYTES } else { *expected };
            if *found != expected {
                self.corrupt += 1;
                self.first_corrupt = self.first_corrupt.or(Some(at));
                return;
            }
        }
    }
}
