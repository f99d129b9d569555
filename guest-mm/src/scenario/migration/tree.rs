//! `rmap`: one of a family of processes has a page moved, and all of them see it in its new frame.

use abi::PAGE_SIZE;

use super::pool::Pool;
use super::{Machine, Process, frame_at};
use crate::migrate::MigrateMode;
use crate::scenario::{Case, Ctx, Failure, OrFail, Outcome, check, check_eq, pattern};
use crate::space::{MapFlags, MapSource, MmapArgs};

/// Processes of a family: a root, and children of whom each may have children.
const FAMILY: usize = 8;
/// Pages that they share.
const PAGES: u64 = 4;
/// Pages that move in a case, unless told otherwise.
const ROUNDS: u64 = 24;

/// What a family shares.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Private memory, since the fork.
    Anon,
    /// Memory of a file without a name.
    Shm,
    /// A file.
    File,
}

/// Runs the scenario.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    ctx.run_cases(&[
        Case { name: "anon", run: |ctx| tree(ctx, Kind::Anon) },
        Case { name: "shm", run: |ctx| tree(ctx, Kind::Shm) },
        Case { name: "file", run: |ctx| tree(ctx, Kind::File) },
        Case { name: "anon_after_cow", run: after_cow },
    ])
}

/// A family that has `PAGES` pages of a kind at the same address, each present in each process.
struct Family<'a, 'm, M: Machine> {
    members: [Option<Process<'a, 'm, M>>; FAMILY],
    start: u64,
    tag: u64,
}

impl<'a, 'm, M: Machine> Family<'a, 'm, M> {
    fn new(ctx: &mut Ctx<'a, 'm, M>, kind: Kind) -> Result<Self, Failure> {
        let root = Process::new(ctx.mm)?;
        let start = map(ctx, &root, kind)?;
        root.fill(start, PAGES, 1)?;
        let mut family = Self { members: [const { None }; FAMILY], start, tag: 1 };
        family.members[0] = Some(root);
        for born in 1..FAMILY {
            // Of any of those that are there: chains and broods.
            let parent = usize::try_from(ctx.rng.below(born as u64)).or_fail()?;
            let child = family.member(parent)?.fork()?;
            family.members[born] = Some(child);
        }
        family.expect(0..FAMILY)?;
        Ok(family)
    }

    fn member(&self, number: usize) -> Result<&Process<'a, 'm, M>, Failure> {
        self.members.get(number).and_then(Option::as_ref).or_fail()
    }

    /// All of `members` read what was written.
    fn expect(&self, mut members: core::ops::Range<usize>) -> Outcome {
        members.try_for_each(|number| self.member(number)?.expect(self.start, PAGES, self.tag))
    }

    /// Has `mover`'s page moved; returns its frame after it, in a range where it was not before.
    fn move_page(&self, mover: usize, page: u64) -> Result<abi::Pfn, Failure> {
        let process = self.member(mover)?;
        let mm = process.mm();
        let at = self.start + page * PAGE_SIZE;
        let before = frame_at(process, at).or_fail()?;
        let mut pool = Pool::new(mm.memory())?;
        let done = mm.migrate_range(process.space(), at, PAGE_SIZE, &mut pool, MigrateMode::Sync);
        check_eq(done.or_fail()?.pages.migrated, 1, "pages that moved")?;
        let after = frame_at(process, at).or_fail()?;
        check(pool.range().contains(after) && after != before, "the page is where it was moved")?;
        Ok(after)
    }
}

/// Pages move, asked for by one of the family after the other: all follow.
fn tree<M: Machine>(ctx: &mut Ctx<'_, '_, M>, kind: Kind) -> Outcome {
    let mut family = Family::new(ctx, kind)?;
    for round in 0..ctx.rounds(ROUNDS) {
        let mover = usize::try_from(ctx.rng.below(FAMILY as u64)).or_fail()?;
        let page = ctx.rng.below(PAGES);
        let frame = family.move_page(mover, page)?;
        for number in 0..FAMILY {
            let seen =
                frame_at(family.member(number)?, family.start + page * PAGE_SIZE).or_fail()?;
            check_eq(seen.number(), frame.number(), "the frame that a relative sees")?;
        }
        family.expect(0..FAMILY)?;
        if kind != Kind::Anon {
            // What one writes to the new frame, all read.
            family.tag = round + 2;
            let writer = usize::try_from(ctx.rng.below(FAMILY as u64)).or_fail()?;
            family.member(writer)?.fill(family.start, PAGES, family.tag)?;
            family.expect(0..FAMILY)?;
        }
    }
    Ok(())
}

/// Who has written has a page of his own, which moves by itself; the others' stays, and the other way round.
fn after_cow<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let family = Family::new(ctx, Kind::Anon)?;
    let writer = 1 + usize::try_from(ctx.rng.below(FAMILY as u64 - 1)).or_fail()?;
    let at = family.start;
    let own = pattern(9, 0, at);
    family.member(writer)?.store(at, own)?;
    let shared = frame_at(family.member(0)?, at).or_fail()?;
    let moved = family.move_page(writer, 0)?;
    for number in (0..FAMILY).filter(|&number| number != writer) {
        let process = family.member(number)?;
        let seen = frame_at(process, at).or_fail()?;
        check_eq(seen.number(), shared.number(), "the frame that the others share")?;
        check_eq(process.load(at)?, pattern(1, 0, at), "what the others read")?;
    }
    let others = family.move_page(0, 0)?;
    check(others != moved, "two pages have two frames")?;
    check_eq(
        frame_at(family.member(writer)?, at).or_fail()?.number(),
        moved.number(),
        "the writer's frame",
    )?;
    check_eq(family.member(writer)?.load(at)?, own, "what the writer reads")
}

fn map<'m, M: Machine>(
    ctx: &Ctx<'_, 'm, M>,
    process: &Process<'_, 'm, M>,
    kind: Kind,
) -> Result<u64, Failure> {
    let bytes = PAGES * PAGE_SIZE;
    let args = MmapArgs::anonymous(bytes);
    match kind {
        Kind::Anon => Ok(process.mmap(args)?),
        Kind::Shm => {
            let flags = MapFlags::SHARED | MapFlags::ANONYMOUS;
            Ok(process.mmap(MmapArgs { flags, ..args })?)
        }
        Kind::File => {
            let file = ctx.mm.shmem_file(2 * bytes)?;
            // Not from its start.
            let source = MapSource { file: &file, offset: bytes, readable: true, writable: true };
            let mapped =
                process.mmap(MmapArgs { flags: MapFlags::SHARED, source: Some(source), ..args });
            ctx.mm.file_put(file);
            Ok(mapped?)
        }
    }
}
