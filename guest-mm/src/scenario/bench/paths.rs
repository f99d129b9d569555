//! Page faults, fork, mprotect and munmap: the time per page or per call.

use abi::PAGE_SIZE;

use crate::addr::PMD_SIZE;
use crate::bench::{Bench, Spread};
use crate::migrate::{Allocated, MigrateMode};
use crate::mm::Mm;
use crate::pgtable::PageProt;
use crate::scenario::{Failure, Machine, OrFail, Outcome, Process, check_eq};
use crate::space::{Advice, MapFlags, MmapArgs};

/// Pages of a mapping.
const PAGES: u64 = 256;
/// Its bytes.
const BYTES: u64 = PAGES * PAGE_SIZE;

pub(super) fn run<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>) -> Outcome {
    faults(mm, bench)?;
    huge_faults(mm, bench)?;
    fork(mm, bench)?;
    calls(mm, bench)?;
    migrate(mm, bench)
}

/// A mapping of base pages, which its process ends with.
fn map<M: Machine>(process: &Process<'_, '_, M>, flags: MapFlags) -> Result<u64, Failure> {
    let flags = flags | MapFlags::ANONYMOUS;
    let pages = process.mmap(MmapArgs { flags, ..MmapArgs::anonymous(BYTES) })?;
    process.mm().madvise(process.space(), pages, BYTES, Advice::NoHugePage)?;
    Ok(pages)
}

fn load_all<M: Machine>(process: &Process<'_, '_, M>, pages: u64) -> Outcome {
    (0..PAGES).try_for_each(|page| Ok(process.load(pages + page * PAGE_SIZE).map(drop)?))
}

fn store_all<M: Machine>(process: &Process<'_, '_, M>, pages: u64) -> Outcome {
    (0..PAGES).try_for_each(|page| Ok(process.store(pages + page * PAGE_SIZE, page)?))
}

/// Touches each page of new mappings, which are taken away again in the same round.
fn faults<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>) -> Outcome {
    type Touch<M> = fn(&Process<'_, '_, M>, u64) -> Outcome;
    let cases: [(&str, MapFlags, Touch<M>); 3] = [
        ("anonymous, write", MapFlags::PRIVATE, store_all),
        ("zero page, read", MapFlags::PRIVATE, load_all),
        ("shared file, write", MapFlags::SHARED, store_all),
    ];
    for (case, flags, touch) in cases {
        let process = Process::new(mm)?;
        let touched = bench.rounds(|bench| {
            let pages = map(&process, flags)?;
            let ns = bench.elapsed(|| touch(&process, pages))?;
            mm.munmap(process.space(), pages, BYTES)?;
            Ok::<_, Failure>((ns, PAGES))
        })?;
        bench.print("fault", format_args!("{case}"), "ns/page", touched);
    }
    let process = Process::new(mm)?;
    let pages = map(&process, MapFlags::PRIVATE)?;
    let present = bench.rounds(|bench| {
        store_all(&process, pages)?;
        Ok::<_, Failure>((bench.elapsed(|| store_all(&process, pages))?, PAGES))
    })?;
    bench.print("access", format_args!("present page, write"), "ns/page", present);
    Ok(())
}

/// One PMD-sized fault in a mapping that asked for it.
fn huge_faults<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>) -> Outcome {
    let process = Process::new(mm)?;
    let huge = bench.rounds(|bench| {
        let area = process.mmap(MmapArgs::anonymous(2 * PMD_SIZE))?;
        mm.madvise(process.space(), area, 2 * PMD_SIZE, Advice::HugePage)?;
        let ns = bench
            .elapsed(|| Ok::<_, Failure>(process.store(area.next_multiple_of(PMD_SIZE), 1)?))?;
        mm.munmap(process.space(), area, 2 * PMD_SIZE)?;
        Ok::<_, Failure>((ns, 1))
    })?;
    bench.print("fault", format_args!("anonymous, write, 2 MiB"), "ns", huge);
    Ok(())
}

/// fork of a process with [`PAGES`] dirty pages, and the child's first writes.
fn fork<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>) -> Outcome {
    let parent = Process::new(mm)?;
    let pages = map(&parent, MapFlags::PRIVATE)?;
    let fork = bench.rounds(|bench| {
        store_all(&parent, pages)?;
        mm.platform().leave();
        let mut child = None;
        let ns = bench.elapsed(|| {
            child = Some(Process::of(mm, mm.fork(parent.space())?));
            Ok::<_, Failure>(())
        })?;
        drop(child);
        Ok::<_, Failure>((ns, 1))
    })?;
    bench.print("fork", format_args!("{PAGES} dirty pages"), "ns", fork);
    let exit = bench.rounds(|bench| {
        let child = Process::of(mm, mm.fork(parent.space())?);
        let ns = bench.elapsed(|| {
            drop(child);
            Ok::<_, Failure>(())
        })?;
        Ok::<_, Failure>((ns, 1))
    })?;
    bench.print("exit", format_args!("of the child"), "ns", exit);
    let copied = bench.rounds(|bench| {
        let child = Process::of(mm, mm.fork(parent.space())?);
        Ok::<_, Failure>((bench.elapsed(|| store_all(&child, pages))?, PAGES))
    })?;
    bench.print("fault", format_args!("copy on write after fork"), "ns/page", copied);
    Ok(())
}

/// The calls that change whole ranges, with all pages present.
fn calls<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>) -> Outcome {
    let process = Process::new(mm)?;
    let space = process.space();
    let pages = map(&process, MapFlags::PRIVATE)?;
    store_all(&process, pages)?;
    let protect = bench.time(|| {
        mm.mprotect(space, pages, BYTES, PageProt::READ)?;
        Ok::<_, Failure>(mm.mprotect(space, pages, BYTES, PageProt::READ | PageProt::WRITE)?)
    })?;
    bench.print("mprotect pair", format_args!("{PAGES} pages, R and RW"), "ns", protect);
    let unmap = bench.rounds(|bench| {
        let pages = map(&process, MapFlags::PRIVATE)?;
        store_all(&process, pages)?;
        Ok::<_, Failure>((
            bench.elapsed(|| Ok::<_, Failure>(mm.munmap(space, pages, BYTES)?))?,
            PAGES,
        ))
    })?;
    bench.print("munmap", format_args!("{PAGES} present pages"), "ns/page", unmap);
    let empty: Spread = bench.time(|| {
        let area = process.mmap(MmapArgs::anonymous(BYTES))?;
        Ok::<_, Failure>(mm.munmap(space, area, BYTES)?)
    })?;
    bench.print("mmap and munmap", format_args!("nothing present"), "ns", empty);
    Ok(())
}

/// Pages that change frames while nobody uses them: by themselves, shared by four processes, and 2 MiB as one.
fn migrate<M: Machine>(mm: &Mm<'_, M>, bench: &mut Bench<'_>) -> Outcome {
    let process = Process::new(mm)?;
    let pages = map(&process, MapFlags::PRIVATE)?;
    store_all(&process, pages)?;
    mm.platform().leave();
    let move_all = |at: u64, bytes: u64| {
        let mut to = Allocated::new(mm.memory());
        let moved = mm.migrate_range(process.space(), at, bytes, &mut to, MigrateMode::Sync);
        let stats = moved.or_fail()?.pages;
        check_eq(stats.failed(), 0, "pages that did not move")?;
        Ok::<_, Failure>(stats.migrated)
    };
    let alone = bench.rounds(|bench| {
        Ok::<_, Failure>((bench.elapsed(|| move_all(pages, BYTES).map(drop))?, PAGES))
    })?;
    bench.print("migrate", format_args!("anonymous, one process"), "ns/page", alone);
    let relatives = [process.fork()?, process.fork()?, process.fork()?];
    let shared = bench.rounds(|bench| {
        Ok::<_, Failure>((bench.elapsed(|| move_all(pages, BYTES).map(drop))?, PAGES))
    })?;
    drop(relatives);
    bench.print("migrate", format_args!("anonymous, 4 processes"), "ns/page", shared);
    let at = 1 << 32;
    process.mmap(MmapArgs::anonymous(PMD_SIZE).fixed(at))?;
    process.madvise(at, PMD_SIZE, Advice::HugePage)?;
    process.store(at, 1)?;
    mm.platform().leave();
    if move_all(at, PMD_SIZE)? < PMD_SIZE / PAGE_SIZE {
        // Memory is too fragmented for a huge page.
        return Ok(());
    }
    let huge = bench.rounds(|bench| {
        Ok::<_, Failure>((
            bench.elapsed(|| move_all(at, PMD_SIZE).map(drop))?,
            PMD_SIZE / PAGE_SIZE,
        ))
    })?;
    bench.print("migrate", format_args!("2 MiB as one"), "ns/page", huge);
    Ok(())
}
