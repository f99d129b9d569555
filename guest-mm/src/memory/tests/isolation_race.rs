//! A free that meets the isolation of its pageblock half-way.

use std::ptr::NonNull;
use std::sync::{Arc, Barrier};

use abi::Pfn;

use crate::buddy::Gfp;
use crate::memdesc::{Kind, Order};
use crate::memory::{FrozenFrames, Memory, Pass};
use crate::platform::{FaultSite, Platform};
use crate::sync::HeldLocks;
use crate::testing::{TestPlatform, range, set_cpu};

std::thread_local! {
    /// Meetings at which this thread waits before it takes its next lock.
    static STOP: std::cell::RefCell<Option<[Arc<Barrier>; 2]>> = const { std::cell::RefCell::new(None) };
}

/// A machine on which a thread can be held up just before it takes a lock.
struct Stopping(TestPlatform);

// SAFETY: forwards to a platform that keeps the promises.
unsafe impl Platform for Stopping {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        self.0.frame_ptr(pfn)
    }

    fn frame_of(&self, address: usize) -> Option<Pfn> {
        self.0.frame_of(address)
    }

    fn cpu(&self) -> usize {
        self.0.cpu()
    }

    fn irq_save(&self) -> bool {
        if let Some([reached, go_on]) = STOP.take() {
            reached.wait();
            go_on.wait();
        }
        self.0.irq_save()
    }

    fn irq_restore(&self, was_masked: bool) {
        self.0.irq_restore(was_masked);
    }

    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }

    fn relax(&self) {
        self.0.relax();
    }

    fn held_locks(&self) -> Option<&HeldLocks> {
        self.0.held_locks()
    }

    fn inject_fault(&self, site: FaultSite) -> bool {
        self.0.inject_fault(site)
    }
}

/// Frees `frames` on CPU 1, which stands still before its first lock while `meanwhile` runs.
fn free_around(memory: &Memory<Stopping>, frames: FrozenFrames, meanwhile: impl FnOnce()) {
    let stops = [(); 2].map(|()| Arc::new(Barrier::new(2)));
    let there = stops.clone();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            set_cpu(1);
            STOP.set(Some(there));
            memory.free_frozen(frames);
        });
        stops[0].wait();
        meanwhile();
        stops[1].wait();
    });
}

/// The free read the pageblock's type before it took its list's lock. An isolation
/// in between set the type and emptied the list, and then the block was put on it
/// all the same: free memory that is set aside, handed out by the next allocation.
#[test]
fn a_block_freed_while_its_pageblock_is_isolated_is_not_handed_out() {
    set_cpu(0);
    let ram = [range(0, 2048)];
    let memory = Memory::new(Stopping(TestPlatform::new(&ram, 0)), &ram, &[]).unwrap();
    let frames = memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    memory.drain();
    let wanted = frames.range();
    let mut isolated = None;
    free_around(&memory, frames, || isolated = Some(memory.isolate_range(wanted).unwrap()));
    assert_eq!(memory.census().pages(Kind::Pcp).get(), 0, "a list has a block that is set aside");
    let isolated = isolated.unwrap();
    let taken = memory.take_isolated(&isolated, wanted, Pass::Nothing).unwrap();
    memory.unisolate_range(isolated);
    memory.free_contig(taken);
    assert!(memory.census().is_consistent());
}
