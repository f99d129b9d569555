//! Pages of a file, mapped shared and private, while the file is cut and grows.

use abi::PAGE_SIZE;

use super::super::{Ctx, Digest, Machine, OrFail, Outcome, Process, Signal, check_eq, check_err};
use crate::pagecache::FileRef;
use crate::space::{MapFlags, MapSource, MmapArgs};

const SHARED: u64 = 0x5000_0000;
const PRIVATE: u64 = 0x6000_0000;
const COUNT: usize = 24;
const PAGES: u64 = COUNT as u64;
const ROUNDS: u64 = 600;

/// What the file's pages and those of the private mapping should have as first word.
struct Model {
    size: u64,
    file: [u64; COUNT],
    /// `None`: not copied, so the file's.
    private: [Option<u64>; COUNT],
}

pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>, digest: &mut Digest) -> Outcome {
    let file = ctx.mm.shmem_file(PAGES * PAGE_SIZE)?;
    let ended = play(ctx, &file, digest);
    ctx.machine().leave();
    ctx.mm.file_put(file);
    ended
}

fn play<'m, M: Machine>(
    ctx: &mut Ctx<'_, 'm, M>,
    file: &FileRef<'m, M>,
    digest: &mut Digest,
) -> Outcome {
    let process = Process::new(ctx.mm)?;
    let source = MapSource { file, offset: 0, readable: true, writable: true };
    for (at, flags) in [(SHARED, MapFlags::SHARED), (PRIVATE, MapFlags::PRIVATE)] {
        let args = MmapArgs::anonymous(PAGES * PAGE_SIZE);
        process.mmap(MmapArgs { flags, source: Some(source), ..args }.fixed(at))?;
    }
    let mut model = Model { size: PAGES, file: [0; COUNT], private: [None; COUNT] };
    for round in 1..=ctx.rounds(ROUNDS) {
        let (action, page) = (ctx.rng.below(16), ctx.rng.below(PAGES));
        let index = usize::try_from(page).or_fail()?;
        match action {
            0..=3 => model.access(&process, SHARED, index, Some(round))?,
            4..=7 => model.access(&process, SHARED, index, None)?,
            8..=10 => model.access(&process, PRIVATE, index, Some(round))?,
            11..=14 => model.access(&process, PRIVATE, index, None)?,
            _ => model.resize(ctx, file, page)?,
        }
    }
    (0..COUNT).try_for_each(|index| {
        model.access(&process, SHARED, index, None)?;
        model.access(&process, PRIVATE, index, None)
    })?;
    digest.add_process(&process);
    Ok(())
}

impl Model {
    /// A load or store at the first word of a page, and what should come of it.
    fn access<M: Machine>(
        &mut self,
        process: &Process<'_, '_, M>,
        base: u64,
        index: usize,
        store: Option<u64>,
    ) -> Outcome {
        let at = base + index as u64 * PAGE_SIZE;
        if index as u64 >= self.size {
            check_err(process.load(at), Signal::Bus, "a load beyond the end")?;
            return check_err(process.store(at, 1), Signal::Bus, "a store beyond the end");
        }
        let (file, private) = (&mut self.file[index], &mut self.private[index]);
        if let Some(value) = store {
            process.store(at, value)?;
            if base == SHARED {
                *file = value;
            } else {
                *private = Some(value);
            }
        }
        let expected = if base == SHARED { *file } else { private.unwrap_or(*file) };
        check_eq(process.load(at)?, expected, "a word of a file")
    }

    /// Cuts the file at a page, or lets it have all of them again. What is cut is
    /// gone from private copies too.
    fn resize<'m, M: Machine>(
        &mut self,
        ctx: &Ctx<'_, 'm, M>,
        file: &FileRef<'m, M>,
        page: u64,
    ) -> Outcome {
        let size = if self.size < PAGES { PAGES } else { page };
        ctx.mm.truncate_file(file, size * PAGE_SIZE)?;
        for index in usize::try_from(size).or_fail()?..COUNT {
            self.file[index] = 0;
            self.private[index] = None;
        }
        self.size = size;
        Ok(())
    }
}
