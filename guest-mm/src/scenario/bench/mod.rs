//! `bench-mm`: the measurements of [`crate::bench`], one line of JSON each.
//!
//! Prints nothing else, so that the host can read the lines; the times are the
//! machine's own. On the simulated machine, whose clock stands still, it shows
//! that everything runs and frees what it took.

pub(super) mod balloon_compaction;
pub(super) mod batch_walk;
mod grace;
pub(super) mod hot_add;
pub(super) mod isolation;
mod paths;
mod samples;
mod sharing;
pub(super) mod stores;

pub use samples::Samples;

use super::{Ctx, Machine, Outcome};
use crate::bench::{Bench, Figure, layout, primitive};

/// Rounds of each measurement, of which the median is told.
const ROUNDS: u64 = 5;

pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (mm, base, seed) = (ctx.mm, ctx.mm.base(), ctx.args.seed);
    let rounds = usize::try_from(ctx.rounds(ROUNDS)).unwrap_or(usize::MAX);
    let machine = ctx.machine();
    let now = || machine.now_ns();
    let mut print = |figure: &Figure<'_>| {
        ctx.print(format_args!("{figure}"));
        ctx.serve();
    };
    let mut bench = Bench::new(&now, rounds, &mut print);
    primitive::run(base, &mut bench)?;
    grace::run(mm, &mut bench, seed)?;
    paths::run(mm, &mut bench)?;
    sharing::rmap(mm, &mut bench)?;
    sharing::gup(mm, &mut bench)?;
    layout::run(&base.memory, &mut bench, seed)
}

#[cfg(test)]
mod tests;
