//! `fork-cow`: children keep what their parent had when it forked, whoever writes.
//!
//! One thread forks; the others go on writing numbers that only grow to the
//! parent's pages. A child's page must show one number for ever, whichever, and
//! what a child writes its parent must never see. Children have children.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::PAGE_SIZE;

use super::super::{Ctx, Machine, Outcome, Process, Rng, check, check_eq};
use crate::space::MmapArgs;

/// Pages of the parent.
const PAGES: u64 = COUNT as u64;
const COUNT: usize = 12;
/// Forks unless told otherwise.
const ROUNDS: u64 = 40;
/// Numbers from here on are a child's.
const CHILD: u64 = 1 << 40;

struct Shared<'a, 'm, M: Machine> {
    parent: &'a Process<'a, 'm, M>,
    pages: u64,
    is_over: AtomicBool,
    stores: AtomicU64,
}

/// Runs the scenario.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let threads = ctx.cpus().max(2);
    let parent = Process::new(ctx.mm)?;
    let pages = parent.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE))?;
    let is_over = AtomicBool::new(false);
    let shared = Shared { parent: &parent, pages, is_over, stores: AtomicU64::new(0) };
    let (rounds, rng) = (ctx.rounds(ROUNDS), ctx.rng.clone());
    ctx.run_on(threads, &|thread| {
        let mut rng = rng.stream(thread as u64);
        let ended = if thread == 0 {
            (0..rounds).try_for_each(|_| shared.fork(&mut rng))
        } else {
            shared.write(&mut rng)
        };
        if ended.is_err() || thread == 0 {
            shared.is_over.store(true, Ordering::Release);
        }
        ended
    })?;
    let stores = shared.stores.load(Ordering::Relaxed);
    ctx.print(format_args!("{threads} threads, {rounds} forks, {stores} stores meanwhile"));
    check(stores > 0, "the parent is written to")
}

impl<'m, M: Machine> Shared<'_, 'm, M> {
    fn at(&self, page: u64) -> u64 {
        self.pages + page * PAGE_SIZE
    }

    /// The parent's other threads: each page has its writer, whose numbers grow.
    fn write(&self, rng: &mut Rng) -> Outcome {
        let mut number = 0;
        while !self.is_over.load(Ordering::Acquire) {
            number += 1;
            let at = self.at(rng.below(PAGES));
            self.parent.store(at, number)?;
            let seen = self.parent.load(at)?;
            check(seen < CHILD, "the parent sees what a child wrote")?;
            self.stores.fetch_add(1, Ordering::Relaxed);
            if rng.once_in(8) {
                self.parent.mm().platform().yield_now();
            }
        }
        Ok(())
    }

    fn fork(&self, rng: &mut Rng) -> Outcome {
        let child = self.parent.fork()?;
        let seen = self.snapshot(&child)?;
        let written = rng.below(PAGES);
        child.store(self.at(written), CHILD + written)?;
        let grandchild = child.fork()?;
        self.parent.mm().platform().yield_now();
        // Before and after others have written in between.
        for process in [&child, &grandchild] {
            for page in 0..PAGES {
                let expected = if page == written { CHILD + page } else { seen[index(page)] };
                check_eq(process.load(self.at(page))?, expected, "what the parent had")?;
            }
        }
        child.store(self.at(written), CHILD + 99)?;
        check_eq(grandchild.load(self.at(written))?, CHILD + written, "what the child had")
    }

    fn snapshot(&self, child: &Process<'_, 'm, M>) -> Result<[u64; COUNT], super::super::Failure> {
        let mut seen = [0; COUNT];
        for page in 0..PAGES {
            seen[index(page)] = child.load(self.at(page))?;
        }
        Ok(seen)
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page).unwrap_or(usize::MAX)
}
