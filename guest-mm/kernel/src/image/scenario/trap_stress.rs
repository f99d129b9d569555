//! `trap-stress`: faults, nested faults, timer ticks, self-IPIs and a host's MSI flood at once.
//!
//! Registers (xmm too), flags and the red zone are compared after every round;
//! handlers overwrite all xmm; each interrupt is accounted for by sequence
//! number. Probes come first, one at a time in a quiet machine, for what a flood hides: the next
//! interrupt would deliver what the last one lost. The page that the host needs is described in [`abi::trap_stress`].
//! Without a host that floods, the rest still runs.

mod probe;
mod windows;

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use abi::trap_stress as page;
use guest_kernel::layout::{FIRST_VECTOR, KERNEL_BASE, word};
use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::store::PfnStore;

use super::super::kernel::Kernel;
use super::super::log::warning;
use super::super::trap::{self, TrapFrame};
use super::super::{apic, gate, irq, time, timer};
use windows::{Window, Windows};

global_asm!(include_str!("trap_stress.S"), options(att_syntax));

/// Vectors that the host sends.
const HOST_VECTORS: u8 = 3;
/// The first of them.
const FIRST_HOST_VECTOR: u8 = FIRST_VECTOR + 12;
/// Vector of the IPIs that this CPU sends itself.
const IPI_VECTOR: u8 = FIRST_VECTOR + 15;
/// Timer ticks come this far apart.
const TICK_NS: u64 = 200_000;
/// An interrupt that takes longer is lost.
const LOST_NS: u64 = 5_000_000_000;
/// The halt phase is this part of the whole, so that both get their share.
const HALT_SHARE: u64 = 4;
/// Distinct quads of a round: see `trap_stress.S`.
const QUADS: usize = 64;
/// The quad that holds how far the round's pointer moved.
const POINTER_QUAD: usize = 15;

unsafe extern "C" {
    fn trap_stress_round(pattern: *const u64, found: *mut u64, window: *mut u8);
    fn trap_stress_trash();
}

/// Everything that handlers see. One run at a time.
struct Shared {
    windows: Windows,
    /// Flood: handlers fault and re-arm; otherwise they only acknowledge.
    is_flood: AtomicBool,
    /// The next fault handler sends an IPI and returns with it pending.
    probe_in_fault: AtomicBool,
    faults: AtomicU64,
    nested_faults: AtomicU64,
    unmasked_in_fault: AtomicU64,
    foreign_faults: AtomicU64,
    interrupts: AtomicU64,
    ticks: AtomicU64,
    last_tick: AtomicU64,
    ipis_sent: AtomicU64,
    ipis_seen: AtomicU64,
    depth: AtomicU32,
    deepest: AtomicU32,
}

static SHARED: Shared = Shared {
    windows: Windows::new(),
    is_flood: AtomicBool::new(false),
    probe_in_fault: AtomicBool::new(false),
    faults: AtomicU64::new(0),
    nested_faults: AtomicU64::new(0),
    unmasked_in_fault: AtomicU64::new(0),
    foreign_faults: AtomicU64::new(0),
    interrupts: AtomicU64::new(0),
    ticks: AtomicU64::new(0),
    last_tick: AtomicU64::new(0),
    ipis_sent: AtomicU64::new(0),
    ipis_seen: AtomicU64::new(0),
    depth: AtomicU32::new(0),
    deepest: AtomicU32::new(0),
};

/// Adds one; only this CPU writes, but its own handlers may interrupt in between.
fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

/// The page that the host knows. It belongs to the image for good: a host that is late writes to no other's memory.
#[repr(C, align(4096))]
struct HostPage([AtomicU64; 512]);

static HOST_PAGE: HostPage = HostPage([const { AtomicU64::new(0) }; 512]);

/// A quad of the host's page.
fn page_quad(offset: u64, index: u8) -> &'static AtomicU64 {
    &HOST_PAGE.0[(word(offset) / 8 + usize::from(index)) % 512]
}

/// Enters a phase. The number of vectors shares the quad with it.
fn set_phase(phase: u32) {
    let quad = u64::from(phase) | u64::from(HOST_VECTORS) << 32;
    page_quad(page::PHASE_OFFSET, 0).store(quad, Ordering::Release);
}

const _: () =
    assert!(page::PHASE_OFFSET.is_multiple_of(8) && page::VECTORS_OFFSET == page::PHASE_OFFSET + 4);

/// Overwrites all xmm: whoever fails to save them is found out.
fn trash() {
    // SAFETY: xmm registers are the caller's to lose by the ABI.
    unsafe { trap_stress_trash() };
}

fn on_interrupt(vector: u8) {
    trash();
    let number = count(&SHARED.interrupts);
    let is_flood = SHARED.is_flood.load(Ordering::Relaxed);
    match vector {
        timer::VECTOR => {
            count(&SHARED.ticks);
            SHARED.last_tick.store(time::now_ns(), Ordering::Relaxed);
            if is_flood {
                timer::arm(TICK_NS);
            }
        }
        IPI_VECTOR => {
            SHARED.ipis_seen.store(SHARED.ipis_sent.load(Ordering::Relaxed), Ordering::Release)
        }
        _ => {
            let index = vector - FIRST_HOST_VECTOR;
            let sequence = page_quad(page::SEQUENCE_OFFSET, index).load(Ordering::Acquire);
            if is_flood && number.is_multiple_of(4) {
                SHARED.windows.touch(Window::Interrupts, number);
                count(&SHARED.nested_faults);
            }
            page_quad(page::ACKNOWLEDGED_OFFSET, index).store(sequence, Ordering::Release);
        }
    }
}

fn on_page_fault(frame: &mut TrapFrame) -> bool {
    trash();
    let depth = SHARED.depth.fetch_add(1, Ordering::Relaxed) + 1;
    SHARED.deepest.fetch_max(depth, Ordering::Relaxed);
    let mended = SHARED.windows.map(frame.cr2);
    if let Some(window) = mended {
        let number = count(&SHARED.faults);
        if SHARED.probe_in_fault.swap(false, Ordering::Relaxed) {
            probe::send_and_await_pending();
        }
        if window == Window::Main {
            if number.is_multiple_of(8) {
                SHARED.windows.touch(Window::Faults, number);
                count(&SHARED.nested_faults);
            }
            if number % 16 == 5 && frame.rflags & irq::FLAG_ID == 0 {
                unmask_inside();
            }
        }
    } else {
        count(&SHARED.foreign_faults);
    }
    SHARED.depth.fetch_sub(1, Ordering::Relaxed);
    mended.is_some()
}

/// Lets interrupts nest inside the fault handler for a moment.
fn unmask_inside() {
    count(&SHARED.unmasked_in_fault);
    irq::unmask();
    for _ in 0..200 {
        core::hint::spin_loop();
    }
    irq::mask();
}

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
#[derive(Default)]
struct Findings {
    rounds: u64,
    corrupt: u64,
    /// The first quad that differed, for the report.
    first_corrupt: Option<usize>,
    lost: u64,
    halts: u64,
}

/// An interrupt that has been sent and not seen.
#[derive(Clone, Copy, Default)]
struct Outstanding {
    sequence: u64,
    since_ns: u64,
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn trap_stress(&mut self, seconds: u32) -> u8 {
        if !SHARED.windows.install(self.memory) {
            self.print(format_args!("no memory for the trap stress"));
            return FAILURE;
        }
        let gpa = HOST_PAGE.0.as_ptr().expose_provenance() as u64 - KERNEL_BASE;
        page_quad(page::FIRST_VECTOR_OFFSET, 0)
            .store(u64::from(FIRST_HOST_VECTOR), Ordering::Relaxed);
        set_phase(page::PHASE_IDLE);
        page_quad(page::MAGIC_OFFSET, 0).store(page::MAGIC, Ordering::Release);
        self.print(format_args!(
            "trap-stress: gpa={gpa:#x} vectors={HOST_VECTORS} first={FIRST_HOST_VECTOR:#x}"
        ));
        set_handlers(Some(on_interrupt), Some(on_page_fault));
        let total_ns = u64::from(seconds) * 1_000_000_000;
        let mut findings = Findings::default();
        probe::all(&mut findings);
        self.flood(total_ns - total_ns / HALT_SHARE, &mut findings);
        self.halt(total_ns / HALT_SHARE, &mut findings);
        set_phase(page::PHASE_DONE);
        timer::disarm();
        set_handlers(None, None);
        SHARED.windows.remove(self.memory);
        self.report(&findings)
    }

    /// Rounds of faults under interrupts.
    fn flood(&mut self, duration_ns: u64, findings: &mut Findings) {
        let start = time::now_ns();
        let mut random = Random(start | 1);
        let mut pattern = [0u64; QUADS];
        let mut found = [0u64; QUADS];
        let mut outstanding = [Outstanding::default(); HOST_VECTORS as usize];
        SHARED.last_tick.store(start, Ordering::Relaxed);
        SHARED.is_flood.store(true, Ordering::Relaxed);
        set_phase(page::PHASE_FLOOD);
        timer::arm(TICK_NS);
        while time::now_ns() - start < duration_ns {
            pattern.fill_with(|| random.next());
            // Arithmetic flags and DF at random; IF and bit 1 as they are; TF and ID clear.
            pattern[13] = 0x202 | (random.next() & 0xcd5);
            let window = SHARED.windows.round_start(random.next());
            // SAFETY: both arrays have 64 quads; the eight pages of the window are mapped by our fault handler.
            unsafe { trap_stress_round(pattern.as_ptr(), found.as_mut_ptr(), window) };
            findings.rounds += 1;
            findings.compare(&pattern, &found);
            SHARED.windows.unmap_round(window);
            if findings.rounds.is_multiple_of(16) {
                count(&SHARED.ipis_sent);
                apic::send_to_self(IPI_VECTOR);
                self.account(&mut outstanding, findings);
            }
            if findings.rounds.is_multiple_of(256) {
                self.serve();
            }
        }
        SHARED.is_flood.store(false, Ordering::Relaxed);
        timer::disarm();
    }

    /// Looks for interrupts that were sent and did not come.
    fn account(&mut self, outstanding: &mut [Outstanding], findings: &mut Findings) {
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
        if now.saturating_sub(SHARED.last_tick.load(Ordering::Relaxed)) > LOST_NS {
            warning!("trap-stress: the timer stopped");
            findings.lost += 1;
            SHARED.last_tick.store(now, Ordering::Relaxed);
            timer::arm(TICK_NS);
        }
        let start = now;
        while SHARED.ipis_seen.load(Ordering::Acquire) != SHARED.ipis_sent.load(Ordering::Relaxed) {
            if time::now_ns() - start > LOST_NS {
                warning!("trap-stress: an IPI is lost");
                findings.lost += 1;
                SHARED.ipis_seen.store(SHARED.ipis_sent.load(Ordering::Relaxed), Ordering::Release);
            }
            core::hint::spin_loop();
        }
    }

    /// Halts as often as it can while the host sends one MSI at a time. The pause between the look and the HLT is the
    /// window in which a missing check would lose a wake-up; the host sees that as an acknowledgement that is late.
    fn halt(&mut self, duration_ns: u64, findings: &mut Findings) {
        /// Ends the phase when no host sends; longer than the host's patience, so that it never hides a loss.
        const GUARD_NS: u64 = 10_000_000_000;
        let start = time::now_ns();
        set_phase(page::PHASE_HALT);
        timer::arm(GUARD_NS.min(duration_ns));
        let mut ticks = SHARED.ticks.load(Ordering::Relaxed);
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
                self.serve();
            }
            let now = SHARED.ticks.load(Ordering::Relaxed);
            if now != ticks {
                ticks = now;
                timer::arm(GUARD_NS.min(duration_ns));
            }
        }
        timer::disarm();
    }

    /// Prints the result.
    fn report(&mut self, findings: &Findings) -> u8 {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.print(format_args!(
            "rounds={} faults={} nested={} unmasked-inside={} depth={} halts={}",
            findings.rounds,
            load(&SHARED.faults),
            load(&SHARED.nested_faults),
            load(&SHARED.unmasked_in_fault),
            SHARED.deepest.load(Ordering::Relaxed),
            findings.halts,
        ));
        self.print(format_args!(
            "interrupts={} ticks={} ipis={} stray={}",
            load(&SHARED.interrupts),
            load(&SHARED.ticks),
            load(&SHARED.ipis_sent),
            irq::shared().stray.load(Ordering::Relaxed),
        ));
        self.print(format_args!(
            "corrupt={} lost={} foreign-faults={}",
            findings.corrupt,
            findings.lost,
            load(&SHARED.foreign_faults)
        ));
        if let Some(quad) = findings.first_corrupt {
            self.print(format_args!("CORRUPT: first at quad {quad}"));
        }
        let did_something =
            findings.rounds > 0 && load(&SHARED.faults) > 0 && load(&SHARED.ticks) > 0;
        let clean =
            findings.corrupt == 0 && findings.lost == 0 && load(&SHARED.foreign_faults) == 0;
        if did_something && clean { SUCCESS } else { FAILURE }
    }
}

impl Findings {
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

/// Installs or removes the handlers of all vectors that the stress uses.
fn set_handlers(interrupt: Option<irq::Handler>, fault: Option<trap::PageFaultHandler>) {
    trap::set_page_fault_handler(fault);
    irq::set_handler(timer::VECTOR, interrupt);
    irq::set_handler(IPI_VECTOR, interrupt);
    for vector in FIRST_HOST_VECTOR..FIRST_HOST_VECTOR + HOST_VECTORS {
        irq::set_handler(vector, interrupt);
    }
}
