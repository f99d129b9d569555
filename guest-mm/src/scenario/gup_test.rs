//! `gup_test`: the commands of Linux's `gup_test`, tested anew: every path, in chunks, on private, shared and huge memory.
//!
//! All pages are had, each is the one that is mapped, holder and process see the same memory,
//! counts go up by exactly what is held and back. Absent: dumping pages, FOLL_FORCE.

use core::fmt;

use abi::PAGE_SIZE;

use super::{Ctx, Machine, Outcome, Process, check, check_eq, pattern};
use crate::addr::PMD_SIZE;
use crate::errno::Errno;
use crate::gup::{Contents, GupFlags, Hold, PagePin, PageRef, UserPage};
use crate::mm::Mm;
use crate::space::{AddressSpace, Advice, MapFlags, MmapArgs};

/// Pages that each command is about.
const PAGES: usize = 512;
/// Pages asked for at once.
const CHUNKS: [usize; 3] = [1, 123, PAGES];
/// What the process wrote.
const TAG: u64 = 5;

/// One of the calls.
type Take<'m, M, H> = fn(
    &Mm<'m, M>,
    &AddressSpace<'m, M>,
    u64,
    GupFlags,
    &mut [Option<UserPage<H>>],
) -> Result<usize, Errno>;

/// The memory that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Private,
    Thp,
    Shared,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Thp => "thp",
            Self::Shared => "shared",
        })
    }
}

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut outcome = Ok(());
    for memory in [Memory::Private, Memory::Thp, Memory::Shared] {
        for flags in [GupFlags::empty(), GupFlags::WRITE] {
            outcome = outcome.and(run_on(ctx, memory, flags));
        }
    }
    outcome
}

fn run_on<'m, M: Machine>(ctx: &mut Ctx<'_, 'm, M>, memory: Memory, flags: GupFlags) -> Outcome {
    let how = if flags.contains(GupFlags::WRITE) { "write" } else { "read" };
    let refs: [(_, Take<'m, M, _>); 2] =
        [("GUP_BASIC_TEST", Mm::get_user_pages), ("GUP_FAST_BENCHMARK", Mm::get_user_pages_fast)];
    let mut outcome = Ok(());
    for (name, take) in refs {
        let ended = command(ctx, memory, flags, take, give_refs);
        outcome = outcome.and(ctx.report(format_args!("{name}/{memory}/{how}"), ended));
    }
    let longterm = flags | GupFlags::LONGTERM;
    let pins: [(_, Take<'m, M, _>, _); 3] = [
        ("PIN_BASIC_TEST", Mm::pin_user_pages, flags),
        ("PIN_FAST_BENCHMARK", Mm::pin_user_pages_fast, flags),
        ("PIN_LONGTERM_BENCHMARK", Mm::pin_user_pages_fast, longterm),
    ];
    for (name, take, flags) in pins {
        let ended = command(ctx, memory, flags, take, give_pins);
        outcome = outcome.and(ctx.report(format_args!("{name}/{memory}/{how}"), ended));
    }
    outcome
}

fn give_refs<'m, M: Machine>(mm: &Mm<'m, M>, pages: &mut [Option<PageRef<'m>>]) {
    mm.put_user_pages(pages);
}

fn give_pins<'m, M: Machine>(mm: &Mm<'m, M>, pages: &mut [Option<PagePin<'m>>]) {
    mm.unpin_user_pages(pages, Contents::Unchanged);
}

/// A process with [`PAGES`] pages of the memory.
fn prepare<'a, 'm, M: Machine>(
    ctx: &Ctx<'a, 'm, M>,
    memory: Memory,
) -> Result<(Process<'a, 'm, M>, u64), super::Failure> {
    let process = Process::new(ctx.mm)?;
    let mut args = MmapArgs::anonymous(2 * PMD_SIZE);
    if memory == Memory::Shared {
        args.flags = MapFlags::SHARED | MapFlags::ANONYMOUS;
    }
    let start = process.mmap(args)?.next_multiple_of(PMD_SIZE);
    if memory != Memory::Shared {
        let is_huge = memory == Memory::Thp;
        let advice = if is_huge { Advice::HugePage } else { Advice::NoHugePage };
        process.madvise(start, PMD_SIZE, advice)?;
    }
    process.fill(start, PAGES as u64, TAG)?;
    Ok((process, start))
}

/// One command, with each size of chunks.
fn command<'m, M: Machine, H: Hold<'m>>(
    ctx: &Ctx<'_, 'm, M>,
    memory: Memory,
    flags: GupFlags,
    take: Take<'m, M, H>,
    give: fn(&Mm<'m, M>, &mut [Option<UserPage<H>>]),
) -> Outcome {
    let (process, start) = prepare(ctx, memory)?;
    for chunk in CHUNKS {
        let mut pages = [const { None }; PAGES];
        let mut held = Ok(());
        for (part, first) in pages.chunks_mut(chunk).zip((0u64..).step_by(chunk)) {
            let wanted = part.len();
            let got = take(ctx.mm, process.space(), start + first * PAGE_SIZE, flags, part);
            held = held.and(check(got == Ok(wanted), "all pages of a chunk"));
        }
        let looked = held.and_then(|()| look(&process, start, &pages));
        give(ctx.mm, &mut pages);
        looked?;
        check_counts_are_back(&process, start)?;
    }
    process.expect(start, PAGES as u64, TAG)
}

/// Each page is the one that is mapped, and counted.
fn look<'m, M: Machine, H: Hold<'m>>(
    process: &Process<'_, 'm, M>,
    start: u64,
    pages: &[Option<UserPage<H>>],
) -> Outcome {
    let mm = process.mm();
    for (page, index) in pages.iter().flatten().zip(0u64..) {
        let shown = mm.read_user_page(page, 0);
        check_eq(shown, pattern(TAG, index, 0), "what a held page shows")?;
        let Some(hold) = page.hold() else { continue };
        let folio = hold.folio();
        check(folio.range().contains(page.pfn()), "the page is one of the folio's")?;
        // All pages of the folio are held, once each.
        let expected = if H::IS_PIN { folio.pages().get() } else { 0 };
        check_eq(u64::from(folio.pincount()), expected, "pins of a folio")?;
        check(u64::from(folio.refcount()) > folio.pages().get(), "references of a folio")?;
    }
    // What the process writes now is what the holder sees.
    for (page, index) in pages.iter().flatten().zip(0u64..).step_by(64) {
        process.store(start + index * PAGE_SIZE + 16, index)?;
        check_eq(mm.read_user_page(page, 2), index, "what the process wrote to a held page")?;
    }
    Ok(())
}

/// Nothing is left on the folios.
fn check_counts_are_back<M: Machine>(process: &Process<'_, '_, M>, start: u64) -> Outcome {
    let mm = process.mm();
    for index in 0..PAGES as u64 {
        let mut page = [None];
        let at = start + index * PAGE_SIZE;
        mm.get_user_pages(process.space(), at, GupFlags::empty(), &mut page)?;
        let counts = page.iter().flatten().filter_map(UserPage::hold).next().map(|folio| {
            let cached = if folio.is_anon() { 0 } else { folio.pages().get() };
            let own = u64::from(folio.mapcount()) + cached + 1;
            (folio.pincount(), u64::from(folio.refcount()) - own)
        });
        mm.put_user_pages(&mut page);
        check(counts == Some((0, 0)), "no pins and no references are left")?;
    }
    Ok(())
}
