//! 2 MiB at once: mapped whole, shared by fork, split by writes and calls.

use abi::PAGE_SIZE;

use super::super::{Ctx, Digest, Machine, OrFail, Outcome, Process, check_eq};
use crate::addr::PMD_SIZE;
use crate::space::{Advice, MmapArgs};

const BASE: u64 = 0x8000_0000;
/// Pages that are looked at, spread over the block.
const COUNT: usize = 32;
const PAGES: u64 = COUNT as u64;
const STRIDE: u64 = 16;
const ROUNDS: u64 = 200;

type Words = [u64; COUNT];

fn address(page: u64) -> u64 {
    BASE + page * STRIDE * PAGE_SIZE
}

fn check_all<M: Machine>(process: &Process<'_, '_, M>, words: &Words) -> Outcome {
    for (page, word) in words.iter().enumerate() {
        check_eq(process.load(address(page as u64))?, *word, "a word of a block")?;
    }
    Ok(())
}

pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>, digest: &mut Digest) -> Outcome {
    let process = Process::new(ctx.mm)?;
    // A page on each side that is never huge.
    let bytes = PMD_SIZE + 2 * PAGE_SIZE;
    process.mmap(MmapArgs::anonymous(bytes).fixed(BASE - PAGE_SIZE))?;
    ctx.mm.madvise(process.space(), BASE - PAGE_SIZE, bytes, Advice::HugePage)?;
    process.store(BASE - PAGE_SIZE, 1)?;
    process.store(BASE + PMD_SIZE, 2)?;
    let mut words = [0; COUNT];
    for (page, word) in words.iter_mut().enumerate() {
        *word = 1000 + page as u64;
        process.store(address(page as u64), *word)?;
    }
    digest.add_process(&process);
    // Twice: whole, and with pieces that the first child's writes left.
    for _ in 0..2 {
        family(ctx, &process, &mut words, digest)?;
    }
    Ok(())
}

/// Parent and child write at random, and see their own writes only.
fn family<'m, M: Machine>(
    ctx: &mut Ctx<'_, 'm, M>,
    process: &Process<'_, 'm, M>,
    words: &mut Words,
    digest: &mut Digest,
) -> Outcome {
    let child = Process::of(ctx.mm, ctx.mm.fork(process.space())?);
    let mut own = *words;
    for round in 1..=ctx.rounds(ROUNDS) {
        let page = ctx.rng.below(PAGES);
        let index = usize::try_from(page).or_fail()?;
        let at = address(page);
        match ctx.rng.below(8) {
            0..=1 => {
                process.store(at, round)?;
                words[index] = round;
            }
            2..=3 => {
                child.store(at, !round)?;
                own[index] = !round;
            }
            4 if ctx.rng.once_in(8) => {
                ctx.mm.madvise(child.space(), at, PAGE_SIZE, Advice::DontNeed)?;
                own[index] = 0;
            }
            _ => {
                check_eq(process.load(at)?, words[index], "the parent's word")?;
                check_eq(child.load(at)?, own[index], "the child's word")?;
            }
        }
    }
    check_all(&child, &own)?;
    check_all(process, words)?;
    digest.add_process(process);
    digest.add_process(&child);
    Ok(())
}
