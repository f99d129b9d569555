//! Allocator figures on the host: `cargo bench -p guest-mm --features testing --bench memory`.
//!
//! One thread; minimum, median and maximum of nine rounds. A plain main: the rounds are
//! long, and criterion would be built for every test of the package.

use std::hint::black_box;
use std::time::{Duration, Instant};

use abi::{PageCount, Pfn};
use guest_mm::buddy::Gfp;
use guest_mm::memdesc::{DriverId, Order};
use guest_mm::memory::{FrozenFrames, Memory};
use guest_mm::slab::{KmemCache, SlabOptions};
use guest_mm::testing::{TestPlatform, memory, range};

const ROUNDS: usize = 9;
/// 256 MiB.
const PAGES: u64 = 65_536;

/// Prints nanoseconds per unit: minimum, median and maximum of the rounds.
fn report(name: &str, units: u64, mut round: impl FnMut() -> Duration) {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| round()).collect();
    times.sort();
    let per_unit = |time: Duration| time.as_nanos() as f64 / units as f64;
    let [min, median, max] = [0, ROUNDS / 2, ROUNDS - 1].map(|n| per_unit(times[n]));
    println!("{name:<44} {min:>9.2} {median:>9.2} {max:>9.2}");
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
}

fn take_all(memory: &Memory<TestPlatform>, largest: Order, gfp: Gfp) -> Vec<FrozenFrames> {
    let mut blocks = Vec::with_capacity(65_536);
    memory.alloc_many(PageCount::new(PAGES), largest, gfp, &mut |frames| blocks.push(frames));
    blocks
}

fn init() {
    report("init of 256 MiB, ns/page (new host memory)", PAGES, || {
        let ram = [range(0, PAGES)];
        let platform = TestPlatform::new(&ram, 0);
        timed(|| Memory::new(platform, &ram, &[]).map(|memory| memory.free_pages()).ok())
    });
}

/// The largest guest; the host has memory for its tables only.
fn init_of_the_largest_guest() {
    const PAGES: u64 = 16 << 20;
    report("init of 64 GiB, ns/page (new host memory)", PAGES, || {
        let platform = TestPlatform::new(&[range(PAGES - 40_000, 40_000)], 0);
        let ram = [range(0, PAGES)];
        timed(|| Memory::new(platform, &ram, &[]).map(|memory| memory.free_pages()).ok())
    });
}

fn alloc_and_free() {
    for (order, count) in [(0, 4096u64), (3, 512), (5, 512), (9, 64), (10, 32)] {
        let order = Order::saturating(order);
        let memory = memory(PAGES);
        report(&format!("alloc + free in turn, order {order}, ns/pair"), count, || {
            timed(|| {
                for _ in 0..count {
                    let frames = memory.alloc_frozen(order, Gfp::USER);
                    frames.map(|frames| memory.free_frozen(frames)).ok();
                }
            })
        });
    }
    for order in [0, 9, 10] {
        let order = Order::saturating(order);
        let memory = memory(PAGES);
        report(&format!("take all, then free all, order {order}, ns/page"), PAGES, || {
            timed(|| {
                for frames in take_all(&memory, order, Gfp::USER) {
                    memory.free_frozen(frames);
                }
            })
        });
    }
}

/// The words' share of a balloon's bookkeeping: allocate, offline, park,
/// movable; claim, online, free as reported.
fn balloon() {
    let driver = DriverId::BALLOON;
    for order in [0, 9, 10] {
        let order = Order::saturating(order);
        let memory = memory(PAGES);
        let mut parked = Vec::new();
        let inflate = |parked: &mut Vec<_>| {
            memory.alloc_many(PageCount::new(PAGES / 2), order, Gfp::BALLOON, &mut |frames| {
                let block = memory.make_offline(frames, driver);
                let pfn = block.and_then(|block| memory.park(block));
                parked.extend(pfn.ok().filter(|&pfn| memory.set_movable(pfn, driver).is_ok()));
            });
        };
        let deflate = |parked: &mut Vec<_>| {
            for pfn in parked.drain(..) {
                let frames = memory.claim_offline(pfn, driver).map(|block| memory.online(block));
                if let Ok(Ok(frames)) = frames {
                    memory.free_reported(frames);
                }
            }
        };
        report(&format!("inflate half, words only, order {order}, ns/page"), PAGES / 2, || {
            let time = timed(|| inflate(&mut parked));
            deflate(&mut parked);
            time
        });
        report(&format!("deflate half, words only, order {order}, ns/page"), PAGES / 2, || {
            inflate(&mut parked);
            timed(|| deflate(&mut parked))
        });
    }
}

fn slab() {
    let memory = memory(PAGES);
    let Ok(cache) = KmemCache::new(&memory, "node", 576, SlabOptions::default()) else { return };
    report("slab of 576-byte objects, ns/pair", 4096, || {
        timed(|| {
            for _ in 0..4096 {
                let object = cache.alloc(&memory, Gfp::KERNEL);
                // SAFETY: nobody uses the object.
                object.map(|object| unsafe { cache.free(&memory, object) }.is_ok()).ok();
            }
        })
    });
}

/// What every step of the allocator and every lockless reader begins with.
fn words() {
    const LOOKUPS: u64 = 1 << 20;
    let memory = memory(PAGES);
    let words = memory.words();
    // Scattered, and known to nobody in advance.
    let at = |n: u64| Pfn::containing(black_box(n.wrapping_mul(0x9e37_79b9) % PAGES) << 12);
    report("look-up of a frame's word, ns", LOOKUPS, || {
        timed(|| (0..LOOKUPS).filter(|&n| words.load(at(n)).is_ok()).count())
    });
    report("look-up of a frame without a word, ns", LOOKUPS, || {
        let beyond = |n| Pfn::containing((at(n).number() + PAGES) << 12);
        timed(|| (0..LOOKUPS).filter(|&n| words.load(beyond(n)).is_ok()).count())
    });
}

fn census() {
    let memory = memory(PAGES);
    let held = take_all(&memory, Order::ZERO, Gfp::USER);
    report("census of 256 MiB in single pages, ns/page", PAGES, || timed(|| memory.census()));
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
}

fn main() {
    println!("{:<44} {:>9} {:>9} {:>9}", "", "min", "median", "max");
    init();
    init_of_the_largest_guest();
    alloc_and_free();
    balloon();
    slab();
    words();
    census();
}
