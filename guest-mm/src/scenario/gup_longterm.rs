//! `gup_longterm`: pins for ever of mapped files, by the names of Linux's `gup_longterm`, tested anew.
//!
//! Files in memory may be pinned for ever in every way. Absent: file systems that refuse it, hugetlb, io_uring.

use abi::PAGE_SIZE;

use super::cow::{How, PinList};
use super::{Ctx, Machine, Outcome, Process, check_eq, pattern};
use crate::gup::GupFlags;
use crate::mm::Mm;
use crate::pagecache::FileRef;
use crate::pgtable::PageProt;
use crate::space::{MapFlags, MapSource, MmapArgs};

/// The tests by name: the mapping, the pin, the path.
const TESTS: [(&str, MapFlags, GupFlags, How); 8] = [
    ("test_shared_rw_pin", MapFlags::SHARED, GupFlags::WRITE, How::Slow),
    ("test_shared_rw_fast_pin", MapFlags::SHARED, GupFlags::WRITE, How::Fast),
    ("test_shared_ro_pin", MapFlags::SHARED, GupFlags::empty(), How::Slow),
    ("test_shared_ro_fast_pin", MapFlags::SHARED, GupFlags::empty(), How::Fast),
    ("test_private_rw_pin", MapFlags::PRIVATE, GupFlags::WRITE, How::Slow),
    ("test_private_rw_fast_pin", MapFlags::PRIVATE, GupFlags::WRITE, How::Fast),
    ("test_private_ro_pin", MapFlags::PRIVATE, GupFlags::empty(), How::Slow),
    ("test_private_ro_fast_pin", MapFlags::PRIVATE, GupFlags::empty(), How::Fast),
];

/// What the file holds, and what the process writes.
const OLD: u64 = 1;
const NEW: u64 = 2;

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let mut outcome = Ok(());
    for (name, map, flags, how) in TESTS {
        let ended = with_file(ctx.mm, |file| pinned(ctx.mm, file, map, flags, how));
        outcome = outcome.and(ctx.report(name, ended));
    }
    outcome
}

/// Runs `test` with a file of a page.
fn with_file<'m, M: Machine>(
    mm: &Mm<'m, M>,
    test: impl FnOnce(&FileRef<'m, M>) -> Outcome,
) -> Outcome {
    let file = mm.shmem_file(PAGE_SIZE)?;
    let ended = test(&file);
    mm.file_put(file);
    ended
}

fn pinned<'m, M: Machine>(
    mm: &Mm<'m, M>,
    file: &FileRef<'m, M>,
    map: MapFlags,
    flags: GupFlags,
    how: How,
) -> Outcome {
    let process = Process::new(mm)?;
    let prot = PageProt::READ | PageProt::WRITE;
    let map_with = |flags| {
        let source = Some(MapSource { file, offset: 0, readable: true, writable: true });
        process.mmap(MmapArgs { addr: 0, bytes: PAGE_SIZE, prot, flags, source })
    };
    let (mapped, shared) = (map_with(map)?, map_with(MapFlags::SHARED)?);
    process.fill(shared, 1, OLD)?;
    process.expect(mapped, 1, OLD)?;
    let pins = PinList::new(&process, (mapped, 1), how, flags | GupFlags::LONGTERM)?;
    process.fill(mapped, 1, NEW)?;
    for pin in pins.iter() {
        check_eq(mm.read_user_page(pin, 0), pattern(NEW, 0, 0), "the holder sees the write")?;
        if flags.contains(GupFlags::WRITE) {
            mm.write_user_page(pin, 1, 77);
            check_eq(process.load(mapped + 8)?, 77, "the process sees the holder's write")?;
        }
    }
    let tag = if map == MapFlags::SHARED { NEW } else { OLD };
    process.expect(shared, 1, tag)
}
