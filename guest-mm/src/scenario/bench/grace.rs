//! How long a writer waits for readers that may be preempted in their sections.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::bench::{Bench, Spread};
use crate::mm::Mm;
use crate::scenario::{Failure, Machine, Outcome};
use crate::sync::{LockClass, SpinLock};

/// Waits of each kind at most.
const MOST_WAITS: usize = 63;
/// Waits for each round of other measurements.
const WAITS_PER_ROUND: usize = 5;
/// Spins in a read section, and of a hog before it looks again whether it is over.
const SECTION_SPINS: usize = 300;

/// Thread 0 waits, 1 reads, 3 only uses its CPU: with two CPUs the reader shares
/// one with a thread that does not let go by itself, and the waiter has the other.
pub(super) fn run<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>, seed: u64) -> Outcome {
    let (machine, rcu) = (mm.platform(), &mm.base().rcu);
    let count = (bench.round_count() * WAITS_PER_ROUND).min(MOST_WAITS);
    for (case, is_expedited) in [("normal", false), ("expedited", true)] {
        let is_over = AtomicBool::new(false);
        let waits = SpinLock::new(LockClass::Queue, [0; MOST_WAITS]);
        let spin = || (0..SECTION_SPINS).for_each(|_| core::hint::spin_loop());
        let wait = || {
            let start = machine.now_ns();
            if is_expedited {
                rcu.synchronize_expedited(machine);
            } else {
                rcu.synchronize(machine);
            }
            machine.now_ns().saturating_sub(start)
        };
        let work = |thread: usize| {
            if thread == 0 {
                for n in 0..count {
                    let ns = wait();
                    waits.lock(machine)[n] = ns.saturating_mul(1000);
                    // Time for another section to begin.
                    spin();
                    machine.yield_now();
                }
                is_over.store(true, Ordering::Relaxed);
                return;
            }
            while thread != 2 && !is_over.load(Ordering::Relaxed) {
                if thread == 1 {
                    let section = rcu.read(machine.cpu());
                    spin();
                    drop(section);
                } else {
                    spin();
                }
            }
        };
        machine.leave();
        machine.run_on(mm, 4, seed, &work, &mut || ()).map_err(Failure::from)?;
        let mut waits = *waits.lock(machine);
        let waits = &mut waits[..count];
        waits.sort_unstable();
        let [min, .., max] = *waits else { return Ok(()) };
        let spread = Spread { min, median: waits[count / 2], max };
        bench.print("rcu wait", format_args!("{case}, reader may be preempted"), "ns", spread);
    }
    Ok(())
}
