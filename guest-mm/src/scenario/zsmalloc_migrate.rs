//! `zsmalloc-migrate`: objects stay whole and findable while the pages that they
//! are packed into move between ranges of frames, on several CPUs at once; and
//! so do the pages of processes in a compressed swap device.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::{PAGE_SIZE, PageCount, Pfn, PfnRange};

use super::failure::ensure;
use super::swap::{count, page_out};
use super::{Case, Ctx, Failure, Machine, OrFail, Outcome, Process, Rng, check, check_eq};
use crate::buddy::Gfp;
use crate::memdesc::{Order, Tag};
use crate::memory::{FrozenFrames, Memory};
use crate::migrate::{
    Allocated, Destinations, MigrateBatch, MigrateError, MigrateMode, MigrateStats,
};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::space::MmapArgs;
use crate::zsmalloc::{MAX_OBJECT_BYTES, ZsHandle, ZsPool};

/// Objects that a thread has at once.
const OBJECTS: usize = 48;
/// Objects that a thread makes, unless told otherwise.
const ROUNDS: u64 = 400;
/// log2 of the pages of the range that pages move to.
const BLOCK_ORDER: u8 = 9;
/// Pages isolated at once: more than there are in any case here, so that what has
/// moved is not met again further up.
const BATCH: usize = 512;
/// Slots of the compressed device.
const SLOTS: u32 = 256;
/// Pages of the process that is swapped out.
const PAGES: u64 = 64;
/// Times that each of its pages is counted in, unless told otherwise.
const COUNTS: u64 = 12;

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    ctx.run_cases(&[
        Case { name: "ranges", run: between_ranges },
        Case { name: "freed-meanwhile", run: freed_meanwhile },
        Case { name: "threads", run: threads },
        Case { name: "zram", run: zram },
    ])
}

/// An object and what it holds.
#[derive(Clone, Copy)]
struct Object {
    handle: ZsHandle,
    tag: u64,
    bytes: usize,
}

impl Object {
    /// Stores an object of random size, kind and contents.
    fn store<P: Platform>(pool: &ZsPool<'_, P>, rng: &mut Rng) -> Result<Self, Failure> {
        let mut buffer = [0; MAX_OBJECT_BYTES];
        // Small ones more often, and whole pages now and then.
        let most = if rng.once_in(4) { MAX_OBJECT_BYTES as u64 } else { 600 };
        let bytes = usize::try_from(1 + rng.below(most)).or_fail()?;
        let bytes = if rng.once_in(16) { MAX_OBJECT_BYTES } else { bytes };
        let tag = rng.next();
        fill(tag, &mut buffer[..bytes]);
        let handle = pool.store(&buffer[..bytes], Gfp::KERNEL).or_fail()?;
        Ok(Self { handle, tag, bytes })
    }

    /// Checks that it holds what was stored.
    fn expect<P: Platform>(self, pool: &ZsPool<'_, P>) -> Outcome {
        let (mut found, mut expected) = ([0; MAX_OBJECT_BYTES], [0; MAX_OBJECT_BYTES]);
        pool.read(self.handle, &mut found[..self.bytes]).or_fail()?;
        fill(self.tag, &mut expected[..self.bytes]);
        check(found == expected, "what an object holds")
    }

    fn free<P: Platform>(self, pool: &ZsPool<'_, P>) -> Outcome {
        pool.free(self.handle).or_fail()
    }
}

/// Random bytes, or an even tag's one byte over and over.
fn fill(tag: u64, bytes: &mut [u8]) {
    let mut rng = Rng::new(tag);
    for part in bytes.chunks_mut(8) {
        let word = if tag.is_multiple_of(2) { tag } else { rng.next() };
        part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
    }
}

/// A pool that is freed whatever becomes of the case.
fn with_pool<M: Machine>(
    ctx: &mut Ctx<'_, '_, M>,
    case: impl for<'m> FnOnce(&mut Ctx<'_, 'm, M>, &ZsPool<'m, M>) -> Outcome,
) -> Outcome {
    fn inner<'m, M: Machine>(
        ctx: &mut Ctx<'_, 'm, M>,
        case: impl FnOnce(&mut Ctx<'_, 'm, M>, &ZsPool<'m, M>) -> Outcome,
    ) -> Outcome {
        let pool = ctx.mm.zs_create_pool().or_fail()?;
        let ended = case(ctx, &pool);
        let stats = pool.stats();
        let destroyed = ctx.mm.zs_destroy_pool(pool).map_err(|(_, error)| error);
        ended?;
        check_eq(stats.pages + stats.zspages, 0, "pages and zspages of an empty pool")?;
        check_eq(stats.refused, 0, "refused calls")?;
        destroyed.or_fail()
    }
    inner(ctx, case)
}

/// Isolates the compressed pages in `range` that can be, up to a batch, and calls `act` with them.
fn isolate_in<'m, M: Machine>(
    mm: &Mm<'m, M>,
    range: PfnRange,
    act: &mut dyn FnMut(&mut MigrateBatch<'_, 'm, M, BATCH>),
) {
    let mut batch = MigrateBatch::new(mm);
    for pfn in range.iter() {
        // By the word alone, as compaction finds pages.
        if mm.memory().words().load(pfn).is_ok_and(|word| word.tag() == Tag::ZpDesc) {
            // It may be gone, or another CPU's.
            let _raced = mm.isolate_for_migration(pfn, &mut batch);
        }
        if batch.is_full() {
            act(&mut batch);
        }
    }
    act(&mut batch);
}

/// Moves the compressed pages in `from`.
fn migrate_range<M: Machine>(
    mm: &Mm<'_, M>,
    from: PfnRange,
    to: &mut dyn Destinations,
    mode: MigrateMode,
) -> MigrateStats {
    let mut stats = MigrateStats::default();
    isolate_in(mm, from, &mut |batch| stats.add(&mm.migrate_pages(batch, to, mode)));
    stats
}

/// Destinations in one block, page after page.
struct InBlock<'a, P: Platform> {
    memory: &'a Memory<P>,
    /// What is left of it, by order.
    parts: [Option<FrozenFrames>; BLOCK_ORDER as usize + 1],
    range: PfnRange,
}

impl<'a, P: Platform> InBlock<'a, P> {
    fn new(memory: &'a Memory<P>) -> Result<Self, Failure> {
        let order = Order::new(BLOCK_ORDER).or_fail()?;
        let block = memory.alloc_frozen(order, Gfp::MOVABLE).or_fail()?;
        let range = block.range();
        let mut parts = [const { None }; BLOCK_ORDER as usize + 1];
        parts[BLOCK_ORDER as usize] = Some(block);
        Ok(Self { memory, parts, range })
    }
}

impl<P: Platform> Destinations for InBlock<'_, P> {
    fn take(&mut self, order: Order, _src: Pfn) -> Option<FrozenFrames> {
        let smallest = self.parts.iter().position(Option::is_some)?;
        let mut part = self.parts[smallest].take()?;
        while part.order() > order {
            let (lower, upper) = self.memory.split_frozen(part).ok()?;
            let at = upper.order().index();
            self.parts[at] = Some(upper);
            part = lower;
        }
        Some(part)
    }

    fn give_back(&mut self, frames: FrozenFrames) {
        self.memory.free_frozen(frames);
    }
}

impl<P: Platform> Drop for InBlock<'_, P> {
    fn drop(&mut self) {
        for part in self.parts.iter_mut().filter_map(Option::take) {
            self.memory.free_frozen(part);
        }
    }
}

/// Compressed pages in a range.
fn pages_in<M: Machine>(mm: &Mm<'_, M>, range: PfnRange) -> u64 {
    let words = mm.memory().words();
    let is_one = |pfn: &Pfn| words.load(*pfn).is_ok_and(|word| word.tag() == Tag::ZpDesc);
    range.iter().filter(is_one).count() as u64
}

/// From the lowest frame of RAM to the highest.
fn all_ram<M: Machine>(mm: &Mm<'_, M>) -> Option<PfnRange> {
    let ranges = || mm.memory().words().regions().map(|region| region.range());
    let start = ranges().map(PfnRange::start).min()?;
    PfnRange::new(start, ranges().map(PfnRange::end).max()?)
}

/// Pages go to one range of frames, then to another.
fn between_ranges<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    with_pool(ctx, |ctx, pool| {
        let mut objects = [None; 4 * OBJECTS];
        let stored = objects.iter_mut().try_for_each(|place| {
            *place = Some(Object::store(pool, &mut ctx.rng)?);
            Ok(())
        });
        let moved = stored.and_then(|()| there_and_back(ctx, pool, &objects));
        let freed = objects.iter().flatten().try_for_each(|object| object.free(pool));
        moved.and(freed)
    })
}

fn there_and_back<M: Machine>(
    ctx: &mut Ctx<'_, '_, M>,
    pool: &ZsPool<'_, M>,
    objects: &[Option<Object>],
) -> Outcome {
    let (mm, all) = (ctx.mm, all_ram(ctx.mm).or_fail()?);
    let pages = pool.stats().pages;
    check_eq(pages_in(mm, all), pages, "compressed pages of the machine")?;
    for mode in [MigrateMode::Async, MigrateMode::Sync] {
        let mut from = all;
        for block in &mut [InBlock::new(mm.memory())?, InBlock::new(mm.memory())?] {
            let to = block.range;
            let stats = migrate_range(mm, from, block, mode);
            check_eq(stats.migrated, pages, "pages that moved")?;
            check_eq(pages_in(mm, to), pages, "pages in the range")?;
            objects.iter().flatten().try_for_each(|object| object.expect(pool))?;
            from = to;
        }
    }
    ctx.print(format_args!("{pages} pages moved four times"));
    check_eq(pool.stats().pages_migrated, 4 * pages, "pages migrated by the pool's count")
}

/// Objects are freed while migration has their pages.
fn freed_meanwhile<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    with_pool(ctx, |ctx, pool| {
        let all = all_ram(ctx.mm).or_fail()?;
        for is_put_back in [true, false] {
            let mut objects = [None; OBJECTS];
            for place in &mut objects {
                *place = Some(Object::store(pool, &mut ctx.rng)?);
            }
            let mut left = objects.iter().flatten();
            let mut gone = 0;
            let mut ended = Ok(());
            isolate_in(ctx.mm, all, &mut |batch| {
                for object in left.by_ref() {
                    ended = ended.and(object.free(pool));
                }
                gone += if is_put_back {
                    batch.putback()
                } else {
                    let mut places = Allocated::new(ctx.mm.memory());
                    ctx.mm.migrate_pages(batch, &mut places, MigrateMode::Async).freed
                };
            });
            ended?;
            check(gone > 0, "pages that migration freed")?;
            check_eq(pages_in(ctx.mm, all), 0, "compressed pages that are left")?;
        }
        check_eq(ctx.mm.isolated_blocks(), 0, "isolated pages")
    })
}

/// The first thread moves pages up and down and packs objects closer; the others make, read and free objects.
fn threads<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (threads, rounds) = (ctx.cpus().max(2), ctx.rounds(ROUNDS));
    with_pool(ctx, |ctx, pool| {
        let (mm, rng) = (ctx.mm, ctx.rng.clone());
        let workers_left = AtomicU64::new(threads as u64 - 1);
        ctx.run_on(threads, &|thread| {
            if thread == 0 {
                while workers_left.load(Ordering::Relaxed) > 0 {
                    stir(mm, pool)?;
                    mm.platform().yield_now();
                }
                return Ok(());
            }
            let ended = churn(mm, pool, rounds, &mut rng.stream(thread as u64));
            workers_left.fetch_sub(1, Ordering::Relaxed);
            ended
        })?;
        let stats = pool.stats();
        ctx.print(format_args!(
            "{} objects, {} pages moved, {} freed by migration, {} objects packed",
            stats.allocated, stats.pages_migrated, stats.pages_deferred, stats.objects_compacted
        ));
        check_eq(stats.objects, 0, "objects at the end")?;
        check_eq(mm.isolated_blocks(), 0, "isolated pages")
    })
}

/// Moves the lower half of the pages elsewhere, then the upper half, and compacts.
fn stir<M: Machine>(mm: &Mm<'_, M>, pool: &ZsPool<'_, M>) -> Outcome {
    let (mut first, mut last) = (None, Pfn::ZERO);
    pool.for_each_page(&mut |pfn| {
        first = Some(first.map_or(pfn, |first: Pfn| first.min(pfn)));
        last = last.max(pfn);
    });
    let Some(first) = first else { return Ok(()) };
    let middle = Pfn::new(first.number().midpoint(last.number())).or_fail()?;
    let end = last.checked_add(PageCount::new(1)).or_fail()?;
    let halves = [PfnRange::new(first, middle).or_fail()?, PfnRange::new(middle, end).or_fail()?];
    for (from, mode) in halves.into_iter().zip([MigrateMode::Async, MigrateMode::SyncLight]) {
        let stats = migrate_range(mm, from, &mut Allocated::new(mm.memory()).outside(from), mode);
        check_eq(stats.failed_with(MigrateError::NotTaken), 0, "migrations that words contradict")?;
    }
    pool.compact();
    Ok(())
}

/// Makes, reads and frees objects.
fn churn<M: Machine>(mm: &Mm<'_, M>, pool: &ZsPool<'_, M>, rounds: u64, rng: &mut Rng) -> Outcome {
    let mut objects = [None; OBJECTS];
    let mut ended = Ok(());
    for _ in 0..rounds {
        let place = usize::try_from(rng.below(OBJECTS as u64)).or_fail()?;
        ended = match objects[place].take() {
            None => Object::store(pool, rng).map(|object| objects[place] = Some(object)),
            Some(object) => object.expect(pool).and_then(|()| {
                if rng.once_in(3) {
                    objects[place] = Some(object);
                    return Ok(());
                }
                object.free(pool)
            }),
        };
        if ended.is_err() {
            break;
        }
        if rng.once_in(8) {
            mm.platform().yield_now();
        }
    }
    for object in objects.into_iter().flatten() {
        ended = ended.and(object.expect(pool)).and(object.free(pool));
    }
    ended
}

/// The first thread swaps a process out to compressed RAM and moves the pages in which it then is; the others count in it.
fn zram<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    ctx.mm.swapon_zram(SLOTS).or_fail()?;
    let ended = counted_in_zram(ctx);
    let zram = ctx.mm.zram_stats().unwrap_or_default();
    let off = ctx.mm.swapoff();
    ended?;
    check_eq(zram.pages, 0, "compressed pages at the end")?;
    check_eq(zram.failed_reads, 0, "pages that could not be read")?;
    check(off.is_ok(), "swap can be switched off")
}

fn counted_in_zram<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let (threads, rounds) = (ctx.cpus().max(2), ctx.rounds(COUNTS));
    let process = Process::new(ctx.mm)?;
    let start = process.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE))?;
    let mm = ctx.mm;
    let all = all_ram(mm).or_fail()?;
    let is_over = AtomicBool::new(false);
    let (done, moved) = (AtomicU64::new(0), AtomicU64::new(0));
    let (rng, workers) = (ctx.rng.clone(), threads as u64 - 1);
    ctx.run_on(threads, &|thread| {
        if thread == 0 {
            // Once more when they are done, so that some pages moved whoever was faster.
            loop {
                let is_last = is_over.load(Ordering::Relaxed);
                page_out(&process, start, PAGES)?;
                let mut places = Allocated::new(mm.memory());
                let stats = migrate_range(mm, all, &mut places, MigrateMode::SyncLight);
                moved.fetch_add(stats.migrated, Ordering::Relaxed);
                if is_last {
                    return Ok(());
                }
                mm.platform().yield_now();
            }
        }
        let mut rng = rng.stream(thread as u64);
        let counted = count(&process, (start, PAGES), thread as u64, rounds, &mut rng);
        if done.fetch_add(1, Ordering::Relaxed) + 1 == workers || counted.is_err() {
            is_over.store(true, Ordering::Relaxed);
        }
        counted
    })?;
    let moved = moved.into_inner();
    let zram = mm.zram_stats().unwrap_or_default();
    ctx.print(format_args!(
        "{moved} compressed pages moved; {} pages of {} bytes in {}",
        zram.pages, zram.original_bytes, zram.memory_bytes
    ));
    ensure!(moved > 0);
    for thread in 1..=workers {
        for page in 0..PAGES {
            let at = start + page * PAGE_SIZE + 8 * thread;
            check_eq(process.load(at)?, rounds, "a thread's count in a page")?;
        }
    }
    Ok(())
}
