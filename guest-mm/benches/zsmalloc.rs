//! zsmalloc and compressed swap on the host:
//! `cargo bench -p guest-mm --features testing --bench zsmalloc`.
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest_mm::buddy::Gfp;
use guest_mm::migrate::{Allocated, MigrateBatch, MigrateMode};
use guest_mm::mm::{Base, Mm};
use guest_mm::scenario::Rng;
use guest_mm::testing::{TestPlatform, memory};
use guest_mm::zsmalloc::{ZsHandle, ZsPool};

/// Object sizes: many to a page, straddling, a page of its own.
const SIZES: [usize; 4] = [60, 700, 2600, 4096];
/// Objects that are live at once.
const LIVE: usize = 256;

/// A machine of 64 MiB.
fn machine() -> Base<TestPlatform> {
    Base::new(memory(16_384)).expect("memory suffices")
}

fn store(pool: &ZsPool<'_, TestPlatform>, bytes: &[u8]) -> ZsHandle {
    pool.store(bytes, Gfp::KERNEL).expect("memory suffices")
}

/// Allocation, copies, freeing, one object at a time among many.
fn objects(c: &mut Criterion) {
    let base = machine();
    let mm = Mm::new(&base);
    let mut group = c.benchmark_group("zsmalloc");
    for size in SIZES {
        let pool = mm.zs_create_pool().expect("memory suffices");
        let bytes = vec![0x5a; size];
        let live: Vec<_> = (0..LIVE).map(|_| store(&pool, &bytes)).collect();
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("alloc_free", size), |b| {
            b.iter(|| {
                let handle = pool.alloc(black_box(size), Gfp::KERNEL).expect("memory suffices");
                pool.free(handle).expect("an object");
            });
        });
        group.bench_function(BenchmarkId::new("store_free", size), |b| {
            b.iter(|| pool.free(store(&pool, black_box(&bytes))).expect("an object"));
        });
        group.throughput(Throughput::Bytes(size as u64));
        let mut buffer = vec![0; size];
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("read", size), |b| {
            b.iter(|| {
                turn = (turn + 97) % LIVE;
                pool.read(live[turn], black_box(&mut buffer)).expect("an object");
            });
        });
        group.bench_function(BenchmarkId::new("write", size), |b| {
            b.iter(|| {
                turn = (turn + 97) % LIVE;
                pool.write(live[turn], black_box(&bytes)).expect("an object");
            });
        });
        live.into_iter().for_each(|handle| pool.free(handle).expect("an object"));
        mm.zs_destroy_pool(pool).map_err(|(_, error)| error).expect("empty");
    }
    group.finish();
}

/// Migration of 32 pages: by the objects in them it should not matter.
fn migration(c: &mut Criterion) {
    let base = machine();
    let mm = Mm::new(&base);
    let mut group = c.benchmark_group("zsmalloc_migrate_32_pages");
    group.throughput(Throughput::Elements(32));
    for size in SIZES {
        let pool = mm.zs_create_pool().expect("memory suffices");
        let bytes = vec![0x5a; size];
        let live: Vec<_> = (0..32 * 4096 / size + 1).map(|_| store(&pool, &bytes)).collect();
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            let isolate = || {
                let mut batch: MigrateBatch<'_, '_, _> = MigrateBatch::new(&mm);
                let mut pages = Vec::new();
                pool.for_each_page(&mut |pfn| pages.push(pfn));
                for pfn in pages.into_iter().take(32) {
                    mm.isolate_for_migration(pfn, &mut batch).expect("nobody else has it");
                }
                batch
            };
            b.iter_batched(
                isolate,
                |mut batch| {
                    let mut places = Allocated::new(mm.memory());
                    let stats = mm.migrate_pages(&mut batch, &mut places, MigrateMode::Sync);
                    assert_eq!(stats.failed(), 0);
                },
                BatchSize::PerIteration,
            );
        });
        live.into_iter().for_each(|handle| pool.free(handle).expect("an object"));
        mm.zs_destroy_pool(pool).map_err(|(_, error)| error).expect("empty");
    }
    group.finish();
}

/// A page of text-like, half random, random bytes, or one value.
fn page(kind: &str) -> Box<[u8; 4096]> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut page = Box::new([0; 4096]);
    for (at, word) in page.chunks_exact_mut(8).enumerate() {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = match kind {
            "random" => state,
            "half" if at % 2 == 0 => state,
            "records" => (at as u64 / 4) << 32 | (state & 0xf),
            _ => 0,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// Bytes that objects take, all that is beside them included, against a page for each and against their own.
/// No time is measured: it is printed.
fn density(_: &mut Criterion) {
    /// Objects of each kind.
    const OBJECTS: usize = 8192;
    let print = |kind: &str, sizes: &mut dyn FnMut() -> usize| {
        let base = machine();
        let mm = Mm::new(&base);
        let pool = mm.zs_create_pool().expect("memory suffices");
        let before = mm.memory().free_pages();
        let (mut handles, mut bytes) = (Vec::new(), 0);
        for _ in 0..OBJECTS {
            let size = sizes();
            handles.push(pool.alloc(size, Gfp::KERNEL).expect("memory suffices"));
            bytes += size;
        }
        // By the allocator's books: descriptors and handles, which the pool's statistics leave out, are in it.
        let taken = before.saturating_sub(mm.memory().free_pages()).get();
        let stats = pool.stats();
        let hundredths = |part: usize, whole: u64| part as u64 * 100 / whole.max(1);
        println!(
            "zsmalloc/density/{kind}: {OBJECTS} objects of {bytes} bytes in {} pages, {taken} with all that is beside them: \
             {} hundredths of an object a page, {} % of the bytes are objects'",
            stats.pages,
            hundredths(OBJECTS, taken),
            hundredths(bytes, taken * 4096),
        );
        handles.into_iter().for_each(|handle| pool.free(handle).expect("an object"));
        mm.zs_destroy_pool(pool).map_err(|(_, error)| error).expect("empty");
    };
    for size in SIZES {
        print(&size.to_string(), &mut || size);
    }
    // Every size as often as any other, from one in 64 of a page up to all of it.
    let mut rng = Rng::new(1);
    print("uniform", &mut || 64 + usize::try_from(rng.below(4096 - 63)).expect("it is small"));
    // As compressed pages are: most between a quarter and a half.
    let mut rng = Rng::new(1);
    print("compressed", &mut || {
        let below = |end: u64, rng: &mut Rng| usize::try_from(rng.below(end)).expect("it is small");
        400 + below(900, &mut rng) + below(900, &mut rng)
    });
}

/// Writes to and reads from the compressed device, 4 KiB each.
fn device(c: &mut Criterion) {
    let base = machine();
    let mm = Mm::new(&base);
    mm.swapon_zram(64).expect("memory suffices");
    let mut group = c.benchmark_group("zram");
    group.throughput(Throughput::Bytes(4096));
    for kind in ["zero", "records", "half", "random"] {
        let contents = page(kind);
        mm.with_swap_device(|device| {
            group.bench_function(BenchmarkId::new("write", kind), |b| {
                b.iter(|| device.write(1, black_box(&contents)).expect("memory suffices"));
            });
            let stats = mm.zram_stats().expect("it is on");
            println!("zram/{kind}: {} of 4096 bytes kept", stats.compressed_bytes);
            let mut back = Box::new([0; 4096]);
            group.bench_function(BenchmarkId::new("read", kind), |b| {
                b.iter(|| device.read(1, black_box(&mut back)).expect("it was written"));
            });
            assert!(back == contents);
            device.discard(1);
        });
    }
    group.finish();
    mm.swapoff().expect("nobody uses it");
}

criterion_group!(benches, objects, migration, density, device);
criterion_main!(benches);
