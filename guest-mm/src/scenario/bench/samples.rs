//! [`Samples`]: how a scenario prints what it observed.

use crate::bench::sample::{EndLine, SampleLine};
use crate::bench::{Experiment, Sample};
use crate::scenario::{Ctx, Machine};

/// The samples of one run of an experiment's scenario.
#[derive(Debug)]
#[must_use = "without its end the host takes the run for one that broke off"]
pub struct Samples {
    experiment: Experiment,
    seed: u64,
    printed: u64,
}

impl Samples {
    /// None yet.
    pub const fn new(experiment: Experiment, seed: u64) -> Self {
        Self { experiment, seed, printed: 0 }
    }

    /// Prints one, and serves.
    pub fn print<M: Machine>(&mut self, ctx: &mut Ctx<'_, '_, M>, sample: &Sample<'_>) {
        let Self { experiment, seed, .. } = *self;
        ctx.print(format_args!("{}", SampleLine { experiment, seed, sample: *sample }));
        self.printed += 1;
        ctx.serve();
    }

    /// Prints how many there were: the run is complete.
    pub fn end<M: Machine>(self, ctx: &mut Ctx<'_, '_, M>) {
        let Self { experiment, seed, printed: samples } = self;
        ctx.print(format_args!("{}", EndLine { experiment, seed, samples }));
    }
}
