//! Frames, slab objects and grace periods: the time of one operation.

use core::ptr::NonNull;

use super::{Bench, Spread};
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::mm::Base;
use crate::platform::Platform;
use crate::rcu::RcuHead;
use crate::scenario::{Failure, OrFail, Outcome};
use crate::slab::{KmemCache, SlabOptions};

/// Frames of a GiB.
const GIB_FRAMES: u64 = 1 << 18;
/// Objects that are live at once in the bursts.
const BURST: usize = 128;

/// Times the buddy allocator by order, slabs with and without per-CPU caches,
/// and what grace periods offer.
///
/// # Errors
/// There is no memory.
pub fn run<P: Platform>(base: &Base<P>, bench: &mut Bench<'_>) -> Outcome {
    let memory = &base.memory;
    let frames = memory.managed_pages().get().max(1);
    let init = memory.init_ns().saturating_mul(1000).saturating_mul(GIB_FRAMES) / frames;
    bench.print("memory init", format_args!("at boot"), "ns/GiB", Spread::exactly(init));
    for order in Order::all() {
        bench.figure("buddy pair", format_args!("order {order}"), || {
            let frames = memory.alloc_frozen(order, Gfp::USER).or_fail()?;
            memory.free_frozen(frames);
            Ok::<_, Failure>(())
        })?;
    }
    for (name, per_cpu) in [("shared", false), ("per CPU", true)] {
        for bytes in [64, 576] {
            slab(base, bench, name, bytes, SlabOptions { per_cpu, ..SlabOptions::default() })?;
        }
    }
    rcu(base, bench)
}

fn slab<P: Platform>(
    base: &Base<P>,
    bench: &mut Bench<'_>,
    name: &str,
    bytes: usize,
    options: SlabOptions,
) -> Outcome {
    let memory = &base.memory;
    let cache = KmemCache::new(memory, "bench", bytes, options).or_fail()?;
    let alloc = || cache.alloc(memory, Gfp::KERNEL).or_fail();
    // SAFETY: nobody uses what the bench allocates.
    let free = |object: NonNull<u8>| unsafe { cache.free(memory, object) }.or_fail();
    let one = bench.figure("slab pair", format_args!("{bytes} B, {name}"), || free(alloc()?));
    let many = bench.rounds(|bench| {
        let mut live = [NonNull::dangling(); BURST];
        let ns = bench.elapsed(|| {
            for object in &mut live {
                *object = alloc()?;
            }
            live.iter().try_for_each(|&object| free(object))
        })?;
        Ok::<_, Failure>((ns, BURST as u64))
    });
    cache.shrink(memory);
    bench.print("slab burst", format_args!("{bytes} B, {name}"), "ns", many?);
    one
}

/// A callback that does nothing with its head.
unsafe fn nothing<P>(_: &Base<P>, head: NonNull<RcuHead>) {
    core::hint::black_box(head);
}

fn rcu<P: Platform>(base: &Base<P>, bench: &mut Bench<'_>) -> Outcome {
    let platform = base.platform();
    bench.figure("rcu read section", format_args!(""), || {
        drop(core::hint::black_box(base.rcu.read(platform.cpu())));
        Ok::<_, Failure>(())
    })?;
    bench.figure("rcu synchronize", format_args!("no readers"), || {
        base.rcu.synchronize(platform);
        Ok::<_, Failure>(())
    })?;
    base.rcu_barrier();
    let heads: [RcuHead; 32] = core::array::from_fn(|_| RcuHead::new());
    let calls = bench.rounds(|bench| {
        let ns = bench.elapsed(|| {
            for head in &heads {
                // SAFETY: the heads live until the barrier has returned, and are queued once.
                unsafe { base.call_rcu(NonNull::from(head), size_of::<RcuHead>(), nothing) };
            }
            base.rcu_barrier();
            Ok::<_, Failure>(())
        })?;
        Ok::<_, Failure>((ns, heads.len() as u64))
    })?;
    bench.print("rcu callback", format_args!("queued and run, of 32"), "ns", calls);
    let stats = base.rcu.stats();
    for (case, ns) in [("p50", stats.normal.p50_ns), ("p99", stats.normal.p99_ns)] {
        let value = Spread::exactly(ns.saturating_mul(1000));
        bench.print("rcu grace period", format_args!("{case} since boot"), "ns", value);
    }
    let peak = Spread::exactly(stats.peak_deferred_bytes.saturating_mul(1000));
    bench.print("rcu deferred", format_args!("peak since boot"), "B", peak);
    Ok(())
}
