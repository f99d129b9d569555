//! A host-side machine for tests: RAM on the heap, virtual time, seeded faults.
//!
//! Behind the feature `testing`, which needs std. Other packages enable it in
//! their dev-dependencies.

pub mod balloon;
mod faults;
pub mod mmu;
mod spare;
mod waits;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::sync::Arc;
use std::vec::Vec;

use abi::{PAGE_SIZE, PageCount, Pfn, PfnRange};

pub use faults::FaultPlan;
use mmu::Mmu;
use spare::Spare;
pub use waits::Waits;

use crate::memory::Memory;
use crate::platform::{CpuSet, FaultSite, MAX_CPUS, MapError, Platform, TlbFlush, WaitKey};
use crate::sync::HeldLocks;

std::thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static MASKED: Cell<bool> = const { Cell::new(false) };
}

/// A machine in this process. Each thread is a CPU: number 0 unless it says
/// otherwise by [`set_cpu`].
#[derive(Debug)]
pub struct TestPlatform {
    arenas: Vec<Arena>,
    spare: Option<Spare>,
    clock_ns: AtomicU64,
    faults: FaultPlan,
    locks: HeldLocks,
    mmu: Mmu,
    waits: Waits,
}

/// Makes the calling thread CPU `cpu` of every [`TestPlatform`].
///
/// # Panics
/// If there is no such CPU.
pub fn set_cpu(cpu: usize) {
    assert!(cpu < MAX_CPUS, "CPU {cpu}");
    CPU.set(cpu);
}

/// The range of `pages` frames from frame number `start`.
///
/// # Panics
/// If it ends beyond the last frame.
pub fn range(start: u64, pages: u64) -> PfnRange {
    Pfn::new(start)
        .and_then(|start| PfnRange::from_start(start, PageCount::new(pages)))
        .unwrap_or_else(|| panic!("range {start}+{pages}"))
}

/// A memory of `pages` frames from frame 0 on a machine of its own, without faults.
///
/// # Panics
/// If the memory cannot be set up.
pub fn memory(pages: u64) -> Memory<TestPlatform> {
    memory_of(&[range(0, pages)], &[])
}

/// A memory of these ranges on a machine of its own, without faults.
///
/// # Panics
/// If the memory cannot be set up.
pub fn memory_of(ram: &[PfnRange], reserved: &[PfnRange]) -> Memory<TestPlatform> {
    let platform = TestPlatform::new(ram, 0);
    Memory::new(platform, ram, reserved).unwrap_or_else(|error| panic!("{error}"))
}

impl TestPlatform {
    /// A machine with these ranges of RAM, zeroed and taken from the host only
    /// as they are touched. `seed` replays its random faults.
    ///
    /// # Panics
    /// If the host has no memory.
    pub fn new(ram: &[PfnRange], seed: u64) -> Self {
        Self {
            arenas: ram.iter().filter(|r| !r.is_empty()).map(|&range| Arena::new(range)).collect(),
            spare: None,
            clock_ns: AtomicU64::new(0),
            faults: FaultPlan::new(seed),
            locks: HeldLocks::new(),
            mmu: Mmu::new(seed),
            waits: Waits::default(),
        }
    }

    /// The machine with RAM at `range` too that no boot map names, to be added later. Taken from the host only
    /// as it is touched.
    ///
    /// # Panics
    /// If it overlaps what the machine has.
    #[must_use]
    pub fn with_spare(mut self, range: PfnRange) -> Self {
        let overlaps = self.arenas.iter().any(|arena| arena.range.intersection(range).is_some());
        assert!(!overlaps, "{range:?} is RAM already");
        self.spare = Some(Spare::new(range));
        self
    }

    /// RAM that no boot map names.
    pub fn spare(&self) -> Option<PfnRange> {
        self.spare.as_ref().map(|spare| spare.arena.range)
    }

    /// Where the host has frame `pfn` of the spare RAM, mapped or not.
    ///
    /// # Panics
    /// If it is none.
    pub fn spare_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        let spare = self.spare.as_ref().filter(|spare| spare.arena.range.contains(pfn));
        spare.unwrap_or_else(|| panic!("{pfn:?} is no spare RAM")).arena.at(pfn)
    }

    /// The faults, to be switched on.
    pub const fn faults(&self) -> &FaultPlan {
        &self.faults
    }

    /// The MMUs of its CPUs.
    pub const fn mmu(&self) -> &Mmu {
        &self.mmu
    }

    /// Who sleeps.
    pub const fn waits(&self) -> &Waits {
        &self.waits
    }

    /// Lets virtual time pass.
    pub fn advance_ns(&self, ns: u64) {
        self.clock_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Whether the calling thread has masked interrupts.
    pub fn is_masked() -> bool {
        MASKED.get()
    }
}

// SAFETY: each arena is a live allocation from `new` to `drop`, contiguous,
// page-aligned, and handed out as raw pointers only.
unsafe impl Platform for TestPlatform {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        if let Some(arena) = self.arenas.iter().find(|arena| arena.range.contains(pfn)) {
            return arena.at(pfn);
        }
        let spare = self.spare.as_ref().filter(|spare| spare.is_mapped(pfn));
        spare.unwrap_or_else(|| panic!("{pfn:?} is not RAM")).arena.at(pfn)
    }

    fn frame_of(&self, address: usize) -> Option<Pfn> {
        let spare = self.spare.iter().map(|spare| &spare.arena);
        self.arenas.iter().chain(spare).find_map(|arena| {
            let offset = address.checked_sub(arena.start.addr().get())? as u64 / PAGE_SIZE;
            let pfn = arena.range.start().checked_add(PageCount::new(offset))?;
            arena.range.contains(pfn).then_some(pfn)
        })
    }

    fn cpu(&self) -> usize {
        CPU.get()
    }

    fn irq_save(&self) -> bool {
        MASKED.replace(true)
    }

    fn irq_restore(&self, was_masked: bool) {
        MASKED.set(was_masked);
    }

    fn now_ns(&self) -> u64 {
        self.clock_ns.load(Ordering::Relaxed)
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn wait_until(&self, key: WaitKey, is_over: &dyn Fn() -> bool) {
        self.waits.wait_until(key, is_over);
    }

    fn wake(&self, first: WaitKey, count: u64) {
        self.waits.wake(first, count);
    }

    fn load_root(&self, _root: Option<Pfn>) {
        // Accesses name the root themselves: several threads may be one CPU.
        self.mmu.load_root(self.cpu());
    }

    fn flush_tlb(&self, root: Pfn, cpus: CpuSet, what: TlbFlush) {
        self.mmu.flush(root, cpus, what);
    }

    fn map_block(&self, block: PfnRange, table: Pfn) -> Result<(), MapError> {
        self.spare.as_ref().ok_or(MapError::Unsupported)?.map_block(block, table)
    }

    unsafe fn unmap_block(&self, block: PfnRange, table: Pfn, heir: Option<Pfn>) {
        let spare = self.spare.as_ref().unwrap_or_else(|| panic!("{block:?} was never mapped"));
        spare.unmap_block(block, table, heir);
    }

    fn held_locks(&self) -> Option<&HeldLocks> {
        Some(&self.locks)
    }

    fn inject_fault(&self, site: FaultSite) -> bool {
        self.faults.strikes(site)
    }
}

/// The RAM of one range.
#[derive(Debug)]
struct Arena {
    range: PfnRange,
    allocation: NonNull<u8>,
    layout: Layout,
    /// First page boundary in the allocation.
    start: NonNull<u8>,
}

// SAFETY: the arena owns its allocation; access goes by raw pointers whose users answer for races.
unsafe impl Send for Arena {}
// SAFETY: as for `Send`.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(range: PfnRange) -> Self {
        let page = 1usize << abi::PAGE_SHIFT;
        let bytes = usize::try_from(range.len().bytes())
            .unwrap_or_else(|_| panic!("{range:?} exceeds the address space"));
        // Small alignment and one page more: larger alignments are zeroed by hand,
        // which would touch all of it.
        let layout = Layout::from_size_align(bytes + page, 16)
            .unwrap_or_else(|error| panic!("{range:?}: {error}"));
        // SAFETY: the size is not zero.
        let allocation = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(allocation) else { handle_alloc_error(layout) };
        let padding = allocation.addr().get().wrapping_neg() & (page - 1);
        // SAFETY: less than the extra page.
        let start = unsafe { allocation.add(padding) };
        Self { range, allocation, layout, start }
    }
}

impl Arena {
    /// Where frame `pfn` of the arena lies.
    fn at(&self, pfn: Pfn) -> NonNull<u8> {
        assert!(self.range.contains(pfn), "{pfn:?} is not in {:?}", self.range);
        let offset = usize::try_from(pfn.gpa() - self.range.start().gpa());
        let offset = offset.unwrap_or_else(|_| unreachable!("an arena fits the address space"));
        // SAFETY: `pfn` lies in the arena's range, so the offset in its allocation.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `allocation` came from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

// SAFETY: forwards to a platform that keeps the promises.
unsafe impl<P: Platform + Send> Platform for Arc<P> {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        P::frame_ptr(self, pfn)
    }

    fn frame_of(&self, address: usize) -> Option<Pfn> {
        P::frame_of(self, address)
    }

    fn cpu(&self) -> usize {
        P::cpu(self)
    }

    fn irq_save(&self) -> bool {
        P::irq_save(self)
    }

    fn irq_restore(&self, was_masked: bool) {
        P::irq_restore(self, was_masked);
    }

    fn now_ns(&self) -> u64 {
        P::now_ns(self)
    }

    fn relax(&self) {
        P::relax(self);
    }

    fn wait_until(&self, key: WaitKey, is_over: &dyn Fn() -> bool) {
        P::wait_until(self, key, is_over);
    }

    fn wake(&self, first: WaitKey, count: u64) {
        P::wake(self, first, count);
    }

    fn init_root(&self, table: NonNull<u64>) {
        P::init_root(self, table);
    }

    fn load_root(&self, root: Option<Pfn>) {
        P::load_root(self, root);
    }

    fn flush_tlb(&self, root: Pfn, cpus: CpuSet, what: TlbFlush) {
        P::flush_tlb(self, root, cpus, what);
    }

    fn kick(&self, cpus: crate::platform::CpuSet) {
        P::kick(self, cpus);
    }

    fn map_block(&self, block: PfnRange, table: Pfn) -> Result<(), MapError> {
        P::map_block(self, block, table)
    }

    unsafe fn unmap_block(&self, block: PfnRange, table: Pfn, heir: Option<Pfn>) {
        // SAFETY: the caller's promise.
        unsafe { P::unmap_block(self, block, table, heir) }
    }

    fn held_locks(&self) -> Option<&HeldLocks> {
        P::held_locks(self)
    }

    fn inject_fault(&self, site: FaultSite) -> bool {
        P::inject_fault(self, site)
    }
}
