//! Scenarios: what the memory manager is put through, in the guest by
//! `aerostat exec NAME` and on the host's simulated machine by `cargo test`.
//!
//! A scenario is a function of a [`Ctx`], generic over the [`Machine`]. To add
//! one: a variant of [`Name`] and its arms in [`Name::spec`] and [`run`]. Those
//! that take no turn on other CPUs do the same, access by access, on every
//! machine with the same seed.
//!
//! Whatever a scenario did, it frees: [`run`] compares the free pages before
//! and after, and takes a census.

mod args;
mod balloon;
mod bench;
mod census;
mod come_to_life;
mod compaction_test;
mod cow;
mod digest;
mod failure;
mod fault;
mod gup_longterm;
mod gup_stress;
mod gup_test;
mod hoard;
mod hog;
mod isolate_race;
mod machine;
mod migrate_hammer;
pub(crate) mod migration;
mod mkdirty;
mod oom;
mod process;
mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
mod space;
mod split;
mod split_huge_page;
mod swap;
pub mod xarray;
mod zsmalloc_migrate;

use core::fmt;

pub use args::{Args, MAX_ROUNDS, MAX_SECONDS, Mutant};
pub use bench::Samples;
pub use digest::Digest;
pub use failure::{Failure, OrFail, check, check_eq, check_err};
pub use machine::{Access, Machine, Signal};
pub use process::{Process, pattern};
pub use rng::Rng;

use crate::balloon::BalloonStatus;
use crate::migrate::MovableKind;
use crate::mm::Mm;
use crate::platform::MAX_CPUS;
use crate::sync::{LockClass, SpinLock};

/// How a scenario ends.
pub type Outcome = Result<(), Failure>;

/// The scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Name {
    /// Counts everything.
    Census,
    /// Linux's `cow` test.
    Cow,
    /// Parents and children write to shared pages.
    ForkCow,
    /// Faults of every kind.
    Fault,
    /// Pins pages whose mappings come and go.
    GupStress,
    /// Rights change while other CPUs use the pages.
    Mprotect,
    /// Mappings grow, shrink and move.
    Mremap,
    /// Linux's mremap tests.
    MremapTest,
    /// Pages go to swap and come back.
    Swap,
    /// Memory runs out.
    Oom,
    /// Splits and moves folios under their users.
    Split,
    /// Linux's `gup_test`.
    GupTest,
    /// Linux's `gup_longterm` test.
    GupLongterm,
    /// Linux's `mkdirty` test.
    Mkdirty,
    /// Linux's `split_huge_page_test`.
    SplitHugePage,
    /// Linux's `folio_split_race_test`.
    FolioSplitRace,
    /// Linux's `migration` test.
    Migration,
    /// Linux's `rmap` test.
    Rmap,
    /// Linux's `compaction_test`.
    CompactionTest,
    /// Pages are isolated, moved and freed by all CPUs.
    IsolateRace,
    /// Linux's XArray test.
    XArray,
    /// Pages of compressed objects move.
    ZsmallocMigrate,
    /// Memory comes to life.
    ComeToLife,
    /// Experiment E2: PFN arrays or linked lists.
    ExpE2,
    /// Experiment E5: isolation by CAS, or by lock and reference.
    ExpE5,
    /// Ballooned pages move.
    BalloonMigrate,
    /// Ballooned pages move while memory runs out.
    BalloonMigrateOom,
    /// Data is hammered while its pages and the balloon's move.
    MigrateHammer,
    /// Measurements, one line of JSON each.
    BenchMm,
    /// The PFN stores against each other.
    ExpE3,
    /// Blocks of order 9 among ballooned pages.
    ExpE9,
    /// Blocks of memory added with little free.
    ExpE10,
}

/// What can be said of a scenario without running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Faults that it can be asked to build in.
    pub mutants: &'static [Mutant],
    /// Whether it can be told how long to go on.
    pub has_seconds: bool,
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [--seed N] [--cpus N] [--rounds N]", self.name)?;
        if self.has_seconds {
            f.write_str(" [--seconds N]")?;
        }
        self.mutants.iter().try_for_each(|mutant| write!(f, " [--mutant {}]", mutant.name()))
    }
}

impl Name {
    /// All of them, in the order in which they are best run.
    #[rustfmt::skip]
    pub const ALL: &[Self] = &[
        Self::Census,
        Self::Cow,
        Self::ForkCow,
        Self::Fault,
        Self::GupTest,
        Self::GupLongterm,
        Self::GupStress,
        Self::Mprotect,
        Self::Mremap,
        Self::MremapTest,
        Self::Swap,
        Self::Oom,
        Self::Split,
        Self::Mkdirty,
        Self::SplitHugePage,
        Self::FolioSplitRace,
        Self::Migration,
        Self::Rmap,
        Self::CompactionTest,
        Self::IsolateRace,
        Self::XArray,
        Self::ZsmallocMigrate,
        Self::ComeToLife,
        Self::ExpE2,
        Self::ExpE5,
        Self::BalloonMigrate,
        Self::BalloonMigrateOom,
        Self::MigrateHammer,
        Self::BenchMm,
        Self::ExpE3,
        Self::ExpE9,
        Self::ExpE10,
    ];

    /// The scenario called `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|scenario| scenario.spec().name == name)
    }

    /// Whether it measures, which says nothing of right and wrong.
    pub fn is_measurement(self) -> bool {
        let name = self.spec().name;
        name == "bench-mm" || name.starts_with("exp-")
    }

    /// What it is.
    pub const fn spec(self) -> Spec {
        let (name, summary) = match self {
            Self::Census => ("census", "counts everything and compares all books"),
            Self::Cow => ("cow", "copy-on-write, fork and pins: Linux's cow test"),
            Self::ForkCow => ("fork-cow", "children keep what their parent had when it forked"),
            Self::Mprotect => ("mprotect", "rights taken away are gone on every CPU"),
            Self::Mremap => ("mremap", "mappings grow, shrink and move with their contents"),
            Self::MremapTest => ("mremap_test", "the cases of Linux's mremap tests"),
            Self::Fault => ("fault", "page faults of every kind, on one CPU and on all"),
            Self::GupStress => ("gup-stress", "pins pages whose mappings come and go"),
            Self::Swap => ("swap", "pages go to swap and come back as they went"),
            Self::Oom => ("oom", "memory runs out, and the right one pays"),
            Self::Split => ("split", "splits and moves folios under their users"),
            Self::GupTest => ("gup_test", "every path of GUP: Linux's gup_test"),
            Self::GupLongterm => ("gup_longterm", "pins for ever of files: Linux's gup_longterm"),
            Self::Mkdirty => ("mkdirty", "dirty is not writable: Linux's mkdirty"),
            Self::SplitHugePage => ("split_huge_page_test", "splits to any order: Linux's test"),
            Self::FolioSplitRace => ("folio_split_race_test", "splits under access: Linux's test"),
            Self::Migration => ("migration", "pages move under their users: Linux's test"),
            Self::Rmap => ("rmap", "a page that moves moves for all: Linux's test"),
            Self::CompactionTest => {
                ("compaction_test", "huge pages among scattered ones: Linux's test")
            }
            Self::IsolateRace => ("isolate-race", "pages are isolated, moved, freed by all CPUs"),
            Self::XArray => ("xarray", "the groups of Linux's XArray test"),
            Self::ZsmallocMigrate => ("zsmalloc-migrate", "compressed objects whose pages move"),
            Self::ComeToLife => {
                ("come-to-life", "memory is added when nothing is free, and goes again")
            }
            Self::ExpE2 => ("exp-e2", "experiment E2: arrays or lists of pages that migrate"),
            Self::ExpE5 => ("exp-e5", "experiment E5: isolation by a swap, or by lock and count"),
            Self::BalloonMigrate => ("balloon-migrate", "ballooned pages leave range after range"),
            Self::BalloonMigrateOom => ("balloon-migrate-oom", "they move while memory runs out"),
            Self::MigrateHammer => ("migrate-hammer", "data is used while its pages move"),
            Self::BenchMm => ("bench-mm", "measurements, one line of JSON each"),
            Self::ExpE10 => {
                ("exp-e10", "memory added with little free: what can fail, and what it takes")
            }
            Self::ExpE3 => ("exp-e3", "PFN stores: bytes, times, and what fails without memory"),
            Self::ExpE9 => ("exp-e9", "huge pages among ballooned ones, movable and pinned"),
        };
        let mutants: &[Mutant] =
            if matches!(self, Self::GupStress) { &[Mutant::NoRecheck] } else { &[] };
        Spec { name, summary, mutants, has_seconds: matches!(self, Self::MigrateHammer) }
    }
}

/// Who runs scenarios: where their output goes, and what must be done while they run.
pub trait Caller {
    /// Takes a line of output.
    fn print(&mut self, line: fmt::Arguments<'_>);

    /// Called between steps of scenarios that take long: serves devices.
    fn serve(&mut self) {}

    /// Where the balloon's driver stands, if the machine has a balloon.
    fn balloon(&mut self) -> Option<BalloonStatus> {
        None
    }

    /// Sets the balloon's target, in pages; `false` where only the host can.
    fn set_balloon_target(&mut self, _pages: u64) -> bool {
        false
    }
}

/// What a scenario works with.
pub struct Ctx<'a, 'm, M: Machine> {
    /// The memory manager.
    pub mm: &'a Mm<'m, M>,
    /// What was asked for.
    pub args: Args,
    /// The random numbers of [`Args::seed`].
    pub rng: Rng,
    caller: &'a mut dyn Caller,
}

impl<'a, 'm, M: Machine> Ctx<'a, 'm, M> {
    /// The context for one run.
    pub fn new(mm: &'a Mm<'m, M>, args: Args, caller: &'a mut dyn Caller) -> Self {
        Self { mm, args, rng: Rng::new(args.seed), caller }
    }

    /// The machine.
    pub const fn machine(&self) -> &'m M {
        self.mm.platform()
    }

    /// CPUs to use: those that are up, or as many as asked for.
    pub fn cpus(&self) -> usize {
        let up = self.machine().cpus();
        self.args.cpus.map_or(up, |asked| asked.min(up))
    }

    /// Rounds to do: `default`, or what was asked for.
    pub fn rounds(&self, default: u64) -> u64 {
        self.args.rounds.unwrap_or(default)
    }

    /// Prints a line.
    pub fn print(&mut self, line: fmt::Arguments<'_>) {
        self.caller.print(line);
    }

    /// Where the balloon's driver stands, if the machine has a balloon.
    pub fn balloon(&mut self) -> Option<BalloonStatus> {
        self.caller.balloon()
    }

    /// Sets the balloon's target, in pages; `false` where only the host can.
    pub fn set_balloon_target(&mut self, pages: u64) -> bool {
        self.caller.set_balloon_target(pages)
    }

    /// To be called now and then by whoever takes long.
    pub fn serve(&mut self) {
        self.caller.serve();
    }

    /// Runs `work` with 0 to `threads` - 1 at once ([`Machine::run_on`]), and serves meanwhile.
    ///
    /// # Errors
    /// As there; else the failure of the first thread that failed, by number.
    pub fn run_on(&mut self, threads: usize, work: &(dyn Fn(usize) -> Outcome + Sync)) -> Outcome {
        let machine = self.machine();
        machine.leave();
        let first = SpinLock::new(LockClass::Queue, None::<(usize, Failure)>);
        let part = |thread| {
            if let Err(failure) = work(thread) {
                let mut first = first.lock(machine);
                if first.is_none_or(|(before, _)| thread < before) {
                    *first = Some((thread, failure));
                }
            }
            machine.leave();
        };
        let caller = &mut *self.caller;
        machine.run_on(self.mm, threads, self.args.seed, &part, &mut || caller.serve())?;
        let failed = *first.lock(machine);
        failed.map_or(Ok(()), |(_, failure)| Err(failure))
    }

    /// Runs each of `cases` and says how it ended. All run, whatever becomes of the others.
    ///
    /// # Errors
    /// The failure of the first that failed.
    pub fn run_cases(&mut self, cases: &[Case<M>]) -> Outcome {
        let mut outcome = Ok(());
        for case in cases {
            // Each case starts with the same numbers, whatever ran before it.
            self.rng = Rng::new(self.args.seed);
            let ended = (case.run)(self);
            self.machine().leave();
            outcome = outcome.and(self.report(case.name, ended));
        }
        outcome
    }

    /// Says how a case ended; returns that.
    ///
    /// # Errors
    /// The case's failure.
    pub fn report(&mut self, case: impl fmt::Display, ended: Outcome) -> Outcome {
        match ended {
            Ok(()) => self.print(format_args!("ok {case}")),
            Err(failure) => self.print(format_args!("not ok {case}: {failure}")),
        }
        self.serve();
        ended
    }
}

impl<M: Machine> fmt::Debug for Ctx<'_, '_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx").field("args", &self.args).finish_non_exhaustive()
    }
}

/// A part of a scenario with a name of its own.
pub struct Case<M: Machine> {
    /// Its name.
    pub name: &'static str,
    /// What it does; it frees what it took.
    pub run: fn(&mut Ctx<'_, '_, M>) -> Outcome,
}

impl<M: Machine> fmt::Debug for Case<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Runs scenario `name`: the scenario, then the comparison of free pages with
/// those before, then the census.
///
/// # Errors
/// What went wrong first; the rest has been printed.
pub fn run<M: Machine>(name: Name, ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    // What threads need once and keep, stacks for instance, exists before pages are counted.
    ctx.run_on(MAX_CPUS, &|_| Ok(()))?;
    let before = pages_at_hand(ctx);
    let nodes_before = store_pages(ctx.mm);
    let outcome = match name {
        Name::Census => Ok(()),
        Name::Cow => cow::run(ctx),
        Name::ForkCow => space::fork_cow::run(ctx),
        Name::Fault => fault::run(ctx),
        Name::GupStress => gup_stress::run(ctx),
        Name::Mprotect => space::mprotect::run(ctx),
        Name::Mremap => space::mremap::run(ctx),
        Name::MremapTest => space::mremap_test::run(ctx),
        Name::Swap => swap::run(ctx),
        Name::Oom => oom::run(ctx),
        Name::Split => split::run(ctx),
        Name::GupTest => gup_test::run(ctx),
        Name::GupLongterm => gup_longterm::run(ctx),
        Name::Mkdirty => mkdirty::run(ctx),
        Name::SplitHugePage => split_huge_page::run(ctx),
        Name::FolioSplitRace => split_huge_page::run_race(ctx),
        Name::Migration => migration::run_migration(ctx),
        Name::Rmap => migration::run_rmap(ctx),
        Name::CompactionTest => compaction_test::run(ctx),
        Name::IsolateRace => isolate_race::run(ctx),
        Name::XArray => xarray::run(ctx),
        Name::ZsmallocMigrate => zsmalloc_migrate::run(ctx),
        Name::ComeToLife => come_to_life::run(ctx),
        Name::ExpE2 => bench::batch_walk::run(ctx),
        Name::ExpE5 => bench::isolation::run(ctx),
        Name::BalloonMigrate => balloon::run(ctx),
        Name::BalloonMigrateOom => balloon::run_oom(ctx),
        Name::MigrateHammer => migrate_hammer::run(ctx),
        Name::BenchMm => bench::run(ctx),
        Name::ExpE3 => bench::stores::run(ctx),
        Name::ExpE9 => bench::balloon_compaction::run(ctx),
        Name::ExpE10 => bench::hot_add::run(ctx),
    };
    ctx.machine().leave();
    if let Err(failure) = outcome {
        ctx.print(format_args!("FAILED: {failure}"));
    }
    let after = pages_at_hand(ctx);
    // The store of a balloon whose pages were moved may want more nodes for them, or fewer.
    let (nodes_before, nodes_after) = match ctx.mm.movable_ops(MovableKind::Offline) {
        Some(_) => (nodes_before, store_pages(ctx.mm)),
        None => (0, 0),
    };
    let kept = check_eq(after + nodes_after, before + nodes_before, "free pages afterwards");
    if let Err(failure) = kept {
        ctx.print(format_args!("LEAK: {failure}"));
    }
    outcome.and(kept).and(census::take(ctx))
}

/// Pages with nodes of XArrays, which a balloon's store is one of.
fn store_pages<M: Machine>(mm: &Mm<'_, M>) -> u64 {
    mm.base().caches.xa_node.stats(mm.memory()).slabs
}

/// Free pages, and those in the balloon: what it gives for want of memory stays with the guest.
fn pages_at_hand<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> u64 {
    let free = census::settled_free_pages(ctx.mm).get();
    free + ctx.balloon().map_or(0, |status| status.pages().get())
}
