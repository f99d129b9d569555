//! `migration`: threads, or processes, use memory without a pause while it moves from range to range.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::{PAGE_SIZE, PfnRange};

use super::pool::Pool;
use super::{Machine, Process, frame_at};
use crate::addr::{PMD_ORDER, PMD_SIZE};
use crate::memdesc::Order;
use crate::migrate::{MigrateMode, MigrateStats};
use crate::platform::MAX_CPUS;
use crate::scenario::{Case, Ctx, Failure, OrFail, Outcome, Rng, check, check_eq};
use crate::space::{Advice, MapFlags, MapSource, MmapArgs};

/// Pages of the cases without huge pages; pages that are used of a huge one.
const PAGES: u64 = USED as u64;
const USED: usize = 12;
/// Moves of the whole memory, unless told otherwise.
const ROUNDS: u64 = 40;
/// Where 2 MiB are mapped.
const AT: u64 = 1 << 32;
/// Accesses that the others have made by then, in all.
const USES: u64 = 100;
/// The mover does so many times its rounds at most while it waits for the others to begin.
const LATE: u64 = 1000;

/// Whose memory it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// One process's, whose threads use it.
    Private,
    /// A file's without a name, which each process maps by itself.
    Shared,
}

/// Runs the scenario.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    ctx.run_cases(&[
        Case { name: "private_anon", run: |ctx| hammer(ctx, Sharing::Private, false) },
        Case { name: "shared_anon", run: |ctx| hammer(ctx, Sharing::Shared, false) },
        Case { name: "private_anon_thp", run: |ctx| hammer(ctx, Sharing::Private, true) },
        Case { name: "shared_anon_thp", run: |ctx| hammer(ctx, Sharing::Shared, true) },
    ])
}

/// The memory, and who uses it.
struct Scene<'a, 'm, M: Machine> {
    /// That of each thread; of private memory only the first.
    processes: [Option<Process<'a, 'm, M>>; MAX_CPUS],
    machine: &'m M,
    start: u64,
    pages: u64,
    is_huge: bool,
    rounds: u64,
    rng: Rng,
    is_over: AtomicBool,
    /// Accesses of the threads that use the memory.
    uses: AtomicU64,
    moved: AtomicU64,
    busy: AtomicU64,
}

fn hammer<M: Machine>(ctx: &mut Ctx<'_, '_, M>, sharing: Sharing, is_huge: bool) -> Outcome {
    let threads = ctx.cpus().max(2);
    let scene = Scene::new(ctx, sharing, is_huge, threads)?;
    let ended = ctx.run_on(threads, &|thread| {
        let ended = if thread == 0 { scene.keep_moving() } else { scene.use_memory(thread) };
        if ended.is_err() || thread == 0 {
            scene.is_over.store(true, Ordering::Relaxed);
        }
        ended
    });
    let [uses, moved, busy] =
        [&scene.uses, &scene.moved, &scene.busy].map(|count| count.load(Ordering::Relaxed));
    ctx.print(format_args!("{threads} threads, {uses} uses, {moved} pages moved, {busy} busy"));
    ended?;
    check(uses > 0 && moved > 0, "memory was used and moved")?;
    scene.settle()
}

impl<'a, 'm, M: Machine> Scene<'a, 'm, M> {
    fn new(
        ctx: &Ctx<'a, 'm, M>,
        sharing: Sharing,
        is_huge: bool,
        threads: usize,
    ) -> Result<Self, Failure> {
        let pages = if is_huge { 1 << PMD_ORDER } else { PAGES };
        let mut scene = Self {
            processes: [const { None }; MAX_CPUS],
            machine: ctx.machine(),
            start: AT,
            pages,
            is_huge,
            rounds: ctx.rounds(if is_huge { ROUNDS / 4 } else { ROUNDS }),
            rng: ctx.rng.clone(),
            is_over: AtomicBool::new(false),
            uses: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            busy: AtomicU64::new(0),
        };
        let first = Process::new(ctx.mm)?;
        match sharing {
            Sharing::Private => {
                first.mmap(MmapArgs::anonymous(pages * PAGE_SIZE).fixed(AT))?;
                if is_huge {
                    first.madvise(AT, PMD_SIZE, Advice::HugePage)?;
                }
            }
            Sharing::Shared => map_shared(ctx, &first, pages, is_huge)?,
        }
        for page in 0..pages {
            first.store(AT + page * PAGE_SIZE + 8 * MAX_CPUS as u64, page)?;
        }
        if sharing == Sharing::Shared {
            for slot in scene.processes.iter_mut().take(threads).skip(1) {
                *slot = Some(first.fork()?);
            }
        }
        scene.processes[0] = Some(first);
        Ok(scene)
    }

    fn process(&self, thread: usize) -> Result<&Process<'a, 'm, M>, Failure> {
        let own = self.processes.get(thread).and_then(Option::as_ref);
        own.or(self.processes[0].as_ref()).or_fail()
    }

    /// The first thread: moves all of the memory, again and again, to a range where it is not.
    fn keep_moving(&self) -> Outcome {
        for round in 0.. {
            // On a busy host the others may start late, or one stand still with a reference
            // of what shall move, for longer than all rounds take.
            let is_used = self.uses.load(Ordering::Relaxed) >= USES;
            let is_moved = self.moved.load(Ordering::Relaxed) > 0;
            let is_enough = round >= self.rounds && is_used && is_moved;
            if is_enough || round >= self.rounds * LATE || self.is_over.load(Ordering::Relaxed) {
                break;
            }
            let mode = if round % 4 == 3 { MigrateMode::Async } else { MigrateMode::SyncLight };
            let (_, stats) = self.move_all(mode)?;
            self.moved.fetch_add(stats.migrated, Ordering::Relaxed);
            self.busy.fetch_add(stats.failed(), Ordering::Relaxed);
            // Those who slept on a page have a look at it before it moves again.
            (0..4).for_each(|_| self.machine.yield_now());
            if stats.failed() > 0 {
                // Naps, after a while of it.
                (0..100).for_each(|_| self.machine.relax());
            }
        }
        Ok(())
    }

    /// Moves the memory to a range of its own.
    fn move_all(&self, mode: MigrateMode) -> Result<(PfnRange, MigrateStats), Failure> {
        let process = self.process(0)?;
        let mm = process.mm();
        let mut pool = Pool::new(mm.memory())?;
        let bytes = self.pages * PAGE_SIZE;
        let done = mm.migrate_range(process.space(), self.start, bytes, &mut pool, mode);
        Ok((pool.range(), done.or_fail()?.pages))
    }

    /// Another thread: counts in a word of its own on each page, and looks that nobody else does.
    fn use_memory(&self, thread: usize) -> Outcome {
        let process = self.process(thread)?;
        let mut rng = self.rng.stream(thread as u64);
        let mut counts = [0u64; USED];
        // Of 2 MiB some pages only, the same for all.
        let stride = self.pages / PAGES;
        while !self.is_over.load(Ordering::Relaxed) {
            let nth = rng.below(PAGES);
            let page = self.start + nth * stride * PAGE_SIZE;
            let own = page + 8 * thread as u64;
            let count = counts.get_mut(usize::try_from(nth).or_fail()?).or_fail()?;
            check_eq(process.load(own)?, *count, "a word that its thread wrote last")?;
            *count += 1;
            process.store(own, *count)?;
            let mark = process.load(page + 8 * MAX_CPUS as u64)?;
            check_eq(mark, nth * stride, "the mark of a page")?;
            self.uses.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Nobody uses the memory any more: all of it moves, and all processes see it there.
    fn settle(&self) -> Outcome {
        let before = self.frames(0)?;
        let (range, stats) = self.move_all(MigrateMode::Sync)?;
        check_eq(stats.failed(), 0, "pages that did not move")?;
        check_eq(stats.migrated, self.pages, "pages that moved")?;
        for thread in 0..MAX_CPUS {
            let process = self.process(thread)?;
            for page in 0..self.pages {
                let at = self.start + page * PAGE_SIZE;
                check_eq(process.load(at + 8 * MAX_CPUS as u64)?, page, "the mark of a page")?;
                let frame = frame_at(process, at).or_fail()?;
                check(range.contains(frame), "a page is in the range that it was moved to")?;
            }
        }
        check(self.frames(0)? != before, "the page moved")?;
        if self.is_huge {
            let last = frame_at(self.process(0)?, self.start + PMD_SIZE - PAGE_SIZE).or_fail()?;
            let pages = last.number() - self.frames(0)?.number();
            check_eq(pages, self.pages - 1, "frames of a huge page that moved as one")?;
        }
        Ok(())
    }

    fn frames(&self, page: u64) -> Result<abi::Pfn, Failure> {
        frame_at(self.process(0)?, self.start + page * PAGE_SIZE).or_fail()
    }
}

/// Maps a file without a name, of one folio if `is_huge`.
fn map_shared<'m, M: Machine>(
    ctx: &Ctx<'_, 'm, M>,
    process: &Process<'_, 'm, M>,
    pages: u64,
    is_huge: bool,
) -> Outcome {
    let file = ctx.mm.shmem_file(pages * PAGE_SIZE)?;
    if is_huge {
        file.set_folio_order(Order::try_from(PMD_ORDER).or_fail()?);
    }
    let source = MapSource { file: &file, offset: 0, readable: true, writable: true };
    let args = MmapArgs::anonymous(pages * PAGE_SIZE).fixed(AT);
    let args = MmapArgs { flags: MapFlags::SHARED | MapFlags::FIXED, source: Some(source), ..args };
    let mapped = process.mmap(args);
    // The mapping has a reference of its own.
    ctx.mm.file_put(file);
    Ok(mapped.map(drop)?)
}
