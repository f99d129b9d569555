//! `mremap_test`: what Linux's `mremap_test` and `mremap_dontunmap` selftests
//! look at, tested anew, each under its name there.
//!
//! Absent: the 1 and 2 GiB moves, which measure; moves of several mappings by
//! one call, which Linux has had since 6.17.

use abi::PAGE_SIZE;

use super::super::{Ctx, Failure, Machine, Outcome, Process, Rng, check, check_eq, check_err};
use crate::errno::Errno;
use crate::space::{Advice, MapFlags, MmapArgs, RemapArgs, RemapFlags};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const PTE: u64 = 4 * KIB;
const PMD: u64 = 2 * MIB;
/// Where sources and targets are looked for.
const SOURCE: u64 = 0x30_0000_0000;
const TARGET: u64 = 0x40_0000_0000;
const MOVE: RemapFlags = RemapFlags::MAYMOVE.union(RemapFlags::FIXED);
const DONTUNMAP: RemapFlags = RemapFlags::MAYMOVE.union(RemapFlags::DONTUNMAP);

/// A move of the table in `mremap_test`: the alignments are exact, not more.
struct Move {
    name: &'static str,
    source: u64,
    target: u64,
    bytes: u64,
    /// Mapped below the target, and not to be touched.
    preamble: u64,
}

const fn mv(name: &'static str, bytes: u64, source: u64, target: u64) -> Move {
    Move { name, source, target, bytes, preamble: 0 }
}

#[rustfmt::skip]
const MOVES: [Move; 7] = [
    mv("8KB mremap - Source PTE-aligned, Destination PTE-aligned", 8 * KIB, PTE, PTE),
    mv("2MB mremap - Source 1MB-aligned, Destination PTE-aligned", 2 * MIB, MIB, PTE),
    mv("2MB mremap - Source 1MB-aligned, Destination 1MB-aligned", 2 * MIB, MIB, MIB),
    mv("4MB mremap - Source PMD-aligned, Destination PTE-aligned", 4 * MIB, PMD, PTE),
    mv("4MB mremap - Source PMD-aligned, Destination 1MB-aligned", 4 * MIB, PMD, MIB),
    mv("4MB mremap - Source PMD-aligned, Destination PMD-aligned", 4 * MIB, PMD, PMD),
    Move {
        name: "5MB mremap - Source 1MB-aligned, Dest 1MB-aligned with 40MB Preamble",
        source: MIB, target: MIB, bytes: 5 * MIB, preamble: 40 * MIB,
    },
];

/// What a case does in a fresh process.
type Test<M> = fn(&Process<'_, '_, M>) -> Outcome;

/// Runs the cases.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut outcome = Ok(());
    for case in MOVES {
        for huge in [false, true] {
            let ended = moves(ctx, &case, huge);
            ctx.machine().leave();
            let kind = if huge { " (THP)" } else { "" };
            outcome = outcome.and(ctx.report(format_args!("{}{kind}", case.name), ended));
        }
    }
    let cases: [(&str, Test<M>); 12] = [
        ("mremap - Source and Destination Regions Overlapping", overlapping),
        ("mremap - Destination Address Misaligned (1KB-aligned)", target_misaligned),
        ("mremap - Source Address Misaligned (1KB-aligned)", source_misaligned),
        ("mremap_expand_merge", expand_merge),
        ("mremap_expand_merge_offset", expand_merge_offset),
        ("mremap_move_within_range", move_within_range),
        ("mremap_move_1mb_from_start", move_1mb_from_start),
        ("mremap_dontunmap_simple", dontunmap_simple),
        ("mremap_dontunmap_simple_shmem", dontunmap_simple_shmem),
        ("mremap_dontunmap_simple_fixed", dontunmap_simple_fixed),
        ("mremap_dontunmap_partial_mapping", dontunmap_partial),
        ("mremap_dontunmap_partial_mapping_overwrite", dontunmap_partial_overwrite),
    ];
    for (name, case) in cases {
        let ended = Process::new(ctx.mm).map_err(Failure::from).and_then(|p| case(&p));
        ctx.machine().leave();
        outcome = outcome.and(ctx.report(name, ended));
    }
    outcome
}

/// Anonymous memory of `bytes` at `at`.
fn map<M: Machine>(process: &Process<'_, '_, M>, at: u64, bytes: u64) -> Result<u64, Failure> {
    Ok(process.mmap(MmapArgs::anonymous(bytes).fixed(at))?)
}

fn remap<M: Machine>(
    process: &Process<'_, '_, M>,
    (old, old_bytes): (u64, u64),
    new_bytes: u64,
    flags: RemapFlags,
    new: u64,
) -> Result<u64, Errno> {
    process.mremap(RemapArgs { old, old_bytes, new_bytes, flags, new })
}

/// Pages of a mapping that a test looks at: every one of a small mapping, some of a large one.
fn samples(bytes: u64) -> impl Iterator<Item = u64> {
    let pages = bytes / PAGE_SIZE;
    let step = (pages / 64).max(1) | 1;
    (0..pages).step_by(usize::try_from(step).unwrap_or(1)).chain([pages - 1])
}

fn fill<M: Machine>(process: &Process<'_, '_, M>, at: u64, bytes: u64, seed: u64) -> Outcome {
    let rng = Rng::new(seed);
    for page in samples(bytes) {
        process.store(at + page * PAGE_SIZE, rng.stream(page).next())?;
    }
    Ok(())
}

fn holds<M: Machine>(process: &Process<'_, '_, M>, at: u64, bytes: u64, seed: u64) -> Outcome {
    let rng = Rng::new(seed);
    for page in samples(bytes) {
        let expected = rng.stream(page).next();
        check_eq(process.load(at + page * PAGE_SIZE)?, expected, "what a page holds")?;
    }
    Ok(())
}

fn is_zero<M: Machine>(process: &Process<'_, '_, M>, at: u64, bytes: u64) -> Outcome {
    for page in samples(bytes) {
        check_eq(process.load(at + page * PAGE_SIZE)?, 0, "what an empty page holds")?;
    }
    Ok(())
}

/// A row of the table, on 4 KiB pages or on 2 MiB ones where they fit.
fn moves<M: Machine>(ctx: &mut Ctx<'_, '_, M>, case: &Move, huge: bool) -> Outcome {
    let process = Process::new(ctx.mm)?;
    // Aligned to that and to nothing larger.
    let (source, target) = (SOURCE + case.source, TARGET + case.target);
    map(&process, source, case.bytes)?;
    let advice = if huge { Advice::HugePage } else { Advice::NoHugePage };
    process.madvise(source, case.bytes, advice)?;
    fill(&process, source, case.bytes, ctx.args.seed)?;
    if case.preamble > 0 {
        map(&process, target - case.preamble, case.preamble)?;
        process.madvise(target - case.preamble, case.preamble, Advice::NoHugePage)?;
        fill(&process, target - case.preamble, case.preamble, 77)?;
    }
    let resident = process.space().resident();
    let there = remap(&process, (source, case.bytes), case.bytes, MOVE, target)?;
    check_eq(there, target, "where it went")?;
    check(process.space().resident() == resident, "no page was copied or lost")?;
    holds(&process, target, case.bytes, ctx.args.seed)?;
    if case.preamble > 0 {
        holds(&process, target - case.preamble, case.preamble, 77)?;
    }
    check(process.load(source).is_err(), "the source is unmapped")
}

fn overlapping<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, SOURCE, 2 * PTE)?;
    let call = remap(process, (SOURCE, 2 * PTE), 2 * PTE, MOVE, SOURCE + PTE);
    check_err(call, Errno::EINVAL, "an overlapping target")
}

fn target_misaligned<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, SOURCE, PTE)?;
    let call = remap(process, (SOURCE, PTE), PTE, MOVE, TARGET + KIB);
    check_err(call, Errno::EINVAL, "a misaligned target")
}

fn source_misaligned<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, SOURCE, 2 * PTE)?;
    let call = remap(process, (SOURCE + KIB, PTE), PTE, MOVE, TARGET);
    check_err(call, Errno::EINVAL, "a misaligned source")
}

/// Grows into the hole between two mappings: all three are one then.
fn expand_merge<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, SOURCE, 3 * PTE)?;
    process.munmap(SOURCE + PTE, PTE)?;
    check_eq(process.space().map_count().into(), 2, "mappings before")?;
    check_eq(remap(process, (SOURCE, PTE), 2 * PTE, RemapFlags::empty(), 0)?, SOURCE, "place")?;
    check_eq(process.space().map_count().into(), 1, "mappings after")
}

/// The same from within the first mapping.
fn expand_merge_offset<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, SOURCE, 4 * PTE)?;
    process.munmap(SOURCE + 2 * PTE, PTE)?;
    let middle = SOURCE + PTE;
    check_eq(remap(process, (middle, PTE), 2 * PTE, RemapFlags::empty(), 0)?, middle, "place")?;
    check_eq(process.space().map_count().into(), 1, "mappings after")
}

/// Moves a mapping within a range, downward by less than 2 MiB, over tables that
/// its neighbours use.
fn move_within_range<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    let size = 20 * MIB;
    map(process, SOURCE, size)?;
    process.madvise(SOURCE, size, Advice::NoHugePage)?;
    let (source, target) = (SOURCE + 6 * MIB, SOURCE + 4 * MIB + 256 * KIB);
    fill(process, SOURCE, 4 * MIB, 5)?;
    fill(process, source, MIB, 6)?;
    check_eq(remap(process, (source, MIB), MIB, MOVE, target)?, target, "place")?;
    holds(process, target, MIB, 6)?;
    holds(process, SOURCE, 4 * MIB, 5)?;
    is_zero(process, target + MIB, 512 * KIB)
}

/// Moves 1 MiB that starts 256 KiB behind a boundary of 1 MiB to the start of a range.
fn move_1mb_from_start<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    let (source, target) = (SOURCE + MIB + 256 * KIB, TARGET);
    map(process, source, 2 * MIB)?;
    map(process, target, 5 * MIB)?;
    process.madvise(source, 2 * MIB, Advice::NoHugePage)?;
    process.madvise(target, 5 * MIB, Advice::NoHugePage)?;
    fill(process, source, 2 * MIB, 8)?;
    fill(process, target + MIB, 4 * MIB, 9)?;
    check_eq(remap(process, (source, MIB), MIB, MOVE, target)?, target, "place")?;
    let rng = Rng::new(8);
    for page in samples(2 * MIB).filter(|page| *page < MIB / PAGE_SIZE) {
        let expected = rng.stream(page).next();
        check_eq(process.load(target + page * PAGE_SIZE)?, expected, "what a page holds")?;
    }
    holds(process, target + MIB, 4 * MIB, 9)
}

fn dontunmap_simple<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, SOURCE, 5 * PTE)?;
    fill(process, SOURCE, 5 * PTE, 1)?;
    let there = remap(process, (SOURCE, 5 * PTE), 5 * PTE, DONTUNMAP, 0)?;
    check(there != SOURCE, "it went away")?;
    holds(process, there, 5 * PTE, 1)?;
    is_zero(process, SOURCE, 5 * PTE)
}

/// Of shared memory the contents are at both places.
fn dontunmap_simple_shmem<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    let flags = MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::FIXED;
    process.mmap(MmapArgs { addr: SOURCE, flags, ..MmapArgs::anonymous(5 * PTE) })?;
    fill(process, SOURCE, 5 * PTE, 2)?;
    let there = remap(process, (SOURCE, 5 * PTE), 5 * PTE, DONTUNMAP, 0)?;
    holds(process, there, 5 * PTE, 2)?;
    holds(process, SOURCE, 5 * PTE, 2)
}

/// FIXED too: what is at the target goes.
fn dontunmap_simple_fixed<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, TARGET, 5 * PTE)?;
    map(process, SOURCE, 5 * PTE)?;
    fill(process, TARGET, 5 * PTE, 3)?;
    fill(process, SOURCE, 5 * PTE, 4)?;
    let flags = DONTUNMAP | RemapFlags::FIXED;
    check_eq(remap(process, (SOURCE, 5 * PTE), 5 * PTE, flags, TARGET)?, TARGET, "place")?;
    holds(process, TARGET, 5 * PTE, 4)?;
    is_zero(process, SOURCE, 5 * PTE)
}

/// Five pages in the middle of ten.
fn dontunmap_partial<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, SOURCE, 10 * PTE)?;
    process.fill(SOURCE, 10, 7)?;
    let there = remap(process, (SOURCE + 5 * PTE, 5 * PTE), 5 * PTE, DONTUNMAP, 0)?;
    process.expect(SOURCE, 5, 7)?;
    is_zero(process, SOURCE + 5 * PTE, 5 * PTE)?;
    check(process.load(there)? != 0, "the pages that moved")
}

/// Onto a part of a larger mapping, which keeps the rest.
fn dontunmap_partial_overwrite<M: Machine>(process: &Process<'_, '_, M>) -> Outcome {
    map(process, SOURCE, 5 * PTE)?;
    map(process, TARGET, 10 * PTE)?;
    fill(process, SOURCE, 5 * PTE, 11)?;
    process.fill(TARGET, 10, 12)?;
    let before = process.load(TARGET + 5 * PTE)?;
    let flags = DONTUNMAP | RemapFlags::FIXED;
    check_eq(remap(process, (SOURCE, 5 * PTE), 5 * PTE, flags, TARGET)?, TARGET, "place")?;
    holds(process, TARGET, 5 * PTE, 11)?;
    is_zero(process, SOURCE, 5 * PTE)?;
    check_eq(process.load(TARGET + 5 * PTE)?, before, "the rest of the target")
}
