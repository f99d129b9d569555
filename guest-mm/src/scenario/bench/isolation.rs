//! `exp-e5`: isolation by one swap of the page's word, against a reference, a page lock
//! and the owner's list ([`crate::bench::isolation`]).
//!
//! All arms take turns in each round, all threads at once. The same on threads of the host: `benches/isolation.rs`.

use abi::Pfn;

use super::Samples;
use crate::bench::isolation::{ATTEMPTS, Arm, Barrier, OWN, Pattern, Slot, Subject, with_subject};
use crate::bench::{Experiment, Param};
use crate::platform::{MAX_CPUS, Platform};
use crate::scenario::{Ctx, Failure, Machine, Outcome};

/// Attempts where the clock stands still, which shows that all is given back.
const STILL_ATTEMPTS: u64 = 64;
/// Samples of each arm and pattern unless told otherwise, and at most.
const ROUNDS: u64 = 4;
const MAX_ROUNDS: usize = 32;

/// Samples by arm, thread and round.
type Slots = [[[Slot; MAX_ROUNDS]; MAX_CPUS]; Arm::ALL.len()];

/// Runs the experiment.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let memory = ctx.mm.memory();
    let mut frames = [Pfn::ZERO; OWN * MAX_CPUS];
    let mut samples = Samples::new(Experiment::E5, ctx.args.seed);
    let mut outcome = Ok(());
    with_subject(memory, &mut frames, |subject| outcome = measure(ctx, subject, &mut samples))
        .map_err(|error| Failure::new(error.what()))?;
    outcome?;
    samples.end(ctx);
    Ok(())
}

fn measure<M: Machine>(
    ctx: &mut Ctx<'_, '_, M>,
    subject: &Subject<'_, M>,
    samples: &mut Samples,
) -> Outcome {
    let threads = ctx.cpus();
    let rounds = usize::try_from(ctx.rounds(ROUNDS)).unwrap_or(MAX_ROUNDS).clamp(1, MAX_ROUNDS);
    let platform = ctx.mm.platform();
    let attempts = attempts(platform);
    for pattern in Pattern::ALL {
        let slots: Slots = Default::default();
        let barrier = Barrier::new(threads);
        let seed = ctx.rng.clone();
        ctx.run_on(threads, &|thread| {
            let mut rng = seed.stream(thread as u64);
            let mut turn = 0;
            for round in 0..rounds {
                for (arm, slots) in Arm::ALL.into_iter().zip(&slots) {
                    turn += 1;
                    barrier.wait(platform, turn);
                    let slot = &slots[thread][round];
                    subject.sample(arm, pattern, attempts, (thread, &mut rng), slot);
                }
            }
            Ok(())
        })?;
        let params = [("pages", Param::Word(pattern.name()))];
        for (arm, slots) in Arm::ALL.into_iter().zip(&slots) {
            for slot in slots[..threads].iter().flat_map(|slots| &slots[..rounds]) {
                slot.print(arm, &params, attempts, &mut |sample| samples.print(ctx, sample));
            }
        }
    }
    Ok(())
}

/// Attempts of a sample: few if the clock stands still, which it does while nothing is simulated.
fn attempts<P: Platform>(platform: &P) -> u64 {
    let start = platform.now_ns();
    let moved = (0..1 << 16).any(|_| {
        core::hint::spin_loop();
        platform.now_ns() != start
    });
    if moved { ATTEMPTS } else { STILL_ATTEMPTS }
}
