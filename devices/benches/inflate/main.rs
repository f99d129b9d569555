//! What it costs the host to take 256 MiB from a guest.
//!
//! The whole device path is timed: rings and frame numbers in guest memory,
//! 256 frames in a descriptor, 256 descriptors, one notification through the
//! transport, release, used ring. Memory is populated again between iterations,
//! untimed, and after each one the backing's source of truth has to have fallen
//! by every byte. Before each iteration the floor is measured: one release call
//! that frees the very same pages. So a line of the table and its floor have seen
//! the same load of the machine.
//!
//! `cargo bench -p devices --bench inflate`

mod rig;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput};
use guest_ram::BackingKind;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use rig::{FIRST_PFN, PAGES, Rig};
use table::{Row, Table};

/// Orders in which a guest may name its pages.
#[derive(Clone, Copy)]
enum Order {
    Ascending,
    Descending,
    Shuffled,
    EverySecond,
    RandomHalf,
}

impl Order {
    const ALL: [Self; 5] =
        [Self::Ascending, Self::Descending, Self::Shuffled, Self::EverySecond, Self::RandomHalf];

    const fn name(self) -> &'static str {
        match self {
            Self::Ascending => "ascending",
            Self::Descending => "descending",
            Self::Shuffled => "shuffled",
            Self::EverySecond => "every second page",
            Self::RandomHalf => "random half",
        }
    }

    /// The frames: dense ones fill 256 MiB, the others half of 512 MiB.
    fn frames(self) -> Vec<u32> {
        let mut rng = StdRng::seed_from_u64(1);
        let dense = FIRST_PFN..FIRST_PFN + PAGES;
        match self {
            Self::Ascending => dense.collect(),
            Self::Descending => dense.rev().collect(),
            Self::Shuffled => {
                let mut frames: Vec<u32> = dense.collect();
                frames.shuffle(&mut rng);
                frames
            }
            Self::EverySecond => dense.map(|n| FIRST_PFN + 2 * (n - FIRST_PFN)).collect(),
            Self::RandomHalf => {
                let mut frames: Vec<u32> = (FIRST_PFN..FIRST_PFN + 2 * PAGES).collect();
                frames.shuffle(&mut rng);
                frames.truncate(frames.len() / 2);
                frames
            }
        }
    }
}

/// A thread of this process on the other core, so that a TLB flush is an interrupt, as with a running vCPU.
struct Sibling {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sibling {
    fn start(is_busy: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let spin = move || {
            while !seen.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        Self { stop, thread: is_busy.then(|| thread::spawn(spin)) }
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    let mut table = Table::default();
    for kind in BackingKind::ALL {
        let mut rig = Rig::new(kind);
        for is_busy in [false, true] {
            measure(&mut criterion, &mut table, &mut rig, is_busy);
        }
    }
    criterion.final_summary();
    print!("{table}");
}

/// All orders and the deflate on one backing, with or without the busy sibling.
fn measure(criterion: &mut Criterion, table: &mut Table, rig: &mut Rig, is_busy: bool) {
    let load = if is_busy { "busy sibling" } else { "idle" };
    let mut group = criterion.benchmark_group(format!("inflate/{}/{load}", rig.kind()));
    group.throughput(Throughput::Elements(PAGES.into())).sampling_mode(SamplingMode::Flat);
    let sibling = Sibling::start(is_busy);
    for order in Order::ALL {
        let frames = order.frames();
        let mut row = Row::new(rig.kind(), load, order.name());
        group.bench_function(order.name(), |bencher| {
            let mut iteration = || {
                row.add_floor(rig.floor(&frames));
                row.add(rig.inflate(&frames))
            };
            bencher.iter_custom(|n| (0..n).map(|_| iteration()).sum());
        });
        table.push(row);
    }
    let frames = Order::Shuffled.frames();
    let mut row = Row::new(rig.kind(), load, "deflate, shuffled");
    group.bench_function("deflate", |bencher| {
        bencher.iter_custom(|n| (0..n).map(|_| row.add(rig.deflate(&frames))).sum());
    });
    table.push(row);
    drop(sibling);
    group.finish();
}
