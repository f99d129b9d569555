//! `exp-e3`: four PFN stores: list, XArray, IDA style and bitmap.
//!
//! Only the stores work here; no frame is inflated and no host is asked. An
//! *inflation* is what the balloon does to its store for each block: reserve,
//! commit, settle; a *deflation* is claim and remove. Bytes are what the store
//! says of itself, and the frames that its slabs hold.
//!
//! Then memory is taken until less than the *min* watermark is free, and
//! [`ATTEMPTS`] more reservations are tried: what a balloon meets that inflates,
//! migrates or comes to life just then. Nothing is reclaimed meanwhile.
//!
//! Question, table and limits: `docs/experiments/e3-pfn-stores.md`.

mod arms;
mod pattern;

use abi::Pfn;

use self::arms::{Arm, Caches, Footprint, Trial};
use self::pattern::{Case, Pattern};
use super::Samples;
use crate::bench::sample::{per_item, per_second};
use crate::bench::{Experiment, Param, Sample};
use crate::buddy::Gfp;
use crate::mm::Mm;
use crate::scenario::hog::Hog;
use crate::scenario::{Ctx, Failure, Machine, OrFail, Outcome, check, check_eq};
use crate::store::{Block, BlockState, PfnStore, Reservation, Select};

/// Rounds unless asked for otherwise.
const ROUNDS: u64 = 1;
/// Reservations that are tried without memory.
const ATTEMPTS: usize = 1024;
/// Blocks that are in the store before: one that has just begun, and one that is in use.
const BEFORE: [usize; 2] = [16, 1024];

/// Runs it.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mm = ctx.mm;
    let mut samples = Samples::new(Experiment::E3, ctx.args.seed);
    let caches = Caches::new(mm.memory()).or_fail()?;
    let mut pattern = Pattern::new(mm.memory())?;
    let rounds = ctx.rounds(ROUNDS);
    let ended =
        (0..rounds).try_for_each(|nth| round(ctx, &caches, &mut pattern, &mut samples, nth == 0));
    pattern.free();
    ended?;
    samples.end(ctx);
    Ok(())
}

/// All arms in turns. What no clock has a part in is told by the `first` round only.
fn round<M: Machine>(
    ctx: &mut Ctx<'_, '_, M>,
    caches: &Caches,
    pattern: &mut Pattern<'_, M>,
    samples: &mut Samples,
    first: bool,
) -> Outcome {
    let mm = ctx.mm;
    pattern.shuffle(&mut ctx.rng);
    for case in Case::ALL {
        for arm in Arm::ALL {
            let mut filled = Filled { mm, pattern, case, result: None };
            arm.try_on(mm, caches, pattern.range(), &mut filled)?;
            let values = filled.result.or_fail()?.values();
            let told = if first { &values[..] } else { &values[..4] };
            print(ctx, samples, arm, &case.params(), told);
        }
    }
    if !first {
        return Ok(());
    }
    for case in [Case::TENTH, Case::RANDOM] {
        for (before, arm) in BEFORE.iter().flat_map(|&before| Arm::ALL.map(|arm| (before, arm))) {
            let mut pressed = Pressed { mm, pattern, case, before, result: None };
            arm.try_on(mm, caches, pattern.range(), &mut pressed)?;
            let params =
                [("blocks before", Param::Number(before as u64)), ("pattern", case.pattern())];
            print(ctx, samples, arm, &params, &pressed.result.or_fail()?.values());
        }
    }
    Ok(())
}

/// Metric, unit and value.
type Value = (&'static str, &'static str, u64);

fn print<M: Machine>(
    ctx: &mut Ctx<'_, '_, M>,
    samples: &mut Samples,
    arm: Arm,
    params: &[(&'static str, Param)],
    values: &[Value],
) {
    for &(metric, unit, value) in values {
        samples.print(ctx, &Sample { arm: arm.name(), params, metric, unit, value });
    }
}

/// Puts a block into the store as an inflation does.
fn inflate(store: &impl PfnStore, block: Block) -> Outcome {
    store.reserve().or_fail()?.commit(block).or_fail()?;
    store.set_state(block.head(), BlockState::Settled).or_fail().map(drop)
}

/// Takes everything out as deflations do.
fn deflate_all(store: &impl PfnStore) -> Outcome {
    let mut from = Pfn::ZERO;
    while let Some(block) = store.claim(from) {
        check(store.remove(block.head()).is_some(), "what was claimed is there")?;
        from = block.head();
    }
    check_eq(store.blocks(), 0, "blocks afterwards")?;
    check(store.next(Pfn::ZERO, Select::Any).is_none(), "nothing is found in an empty store")
}

/// A store filled by a pattern, and emptied.
struct Filled<'t, 'm, M: Machine> {
    mm: &'t Mm<'m, M>,
    pattern: &'t Pattern<'t, M>,
    case: Case,
    result: Option<FilledResult>,
}

struct FilledResult {
    pages: u64,
    inflate_ns: u64,
    deflate_ns: u64,
    footprint: Footprint,
}

impl<M: Machine> Trial for Filled<'_, '_, M> {
    fn with<S: PfnStore>(&mut self, store: &S, slab_bytes: &dyn Fn() -> u64) -> Outcome {
        let machine = self.mm.platform();
        let start = machine.now_ns();
        self.pattern.blocks(self.case).try_for_each(|block| inflate(store, block))?;
        let inflate_ns = machine.now_ns().saturating_sub(start);
        let pages = store.pages().get();
        check_eq(pages, self.pattern.pages(self.case), "pages in the store")?;
        let footprint = Footprint { said: store.bytes_used() as u64, slabs: slab_bytes() };
        let start = machine.now_ns();
        deflate_all(store)?;
        let deflate_ns = machine.now_ns().saturating_sub(start);
        self.result = Some(FilledResult { pages, inflate_ns, deflate_ns, footprint });
        Ok(())
    }
}

impl FilledResult {
    /// Times first.
    fn values(&self) -> [Value; 6] {
        let Footprint { said, slabs } = self.footprint;
        let bytes = "B per inflated page";
        // Both: of a rate the 99th percentile is the fast end, of a time the slow one.
        [
            ("inflate", "pages/s", per_second(self.pages, self.inflate_ns)),
            ("inflate time", "ns/page", per_item(self.inflate_ns, self.pages)),
            ("deflate", "pages/s", per_second(self.pages, self.deflate_ns)),
            ("deflate time", "ns/page", per_item(self.deflate_ns, self.pages)),
            ("store", bytes, per_item(said, self.pages)),
            ("store and free objects in its slabs", bytes, per_item(slabs, self.pages)),
        ]
    }
}

/// A store that is asked for room when there is no memory.
struct Pressed<'t, 'm, M: Machine> {
    mm: &'t Mm<'m, M>,
    pattern: &'t Pattern<'t, M>,
    case: Case,
    before: usize,
    result: Option<PressedResult>,
}

struct PressedResult {
    refused: u64,
    free: u64,
    min: u64,
}

impl<M: Machine> Trial for Pressed<'_, '_, M> {
    fn with<S: PfnStore>(&mut self, store: &S, _slab_bytes: &dyn Fn() -> u64) -> Outcome {
        let mut blocks = self.pattern.blocks(self.case.single());
        blocks.by_ref().take(self.before).try_for_each(|block| inflate(store, block))?;
        let mut hog = Hog::new();
        let min = self.mm.memory().watermarks().min;
        // First what anybody may have, then from the reserve, so that less than *min* is free.
        hog.take_until(self.mm, min, Gfp::KERNEL);
        hog.take_until(self.mm, min - min / 4, Gfp::ATOMIC);
        let free = self.mm.memory().free_pages().get();
        let tried = try_all(store, blocks.take(ATTEMPTS));
        hog.free(self.mm);
        let refused = tried?;
        check(free < min, "less than the min watermark is free")?;
        deflate_all(store)?;
        self.result = Some(PressedResult { refused, free, min });
        Ok(())
    }
}

/// Tries to inflate each block; returns how many found no room.
fn try_all(store: &impl PfnStore, mut blocks: impl Iterator<Item = Block>) -> Result<u64, Failure> {
    blocks.try_fold(0, |refused, block| match store.reserve() {
        Err(_) => Ok(refused + 1),
        Ok(reservation) => {
            reservation.commit(block).or_fail()?;
            store.set_state(block.head(), BlockState::Settled).or_fail()?;
            Ok(refused)
        }
    })
}

impl PressedResult {
    fn values(&self) -> [Value; 2] {
        [
            ("refused without memory", "of 1024", self.refused * 1000),
            (
                "free memory meanwhile",
                "% of the min watermark",
                per_item(self.free * 100, self.min),
            ),
        ]
    }
}
