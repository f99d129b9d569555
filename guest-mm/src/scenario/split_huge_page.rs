//! `split_huge_page_test` and `folio_split_race_test`, by the names of Linux's tests, tested anew.
//!
//! What is in a THP, mapped by its PMD, by PTEs, or partly moved, is there after a split to any lower order; a pinned
//! one is not split; and threads that read and write it meanwhile notice nothing.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use abi::PAGE_SIZE;

use super::cow::{How, Kind, Memory};
use super::{Case, Ctx, Machine, OrFail, Outcome, Process, check, check_eq, check_err};
use crate::addr::VirtAddr;
use crate::errno::Errno;
use crate::gup::GupFlags;
use crate::memdesc::Order;
use crate::pgtable::{Found, PmdState, PteState};

/// What the memory was filled with before.
const OLD: u64 = 1;

/// Runs `split_huge_page_test`.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut outcome = Ok(());
    for order in 0..9 {
        for kind in [Kind::Thp, Kind::PteMappedThp, Kind::PartialMremapThp] {
            let ended = split_to(ctx, kind, order);
            outcome = outcome.and(ctx.report(format_args!("split_to_order_{order}/{kind}"), ended));
        }
    }
    outcome.and(ctx.run_cases(&[Case { name: "split_pinned", run: pinned }]))
}

fn first_folio<M: Machine>(memory: &Memory<'_, '_, M>) -> Result<u64, super::Failure> {
    let process = &memory.process;
    let va = VirtAddr::new(memory.start).or_fail()?;
    let section = process.mm().base().rcu.read(process.mm().platform().cpu());
    let entry = match process.space().tables().walk(&section, va) {
        Found::Pte { entry, .. } | Found::Pmd { entry, .. } => entry,
        Found::Hole | Found::Unknown(_) => return check(false, "a leaf").map(|()| 0),
    };
    if let PmdState::Present(pmd) = entry.pmd()
        && let Ok(folio) = process.mm().folio_of(pmd.pfn())
    {
        let order = u64::from(folio.order().get());
        process.mm().put(folio);
        return Ok(order);
    }
    let PteState::Present(pte) = entry.pte() else { return check(false, "a page").map(|()| 0) };
    let folio = process.mm().folio_of(pte.pfn()).or_fail()?;
    let order = u64::from(folio.order().get());
    process.mm().put(folio);
    Ok(order)
}

/// Splits the folio behind the first page.
fn split<M: Machine>(memory: &Memory<'_, '_, M>, order: Order) -> Result<(), Errno> {
    split_at(&memory.process, memory.start, order)
}

/// Splits the folio that is mapped at `va`.
pub(super) fn split_at<M: Machine>(
    process: &Process<'_, '_, M>,
    va: u64,
    order: Order,
) -> Result<(), Errno> {
    let mm = process.mm();
    let mut page = [None];
    mm.get_user_pages(process.space(), va, GupFlags::empty(), &mut page)?;
    let folio = page[0].take().and_then(crate::gup::UserPage::into_hold).ok_or(Errno::EFAULT)?;
    let locked = folio.lock(mm.platform());
    let split = mm.split_folio(&folio, order);
    drop(locked);
    mm.put(folio);
    split
}

/// The contents survive a split to `order`, and later writes.
fn split_to<M: Machine>(ctx: &mut Ctx<'_, '_, M>, kind: Kind, order: u32) -> Outcome {
    let Some(memory) = Memory::new(ctx, kind)? else {
        return check(false, "there is a THP");
    };
    split(&memory, Order::try_from(order).or_fail()?)?;
    check_eq(first_folio(&memory)?, u64::from(order), "order of the first folio")?;
    memory.process.expect(memory.start, memory.pages, OLD)?;
    memory.fill(2)?;
    memory.process.expect(memory.start, memory.pages, 2)
}

/// A pinned folio stays whole until it is unpinned.
fn pinned<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let Some(memory) = Memory::new(ctx, Kind::Thp)? else {
        return check(false, "there is a THP");
    };
    let pins = memory.pin(How::Fast, GupFlags::empty())?;
    check_err(split(&memory, Order::ZERO), Errno::EBUSY, "a pinned folio is not split")?;
    drop(pins);
    split(&memory, Order::ZERO)?;
    memory.process.expect(memory.start, memory.pages, OLD)
}

/// Runs `folio_split_race_test`: while the first thread splits THP after THP, the others look and write.
pub(super) fn run_race<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let threads = ctx.cpus().max(2);
    let mut splits = 0u64;
    for round in 0..ctx.rounds(8) {
        let Some(memory) = Memory::new(ctx, Kind::Thp)? else {
            return check(splits > 0, "there is a THP");
        };
        let is_over = AtomicBool::new(false);
        let done = AtomicU64::new(0);
        let rng = ctx.rng.stream(round);
        ctx.run_on(threads, &|thread| {
            let mut rng = rng.stream(thread as u64);
            if thread == 0 {
                let ended = split_down(&memory, &done);
                is_over.store(true, Ordering::Relaxed);
                return ended;
            }
            let mut writes = 0;
            while !is_over.load(Ordering::Relaxed) {
                // A word of the thread's own on a page of anybody's.
                let at = memory.start + rng.below(memory.pages) * PAGE_SIZE + 8 * thread as u64;
                writes += 1;
                memory.process.store(at, writes)?;
                check_eq(memory.process.load(at)?, writes, "a word that was just written")?;
            }
            Ok(())
        })?;
        memory.process.expect(memory.start, memory.pages, OLD)?;
        splits += done.load(Ordering::Relaxed);
    }
    ctx.print(format_args!("{threads} threads, {splits} splits"));
    check(splits > 0, "some folio was split")
}

/// Splits the first folio to half its order, and again.
fn split_down<M: Machine>(memory: &Memory<'_, '_, M>, done: &AtomicU64) -> Outcome {
    for order in [6, 3, 0] {
        let order = Order::try_from(order).or_fail()?;
        for _ in 0..100 {
            match split(memory, order) {
                Ok(()) => {
                    done.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                // A fault or a look has a reference.
                Err(Errno::EAGAIN | Errno::EBUSY) => memory.process.mm().platform().relax(),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
