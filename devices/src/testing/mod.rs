//! The other sides of a device, for tests: a driver's ring, RAM and a line that counts.
//!
//! Panics on misuse by a test; never part of a VMM.

mod balloon;
mod block;
mod driver;
mod mem;
mod toy;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::{PageCount, PfnRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use balloon::{BalloonMachine, FIRST_FREE_PFN};
pub use block::{BlockAnswer, BlockMachine, DiskFault, MemoryDisk};
pub use driver::{DriverQueue, DriverRegisters, UsedElement};
pub use mem::{HotplugRam, MemMachine, TestBlocks, request_bytes};
pub use toy::ToyDevice;

use crate::interrupt::IrqLine;
use crate::ram::{DiscardError, Discarded, GuestRam};
use crate::virtio::Interrupt;

/// An interrupt line that counts its edges.
#[derive(Debug, Default)]
pub struct CountingIrq(AtomicU64);

impl CountingIrq {
    /// Edges so far.
    pub fn edges(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl IrqLine for CountingIrq {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An [`Interrupt`] that counts each kind of call.
#[derive(Debug, Default)]
pub struct CountingInterrupt {
    used: AtomicU64,
    config: AtomicU64,
    reset: AtomicU64,
}

impl CountingInterrupt {
    /// Calls of [`Interrupt::used`] so far.
    pub fn used_calls(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Calls of [`Interrupt::config_changed`] so far.
    pub fn config_calls(&self) -> u64 {
        self.config.load(Ordering::Relaxed)
    }

    /// Calls of [`Interrupt::needs_reset`] so far.
    pub fn reset_calls(&self) -> u64 {
        self.reset.load(Ordering::Relaxed)
    }
}

impl Interrupt for CountingInterrupt {
    fn used(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }

    fn needs_reset(&self) {
        self.reset.fetch_add(1, Ordering::Relaxed);
    }
}

/// Heap RAM; discarded ranges are zeroed and remembered.
pub struct TestRam {
    memory: GuestMemoryMmap,
    ranges: Vec<PfnRange>,
    discards: Mutex<Vec<PfnRange>>,
}

impl TestRam {
    /// RAM of the given `(gpa, bytes)` regions, sorted and page-aligned.
    ///
    /// # Panics
    /// If they are not.
    pub fn new(regions: &[(u64, usize)]) -> Self {
        let at = |&(gpa, bytes): &(u64, usize)| (GuestAddress(gpa), bytes);
        let memory = GuestMemoryMmap::from_ranges(&regions.iter().map(at).collect::<Vec<_>>())
            .expect("valid regions");
        let range = |&(gpa, bytes): &(u64, usize)| {
            let start = abi::Pfn::from_aligned(gpa)?;
            PfnRange::from_start(start, PageCount::from_bytes_exact(bytes.try_into().ok()?)?)
        };
        let ranges = regions.iter().map(|r| range(r).expect("page-aligned regions")).collect();
        Self { memory, ranges, discards: Mutex::default() }
    }

    /// Every range given back so far, in order.
    pub fn discards(&self) -> Vec<PfnRange> {
        self.discards.lock().expect("not poisoned").clone()
    }
}

impl GuestRam for TestRam {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn ram_ranges(&self) -> &[PfnRange] {
        &self.ranges
    }

    fn discard(&self, ranges: &[PfnRange]) -> Result<Discarded, DiscardError> {
        let mut done = Discarded::default();
        for &range in ranges {
            let bytes = usize::try_from(range.len().bytes()).expect("fits an address space");
            self.memory
                .write_slice(&vec![0; bytes], GuestAddress(range.start().gpa()))
                .expect("a device discards RAM only");
            done.pages = done.pages.saturating_add(range.len());
            done.calls += 1;
            self.discards.lock().expect("not poisoned").push(range);
        }
        Ok(done)
    }
}
