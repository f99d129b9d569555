//! What CPUs ask of each other: TLB flushes and wake-ups, by one interrupt.
//!
//! The requests are [`guest_mm::sync::mailbox`]'s, which is tried under loom; here is who rings, halts and flushes.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::PAGE_SIZE;
use guest_kernel::layout::{CPUS, FIRST_VECTOR};
use guest_mm::platform::{CpuSet, TlbFlush};
use guest_mm::sync::Mailboxes;

use super::thread;
use crate::image::{apic, gate, irq, nucleus, time, timer};

/// The vector of interrupts between CPUs.
pub(in crate::image) const VECTOR: u8 = FIRST_VECTOR + 11;
/// Above this many pages all translations are dropped: one CR3 load costs about as much as this many gates.
const MAX_INVLPG: u64 = 4;
/// A wait for another CPU spins this long before it halts: longer than an answer takes where a core is free.
const SPIN_NS: u64 = 30_000;
/// How long a spin for a lock lasts before its thread lets the core go for a while.
const NAP_AFTER_NS: u64 = 100_000;
/// How long it lets it go.
const NAP_NS: u64 = 50_000;

/// Who asks whom for a flush.
static MAIL: Mailboxes<TlbFlush> = Mailboxes::new(TlbFlush::All);

/// A CPU's own; on a cache line of its own.
#[repr(align(64))]
struct Own {
    /// Somebody wants the CPU's first thread, or a worker of it, to run.
    is_kicked: AtomicBool,
    counters: AtomicCounters,
    /// The spin under way: its begin and its last look, in TSC ticks.
    spin_since: AtomicU64,
    spin_last: AtomicU64,
}

#[derive(Default)]
struct AtomicCounters {
    flushes: AtomicU64,
    remote: AtomicU64,
    ipis: AtomicU64,
    pages: AtomicU64,
    full: AtomicU64,
    halts: AtomicU64,
    naps: AtomicU64,
    sleeps: AtomicU64,
    switches: AtomicU64,
    preemptions: AtomicU64,
}

static OWN: [Own; CPUS] = [const {
    Own {
        is_kicked: AtomicBool::new(false),
        counters: AtomicCounters {
            flushes: AtomicU64::new(0),
            remote: AtomicU64::new(0),
            ipis: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            full: AtomicU64::new(0),
            halts: AtomicU64::new(0),
            naps: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            switches: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
        },
        spin_since: AtomicU64::new(0),
        spin_last: AtomicU64::new(0),
    }
}; CPUS];

/// What CPUs have asked of each other since start, all CPUs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::image) struct Counters {
    /// Calls of `flush_tlb`.
    pub(in crate::image) flushes: u64,
    /// Those that had to ask other CPUs.
    pub(in crate::image) remote: u64,
    /// Interrupts sent, wake-ups included.
    pub(in crate::image) ipis: u64,
    /// Pages dropped one by one, on any CPU.
    pub(in crate::image) pages: u64,
    /// Loads of CR3 for a flush, on any CPU.
    pub(in crate::image) full: u64,
    /// Waits for an answer that ended in a halt.
    pub(in crate::image) halts: u64,
    /// Spins that let the core go.
    pub(in crate::image) naps: u64,
    /// Times that a thread slept on a page or a lock.
    pub(in crate::image) sleeps: u64,
    /// Times that another thread ran.
    pub(in crate::image) switches: u64,
    /// Those of them that the thread before did not ask for.
    pub(in crate::image) preemptions: u64,
}

/// Reads the counters.
pub(in crate::image) fn counters() -> Counters {
    let sum = |of: fn(&AtomicCounters) -> &AtomicU64| {
        OWN.iter().map(|own| of(&own.counters).load(Ordering::Relaxed)).sum()
    };
    Counters {
        flushes: sum(|counters| &counters.flushes),
        remote: sum(|counters| &counters.remote),
        ipis: sum(|counters| &counters.ipis),
        pages: sum(|counters| &counters.pages),
        full: sum(|counters| &counters.full),
        halts: sum(|counters| &counters.halts),
        naps: sum(|counters| &counters.naps),
        sleeps: sum(|counters| &counters.sleeps),
        switches: sum(|counters| &counters.switches),
        preemptions: sum(|counters| &counters.preemptions),
    }
}

fn mine() -> (usize, &'static Own) {
    let cpu = irq::cpu() % CPUS;
    (cpu, &OWN[cpu])
}

fn count(counter: &AtomicU64, by: u64) {
    // Only its CPU writes it, but a handler may come in between.
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Counts a change of threads.
pub(super) fn note_switch(is_preemption: bool) {
    let counters = &mine().1.counters;
    count(&counters.switches, 1);
    count(&counters.preemptions, is_preemption.into());
}

/// Counts a thread that sleeps.
pub(super) fn note_sleep() {
    count(&mine().1.counters.sleeps, 1);
}

fn send(cpu: usize) {
    count(&mine().1.counters.ipis, 1);
    apic::send(cpu, VECTOR);
}

/// Makes `cpu` look for work: its workers, and on the boot CPU the main flow.
pub(in crate::image) fn kick(cpu: usize) {
    let (me, _) = mine();
    OWN[cpu % CPUS].is_kicked.store(true, Ordering::Release);
    if cpu == me {
        take_kick(me);
    } else {
        send(cpu);
    }
}

fn take_kick(me: usize) {
    if OWN[me].is_kicked.swap(false, Ordering::Acquire) {
        irq::note_work(me);
        thread::request_preemption();
    }
}

/// Handler of [`VECTOR`]: runs masked.
pub(in crate::image) fn on_interrupt() {
    serve();
    take_kick(mine().0);
}

/// Does what other CPUs have asked of this one. Masked or not; costs one load when nothing waits.
pub(in crate::image) fn serve() {
    let (me, _) = mine();
    if !MAIL.has_mail(me) {
        return;
    }
    let was_masked = irq::mask();
    let act = |what| {
        if nucleus::MUTANT != nucleus::NO_REMOTE_FLUSH {
            flush_here(what);
        }
    };
    MAIL.serve(me, act, send);
    irq::restore(was_masked);
}

/// Drops this CPU's translations.
fn flush_here(what: TlbFlush) {
    let counters = &mine().1.counters;
    match what {
        TlbFlush::Range(range) if range.pages().get() <= MAX_INVLPG => {
            count(&counters.pages, range.pages().get());
            let start = range.start().get();
            for page in 0..range.pages().get() {
                gate::invlpg(start + page * PAGE_SIZE);
            }
        }
        TlbFlush::Range(_) | TlbFlush::All => {
            count(&counters.full, 1);
            thread::reload_root();
        }
    }
}

/// `Platform::flush_tlb`: no global pages and no PCIDs, so what is not loaded has nothing cached, and dropping too much is
/// the price of not asking which root a CPU has loaded at the moment.
pub(in crate::image) fn flush_tlb(cpus: CpuSet, what: TlbFlush) {
    if let TlbFlush::Range(range) = what
        && range.is_empty()
    {
        return;
    }
    // Masked to the end: the request is this CPU's only one, and the thread must not be preempted in the wait.
    let was_masked = irq::mask();
    let (me, own) = mine();
    count(&own.counters.flushes, 1);
    let others = cpus.without(me);
    if !others.is_empty() {
        count(&own.counters.remote, 1);
        MAIL.post(me, others, what, send);
    }
    if cpus.contains(me) {
        flush_here(what);
    }
    wait(me);
    irq::restore(was_masked);
}

/// Waits for the answers to this CPU's request: spins briefly, then halts, serving others meanwhile.
fn wait(me: usize) {
    let start = time::now_ns();
    while !MAIL.is_answered(me) {
        serve();
        core::hint::spin_loop();
        if time::now_ns() - start > SPIN_NS {
            let halt = || {
                count(&OWN[me].counters.halts, 1);
                irq::halt_unless_pending();
            };
            // Handlers only leave marks, so they may run here, whatever the masked caller holds. They must: what was
            // recorded while masked has had no EOI yet, and would end the halt at once besides.
            MAIL.sleep(me, irq::drain, halt);
        }
    }
}

/// `Platform::relax`: serves other CPUs; unmasked, lets another thread run; after a long spin, lets the host run another
/// CPU for a while, perhaps the one that is waited for.
pub(in crate::image) fn relax() {
    serve();
    core::hint::spin_loop();
    let is_masked = irq::is_masked();
    if !is_masked && thread::yield_now() {
        return;
    }
    // Looks that follow each other closely are one spin.
    let (_, own) = mine();
    let now = time::ticks();
    let gap = time::rate().ticks(NAP_AFTER_NS / 4);
    if now.wrapping_sub(own.spin_last.swap(now, Ordering::Relaxed)) > gap {
        own.spin_since.store(now, Ordering::Relaxed);
        return;
    }
    let spun = now.wrapping_sub(own.spin_since.load(Ordering::Relaxed));
    if spun > time::rate().ticks(NAP_AFTER_NS) {
        count(&own.counters.naps, 1);
        if is_masked {
            // As in `wait`.
            irq::drain();
        }
        timer::nap(NAP_NS);
        let now = time::ticks();
        own.spin_last.store(now, Ordering::Relaxed);
        own.spin_since.store(now, Ordering::Relaxed);
    }
}
