//! `trap-stress`: faults, nested faults, timer ticks, self-IPIs and a host's MSI flood at once, on every CPU.
//!
//! Registers (xmm too), flags and the red zone are compared after every round;
//! handlers overwrite all xmm; each interrupt is accounted for by sequence
//! number. Probes come first, one at a time in a quiet machine, for what a flood hides: the next
//! interrupt would deliver what the last one lost. The page that the host needs is described in [`abi::trap_stress`].
//! Without a host that floods, the rest still runs.

mod course;
mod probe;
mod windows;

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use abi::trap_stress as page;
use guest_kernel::layout::{CPUS, FIRST_VECTOR, KERNEL_BASE, word};
use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::platform::TlbFlush;
use guest_mm::store::PfnStore;
use guest_mm::sync::{LockClass, SpinLock};

use super::super::kernel::Kernel;
use super::super::smp::{self, Preemption};
use super::super::trap::{self, TrapFrame};
use super::super::{irq, time, timer};
use course::Findings;
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

/// Everything that a CPU's handlers see, on cache lines of its own. One run at a time.
#[repr(align(64))]
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

impl Shared {
    const fn new(cpu: usize) -> Self {
        Self {
            windows: Windows::new(cpu),
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
        }
    }
}

static SHARED: [Shared; CPUS] = [Shared::new(0), Shared::new(1), Shared::new(2), Shared::new(3)];

/// The calling CPU's.
fn shared() -> &'static Shared {
    &SHARED[irq::cpu() % CPUS]
}

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
    let shared = shared();
    let number = count(&shared.interrupts);
    let is_flood = shared.is_flood.load(Ordering::Relaxed);
    match vector {
        timer::VECTOR => {
            count(&shared.ticks);
            shared.last_tick.store(time::now_ns(), Ordering::Relaxed);
            if is_flood {
                timer::arm(TICK_NS);
            }
        }
        IPI_VECTOR => {
            shared.ipis_seen.store(shared.ipis_sent.load(Ordering::Relaxed), Ordering::Release)
        }
        _ => {
            let index = vector - FIRST_HOST_VECTOR;
            let sequence = page_quad(page::SEQUENCE_OFFSET, index).load(Ordering::Acquire);
            if is_flood && number.is_multiple_of(4) {
                shared.windows.touch(Window::Interrupts, number);
                count(&shared.nested_faults);
            }
            page_quad(page::ACKNOWLEDGED_OFFSET, index).store(sequence, Ordering::Release);
        }
    }
}

fn on_page_fault(frame: &mut TrapFrame) -> bool {
    trash();
    let shared = shared();
    let depth = shared.depth.fetch_add(1, Ordering::Relaxed) + 1;
    shared.deepest.fetch_max(depth, Ordering::Relaxed);
    let mended = shared.windows.map(frame.cr2);
    if let Some(window) = mended {
        let number = count(&shared.faults);
        if shared.probe_in_fault.swap(false, Ordering::Relaxed) {
            probe::send_and_await_pending();
        }
        if window == Window::Main {
            if number.is_multiple_of(8) {
                shared.windows.touch(Window::Faults, number);
                count(&shared.nested_faults);
            }
            if number % 16 == 5 && frame.rflags & irq::FLAG_ID == 0 {
                unmask_inside();
            }
        }
    } else {
        count(&shared.foreign_faults);
    }
    shared.depth.fetch_sub(1, Ordering::Relaxed);
    mended.is_some()
}

/// Lets interrupts nest inside the fault handler for a moment.
fn unmask_inside() {
    count(&shared().unmasked_in_fault);
    irq::unmask();
    for _ in 0..200 {
        core::hint::spin_loop();
    }
    irq::mask();
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn trap_stress(&mut self, seconds: u32) -> u8 {
        let online = smp::online();
        let installed = online.iter().all(|cpu| SHARED[cpu].windows.install(self.memory));
        if !installed {
            online.iter().for_each(|cpu| SHARED[cpu].windows.remove(self.memory));
            self.print(format_args!("no memory for the trap stress"));
            return FAILURE;
        }
        let gpa = HOST_PAGE.0.as_ptr().expose_provenance() as u64 - KERNEL_BASE;
        page_quad(page::FIRST_VECTOR_OFFSET, 0)
            .store(u64::from(FIRST_HOST_VECTOR), Ordering::Relaxed);
        set_phase(page::PHASE_IDLE);
        page_quad(page::MAGIC_OFFSET, 0).store(page::MAGIC, Ordering::Release);
        let cpus = online.iter().count();
        self.print(format_args!(
            "trap-stress: gpa={gpa:#x} vectors={HOST_VECTORS} first={FIRST_HOST_VECTOR:#x} cpus={cpus}"
        ));
        set_handlers(Some(on_interrupt), Some(on_page_fault));
        let course = course::Course::new(cpus, u64::from(seconds) * 1_000_000_000);
        let all = [const { SpinLock::new(LockClass::Queue, Findings::NONE) }; CPUS];
        let machine = *self.memory.platform();
        let work = |cpu: usize| {
            let findings = course.run(&mut || {});
            *all[cpu % CPUS].lock(&machine) = findings;
        };
        // The first CPU's part is the main flow's own, which serves devices in between.
        let ran =
            smp::run_beside(self.memory, 1..cpus, Preemption::None, &work, &mut |is_own_part| {
                if is_own_part {
                    let findings = course.run(&mut || {
                        self.serve();
                    });
                    *all[0].lock(&machine) = findings;
                }
                self.serve()
            });
        set_phase(page::PHASE_DONE);
        set_handlers(None, None);
        online.iter().for_each(|cpu| SHARED[cpu].windows.remove(self.memory));
        smp::flush_tlb(online, TlbFlush::All);
        if let Err(error) = ran {
            self.print(format_args!("{error}"));
            return FAILURE;
        }
        let mut code = SUCCESS;
        for cpu in online.iter() {
            let findings = core::mem::replace(&mut *all[cpu].lock(&machine), Findings::NONE);
            code = code.max(self.report(cpu, &findings));
        }
        code
    }

    /// Prints a CPU's result.
    fn report(&mut self, cpu: usize, findings: &Findings) -> u8 {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &SHARED[cpu];
        self.print(format_args!(
            "CPU {cpu}: rounds={} faults={} nested={} unmasked-inside={} depth={} halts={}",
            findings.rounds,
            load(&shared.faults),
            load(&shared.nested_faults),
            load(&shared.unmasked_in_fault),
            shared.deepest.load(Ordering::Relaxed),
            findings.halts,
        ));
        self.print(format_args!(
            "interrupts={} ticks={} ipis={} stray={}",
            load(&shared.interrupts),
            load(&shared.ticks),
            load(&shared.ipis_sent),
            findings.stray,
        ));
        self.print(format_args!(
            "corrupt={} lost={} foreign-faults={}",
            findings.corrupt,
            findings.lost,
            load(&shared.foreign_faults)
        ));
        if let Some(quad) = findings.first_corrupt {
            self.print(format_args!("CORRUPT: first at quad {quad}"));
        }
        let did_something =
            findings.rounds > 0 && load(&shared.faults) > 0 && load(&shared.ticks) > 0;
        let clean =
            findings.corrupt == 0 && findings.lost == 0 && load(&shared.foreign_faults) == 0;
        if did_something && clean { SUCCESS } else { FAILURE }
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
