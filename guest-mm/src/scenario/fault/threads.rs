//! All CPUs fault at once on the same pages, while the first one changes what is
//! mapped under them.
//!
//! Each thread owns one word of every page and alone writes it. Whatever is
//! forked, swapped out, protected, split or copied meanwhile: a thread that
//! reads its word finds what it wrote last.

use core::sync::atomic::{AtomicBool, Ordering};

use abi::PAGE_SIZE;

use super::super::{Ctx, Machine, OrFail, Outcome, Process, Rng, Signal, check, check_eq};
use super::swap_out;
use crate::addr::PMD_SIZE;
use crate::pagecache::FileRef;
use crate::pgtable::PageProt;
use crate::platform::MAX_CPUS;
use crate::space::{Advice, MapFlags, MapSource, MmapArgs};

const SMALL: u64 = 0x4000_0000;
const HUGE: u64 = 0x8000_0000;
const FILE: u64 = 0xc000_0000;
/// Pages of each region that are touched.
const COUNT: usize = 12;
const PAGES: u64 = COUNT as u64;
const SLOTS: u32 = 64;
const ROUNDS: u64 = 120;

struct Shared<'a, 'm, M: Machine> {
    process: &'a Process<'a, 'm, M>,
    file: &'a FileRef<'m, M>,
    is_over: AtomicBool,
    rounds: u64,
    rng: Rng,
}

pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    ctx.mm.swapon_ram(SLOTS).or_fail()?;
    let ended = with_file(ctx);
    ctx.machine().leave();
    let off = ctx.mm.swapoff().or_fail();
    ended.and(off)
}

fn with_file<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let file = ctx.mm.shmem_file(PAGES * PAGE_SIZE)?;
    let ended = with_process(ctx, &file);
    ctx.machine().leave();
    ctx.mm.file_put(file);
    ended
}

fn with_process<'m, M: Machine>(ctx: &mut Ctx<'_, 'm, M>, file: &FileRef<'m, M>) -> Outcome {
    let process = Process::new(ctx.mm)?;
    process.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE).fixed(SMALL))?;
    process.mmap(MmapArgs::anonymous(PMD_SIZE).fixed(HUGE))?;
    ctx.mm.madvise(process.space(), HUGE, PMD_SIZE, Advice::HugePage)?;
    let source = MapSource { file, offset: 0, readable: true, writable: true };
    let args = MmapArgs::anonymous(PAGES * PAGE_SIZE).fixed(FILE);
    process.mmap(MmapArgs {
        flags: MapFlags::SHARED | MapFlags::FIXED,
        source: Some(source),
        ..args
    })?;
    let threads = ctx.cpus().max(2);
    let shared = Shared {
        process: &process,
        file,
        is_over: AtomicBool::new(false),
        rounds: ctx.rounds(ROUNDS),
        rng: ctx.rng.clone(),
    };
    ctx.run_on(threads, &|thread| {
        let ended = if thread == 0 { shared.churn() } else { shared.touch(thread) };
        if thread == 0 || ended.is_err() {
            shared.is_over.store(true, Ordering::Relaxed);
        }
        ended
    })
}

/// What a thread wrote last: by region and page.
type Written = [[u64; COUNT]; 3];

/// The word of `thread` in a page of a region. Pages of the block are spread.
fn address(region: usize, page: usize, thread: usize) -> u64 {
    let (base, stride) = [(SMALL, 1), (HUGE, 41), (FILE, 1)][region];
    base + page as u64 * stride * PAGE_SIZE + 8 * thread as u64
}

impl<'m, M: Machine> Shared<'_, 'm, M> {
    /// A thread that faults.
    fn touch(&self, thread: usize) -> Outcome {
        let mut rng = self.rng.stream(thread as u64);
        let mut written: Written = [[0; COUNT]; 3];
        let mut count = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            count += 1;
            let region = usize::try_from(rng.below(3)).or_fail()?;
            let page = usize::try_from(rng.below(PAGES)).or_fail()?;
            let at = address(region, page, thread);
            let word = &mut written[region][page];
            if rng.once_in(2) {
                match self.process.store(at, count) {
                    Ok(()) => *word = count,
                    Err(signal) => Self::allowed(region, signal)?,
                }
            } else {
                match self.process.load(at) {
                    // Cut off the file and grown again: zeros, and then what follows.
                    Ok(0) if region == 2 => *word = 0,
                    Ok(found) => check_eq(found, *word, "a word that nobody else writes")?,
                    Err(signal) => Self::allowed(region, signal)?,
                }
            }
        }
        Ok(())
    }

    /// Signals that the churner brings about.
    fn allowed(region: usize, signal: Signal) -> Outcome {
        let expected = if region == 2 { Signal::Bus } else { Signal::SegvAccErr };
        check(signal == expected, "the signal that fits the region")
    }

    fn churn(&self) -> Outcome {
        let mut rng = self.rng.stream(MAX_CPUS as u64);
        for _ in 0..self.rounds {
            let page = usize::try_from(rng.below(PAGES)).or_fail()?;
            let region = usize::try_from(rng.below(2)).or_fail()?;
            let at = address(region, page, 0);
            match rng.below(8) {
                0..=1 => self.fork(&mut rng)?,
                2..=4 => {
                    swap_out(self.process.mm(), self.process.space(), at);
                }
                5 => self.protect(at)?,
                6 => self.cut(page as u64)?,
                _ => self.process.store(at, 1)?,
            }
            self.process.mm().platform().yield_now();
        }
        Ok(())
    }

    /// A child sees each word as it was at some time before, and can write without being seen.
    fn fork(&self, rng: &mut Rng) -> Outcome {
        let mm = self.process.mm();
        let child = Process::of(mm, mm.fork(self.process.space())?);
        let (first, region) = (rng.below(PAGES), usize::try_from(rng.below(2)).or_fail()?);
        for page in first..first + rng.below(8) {
            let page = usize::try_from(page % PAGES).or_fail()?;
            for thread in 1..MAX_CPUS {
                let at = address(region, page, thread);
                let before = child.load(at)?;
                check(before < 1 << 60, "nobody sees another child's words")?;
                child.store(at, 1 << 60)?;
                check_eq(child.load(at)?, 1 << 60, "the child's own word")?;
            }
        }
        Ok(())
    }

    fn protect(&self, at: u64) -> Outcome {
        let (mm, space) = (self.process.mm(), self.process.space());
        mm.mprotect(space, at, PAGE_SIZE, PageProt::READ)?;
        mm.mprotect(space, at, PAGE_SIZE, PageProt::READ | PageProt::WRITE)?;
        Ok(())
    }

    fn cut(&self, page: u64) -> Outcome {
        let mm = self.process.mm();
        mm.truncate_file(self.file, page * PAGE_SIZE)?;
        mm.truncate_file(self.file, PAGES * PAGE_SIZE)?;
        Ok(())
    }
}
