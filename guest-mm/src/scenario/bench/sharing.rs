//! Reverse maps by number of sharers, and GUP.

use core::ops::ControlFlow;

use abi::PAGE_SIZE;

use crate::bench::{Bench, Spread};
use crate::errno::Errno;
use crate::gup::{Contents, GupFlags, PagePin};
use crate::mm::Mm;
use crate::scenario::{Failure, Machine, OrFail, Outcome, Process, check, check_eq};
use crate::space::{AddressSpace, Advice, MmapArgs};

/// Most processes that share a page.
const MOST_SHARERS: usize = 1024;
/// Frames that a process takes at most: tables, and its share of slabs.
const SPACE_PAGES: u64 = 8;
/// Pages that one call pins.
const PINS: usize = 64;
/// Calls in a round.
const CALLS: u64 = 64;

/// The time of a walk over all VMAs that map a page, from one process to many.
pub(super) fn rmap<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>) -> Outcome {
    let parent = Process::new(mm)?;
    let page = parent.mmap(MmapArgs::anonymous(PAGE_SIZE))?;
    parent.store(page, 1)?;
    let mut children: [Option<Process<'_, '_, M>>; MOST_SHARERS] = [const { None }; MOST_SHARERS];
    let mut sharers = 1;
    while sharers <= MOST_SHARERS {
        let left = mm.memory().free_pages().get() / 2;
        if left < SPACE_PAGES * sharers as u64 {
            break;
        }
        for child in &mut children[1..sharers] {
            if child.is_none() {
                *child = Some(Process::of(mm, mm.fork(parent.space())?));
            }
        }
        let mut pin = [None];
        let pinned = mm.get_user_pages(parent.space(), page, GupFlags::empty(), &mut pin)?;
        check_eq(pinned as u64, 1, "pages found")?;
        let walked = {
            let held = pin[0].as_ref().and_then(|page| page.hold()).or_fail()?;
            bench.time(|| {
                let mut seen = 0;
                let walk = mm.rmap_walk::<()>(held, &mut |_, _| {
                    seen += 1;
                    ControlFlow::Continue(())
                });
                check(walk.is_continue(), "nobody stops the walk")?;
                check_eq(seen, sharers as u64, "VMAs that may map the page")
            })
        };
        mm.put_user_pages(&mut pin);
        bench.print("rmap walk", format_args!("{sharers} sharers"), "ns", walked?);
        sharers *= 4;
    }
    Ok(())
}

/// A way to pin pages.
#[derive(Debug, Clone, Copy)]
enum GupPath {
    Fast,
    Unchecked,
    Slow,
}

impl GupPath {
    const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Unchecked => "fast, no recheck",
            Self::Slow => "slow",
        }
    }

    fn pin<'m, M: Machine>(
        self,
        mm: &Mm<'m, M>,
        space: &AddressSpace<'m, M>,
        va: u64,
        out: &mut [Option<PagePin<'m>>],
    ) -> Result<usize, Errno> {
        let flags = GupFlags::WRITE;
        match self {
            Self::Fast => mm.pin_user_pages_fast_only(space, va, flags, out),
            Self::Unchecked => mm.gup_fast_without_recheck(space, va, flags, out, || ()),
            Self::Slow => mm.pin_user_pages(space, va, flags, out),
        }
    }
}

/// Pages pinned in a second, by the fast path with and without its second look
/// at the frame's word, and by the slow path.
pub(super) fn gup<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>) -> Outcome {
    let bytes = PINS as u64 * PAGE_SIZE;
    let process = Process::new(mm)?;
    let pages = process.mmap(MmapArgs::anonymous(bytes))?;
    mm.madvise(process.space(), pages, bytes, Advice::NoHugePage)?;
    process.fill(pages, PINS as u64, 1)?;
    for path in [GupPath::Fast, GupPath::Unchecked, GupPath::Slow] {
        let spread: Spread = bench.rounds(|bench| {
            let mut ns = 0;
            for _ in 0..CALLS {
                let mut pins = [const { None }; PINS];
                let mut got = 0;
                ns += bench.elapsed(|| {
                    got = path.pin(mm, process.space(), pages, &mut pins)?;
                    Ok::<_, Failure>(())
                })?;
                mm.unpin_user_pages(&mut pins, Contents::Unchanged);
                check_eq(got as u64, PINS as u64, "pages pinned")?;
            }
            let pages = CALLS * PINS as u64;
            Ok::<_, Failure>((pages * 1_000_000_000 / ns.max(1), 1))
        })?;
        bench.print("gup", format_args!("{}", path.name()), "pages/s", spread);
    }
    Ok(())
}
