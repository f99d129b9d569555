//! `mremap`: mappings grow, shrink, move and leave empty ones behind, at random.
//!
//! Every thread plays with addresses of its own in one space, so that their tables, TLBs and the
//! space's lock are shared. Each keeps what its mappings should hold, and looks
//! after every call.

use abi::PAGE_SIZE;

use super::super::{Ctx, Machine, Outcome, Process, Rng, check_eq};
use crate::space::{MmapArgs, RemapArgs, RemapFlags};

/// First address of the first thread.
const START: u64 = 0x20_0000_0000;
/// Addresses of a thread: 4 GiB.
const ARENA: u64 = 1 << 32;
/// Calls of a thread unless told otherwise.
const ROUNDS: u64 = 120;
/// Pages of the largest mapping.
const MOST: u64 = COUNT as u64;
const COUNT: usize = 40;
/// Where in the arena mappings go: at 2 MiB, or anywhere.
const PLACES: u64 = 16;

/// Runs the scenario.
pub(in crate::scenario) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let process = Process::new(ctx.mm)?;
    let (threads, rounds, rng) = (ctx.cpus(), ctx.rounds(ROUNDS), ctx.rng.clone());
    ctx.run_on(threads, &|thread| {
        let mut player = Player::new(&process, thread as u64, &rng)?;
        (0..rounds).try_for_each(|_| player.turn())?;
        player.end()
    })?;
    check_eq(process.space().map_count().into(), 0, "mappings left")?;
    ctx.print(format_args!("{threads} threads, {rounds} calls each"));
    Ok(())
}

/// A thread: one mapping, and what its pages hold.
struct Player<'a, 'm, M: Machine> {
    process: &'a Process<'a, 'm, M>,
    arena: u64,
    rng: Rng,
    at: u64,
    /// What each page holds; 0 for a page that nobody wrote.
    pages: [u64; COUNT],
    len: u64,
    next: u64,
}

impl<'a, 'm, M: Machine> Player<'a, 'm, M> {
    fn new(
        process: &'a Process<'a, 'm, M>,
        thread: u64,
        rng: &Rng,
    ) -> Result<Self, super::super::Failure> {
        let arena = START + thread * ARENA;
        let len = 8;
        let at = process.mmap(MmapArgs::anonymous(len * PAGE_SIZE).fixed(arena))?;
        let rng = rng.stream(thread);
        Ok(Self { process, arena, rng, at, pages: [0; COUNT], len, next: 1 })
    }

    fn turn(&mut self) -> Outcome {
        self.write()?;
        match self.rng.below(5) {
            0 => self.resize(),
            1 | 2 => self.go(RemapFlags::MAYMOVE | RemapFlags::FIXED),
            3 => self.go(RemapFlags::MAYMOVE | RemapFlags::FIXED | RemapFlags::DONTUNMAP),
            _ => self.move_a_part(),
        }?;
        self.look()
    }

    fn write(&mut self) -> Outcome {
        for _ in 0..4 {
            let page = self.rng.below(self.len);
            self.next += 1;
            self.process.store(self.at + page * PAGE_SIZE, self.next)?;
            self.pages[index(page)] = self.next;
        }
        Ok(())
    }

    fn look(&self) -> Outcome {
        for page in 0..self.len {
            let seen = self.process.load(self.at + page * PAGE_SIZE)?;
            check_eq(seen, self.pages[index(page)], "what a page holds")?;
        }
        Ok(())
    }

    /// A place in the arena where a mapping of [`MOST`] pages is in nobody's way.
    fn place(&mut self) -> u64 {
        loop {
            let slot = self.arena + self.rng.below(PLACES) * (ARENA / PLACES);
            let odd = if self.rng.once_in(2) { 0 } else { self.rng.below(64) * PAGE_SIZE };
            if slot.abs_diff(self.at) >= ARENA / PLACES {
                return slot + odd;
            }
        }
    }

    fn remap(
        &self,
        new_pages: u64,
        flags: RemapFlags,
        new: u64,
    ) -> Result<u64, crate::errno::Errno> {
        let (old, old_bytes) = (self.at, self.len * PAGE_SIZE);
        let new_bytes = new_pages * PAGE_SIZE;
        self.process.mremap(RemapArgs { old, old_bytes, new_bytes, flags, new })
    }

    /// Grows or shrinks, wherever there is room.
    fn resize(&mut self) -> Outcome {
        let pages = 1 + self.rng.below(MOST);
        // Other threads' arenas are theirs: it stays where it is, or goes to where it is told.
        let grown = self.remap(pages, RemapFlags::empty(), 0);
        self.at = match grown {
            Ok(at) => at,
            Err(_) => {
                let to = self.place();
                self.remap(pages, RemapFlags::MAYMOVE | RemapFlags::FIXED, to)?
            }
        };
        self.set_len(pages);
        Ok(())
    }

    fn go(&mut self, flags: RemapFlags) -> Outcome {
        let (from, to) = (self.at, self.place());
        self.at = self.remap(self.len, flags, to)?;
        check_eq(self.at, to, "where it went")?;
        if flags.contains(RemapFlags::DONTUNMAP) {
            for page in 0..self.len {
                check_eq(self.process.load(from + page * PAGE_SIZE)?, 0, "a page left behind")?;
            }
            self.process.munmap(from, self.len * PAGE_SIZE)?;
        } else {
            super::super::check_err(
                self.process.load(from),
                super::super::Signal::SegvMapErr,
                "the old place is not mapped",
            )?;
        }
        Ok(())
    }

    /// Moves the middle away and back again.
    fn move_a_part(&mut self) -> Outcome {
        if self.len < 3 {
            return Ok(());
        }
        let first = 1 + self.rng.below(self.len - 2);
        let (old, bytes) = (self.at + first * PAGE_SIZE, PAGE_SIZE);
        let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
        let to = self.place();
        let call = RemapArgs { old, old_bytes: bytes, new_bytes: bytes, flags, new: to };
        self.process.mremap(call)?;
        check_eq(self.process.load(to)?, self.pages[index(first)], "the part that moved")?;
        self.process.mremap(RemapArgs { old: to, new: old, ..call })?;
        Ok(())
    }

    fn set_len(&mut self, pages: u64) {
        for page in pages.min(self.len)..MOST {
            self.pages[index(page)] = 0;
        }
        self.len = pages;
    }

    fn end(self) -> Outcome {
        Ok(self.process.munmap(self.arena, ARENA)?)
    }
}

fn index(page: u64) -> usize {
    usize::try_from(page).unwrap_or(usize::MAX)
}
