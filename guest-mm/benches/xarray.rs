//! The XArray against the standard maps, and both PFN stores per page.
//!
//! `cargo bench -p guest-mm --bench xarray`. Nodes come from the heap.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on is wrong")]
#![allow(missing_docs, reason = "criterion's macros make the entry points")]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::ptr::NonNull;
use std::time::Duration;

use abi::{Pfn, PfnRange};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest_mm::rcu::Rcu;
use guest_mm::store::{BitmapStore, Block, BlockState, PfnStore, Reservation, XArrayStore};
use guest_mm::xarray::{Entry, Node, NodeAlloc, XArray};

#[path = "../tests/support/no_ram.rs"]
mod no_ram;

use no_ram::NoRam;

/// Entries of each map.
const ENTRIES: u64 = 1 << 16;
/// Frames of a 1 GiB guest.
const GIB: u64 = 1 << 18;

struct HeapNodes(NoRam);

// SAFETY: fresh heap memory of the node's layout, freed by `free_node` only.
unsafe impl NodeAlloc for HeapNodes {
    type Platform = NoRam;

    fn platform(&self) -> &NoRam {
        &self.0
    }
    fn alloc_node(&self) -> Option<NonNull<Node>> {
        // SAFETY: a node is not zero-sized.
        NonNull::new(unsafe { alloc(Layout::new::<Node>()) }.cast())
    }
    unsafe fn free_node(&self, node: NonNull<Node>) {
        // SAFETY: from `alloc_node`, with the same layout.
        unsafe { dealloc(node.as_ptr().cast(), Layout::new::<Node>()) };
    }
}

fn array(rcu: &Rcu) -> XArray<'_, HeapNodes> {
    XArray::new(rcu, HeapNodes(NoRam))
}

fn value(n: u64) -> Entry<usize> {
    Entry::value(usize::try_from(n >> 1).unwrap()).unwrap()
}

/// The keys of a case, in the order of their use.
fn keys(sparse: bool) -> Vec<u64> {
    // Frames of a 64 GiB machine, one in 256. An odd multiplier permutes the
    // 2^24 numbers, so keys do not collide.
    let spread = |n: u64| n.wrapping_mul(0x9e_3779) % (1 << 24);
    (0..ENTRIES).map(|n| if sparse { spread(n) } else { n }).collect()
}

fn maps(criterion: &mut Criterion) {
    for (name, sparse) in [("dense", false), ("sparse", true)] {
        let keys = keys(sparse);
        loads(criterion, name, &keys);
        stores(criterion, name, &keys);
    }
}

fn loads(criterion: &mut Criterion, name: &str, keys: &[u64]) {
    let rcu = Rcu::new();
    let array = array(&rcu);
    for &key in keys {
        array.store(key, value(key)).unwrap();
    }
    let tree: BTreeMap<u64, u64> = keys.iter().map(|&key| (key, key)).collect();
    let hash: HashMap<u64, u64> = keys.iter().map(|&key| (key, key)).collect();
    // A fixed shuffle: neighbours in time are not neighbours in the map.
    let mut order = keys.to_vec();
    order.sort_by_key(|key| key.wrapping_mul(0xd6e8_feb8_6659_fd93));

    let mut group = criterion.benchmark_group(format!("load/{name}"));
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("xarray", |b| {
        b.iter(|| order.iter().filter(|&&key| black_box(array.load(key)).is_some()).count());
    });
    group.bench_function("xarray, one read section", |b| {
        b.iter(|| {
            let guard = rcu.read(0);
            let mut cursor = array.cursor(&guard, 0);
            order.iter().for_each(|&key| {
                cursor.seek(key);
                black_box(cursor.load());
            });
        });
    });
    group.bench_function("xarray, in order", |b| {
        b.iter(|| {
            let guard = rcu.read(0);
            array.entries(&guard, 0..=u64::MAX).map(black_box).count()
        });
    });
    group.bench_function("BTreeMap", |b| {
        b.iter(|| order.iter().filter(|key| black_box(tree.get(key)).is_some()).count());
    });
    group.bench_function("HashMap", |b| {
        b.iter(|| order.iter().filter(|key| black_box(hash.get(key)).is_some()).count());
    });
    group.finish();
}

fn stores(criterion: &mut Criterion, name: &str, keys: &[u64]) {
    let rcu = Rcu::new();
    let mut group = criterion.benchmark_group(format!("store/{name}"));
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("xarray", |b| {
        b.iter_batched(
            || array(&rcu),
            |array| {
                for &key in keys {
                    black_box(array.store(key, value(key)).unwrap());
                }
                array
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("BTreeMap", |b| {
        b.iter_batched(
            BTreeMap::new,
            |mut map| {
                for &key in keys {
                    black_box(map.insert(key, key));
                }
                map
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("HashMap", |b| {
        b.iter_batched(
            HashMap::new,
            |mut map| {
                for &key in keys {
                    black_box(map.insert(key, key));
                }
                map
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn range() -> PfnRange {
    PfnRange::new(Pfn::ZERO, Pfn::new(GIB).unwrap()).unwrap()
}

fn blocks(order: u32) -> Vec<Block> {
    let heads = (0..GIB).step_by(1 << order);
    heads.map(|head| Block::new(Pfn::new(head).unwrap(), order).unwrap()).collect()
}

/// What inflating does with the store for each block.
fn inflate(store: &impl PfnStore, blocks: &[Block]) {
    for &block in blocks {
        store.reserve().unwrap().commit(block).unwrap();
        store.set_state(block.head(), BlockState::Settled);
    }
}

/// What deflating does with the store for each block.
fn deflate(store: &impl PfnStore) {
    let mut from = Pfn::ZERO;
    while let Some(block) = store.claim(from) {
        from = block.head();
        black_box(store.remove(block.head()));
    }
}

fn pfn_stores(criterion: &mut Criterion) {
    let rcu = Rcu::new();
    let platform = NoRam;
    let mut words = vec![0; BitmapStore::<NoRam>::words_for(range()).unwrap()];
    let bitmap = BitmapStore::new(&platform, range(), &mut words).unwrap();
    let xarray = XArrayStore::new(&rcu, HeapNodes(NoRam), range());
    let mut group = criterion.benchmark_group("pfn store, per page");
    // Time per element is time per page, whatever the order.
    group.throughput(Throughput::Elements(GIB));
    for order in [0, 10] {
        let blocks = blocks(order);
        cycle(&mut group, "xarray", order, &xarray, &blocks);
        cycle(&mut group, "bitmap", order, &bitmap, &blocks);
    }
    group.finish();
}

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn cycle(group: &mut Group<'_>, name: &str, order: u32, store: &impl PfnStore, blocks: &[Block]) {
    group.bench_function(BenchmarkId::new(format!("{name}, insert"), order), |b| {
        b.iter_batched(|| deflate(store), |()| inflate(store, blocks), BatchSize::PerIteration);
    });
    inflate_if_empty(store, blocks);
    println!(
        "{name}, order {order}: {:.4} bytes per inflated page",
        store.bytes_used() as f64 / store.pages().get() as f64
    );
    group.bench_function(BenchmarkId::new(format!("{name}, remove"), order), |b| {
        b.iter_batched(
            || inflate_if_empty(store, blocks),
            |()| deflate(store),
            BatchSize::PerIteration,
        );
    });
    deflate(store);
}

fn inflate_if_empty(store: &impl PfnStore, blocks: &[Block]) {
    if store.blocks() == 0 {
        inflate(store, blocks);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = maps, pfn_stores
}
criterion_main!(benches);
