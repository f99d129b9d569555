//! `smp-stress`: TLB flushes, IPIs, user faults that wait, and preemption, on all CPUs at once.
//!
//! Each worker owns a page of a process and moves it again and again from one frame to the other; all others load from
//! it. A frame holds the number of its page's move; once the flush has returned and the number is published, the frame
//! left behind is overwritten with [`POISON`]. Whoever loads the poison, or a number lower than the one published before
//! the load, has used a translation that the flush should have dropped. Between two frames the page is mapped nowhere
//! for a while: loads fault and wait in the handler for the page's sleeping lock, which the owner holds, perhaps on the
//! same CPU. Some flushes are done with a spin lock held, for which others spin masked.

mod process;

use core::sync::atomic::{AtomicU64, Ordering};

use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::fault::FaultAccess;
use guest_mm::platform::Platform;
use guest_mm::scenario::{Access, Rng, Signal};
use guest_mm::store::PfnStore;
use guest_mm::sync::{LockClass, RwLock, SpinLock};

use crate::image::kernel::Kernel;
use crate::image::platform::Machine;
use crate::image::smp::{self, Preemption};
use crate::image::user::{self, UserFault};
use crate::image::{irq, time};
use process::{PAGES, Process};

/// What a frame holds that is no page's any more.
const POISON: u64 = 0xdead_dead_dead_dead;
/// Workers of a CPU: they preempt each other.
const WORKERS_PER_CPU: usize = 2;

/// What a run counts.
#[derive(Default)]
struct Counts {
    loads: AtomicU64,
    moves: AtomicU64,
    faults: AtomicU64,
    waits: AtomicU64,
    kicks: AtomicU64,
    stale: AtomicU64,
    wrong: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A page's state beside its entry.
struct Page {
    /// Held for writing while the page is mapped nowhere; guards the number of its last move.
    lock: RwLock<u64>,
    /// The number of the last move whose flush has returned.
    published: AtomicU64,
}

/// All that workers share.
struct Stress<'a> {
    machine: &'a Machine,
    process: &'a Process,
    pages: [Page; PAGES],
    /// Taken around some of the flushes.
    spin: SpinLock<()>,
    counts: Counts,
    until_ns: u64,
    seed: u64,
}

impl Stress<'_> {
    /// A worker's part.
    fn work(&self, index: usize) {
        let mut rng = Rng::new(self.seed + index as u64);
        // SAFETY: the process outlives the run.
        unsafe { self.process.enter() };
        while time::now_ns() < self.until_ns {
            match rng.below(16) {
                0 | 1 => self.move_page(index, &mut rng),
                2 => {
                    count(&self.counts.kicks);
                    smp::kick(
                        usize::try_from(rng.below(4)).unwrap_or(0) % smp::online().iter().count(),
                    );
                }
                3 => {
                    // Out and in again: translations that were not flushed meanwhile must not come along.
                    smp::leave();
                    // SAFETY: as above.
                    unsafe { self.process.enter() };
                }
                4 => drop(self.spin.lock(self.machine)),
                _ => self.load(usize::try_from(rng.below(PAGES as u64)).unwrap_or(0)),
            }
        }
        smp::leave();
    }

    /// Loads from a page of anybody's.
    fn load(&self, page: usize) {
        let Some(state) = self.pages.get(page) else { return };
        let published = state.published.load(Ordering::Acquire);
        let handler = |fault: UserFault| self.on_fault(page, fault);
        let loaded =
            user::with_faults(&handler, || user::access(Process::address(page), Access::LoadU64));
        count(&self.counts.loads);
        match loaded {
            Ok(POISON) => count(&self.counts.stale),
            Ok(number) if number < published => count(&self.counts.stale),
            Ok(_) => {}
            Err(_) => count(&self.counts.wrong),
        }
    }

    /// Waits until the page's owner has mapped it again.
    fn on_fault(&self, page: usize, fault: UserFault) -> Result<(), Signal> {
        count(&self.counts.faults);
        let is_ours = fault.address & !0xfff == Process::address(page);
        if !is_ours || fault.access != FaultAccess::Read || irq::is_masked() {
            count(&self.counts.wrong);
            return Err(Signal::SegvAccErr);
        }
        let lock = &self.pages[page].lock;
        if lock.try_read(self.machine).is_none() {
            count(&self.counts.waits);
            drop(lock.read(self.machine));
        }
        Ok(())
    }

    /// Moves the worker's page to its other frame.
    fn move_page(&self, page: usize, rng: &mut Rng) {
        let Some(state) = self.pages.get(page) else { return };
        let mut last = state.lock.write(self.machine);
        let number = *last + 1;
        let gap = rng.below(4);
        if gap != 0 {
            self.process.unmap(page);
            self.flush(page, gap == 1);
            for _ in 0..rng.below(200) {
                self.machine.relax();
            }
        }
        let left = self.process.frame_word(page, *last);
        self.process.frame_word(page, number).store(number, Ordering::Relaxed);
        self.process.map(page, number);
        self.flush(page, gap == 2);
        state.published.store(number, Ordering::Release);
        left.store(POISON, Ordering::Release);
        *last = number;
        count(&self.counts.moves);
    }

    fn flush(&self, page: usize, under_spin_lock: bool) {
        let _held = under_spin_lock.then(|| self.spin.lock(self.machine));
        self.process.flush(self.machine, page);
    }
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn smp_stress(&mut self, seconds: u32, seed: u64) -> u8 {
        let Some(process) = Process::new(self.memory) else {
            self.print(format_args!("no memory for a process"));
            return FAILURE;
        };
        let refusals = process.expect_refusals();
        if let Err(what) = refusals {
            self.print(format_args!("WRONG: {what}"));
        }
        let workers = (smp::online().iter().count() * WORKERS_PER_CPU).min(PAGES);
        let machine = *self.memory.platform();
        let before = smp::counters();
        let stress = Stress {
            machine: &machine,
            process: &process,
            pages: [const {
                Page { lock: RwLock::new(LockClass::Mmap, 0), published: AtomicU64::new(0) }
            }; PAGES],
            spin: SpinLock::new(LockClass::Pte, ()),
            counts: Counts::default(),
            until_ns: time::now_ns() + u64::from(seconds) * 1_000_000_000,
            seed,
        };
        let ran = self.run_on(workers, Preemption::Random(seed), &|index| stress.work(index));
        if let Err(error) = ran {
            self.print(format_args!("{error}"));
        }
        let code = self.report_smp(&stress.counts, before, workers);
        process.free(self.memory);
        if ran.is_ok() && refusals.is_ok() { code } else { FAILURE }
    }

    fn report_smp(&mut self, counts: &Counts, before: smp::Counters, workers: usize) -> u8 {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let now = smp::counters();
        self.print(format_args!(
            "workers={workers} loads={} moves={} faults={} waits={} kicks={}",
            load(&counts.loads),
            load(&counts.moves),
            load(&counts.faults),
            load(&counts.waits),
            load(&counts.kicks),
        ));
        self.print(format_args!(
            "flushes={} remote={} ipis={} pages={} full={} halts={} naps={} sleeps={} switches={} preemptions={}",
            now.flushes - before.flushes,
            now.remote - before.remote,
            now.ipis - before.ipis,
            now.pages - before.pages,
            now.full - before.full,
            now.halts - before.halts,
            now.naps - before.naps,
            now.sleeps - before.sleeps,
            now.switches - before.switches,
            now.preemptions - before.preemptions,
        ));
        self.print(format_args!("stale={} wrong={}", load(&counts.stale), load(&counts.wrong)));
        let did_something = load(&counts.loads) > 0 && load(&counts.moves) > 0;
        let clean = load(&counts.stale) == 0 && load(&counts.wrong) == 0;
        if did_something && clean { SUCCESS } else { FAILURE }
    }
}
