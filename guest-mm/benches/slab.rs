//! Slab and RCU figures on the host:
//! `cargo bench -p guest-mm --features testing --bench slab`.
#![allow(missing_docs, reason = "criterion's macros")]

use std::hint::black_box;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest_mm::buddy::Gfp;
use guest_mm::memory::Memory;
use guest_mm::rcu::{Callbacks, Rcu, RcuHead};
use guest_mm::slab::{KmemCache, SlabOptions};
use guest_mm::testing::{TestPlatform, memory, set_cpu};

/// Objects that are live at once in the bursts.
const BURST: usize = 512;

fn cache(memory: &Memory<TestPlatform>, size: usize, per_cpu: bool) -> KmemCache {
    let options = SlabOptions { per_cpu, ..SlabOptions::default() };
    KmemCache::new(memory, "bench", size, options).expect("a size that fits")
}

fn alloc(memory: &Memory<TestPlatform>, cache: &KmemCache) -> NonNull<u8> {
    cache.alloc(memory, Gfp::KERNEL).expect("memory suffices")
}

fn free(memory: &Memory<TestPlatform>, cache: &KmemCache, object: NonNull<u8>) {
    // SAFETY: the bench does not use the object any more.
    unsafe { cache.free(memory, object) }.expect("an object in use");
}

const KINDS: [(&str, bool); 2] = [("shared", false), ("per_cpu", true)];

/// One object at a time, and many at once, on one CPU.
fn one_cpu(c: &mut Criterion) {
    let memory = memory(16_384);
    let mut group = c.benchmark_group("slab");
    for size in [64, 576] {
        for (name, per_cpu) in KINDS {
            let cache = cache(&memory, size, per_cpu);
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::new(format!("pair_{name}"), size), |b| {
                b.iter(|| free(&memory, &cache, black_box(alloc(&memory, &cache))));
            });
            group.throughput(Throughput::Elements(BURST as u64));
            group.bench_function(BenchmarkId::new(format!("burst_{name}"), size), |b| {
                let mut live = Vec::with_capacity(BURST);
                b.iter(|| {
                    live.extend((0..BURST).map(|_| alloc(&memory, &cache)));
                    live.drain(..).for_each(|object| free(&memory, &cache, object));
                });
            });
        }
    }
    group.finish();
}

/// Two CPUs at once: time of one of them for bursts of 16.
fn two_cpus(c: &mut Criterion) {
    let memory = memory(16_384);
    let mut group = c.benchmark_group("slab_two_cpus");
    group.throughput(Throughput::Elements(16));
    for (name, per_cpu) in KINDS {
        let cache = cache(&memory, 64, per_cpu);
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                std::thread::scope(|scope| {
                    let cpus = [0, 1].map(|cpu| {
                        let (memory, cache) = (&memory, &cache);
                        scope.spawn(move || {
                            set_cpu(cpu);
                            let start = Instant::now();
                            for _ in 0..rounds {
                                let live: [_; 16] = std::array::from_fn(|_| alloc(memory, cache));
                                live.into_iter().for_each(|object| free(memory, cache, object));
                            }
                            start.elapsed()
                        })
                    });
                    let times = cpus.map(|cpu| cpu.join().expect("no panic"));
                    times.into_iter().max().unwrap_or(Duration::ZERO)
                })
            });
        });
    }
    group.finish();
}

unsafe fn nothing(_: &(), head: NonNull<RcuHead>) {
    black_box(head);
}

fn rcu(c: &mut Criterion) {
    let memory = memory(1024);
    let (platform, rcu, callbacks) = (memory.platform(), Rcu::new(), Callbacks::<()>::new());
    let mut group = c.benchmark_group("rcu");
    group.bench_function("read_section", |b| b.iter(|| drop(black_box(rcu.read(0)))));
    group.bench_function("synchronize_without_readers", |b| b.iter(|| rcu.synchronize(platform)));
    const CALLS: usize = 64;
    let heads: Vec<RcuHead> = (0..CALLS).map(|_| RcuHead::new()).collect();
    group.throughput(Throughput::Elements(CALLS as u64));
    group.bench_function("call_rcu_and_process", |b| {
        b.iter(|| {
            for head in &heads {
                // SAFETY: the heads outlive the queue, which is empty again below.
                unsafe { callbacks.call(&rcu, platform, NonNull::from(head), 64, nothing) };
            }
            assert_eq!(callbacks.process(&rcu, platform, &()), CALLS);
        });
    });
    let options = SlabOptions { rcu_head: Some(0), per_cpu: true, ..SlabOptions::default() };
    let cache = KmemCache::new(&memory, "deferred", 64, options).expect("a size that fits");
    group.throughput(Throughput::Elements(1));
    group.bench_function("alloc_and_free_rcu", |b| {
        b.iter(|| {
            let object = alloc(&memory, &cache);
            // SAFETY: ours, and larger than a head.
            unsafe { object.cast::<RcuHead>().write(RcuHead::new()) };
            // SAFETY: in no queue, and nobody reads it.
            unsafe { cache.free_rcu(&memory, &rcu, object) }.expect("an object in use");
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1000));
    targets = one_cpu, two_cpus, rcu
}
criterion_main!(benches);
