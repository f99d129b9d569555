//! `cpus`: the CPUs that are up, each asked for its own number by work that runs there.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use guest_kernel::layout::CPUS;
use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::addr::{VaRange, VirtAddr};
use guest_mm::platform::{CpuSet, TlbFlush};
use guest_mm::store::PfnStore;

use crate::image::kernel::Kernel;
use crate::image::smp::{self, Preemption};
use crate::image::{apic, irq, time};

/// Rounds of work given to all CPUs at once.
const ROUNDS: u32 = 20;

/// What it costs to flush a page that nobody has mapped from the TLBs of `cpus`, which idle.
fn flush_ns(cpus: CpuSet) -> u64 {
    const FLUSHES: u64 = 200;
    let Some(page) = VaRange::page_of(VirtAddr::ZERO) else { return 0 };
    let start = time::now_ns();
    for _ in 0..FLUSHES {
        smp::flush_tlb(cpus, TlbFlush::Range(page));
    }
    (time::now_ns() - start) / FLUSHES
}

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn cpus(&mut self) -> u8 {
        let online = smp::online();
        let count = online.iter().count();
        self.print(format_args!("{count} CPUs up"));
        let seen = [const { AtomicU32::new(0) }; CPUS];
        let ids = [const { AtomicU32::new(u32::MAX) }; CPUS];
        let (arrived, together) = (AtomicUsize::new(0), AtomicU32::new(0));
        let start = time::now_ns();
        for round in 1..=ROUNDS {
            let work = |index: usize| {
                let cpu = irq::cpu();
                if Some(cpu) == online.iter().nth(index) {
                    seen[cpu % CPUS].fetch_add(1, Ordering::Relaxed);
                }
                ids[cpu % CPUS].store(apic::id(), Ordering::Relaxed);
                // All are there at once, or none gets further.
                arrived.fetch_add(1, Ordering::Relaxed);
                while arrived.load(Ordering::Relaxed) < count * round as usize {
                    smp::relax();
                }
                together.fetch_add(1, Ordering::Relaxed);
            };
            if let Err(error) = self.run_on(count, Preemption::None, &work) {
                self.print(format_args!("{error}"));
                return FAILURE;
            }
        }
        let round_us = (time::now_ns() - start) / 1000 / u64::from(ROUNDS);
        let mut is_good = together.into_inner() == ROUNDS * u32::try_from(count).unwrap_or(0);
        for cpu in online.iter() {
            let (seen, id) = (seen[cpu].load(Ordering::Relaxed), ids[cpu].load(Ordering::Relaxed));
            self.print(format_args!("CPU {cpu}: APIC id {id}, {seen} times"));
            is_good &= seen == ROUNDS && id == apic::id_of(cpu);
        }
        self.print(format_args!("a round of work on all of them: {round_us} us"));
        let (here, everywhere) = (flush_ns(CpuSet::of(irq::cpu())), flush_ns(online));
        self.print(format_args!("a page flushed: {here} ns here, {everywhere} ns on all of them"));
        if is_good { SUCCESS } else { FAILURE }
    }

    /// Runs `work` on several CPUs at once while devices are served: [`smp::run_on`].
    ///
    /// # Errors
    /// [`smp::RunError`].
    pub(in crate::image) fn run_on(
        &mut self,
        count: usize,
        preemption: Preemption,
        work: &(dyn Fn(usize) + Sync),
    ) -> Result<(), smp::RunError> {
        smp::run_on(self.memory, count, preemption, work, &mut || self.serve())
    }
}
