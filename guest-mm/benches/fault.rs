//! Page-fault figures on the host: `cargo bench -p guest-mm --features testing --bench fault`.
//!
//! `Mm::handle_fault` alone, one thread, on the host's simulated platform: no trap,
//! no MMU, and TLB flushes that cost next to nothing. Minimum, median and maximum of
//! nine rounds, in nanoseconds per fault.

use std::hint::black_box;
use std::time::Instant;

use guest_mm::addr::{VaRange, VirtAddr};
use guest_mm::fault::{FaultAccess, FaultOutcome};
use guest_mm::mm::{Base, Mm};
use guest_mm::pagecache::FileRef;
use guest_mm::space::{Advice, MapFlags, MapSource, MmapArgs, SpaceRef};
use guest_mm::testing::{TestPlatform, memory};

const ROUNDS: usize = 9;
const PAGE: u64 = 4096;
/// Pages of a round: 16 MiB.
const PAGES: u64 = 4096;
/// Blocks of 2 MiB of a round.
const BLOCKS: u64 = 8;
const AT: u64 = 0x7f00_0000_0000;

type Machine<'m> = Mm<'m, TestPlatform>;
type Space<'m> = SpaceRef<'m, TestPlatform>;
type File<'m> = FileRef<'m, TestPlatform>;

fn fault<'m>(
    mm: &Machine<'m>,
    space: &Space<'m>,
    address: u64,
    access: FaultAccess,
) -> FaultOutcome {
    let address = VirtAddr::new(address).expect("a user address");
    mm.handle_fault(space, address, access).expect("a fault that is served")
}

/// Faults on `count` addresses, `stride` apart; nanoseconds each. All end in `expected`.
fn time<'m>(
    (mm, space): (&Machine<'m>, &Space<'m>),
    (count, stride): (u64, u64),
    access: FaultAccess,
    expected: FaultOutcome,
) -> f64 {
    let started = Instant::now();
    for index in 0..count {
        let outcome = fault(mm, space, AT + index * stride, access);
        assert_eq!(black_box(outcome), expected);
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
    let each = started.elapsed().as_nanos() as f64 / count as f64;
    each
}

/// Runs `round` nine times, each with a process that has `bytes` of private memory mapped.
fn measure<'m>(name: &str, mm: &Machine<'m>, bytes: u64, round: impl Fn(&Space<'m>) -> f64) {
    let mut figures: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let space = mm.new_space().expect("a space");
            let args = MmapArgs::anonymous(bytes).fixed(AT);
            mm.mmap(&space, args).expect("a mapping");
            let figure = round(&space);
            mm.exit_space(space);
            mm.base().settle();
            figure
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    let (least, median, most) = (figures[0], figures[ROUNDS / 2], figures[ROUNDS - 1]);
    println!("{name:<34} {least:>9.0} {median:>9.0} {most:>9.0}");
}

fn touch_all<'m>(mm: &Machine<'m>, space: &Space<'m>) {
    for page in 0..PAGES {
        fault(mm, space, AT + page * PAGE, FaultAccess::Write);
    }
}

fn anonymous(mm: &Machine<'_>) {
    let small = (PAGES, PAGE);
    measure("zero page, read", mm, PAGES * PAGE, |space| {
        time((mm, space), small, FaultAccess::Read, FaultOutcome::ZeroPage)
    });
    measure("new page, write", mm, PAGES * PAGE, |space| {
        time((mm, space), small, FaultAccess::Write, FaultOutcome::AnonPage)
    });
    measure("spurious", mm, PAGES * PAGE, |space| {
        touch_all(mm, space);
        time((mm, space), small, FaultAccess::Write, FaultOutcome::Spurious)
    });
    measure("copy on write, after fork", mm, PAGES * PAGE, |space| {
        touch_all(mm, space);
        let child = mm.fork(space).expect("a child");
        let figure = time((mm, space), small, FaultAccess::Write, FaultOutcome::Copied);
        mm.exit_space(child);
        figure
    });
    measure("reuse, child gone", mm, PAGES * PAGE, |space| {
        touch_all(mm, space);
        let child = mm.fork(space).expect("a child");
        mm.exit_space(child);
        time((mm, space), small, FaultAccess::Write, FaultOutcome::Reused)
    });
}

fn huge(mm: &Machine<'_>) {
    let bytes = BLOCKS * PAGE * 512;
    measure("2 MiB at once, write", mm, bytes, |space| {
        mm.madvise(space, AT, bytes, Advice::HugePage).expect("advice");
        time((mm, space), (BLOCKS, PAGE * 512), FaultAccess::Write, FaultOutcome::AnonHuge)
    });
    measure("2 MiB split, one page copied", mm, bytes, |space| {
        mm.madvise(space, AT, bytes, Advice::HugePage).expect("advice");
        for block in 0..BLOCKS {
            fault(mm, space, AT + block * PAGE * 512, FaultAccess::Write);
        }
        let child = mm.fork(space).expect("a child");
        let both = (BLOCKS, PAGE * 512);
        let figure = time((mm, space), both, FaultAccess::Write, FaultOutcome::Copied);
        mm.exit_space(child);
        figure
    });
}

fn map_file<'m>(mm: &Machine<'m>, space: &Space<'m>, file: &File<'m>, flags: MapFlags) {
    let source = MapSource { file, offset: 0, readable: true, writable: true };
    let args = MmapArgs::anonymous(PAGES * PAGE).fixed(AT);
    let flags = flags | MapFlags::FIXED;
    mm.mmap(space, MmapArgs { flags, source: Some(source), ..args }).expect("a mapping");
}

fn files(mm: &Machine<'_>) {
    let file = mm.shmem_file(PAGES * PAGE).expect("a file");
    for page in 0..PAGES {
        mm.write_file(&file, page * PAGE, &[1]).expect("room");
    }
    measure("cached file page, write", mm, PAGES * PAGE, |space| {
        map_file(mm, space, &file, MapFlags::SHARED);
        time((mm, space), (PAGES, PAGE), FaultAccess::Write, FaultOutcome::FilePage)
    });
    // One fault in 16: the others are mapped along with it.
    measure("cached file, read, per 16 pages", mm, PAGES * PAGE, |space| {
        map_file(mm, space, &file, MapFlags::SHARED);
        time((mm, space), (PAGES / 16, PAGE * 16), FaultAccess::Read, FaultOutcome::FilePage)
    });
    measure("private copy of a file page", mm, PAGES * PAGE, |space| {
        map_file(mm, space, &file, MapFlags::PRIVATE);
        time((mm, space), (PAGES, PAGE), FaultAccess::Write, FaultOutcome::Copied)
    });
    mm.file_put(file);
}

fn swap(mm: &Machine<'_>) {
    mm.swapon_ram(u32::try_from(PAGES).expect("few")).expect("memory for swap");
    measure("swapped in, written", mm, PAGES * PAGE, |space| {
        touch_all(mm, space);
        let range = VaRange::from_call(AT, PAGES * PAGE).expect("a range");
        assert_eq!(mm.pageout(space, range), PAGES);
        time((mm, space), (PAGES, PAGE), FaultAccess::Write, FaultOutcome::SwapMajor)
    });
    mm.swapoff().expect("every slot is free again");
}

fn main() {
    let base = Base::new(memory(32 * 1024)).expect("a machine");
    let mm = Mm::new(&base);
    println!("{:<34} {:>9} {:>9} {:>9}", "ns per fault", "min", "median", "max");
    anonymous(&mm);
    huge(&mm);
    files(&mm);
    swap(&mm);
}
