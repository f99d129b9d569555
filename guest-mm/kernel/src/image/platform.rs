//! The machine as the memory manager sees it.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::Pfn;
use guest_mm::platform::{CpuSet, Platform, TlbFlush};

use super::{irq, paging, smp, time};

/// One past the last mapped frame.
static FRAME_LIMIT: AtomicU64 = AtomicU64::new(0);

/// This virtual machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine;

impl Machine {
    /// The machine, once the direct map covers RAM up to `limit`.
    pub(super) fn new(limit: Pfn) -> Self {
        FRAME_LIMIT.store(limit.number(), Ordering::Relaxed);
        Self
    }
}

// SAFETY: `frame_ptr` answers with the direct map, which maps every frame of RAM for good; a frame in a hole of the map
// faults, which is a panic, as promised.
unsafe impl Platform for Machine {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        assert!(pfn.number() < FRAME_LIMIT.load(Ordering::Relaxed), "{pfn} is no frame of RAM");
        // SAFETY: the direct map lies in the upper half: no address in it is null.
        unsafe { NonNull::new_unchecked(paging::direct(pfn.gpa())) }
    }

    fn frame_of(&self, address: usize) -> Option<Pfn> {
        let offset = address.checked_sub(paging::direct(0).addr())?;
        let pfn = Pfn::containing(u64::try_from(offset).ok()?);
        (pfn.number() < FRAME_LIMIT.load(Ordering::Relaxed)).then_some(pfn)
    }

    fn cpu(&self) -> usize {
        irq::cpu()
    }

    fn irq_save(&self) -> bool {
        irq::mask()
    }

    fn irq_restore(&self, was_masked: bool) {
        irq::restore(was_masked);
    }

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn relax(&self) {
        smp::relax();
    }

    fn kick(&self, cpus: CpuSet) {
        cpus.iter().for_each(smp::kick);
    }

    fn init_root(&self, table: NonNull<u64>) {
        paging::copy_kernel_half(table.as_ptr());
    }

    fn load_root(&self, root: Option<Pfn>) {
        smp::load_root(root);
    }

    fn flush_tlb(&self, _root: Pfn, cpus: CpuSet, what: TlbFlush) {
        smp::flush_tlb(cpus, what);
    }
}
