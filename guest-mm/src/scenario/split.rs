//! `split`: large folios are split, and pages are taken from page tables and put
//! back, while processes use them. The first two cases have the names of
//! Linux's selftests, tested anew.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::PAGE_SIZE;

use super::{Case, Ctx, Machine, OrFail, Outcome, Process, Rng, check, check_eq, pattern};
use crate::addr::{PMD_ORDER, PMD_SIZE, VirtAddr};
use crate::errno::Errno;
use crate::folio::FolioRef;
use crate::memdesc::Order;
use crate::pgtable::{Found, PmdState, PteState};
use crate::rmap::Unmap;
use crate::space::{Advice, MmapArgs};

/// Where the 2 MiB are.
const AT: u64 = 1 << 32;
/// Their pages.
const PAGES: u64 = 1 << PMD_ORDER;
/// Rounds of the splitter unless told otherwise.
const ROUNDS: u64 = 600;

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    ctx.run_cases(&[
        Case { name: "split_huge_page_test", run: every_order },
        Case { name: "folio_split_race_test", run: race },
    ])
}

/// Maps 2 MiB for a huge page, in place of what is there.
fn map_huge<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    // Without the table that a split left behind.
    process.munmap(AT, PMD_SIZE)?;
    process.mmap(MmapArgs::anonymous(PMD_SIZE).fixed(AT))?;
    Ok(process.madvise(AT, PMD_SIZE, Advice::HugePage)?)
}

/// The folio of page `page`, if it is mapped.
fn folio_at<'m, M: Machine>(process: &Process<'_, 'm, M>, page: u64) -> Option<FolioRef<'m>> {
    let mm = process.mm();
    let at = VirtAddr::new(AT + page * PAGE_SIZE)?;
    let section = mm.base().rcu.read(mm.platform().cpu());
    let pfn = match process.space().tables().walk(&section, at) {
        Found::Pte { entry, .. } => match entry.pte() {
            PteState::Present(pte) => pte.pfn(),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => return None,
        },
        Found::Pmd { entry, .. } => match entry.pmd() {
            PmdState::Present(pmd) => pmd.pfn(),
            PmdState::None | PmdState::Table(_) | PmdState::Soft(_) | PmdState::Unknown(_) => {
                return None;
            }
        },
        Found::Hole | Found::Unknown(_) => return None,
    };
    drop(section);
    // Another's by now, perhaps: splitting and moving it does no harm.
    mm.folio_of(pfn).ok()
}

/// 2 MiB are split to each lower order; every page keeps what it held.
fn every_order<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let process = Process::new(ctx.mm)?;
    for order in Order::all().filter(|order| order.get() < PMD_ORDER).rev() {
        map_huge(&process)?;
        process.fill(AT, PAGES, 1)?;
        let folio = folio_at(&process, 0).or_fail()?;
        // Not where memory is short, or in pieces.
        if folio.order().get() == PMD_ORDER {
            let folio = folio.into_locked(ctx.machine());
            let split = ctx.mm.split_folio(folio.reference(), order);
            ctx.mm.put(folio.unlock());
            check(split == Ok(()), "a huge page that nobody else has can be split")?;
            let part = folio_at(&process, PAGES - 1).or_fail()?;
            let got = part.order().get();
            ctx.mm.put(part);
            check_eq(u64::from(got), u64::from(order.get()), "order of the parts")?;
        } else {
            ctx.mm.put(folio);
        }
        process.expect(AT, PAGES, 1)?;
        ctx.serve();
    }
    Ok(())
}

/// What the threads share.
struct Shared<'a, 'm, M: Machine> {
    process: &'a Process<'a, 'm, M>,
    rounds: u64,
    rng: Rng,
    /// Odd while the pages are thrown away.
    resets: AtomicU64,
    /// Threads that may be using the pages.
    users: AtomicU64,
    is_over: AtomicBool,
    splits: AtomicU64,
    moves: AtomicU64,
    stores: AtomicU64,
    children: AtomicU64,
}

/// The first thread does so many times its rounds at most while it waits for the others to begin.
const LATE: u64 = 1000;

/// The first thread splits and moves, the others store, load and fork: no store
/// may be lost, and a child sees the page that it asks for.
fn race<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let threads = ctx.cpus().max(2);
    let process = Process::new(ctx.mm)?;
    map_huge(&process)?;
    let shared = Shared {
        process: &process,
        rounds: ctx.rounds(ROUNDS),
        rng: ctx.rng.clone(),
        resets: AtomicU64::new(0),
        users: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
        splits: AtomicU64::new(0),
        moves: AtomicU64::new(0),
        stores: AtomicU64::new(0),
        children: AtomicU64::new(0),
    };
    let ended = ctx.run_on(threads, &|thread| {
        let ended =
            if thread == 0 { shared.split_and_move() } else { shared.use_pages(thread, threads) };
        if ended.is_err() || thread == 0 {
            shared.is_over.store(true, Ordering::Relaxed);
        }
        ended
    });
    let [splits, moves, stores, children] =
        [&shared.splits, &shared.moves, &shared.stores, &shared.children]
            .map(|count| count.load(Ordering::Relaxed));
    ctx.print(format_args!(
        "{threads} threads, {splits} splits, {moves} pages moved, {stores} stores, {children} children"
    ));
    ended?;
    check(splits > 0 && moves > 0 && stores > 0, "something was split, moved and stored")
}

impl<'m, M: Machine> Shared<'_, 'm, M> {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn split_and_move(&self) -> Outcome {
        let mut rng = self.rng.stream(0);
        let mm = self.process.mm();
        for round in 0.. {
            // On a busy host the others may start late, or be in the way of every try: goes on until all has happened
            // once, within bounds.
            let is_enough = round >= self.rounds
                && [&self.splits, &self.moves, &self.stores]
                    .iter()
                    .all(|count| count.load(Ordering::Relaxed) > 0);
            if is_enough || round >= self.rounds.saturating_mul(LATE) || self.is_over() {
                break;
            }
            if round % 16 == 15 {
                self.reset(&mut rng)?;
            }
            let from = rng.below(PAGES);
            let next = (0..32).find_map(|n| folio_at(self.process, (from + n) % PAGES));
            let Some(folio) = next else {
                mm.platform().yield_now();
                continue;
            };
            let folio = match folio.try_into_locked(mm.platform()) {
                Ok(folio) => folio,
                Err(folio) => {
                    mm.put(folio);
                    continue;
                }
            };
            if rng.once_in(2) && folio.is_large() {
                let order = rng.below(u64::from(folio.order().get()));
                let order = Order::saturating(u8::try_from(order).unwrap_or(0));
                let split = mm.split_folio(folio.reference(), order);
                self.splits.fetch_add(u64::from(split.is_ok()), Ordering::Relaxed);
            } else if let Some(anchor) = mm.rmap_anchor(&folio) {
                let moved = mm.try_to_unmap(&folio, Unmap::Migrate);
                // Accesses wait meanwhile.
                mm.platform().yield_now();
                mm.restore_leaves(&anchor, &folio, folio.pfn());
                mm.rmap_release(anchor);
                self.moves.fetch_add(u64::from(moved), Ordering::Relaxed);
            }
            mm.put(folio.unlock());
        }
        Ok(())
    }

    /// Throws the pages away: under their users, or for a fresh huge page without them.
    fn reset(&self, rng: &mut Rng) -> Outcome {
        // Sequentially consistent, as the users' count: either a user sees the odd
        // number, or this sees the user.
        self.resets.fetch_add(1, Ordering::SeqCst);
        if rng.once_in(2) {
            self.process.madvise(AT, PMD_SIZE, Advice::DontNeed)?;
        } else {
            while self.users.load(Ordering::SeqCst) > 0 && !self.is_over() {
                self.process.mm().platform().yield_now();
            }
            map_huge(self.process)?;
        }
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.process.mm().run_deferred_split(4);
        Ok(())
    }

    /// Stores to pages that no other thread stores to, and looks what is there.
    fn use_pages(&self, thread: usize, threads: usize) -> Outcome {
        let mut rng = self.rng.stream(thread as u64);
        let users = threads as u64 - 1;
        let mut tag = 0;
        while !self.is_over() {
            tag += 1;
            self.users.fetch_add(1, Ordering::SeqCst);
            let used = self.use_page(&mut rng, tag, (thread as u64 - 1, users));
            self.users.fetch_sub(1, Ordering::SeqCst);
            used?;
            self.process.mm().platform().yield_now();
        }
        Ok(())
    }

    fn use_page(&self, rng: &mut Rng, tag: u64, (user, users): (u64, u64)) -> Outcome {
        if !self.resets.load(Ordering::SeqCst).is_multiple_of(2) {
            return Ok(());
        }
        let page = rng.below(PAGES / users) * users + user;
        let at = AT + page * PAGE_SIZE;
        let before = self.resets.load(Ordering::SeqCst);
        let value = pattern(tag, page, at);
        self.process.store(at, value)?;
        let seen = self.process.load(at)?;
        let after = self.resets.load(Ordering::SeqCst);
        if before == after && before.is_multiple_of(2) {
            check_eq(seen, value, "what was stored before")?;
        }
        self.stores.fetch_add(1, Ordering::Relaxed);
        if rng.once_in(128) {
            self.fork(rng)?;
        }
        Ok(())
    }

    fn fork(&self, rng: &mut Rng) -> Outcome {
        let child = match self.process.fork() {
            Ok(child) => child,
            // Others have all memory just now.
            Err(Errno::ENOMEM) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for _ in 0..8 {
            let page = rng.below(PAGES);
            let at = AT + page * PAGE_SIZE;
            let seen = child.load(at)?;
            check(seen == 0 || seen >> 16 & 0xff_ffff == page, "a child sees another page")?;
            child.store(at, pattern(1, page, at))?;
            check_eq(child.load(at)?, pattern(1, page, at), "what a child stored")?;
        }
        self.children.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
