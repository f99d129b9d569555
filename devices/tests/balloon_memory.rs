//! What the device keeps: nothing that grows with use. A test binary of its own, for its allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::balloon::BalloonOptions;
use devices::testing::{BalloonMachine, FIRST_FREE_PFN};
use guest_ram::{BackingKind, HostRam, Prefault};

/// Counts live bytes.
struct CountingAllocator;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to `System` unchanged; the counter touches no memory of it.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is that of `System`.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn fifty_cycles_leave_the_device_as_large_as_two_did() {
    let ram =
        Arc::new(HostRam::new(64 << 20, BackingKind::Anon, Prefault::OnDemand).expect("64 MiB"));
    let mut machine = BalloonMachine::new(ram, BalloonOptions::default());
    // Every second page: the largest number of runs.
    let frames: Vec<u32> = (FIRST_FREE_PFN..16_384).step_by(2).collect();
    let mut cycle = || {
        machine.inflate(&frames);
        machine.deflate(&frames);
        LIVE_BYTES.load(Ordering::Relaxed)
    };
    cycle();
    let after_two = cycle();
    let after_fifty = (2..50).map(|_| cycle()).last().expect("48 cycles");
    assert_eq!(after_fifty, after_two);
}
