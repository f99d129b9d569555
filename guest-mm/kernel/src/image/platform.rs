//! The machine as the memory manager sees it.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{Pfn, PfnRange};
use guest_mm::platform::{CpuSet, MapError, Platform, TlbFlush, WaitKey};

use super::{irq, paging, smp, time};

/// One past the last mapped frame.
static FRAME_LIMIT: AtomicU64 = AtomicU64::new(0);

/// This virtual machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    spare: Option<PfnRange>,
}

impl Machine {
    /// The machine, once the direct map covers RAM up to `limit`.
    pub(super) fn new(limit: Pfn, spare: Option<PfnRange>) -> Self {
        FRAME_LIMIT.store(limit.number(), Ordering::Relaxed);
        Self { spare }
    }

    /// RAM that the boot map does not name to the memory manager.
    pub(super) fn spare_ram(&self) -> Option<PfnRange> {
        self.spare
    }
}

// SAFETY: `frame_ptr` answers with the direct map, which maps every frame of RAM: of the boot map for good, of a block as
// long as it is mapped. A frame in a hole of the map faults, which is a panic, as promised.
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

    fn wait_until(&self, key: WaitKey, is_over: &dyn Fn() -> bool) {
        smp::wait_until(key, is_over);
    }

    fn wake(&self, first: WaitKey, count: u64) {
        smp::wake(first, count);
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

    fn map_block(&self, block: PfnRange, table: Pfn) -> Result<(), MapError> {
        paging::map_block(block, table)?;
        FRAME_LIMIT.fetch_max(block.end().number(), Ordering::Relaxed);
        Ok(())
    }

    unsafe fn unmap_block(&self, block: PfnRange, table: Pfn, heir: Option<Pfn>) {
        paging::unmap_block(block, table, heir);
        // The direct map is in every root, so every CPU may have translations of it.
        smp::flush_tlb(smp::online(), TlbFlush::All);
    }

    fn flush_tlb(&self, _root: Pfn, cpus: CpuSet, what: TlbFlush) {
        smp::flush_tlb(cpus, what);
    }
}
