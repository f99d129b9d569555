//! `isolate-race`: all CPUs isolate, migrate and put back pages of the test
//! driver, while their owners use, free and allocate them.
//!
//! Each thread owns some pages and takes everybody's for migration, by frame
//! numbers that may be out of date by the time it looks. What must hold:
//!
//! * a page contains what its owner wrote last, wherever it is;
//! * every page is freed once, also if migration has it when its owner frees it;
//! * operations with isolated pages cannot be unregistered;
//! * in the end nothing is isolated, and no frame is missing.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::Pfn;

use super::{Ctx, Failure, Machine, OrFail, Outcome, Rng, check, check_eq};
use crate::memdesc::Kind;
use crate::migrate::test_driver::{PageError, TEST_MOVABLE, TestPage};
use crate::migrate::{Allocated, MigrateBatch, MigrateMode};
use crate::mm::Mm;
use crate::objects::Freed;
use crate::platform::MAX_CPUS;

/// Pages of each thread at most.
const PAGES: usize = 8;
/// Rounds of each thread unless told otherwise.
const ROUNDS: u64 = 600;

/// What the threads share.
struct Shared<'a, 'm, M: Machine> {
    mm: &'a Mm<'m, M>,
    rounds: u64,
    rng: Rng,
    /// Where the threads' pages were when somebody last looked.
    frames: [AtomicU64; PAGES * MAX_CPUS],
    counts: Counts,
}

/// What has happened.
#[derive(Debug, Default)]
struct Counts {
    isolated: AtomicU64,
    lost_races: AtomicU64,
    migrated: AtomicU64,
    put_back: AtomicU64,
    met_isolated: AtomicU64,
    freed_now: AtomicU64,
    freed_by_migration: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mm = ctx.mm;
    let threads = ctx.cpus().max(2);
    let contradictions = mm.migrate_counters().contradictions;
    mm.set_movable_ops(Kind::Movable, &TEST_MOVABLE)
        .map_err(|_| Failure::new("the test driver registers once"))?;
    let shared = Shared {
        mm,
        rounds: ctx.rounds(ROUNDS),
        rng: ctx.rng.clone(),
        frames: [const { AtomicU64::new(0) }; PAGES * MAX_CPUS],
        counts: Counts::default(),
    };
    let ended = ctx.run_on(threads, &|thread| shared.thread(thread));
    let gone = mm.clear_movable_ops(Kind::Movable);
    let Counts {
        isolated,
        lost_races,
        migrated,
        put_back,
        met_isolated,
        freed_now,
        freed_by_migration,
    } = &shared.counts;
    let [isolated, lost, migrated, back, met, now, deferred] =
        [isolated, lost_races, migrated, put_back, met_isolated, freed_now, freed_by_migration]
            .map(|count| count.load(Ordering::Relaxed));
    ctx.print(format_args!(
        "{threads} threads, {isolated} isolated, {lost} lost races, {migrated} migrated, \
         {back} put back; owners met {met} isolated, freed {now} at once, {deferred} by migration"
    ));
    ended?;
    check(gone.is_ok(), "nothing is isolated any more, so the driver unregisters")?;
    check_eq(mm.isolated_blocks(), 0, "isolated pages")?;
    let found = mm.migrate_counters().contradictions - contradictions;
    check_eq(found, 0, "contradictions of the driver")?;
    check(isolated > 0 && migrated > 0 && now > 0, "pages were isolated, moved and freed")
}

impl<'m, M: Machine> Shared<'_, 'm, M> {
    fn thread(&self, thread: usize) -> Outcome {
        let mut rng = self.rng.stream(thread as u64);
        let mut pages = [const { None }; PAGES];
        let mut outcome = Ok(());
        for round in 0..self.rounds {
            let id = round * MAX_CPUS as u64 + thread as u64;
            outcome = self.step(thread, id, &mut pages, &mut rng);
            if outcome.is_err() {
                break;
            }
        }
        // Also after a failure: the scenario frees what it took.
        for page in pages.iter_mut().filter_map(Option::take) {
            outcome = outcome.and(self.free(page));
        }
        outcome
    }

    fn step(
        &self,
        thread: usize,
        id: u64,
        pages: &mut [Option<TestPage<'m>>; PAGES],
        rng: &mut Rng,
    ) -> Outcome {
        let at = usize::try_from(rng.below(PAGES as u64)).unwrap_or(0);
        match (rng.below(8), &mut pages[at]) {
            (0..4, _) => self.migrate(rng),
            (_, slot @ None) => {
                // No memory is no failure: others have it.
                *slot = TestPage::new(self.mm, id).ok();
                self.note_frame(thread, at, slot.as_ref());
                Ok(())
            }
            (4, slot) => slot.take().map_or(Ok(()), |page| self.free(page)),
            (5 | 6, Some(page)) => {
                let used = page.update(self.mm);
                self.note_frame(thread, at, Some(page));
                self.used(used)
            }
            (_, Some(page)) => {
                let used = page.check(self.mm);
                self.note_frame(thread, at, Some(page));
                self.used(used)
            }
        }
    }

    fn note_frame(&self, thread: usize, at: usize, page: Option<&TestPage<'m>>) {
        if let (Some(page), Some(hint)) = (page, self.frames.get(thread * PAGES + at)) {
            hint.store(page.frame().number(), Ordering::Relaxed);
        }
    }

    fn used(&self, used: Result<(), PageError>) -> Outcome {
        match used {
            Ok(()) => Ok(()),
            Err(PageError::Isolated) => {
                Counts::add(&self.counts.met_isolated, 1);
                Ok(())
            }
            Err(PageError::Corrupt(_)) => Err(Failure::new("a page lost its contents")),
            Err(PageError::Lost(_)) => Err(Failure::new("a page's word is another's")),
        }
    }

    fn free(&self, page: TestPage<'m>) -> Outcome {
        match page.free(self.mm) {
            Ok(Freed::Now) => Counts::add(&self.counts.freed_now, 1),
            Ok(Freed::ByMigration) => Counts::add(&self.counts.freed_by_migration, 1),
            Err(error) => return self.used(Err(error)),
        }
        Ok(())
    }

    /// Isolates some pages, whosever they are, and moves them or not.
    fn migrate(&self, rng: &mut Rng) -> Outcome {
        let mut batch = MigrateBatch::<_>::new(self.mm);
        for _ in 0..=rng.below(PAGES as u64) {
            let hint = usize::try_from(rng.below((PAGES * MAX_CPUS) as u64)).unwrap_or(0);
            let number = self.frames.get(hint).map_or(0, |hint| hint.load(Ordering::Relaxed));
            let pfn = Pfn::new(number).or_fail()?;
            match self.mm.isolate_for_migration(pfn, &mut batch) {
                Ok(()) => Counts::add(&self.counts.isolated, 1),
                // Free by now, or another's, or faster.
                Err(_) => Counts::add(&self.counts.lost_races, 1),
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        check(
            self.mm.clear_movable_ops(Kind::Movable).is_err(),
            "operations with isolated pages stay registered",
        )?;
        for _ in 0..rng.below(3) {
            // Owners meet isolated pages.
            self.mm.platform().yield_now();
            self.mm.platform().relax();
        }
        let isolated = batch.len() as u64;
        let mode = match rng.below(4) {
            0 => {
                let freed = batch.putback();
                Counts::add(&self.counts.put_back, isolated - freed);
                return Ok(());
            }
            1 => MigrateMode::Async,
            2 => MigrateMode::SyncLight,
            _ => MigrateMode::Sync,
        };
        let mut destinations = Allocated::new(self.mm.memory());
        let stats = self.mm.migrate_pages(&mut batch, &mut destinations, mode);
        Counts::add(&self.counts.migrated, stats.migrated);
        Counts::add(&self.counts.put_back, stats.failed());
        check_eq(stats.vacated() + stats.failed(), isolated, "what became of isolated pages")
    }
}
