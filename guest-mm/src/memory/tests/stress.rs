//! Threads as CPUs.

use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::assert_consistent;
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Order};
use crate::memory::{FrozenFrames, Memory};
use crate::testing::{TestPlatform, memory, set_cpu};

const ROUNDS: usize = 3000;

/// Writes the thread's mark into each page of a block.
fn mark(memory: &Memory<TestPlatform>, frames: &mut FrozenFrames, value: u8) {
    memory.bytes_mut(frames).chunks_mut(4096).for_each(|page| page[0] = value);
}

fn is_marked(memory: &Memory<TestPlatform>, frames: &FrozenFrames, value: u8) -> bool {
    memory.bytes(frames).chunks(4096).all(|page| page[0] == value)
}

fn churn(memory: &Memory<TestPlatform>, cpu: u8) {
    set_cpu(usize::from(cpu));
    let mut rng = StdRng::seed_from_u64(u64::from(cpu));
    let mut held: Vec<FrozenFrames> = Vec::new();
    for _ in 0..ROUNDS {
        if held.len() < 24 && rng.random_bool(0.6) {
            let order = Order::new(*[0, 0, 0, 1, 2, 3, 5, 9].get(rng.random_range(0..8)).unwrap());
            let gfp = if rng.random_bool(0.5) { Gfp::USER } else { Gfp::KERNEL };
            if let Ok(mut frames) = memory.alloc_frozen(order.unwrap(), gfp) {
                mark(memory, &mut frames, cpu + 1);
                held.push(frames);
            }
        } else if !held.is_empty() {
            let frames = held.swap_remove(rng.random_range(0..held.len()));
            assert!(is_marked(memory, &frames, cpu + 1), "{frames:?} has two owners");
            memory.free_frozen(frames);
        }
    }
    held.into_iter().for_each(|frames| memory.free_frozen(frames));
}

#[test]
fn four_cpus_never_share_a_block() {
    let memory = memory(16_384);
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let memory = &memory;
            scope.spawn(move || churn(memory, cpu));
        }
    });
    assert_consistent(&memory);
    assert_eq!(memory.free_pages(), memory.managed_pages());
    assert_eq!(memory.counters().refused_frees, 0);
}

#[test]
fn owner_and_migration_never_both_get_a_block() {
    let memory = memory(2048);
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::BALLOON).unwrap();
    let block = memory.make_offline(frames, DriverId::BALLOON).unwrap();
    let pfn = memory.park(block).unwrap();
    memory.set_movable(pfn, DriverId::BALLOON).unwrap();
    let inside = AtomicU64::new(0);
    let wins = AtomicU64::new(0);
    let enter = || assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two owners");
    let leave = || assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let (memory, wins) = (&memory, &wins);
            scope.spawn(move || {
                set_cpu(cpu);
                for _ in 0..2000 {
                    if let Ok(isolated) = memory.isolate(pfn, DriverId::BALLOON) {
                        enter();
                        wins.fetch_add(1, Ordering::Relaxed);
                        leave();
                        memory.putback(isolated).unwrap();
                    }
                    std::thread::yield_now();
                }
            });
        }
        set_cpu(2);
        for _ in 0..2000 {
            if let Ok(block) = memory.claim_offline(pfn, DriverId::BALLOON) {
                enter();
                wins.fetch_add(1, Ordering::Relaxed);
                leave();
                let pfn = memory.park(block).unwrap();
                memory.set_movable(pfn, DriverId::BALLOON).unwrap();
            }
            std::thread::yield_now();
        }
    });
    assert!(wins.load(Ordering::Relaxed) > 0);
    assert_consistent(&memory);
}
