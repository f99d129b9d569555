//! `exp-e2`: a batch of migration as an array of frame numbers, against a list that runs
//! through page descriptors of 64 bytes ([`crate::bench::batch`]). A sample is one batch.

use super::Samples;
use crate::bench::batch::{Arm, Caches, MAX_SIZE, Subject, scatter, with_subject};
use crate::bench::sample::per_item;
use crate::bench::{Experiment, Param, Sample};
use crate::scenario::{Ctx, Machine, Outcome};

/// Pages of the batches.
const SIZES: [usize; 3] = [32, 128, MAX_SIZE];
/// Samples of each arm, size and state of the caches unless told otherwise.
const ROUNDS: u64 = 4;

/// Runs the experiment.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let memory = ctx.mm.memory();
    with_subject(memory, |subject| measure(ctx, subject))
}

fn measure<M: Machine>(ctx: &mut Ctx<'_, '_, M>, subject: &Subject<'_, M>) -> Outcome {
    let rounds = ctx.rounds(ROUNDS);
    let mut rng = ctx.rng.clone();
    let mut samples = Samples::new(Experiment::E2, ctx.args.seed);
    for arm in Arm::ALL {
        let bytes = [
            ("descriptor, every page", arm.descriptor_bytes()),
            ("entry, isolated page", arm.entry_bytes()),
        ];
        for (metric, bytes) in bytes {
            let value = bytes * 1000;
            let sample = Sample { arm: arm.name(), params: &[], metric, unit: "B", value };
            samples.print(ctx, &sample);
        }
    }
    let mut pages = [0; MAX_SIZE];
    for size in SIZES {
        for (caches, state) in [(Caches::Warm, "warm"), (Caches::Flooded, "flooded")] {
            let params = [("batch", Param::Number(size as u64)), ("caches", Param::Word(state))];
            for _ in 0..rounds {
                scatter(&mut pages[..size], subject.span(), &mut rng);
                for arm in Arm::ALL {
                    let times = subject.sample(arm, &pages[..size], caches)?;
                    let parts = [("add", times.add), ("walk", times.walk), ("retry", times.retry)];
                    for (metric, ns) in parts {
                        let (unit, value) = ("ns/page", per_item(ns, size as u64));
                        let sample =
                            Sample { arm: arm.name(), params: &params, metric, unit, value };
                        samples.print(ctx, &sample);
                    }
                }
            }
        }
    }
    samples.end(ctx);
    Ok(())
}
