//! Address spaces on the host: looking a VMA up, mapping and unmapping, permissions, fork.
//!
//! `cargo bench -p guest-mm --features testing --bench space`. The tables are
//! those of the simulated machine, whose TLB flushes cost little: calls are
//! measured without what they cost a real CPU.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on is wrong")]
#![allow(missing_docs, reason = "criterion's macros make the entry points")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use abi::PAGE_SIZE;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use guest_mm::addr::VirtAddr;
use guest_mm::fault::FaultAccess;
use guest_mm::mm::{Base, Mm};
use guest_mm::pgtable::PageProt;
use guest_mm::space::{AddressSpace, Advice, MmapArgs};
use guest_mm::testing::{self, TestPlatform};

/// 256 MiB.
const PAGES: u64 = 1 << 16;
const START: u64 = 0x10_0000_0000;

fn va(address: u64) -> VirtAddr {
    VirtAddr::new(address).unwrap()
}

/// `count` VMAs of one page, with holes between.
fn scattered<'m>(mm: &Mm<'m, TestPlatform>, space: &AddressSpace<'m, TestPlatform>, count: u64) {
    for i in 0..count {
        let args = MmapArgs::anonymous(PAGE_SIZE).fixed(START + 2 * i * PAGE_SIZE);
        mm.mmap(space, args).unwrap();
    }
}

fn lookups(criterion: &mut Criterion) {
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let mm = Mm::new(&base);
    let mut group = criterion.benchmark_group("lookup");
    for count in [1u64, 100, 10_000] {
        let space = mm.new_space().unwrap();
        scattered(&mm, &space, count);
        // An odd multiplier visits all of them, in no order that caches like.
        let mut next = 0u64;
        let mut address = || {
            next = next.wrapping_add(0x9e37_79b9_7f4a_7c15);
            START + 2 * (next % count) * PAGE_SIZE + 8
        };
        group.bench_function(BenchmarkId::new("vma_lock", count), |b| {
            b.iter(|| black_box(space.vma_read(va(address())).unwrap().pgoff()));
        });
        group.bench_function(BenchmarkId::new("space_lock", count), |b| {
            b.iter(|| black_box(space.read().lookup(va(address())).unwrap().pgoff()));
        });
        let map: BTreeMap<u64, u64> =
            (0..count).map(|i| (START + (2 * i + 1) * PAGE_SIZE, i)).collect();
        group.bench_function(BenchmarkId::new("btree_map", count), |b| {
            b.iter(|| black_box(map.range(address() + 1..).next().unwrap().1));
        });
        mm.exit_space(space);
    }
    group.finish();
}

fn calls(criterion: &mut Criterion) {
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let mm = Mm::new(&base);
    let mut group = criterion.benchmark_group("call");
    for count in [1u64, 100, 10_000] {
        let space = mm.new_space().unwrap();
        scattered(&mm, &space, count);
        let args = MmapArgs::anonymous(16 * PAGE_SIZE).fixed(START - (1 << 30));
        group.bench_function(BenchmarkId::new("mmap_munmap_fixed", count), |b| {
            b.iter(|| {
                let at = mm.mmap(&space, args).unwrap();
                mm.munmap(&space, at.get(), 16 * PAGE_SIZE).unwrap();
            });
        });
        // Two pages fit into none of the holes, so the search has to pass them all, once.
        group.bench_function(BenchmarkId::new("mmap_munmap_anywhere", count), |b| {
            b.iter(|| {
                let at = mm.mmap(&space, MmapArgs::anonymous(2 * PAGE_SIZE)).unwrap();
                mm.munmap(&space, at.get(), 2 * PAGE_SIZE).unwrap();
            });
        });
        mm.exit_space(space);
    }
    group.finish();
}

fn pages(criterion: &mut Criterion) {
    let base = Base::new(testing::memory(PAGES)).unwrap();
    let mm = Mm::new(&base);
    let mut group = criterion.benchmark_group("pages");
    for count in [1u64, 512, 4096] {
        let space = mm.new_space().unwrap();
        let bytes = count * PAGE_SIZE;
        mm.mmap(&space, MmapArgs::anonymous(bytes).fixed(START)).unwrap();
        mm.madvise(&space, START, bytes, Advice::NoHugePage).unwrap();
        for page in 0..count {
            let address = va(START + page * PAGE_SIZE);
            mm.handle_fault(&space, address, FaultAccess::Write).unwrap();
        }
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("mprotect_twice", count), |b| {
            b.iter(|| {
                mm.mprotect(&space, START, bytes, PageProt::READ).unwrap();
                let all = PageProt::READ | PageProt::WRITE;
                mm.mprotect(&space, START, bytes, all).unwrap();
            });
        });
        group.bench_function(BenchmarkId::new("fork_exit", count), |b| {
            b.iter(|| {
                let child = mm.fork(&space).unwrap();
                mm.exit_space(child);
            });
        });
        mm.exit_space(space);
    }
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = config(); targets = lookups, calls, pages }
criterion_main!(benches);
