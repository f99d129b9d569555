//! Anonymous memory of a family of processes.

use abi::PAGE_SIZE;

use super::super::{Ctx, Digest, Machine, OrFail, Outcome, Process, Signal, check_eq, check_err};
use super::swap_out;
use crate::addr::{USER_END, VirtAddr};
use crate::fault::FaultAccess;
use crate::pgtable::PageProt;
use crate::space::{Advice, MmapArgs};

/// Where the pages are, in every process.
const BASE: u64 = 0x4000_0000;
const COUNT: usize = 40;
const PAGES: u64 = COUNT as u64;
/// Processes at a time.
const MOST: usize = 3;
/// Slots of the swap device: a few less than the pages of a full family.
const SLOTS: u32 = 100;
/// Steps unless told otherwise.
const ROUNDS: u64 = 1500;

/// A process and the first word of each of its pages, as it should be.
struct Member<'a, 'm, M: Machine> {
    process: Process<'a, 'm, M>,
    words: [u64; COUNT],
}

impl<M: Machine> Member<'_, '_, M> {
    fn word(&mut self, page: u64) -> &mut u64 {
        &mut self.words[usize::try_from(page % PAGES).unwrap_or(0)]
    }

    fn load(&mut self, page: u64) -> Outcome {
        let expected = *self.word(page);
        check_eq(self.process.load(BASE + page * PAGE_SIZE)?, expected, "a word")
    }

    fn store(&mut self, page: u64, value: u64) -> Outcome {
        self.process.store(BASE + page * PAGE_SIZE, value)?;
        *self.word(page) = value;
        Ok(())
    }

    /// A child with the same memory.
    fn fork(&self) -> Result<Self, super::super::Failure> {
        let mm = self.process.mm();
        let space = mm.fork(self.process.space())?;
        Ok(Self { process: Process::of(mm, space), words: self.words })
    }

    fn forget(&mut self, page: u64, count: u64) -> Outcome {
        let count = count.min(PAGES - page);
        let (mm, space) = (self.process.mm(), self.process.space());
        mm.madvise(space, BASE + page * PAGE_SIZE, count * PAGE_SIZE, Advice::DontNeed)?;
        (page..page + count).for_each(|page| *self.word(page) = 0);
        Ok(())
    }

    /// Takes rights away, tries what they forbid, and gives them back.
    fn protect(&mut self, page: u64, prot: PageProt) -> Outcome {
        let at = BASE + page * PAGE_SIZE;
        let (mm, space) = (self.process.mm(), self.process.space());
        mm.mprotect(space, at, PAGE_SIZE, prot)?;
        check_err(self.process.store(at, 1), Signal::SegvAccErr, "a forbidden store")?;
        if prot.contains(PageProt::READ) {
            check_eq(
                self.process.load(at)?,
                self.words[usize::try_from(page).or_fail()?],
                "a word",
            )?;
        } else {
            check_err(self.process.load(at), Signal::SegvAccErr, "a forbidden load")?;
        }
        mm.mprotect(space, at, PAGE_SIZE, PageProt::READ | PageProt::WRITE)?;
        Ok(())
    }

    /// What GUP asks for before it pins for reading.
    fn unshare(&self, page: u64) -> Outcome {
        let page = VirtAddr::new(BASE + page * PAGE_SIZE).or_fail()?;
        let (mm, space) = (self.process.mm(), self.process.space());
        mm.handle_fault(space, page, FaultAccess::Unshare).or_fail()?;
        Ok(())
    }
}

pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>, digest: &mut Digest) -> Outcome {
    ctx.mm.swapon_ram(SLOTS).or_fail()?;
    let ended = play(ctx, digest);
    ctx.machine().leave();
    let off = ctx.mm.swapoff().or_fail();
    ended.and(off)
}

fn play<M: Machine>(ctx: &mut Ctx<'_, '_, M>, digest: &mut Digest) -> Outcome {
    let process = Process::new(ctx.mm)?;
    process.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE).fixed(BASE))?;
    let first = Member { process, words: [0; COUNT] };
    let mut family = [Some(first), None, None];
    for round in 1..=ctx.rounds(ROUNDS) {
        step(ctx, &mut family, round)?;
        if round % 256 == 0 {
            ctx.serve();
        }
    }
    for member in family.iter_mut().flatten() {
        (0..PAGES).try_for_each(|page| member.load(page))?;
        digest.add_process(&member.process);
    }
    Ok(())
}

fn step<'a, 'm, M: Machine>(
    ctx: &mut Ctx<'a, 'm, M>,
    family: &mut [Option<Member<'a, 'm, M>>; MOST],
    round: u64,
) -> Outcome {
    let rng = &mut ctx.rng;
    let at = usize::try_from(rng.below(MOST as u64)).unwrap_or(0);
    let (action, page) = (rng.below(32), rng.below(PAGES));
    let count = 1 + rng.below(8);
    let is_empty = family[at].is_none();
    if is_empty {
        let parent = family.iter().flatten().next().or_fail()?;
        family[at] = if action < 4 { Some(parent.fork()?) } else { None };
        return Ok(());
    }
    let last = family.iter().flatten().count() == 1;
    let Some(member) = &mut family[at] else { return Ok(()) };
    match action {
        0..=10 => member.store(page, round),
        11..=20 => member.load(page),
        21..=22 => member.unshare(page),
        23 => member.protect(page, PageProt::READ),
        24 => member.protect(page, PageProt::empty()),
        25 => member.forget(page, count),
        26..=29 => {
            swap_out(member.process.mm(), member.process.space(), BASE + page * PAGE_SIZE);
            Ok(())
        }
        _ if last => Ok(()),
        _ => {
            family[at] = None;
            Ok(())
        }
    }
}

/// Accesses that end in a signal, wherever they hit.
pub(super) fn signals<M: Machine>(ctx: &mut Ctx<'_, '_, M>, digest: &mut Digest) -> Outcome {
    let process = Process::new(ctx.mm)?;
    let read = process.mmap(MmapArgs::anonymous(PAGE_SIZE).prot(PageProt::READ))?;
    let none = process.mmap(MmapArgs::anonymous(PAGE_SIZE).prot(PageProt::empty()))?;
    for hole in [0, PAGE_SIZE, BASE, USER_END, 1 << 47, 1 << 63, u64::MAX - 7] {
        check_err(process.load(hole), Signal::SegvMapErr, "a load from a hole")?;
        check_err(process.store(hole, 1), Signal::SegvMapErr, "a store to a hole")?;
    }
    check_eq(process.load(read)?, 0, "fresh memory")?;
    check_err(process.store(read, 1), Signal::SegvAccErr, "a store to read-only memory")?;
    check_err(process.load(none), Signal::SegvAccErr, "a load from PROT_NONE")?;
    check_err(process.store(none, 1), Signal::SegvAccErr, "a store to PROT_NONE")?;
    digest.add_process(&process);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::{Base, Mm};
    use crate::testing;

    #[test]
    fn the_model_notices_a_fork_that_forgets_its_flush() {
        for forgets in [false, true] {
            let base = Base::new(testing::memory(4096)).unwrap();
            let mm = Mm::new(&base);
            let process = Process::new(&mm).unwrap();
            process.mmap(MmapArgs::anonymous(PAGES * PAGE_SIZE).fixed(BASE)).unwrap();
            let mut parent = Member { process, words: [0; COUNT] };
            parent.store(3, 5).unwrap();
            base.platform().mmu().lose_flushes(u64::from(forgets));
            let mut child = parent.fork().unwrap();
            base.platform().mmu().lose_flushes(0);
            // By the translation from before the fork, if it is still there.
            parent.store(3, 6).unwrap();
            assert_eq!(child.load(3).is_err(), forgets);
        }
    }
}
