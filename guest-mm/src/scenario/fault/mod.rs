//! `fault`: every kind of page fault, in an order that the seed chooses,
//! against a model of what memory should hold.
//!
//! The parts before the last use one CPU and end with a digest of the page tables,
//! folios and contents that they left: the same on every machine with
//! the same seed. The last one faults on all CPUs at once while mappings are
//! forked, protected, cut and swapped out under them.

mod anon;
mod file;
mod huge;
mod threads;

use super::{Ctx, Digest, Machine, Outcome, Rng};
use crate::addr::VirtAddr;
use crate::fault::{FaultEvent, FaultOutcome};
use crate::mm::Mm;
use crate::pgtable::{Found, PteState};
use crate::platform::Platform;
use crate::rmap::Unmap;
use crate::space::AddressSpace;

/// A part of the scenario; what it leaves goes into the digest.
type Part<M> = fn(&mut Ctx<'_, '_, M>, &mut Digest) -> Outcome;

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let parts: [(&str, Part<M>); 4] = [
        ("anonymous", anon::run),
        ("signals", anon::signals),
        ("files", file::run),
        ("huge", huge::run),
    ];
    let mut digest = Digest::default();
    let mut outcome = Ok(());
    for (name, part) in parts {
        ctx.rng = Rng::new(ctx.args.seed);
        let ended = part(ctx, &mut digest);
        ctx.machine().leave();
        outcome = outcome.and(ctx.report(name, ended));
    }
    ctx.print(format_args!("digest {:016x}", digest.get()));
    let ended = threads::run(ctx);
    outcome = outcome.and(ctx.report("threads", ended));
    print_stats(ctx);
    outcome
}

fn print_stats<M: Machine>(ctx: &mut Ctx<'_, '_, M>) {
    let stats = ctx.mm.fault_stats();
    for outcome in FaultOutcome::ALL {
        ctx.print(format_args!("{:<16} {:>8}", outcome.name(), stats.outcome(outcome)));
    }
    for event in FaultEvent::ALL {
        ctx.print(format_args!("{:<16} {:>8}", event.name(), stats.event(event)));
    }
}

/// Swaps the page at `at` out, if it is an anonymous one that can be; `false` if not.
fn swap_out<'m, P: Platform>(mm: &Mm<'m, P>, space: &AddressSpace<'m, P>, at: u64) -> bool {
    let Some(folio) = VirtAddr::new(at).and_then(|page| {
        let section = mm.base().rcu.read(mm.platform().cpu());
        let Found::Pte { entry, .. } = space.tables().walk(&section, page) else { return None };
        let PteState::Present(pte) = entry.pte() else { return None };
        mm.folio_of(pte.pfn()).ok()
    }) else {
        return false;
    };
    let mut is_out = false;
    if folio.is_anon()
        && !folio.is_large()
        && let Some(locked) = folio.try_lock(mm.platform())
    {
        let has_slot = mm.swap_slot_of(&folio).is_some() || mm.swap_alloc(&locked).is_ok();
        is_out = has_slot && mm.try_to_unmap(&folio, Unmap::Reclaim);
        if is_out && mm.swap_write(&locked).is_ok() {
            mm.swap_cache_drop(&locked);
        } else {
            // Somebody else has it: what was unmapped comes back by faults.
            mm.free_swap(&locked);
        }
    }
    mm.put(folio);
    is_out
}

#[cfg(test)]
mod tests {
    use crate::scenario::sim::{Report, simulate};
    use crate::scenario::{Args, Name};

    fn run(seed: u64, pages: u64) -> Report {
        let args = Args { seed, cpus: Some(1), ..Args::default() };
        let report = simulate(Name::Fault, args, pages);
        report.lines.iter().for_each(|line| println!("{line}"));
        assert_eq!(report.outcome, Ok(()), "seed {seed}");
        report
    }

    fn digest(report: &Report) -> &str {
        report.lines.iter().find(|line| line.starts_with("digest")).unwrap()
    }

    #[test]
    fn a_seed_gives_one_digest_whatever_the_size_of_the_machine() {
        let (small, large) = (run(7, 8192), run(7, 12_000));
        assert_eq!(digest(&small), digest(&large));
        assert_ne!(digest(&small), digest(&run(8, 8192)));
    }
}
