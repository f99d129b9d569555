//! Sections in which nothing may be allocated.

use core::sync::atomic::Ordering;

use super::Memory;
use crate::platform::Platform;

impl<P: Platform> Memory<P> {
    /// Begins a section in which this CPU allocates nothing: what runs when
    /// memory is out. Interrupts are masked in it, so that it is this flow of
    /// control's alone. Debug builds panic at an allocation.
    pub fn no_alloc(&self) -> NoAlloc<'_, P> {
        let was_masked = self.platform.irq_save();
        let cpu = self.platform.cpu();
        self.no_alloc[cpu].fetch_add(1, Ordering::Relaxed);
        NoAlloc { memory: self, cpu, was_masked }
    }

    /// Panics in debug builds if this CPU may not allocate.
    pub(super) fn assert_may_allocate(&self) {
        // Only this CPU changes its count, and leaves it at 0 whenever it can be interrupted.
        debug_assert!(
            self.no_alloc[self.platform.cpu()].load(Ordering::Relaxed) == 0,
            "allocation in a section that promises none"
        );
    }
}

/// Holding one promises that this CPU allocates nothing.
#[must_use = "the section ends when this is dropped"]
#[derive(Debug)]
pub struct NoAlloc<'a, P: Platform> {
    memory: &'a Memory<P>,
    cpu: usize,
    was_masked: bool,
}

impl<P: Platform> Drop for NoAlloc<'_, P> {
    fn drop(&mut self) {
        self.memory.no_alloc[self.cpu].fetch_sub(1, Ordering::Relaxed);
        self.memory.platform.irq_restore(self.was_masked);
    }
}

#[cfg(all(test, debug_assertions, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use crate::buddy::Gfp;
    use crate::memdesc::Order;
    use crate::testing;

    #[test]
    fn an_allocation_in_a_section_without_any_panics_and_after_it_succeeds() {
        let memory = testing::memory(64);
        let tried = catch_unwind(AssertUnwindSafe(|| {
            let _none = memory.no_alloc();
            drop(memory.alloc_frozen(Order::ZERO, Gfp::KERNEL));
        }));
        assert!(tried.is_err());
        let frames = memory.alloc_frozen(Order::ZERO, Gfp::KERNEL).unwrap();
        memory.free_frozen(frames);
    }
}
