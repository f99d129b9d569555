//! `mprotect`: what a call takes away is gone on every CPU when it returns.
//!
//! The first thread changes the rights of pages that the others read and write; it tells them
//! what they are by a number that is odd while it is at it. An access that began and
//! ended under one even number must have ended as the rights said.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::PAGE_SIZE;

use super::super::{Ctx, Machine, Outcome, Process, Rng, Signal, check, check_eq};
use crate::pgtable::PageProt;
use crate::space::MmapArgs;

/// Pages that all play with.
const PAGES: u64 = 16;
/// Calls unless told otherwise.
const ROUNDS: u64 = 150;
/// Accesses that each of the others has done at least before the next call.
const ACCESSES: u64 = 4;

/// Rights, by the low bits of the number.
const RIGHTS: [PageProt; 4] =
    [PageProt::READ.union(PageProt::WRITE), PageProt::READ, PageProt::empty(), PageProt::READ];

struct Shared<'a, 'm, M: Machine> {
    process: &'a Process<'a, 'm, M>,
    pages: u64,
    /// Twice the number of calls so far, plus 1 while one is under way.
    number: AtomicU64,
    accesses: AtomicU64,
    is_over: AtomicBool,
    refused: AtomicU64,
}

/// Runs the scenario.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let threads = ctx.cpus().max(2);
    let process = Process::new(ctx.mm)?;
    let pages = process.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE))?;
    let shared = Shared {
        process: &process,
        pages,
        number: AtomicU64::new(0),
        accesses: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        refused: AtomicU64::new(0),
    };
    let (rounds, rng) = (ctx.rounds(ROUNDS), ctx.rng.clone());
    let ended = ctx.run_on(threads, &|thread| {
        let rng = rng.stream(thread as u64);
        let ended =
            if thread == 0 { shared.change(rounds, threads as u64) } else { shared.touch(rng) };
        if ended.is_err() || thread == 0 {
            shared.is_over.store(true, Ordering::Release);
        }
        ended
    });
    ended?;
    let [accesses, refused] =
        [&shared.accesses, &shared.refused].map(|count| count.load(Ordering::Relaxed));
    ctx.print(format_args!(
        "{threads} threads, {rounds} calls, {accesses} accesses, {refused} refused"
    ));
    check(refused > 0, "some accesses are refused")?;
    check_eq(process.space().map_count().into(), 1, "mappings, merged again")
}

impl<M: Machine> Shared<'_, '_, M> {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// The thread that changes rights.
    fn change(&self, rounds: u64, threads: u64) -> Outcome {
        for round in 1..=rounds {
            self.number.store(2 * round - 1, Ordering::SeqCst);
            let rights = RIGHTS[usize::try_from(round % 4).unwrap_or(0)];
            self.process.mprotect(self.pages, PAGES * PAGE_SIZE, rights)?;
            self.number.store(2 * round, Ordering::SeqCst);
            let enough = self.accesses.load(Ordering::Relaxed) + ACCESSES * (threads - 1);
            while self.accesses.load(Ordering::Relaxed) < enough && !self.is_over() {
                self.process.mm().platform().yield_now();
            }
        }
        self.number.store(u64::MAX, Ordering::SeqCst);
        let whole = RIGHTS[0];
        Ok(self.process.mprotect(self.pages, PAGES * PAGE_SIZE, whole)?)
    }

    /// The threads that use them.
    fn touch(&self, mut rng: Rng) -> Outcome {
        while !self.is_over() {
            let at = self.pages + rng.below(PAGES) * PAGE_SIZE;
            let write = rng.once_in(2);
            let before = self.number.load(Ordering::SeqCst);
            let done = if write {
                self.process.store(at, rng.next())
            } else {
                self.process.load(at).map(drop)
            };
            let after = self.number.load(Ordering::SeqCst);
            self.accesses.fetch_add(1, Ordering::Relaxed);
            match done {
                Ok(()) => {}
                Err(Signal::SegvAccErr) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(signal) => return Err(signal.into()),
            }
            if before == after && before.is_multiple_of(2) {
                let rights = RIGHTS[usize::try_from(before / 2 % 4).unwrap_or(0)];
                let needed = if write { PageProt::WRITE } else { PageProt::READ };
                check_eq(u64::from(done.is_ok()), u64::from(rights.contains(needed)), "allowed")?;
            }
            self.process.mm().platform().yield_now();
        }
        Ok(())
    }
}
