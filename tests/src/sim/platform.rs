//! RAM, clock and faults of a simulated machine.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use abi::{PageCount, Pfn, PfnRange};
use devices::clock::Clock;
use devices::ram::GuestRam;
use devices::testing::TestRam;
use guest_mm::platform::{FaultSite, MapError, Platform};
use guest_mm::sync::HeldLocks;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// What host and guest share: RAM, time, and which steps fail.
pub struct SimMachine {
    ram: Arc<TestRam>,
    /// First byte of each range of RAM in this process, that of hotplug memory last.
    mappings: Vec<(PfnRange, NonNull<u8>)>,
    /// Hotplug memory, and the blocks of it that the guest has mapped.
    hotplug: Option<(PfnRange, Mutex<Vec<PfnRange>>)>,
    now_ns: AtomicU64,
    /// Since when real time passes; virtual time if never.
    real_since: OnceLock<Instant>,
    /// One allocation, reservation or addition in so many fails; 0 = none.
    faults_one_in: AtomicU64,
    faults_struck: AtomicU64,
    faults_rng: Mutex<StdRng>,
    masked: AtomicBool,
    locks: HeldLocks,
    /// What else of the machine moves while the guest waits for something.
    waiting: RefCell<Option<Box<dyn FnMut()>>>,
}

// SAFETY: the pointers lead to mappings that `ram` keeps alive; accesses go
// through raw pointers, and a simulated machine runs in one thread, which is
// also the only one that touches `waiting`.
unsafe impl Send for SimMachine {}
// SAFETY: as for `Send`.
unsafe impl Sync for SimMachine {}

impl SimMachine {
    /// A machine with two ranges of RAM of `pages / 2` pages and a hole between them.
    ///
    /// # Panics
    /// If this process has no memory for it.
    pub fn new(pages: u64, seed: u64) -> Arc<Self> {
        Self::with_hotplug(pages, seed, None)
    }

    /// The same with memory at `hotplug`, above it, that the guest can map later: a frame of a block
    /// that it has not mapped is no RAM to it.
    ///
    /// # Panics
    /// If this process has no memory for it.
    pub fn with_hotplug(pages: u64, seed: u64, hotplug: Option<PfnRange>) -> Arc<Self> {
        let half = pages / 2 * abi::PAGE_SIZE;
        let bytes = usize::try_from(half).expect("a small machine");
        let hole = half.next_multiple_of(4 << 20) + (8 << 20);
        let mut ranges = vec![(0, bytes), (hole, bytes)];
        ranges.extend(hotplug.map(|range| {
            let bytes = usize::try_from(range.len().bytes()).expect("a small region");
            (range.start().gpa(), bytes)
        }));
        let ram = Arc::new(TestRam::new(&ranges));
        let map = |range: &PfnRange| {
            let at = GuestAddress(range.start().gpa());
            let host = ram.memory().get_host_address(at).expect("a range of RAM is mapped");
            (*range, NonNull::new(host).expect("mappings are not at 0"))
        };
        let mappings = ram.ram_ranges().iter().map(map).collect();
        Arc::new(Self {
            ram,
            mappings,
            hotplug: hotplug.map(|range| (range, Mutex::default())),
            now_ns: AtomicU64::new(0),
            real_since: OnceLock::new(),
            faults_one_in: AtomicU64::new(0),
            faults_struck: AtomicU64::new(0),
            faults_rng: Mutex::new(StdRng::seed_from_u64(seed ^ 0xfa17)),
            masked: AtomicBool::new(false),
            locks: HeldLocks::new(),
            waiting: RefCell::new(None),
        })
    }

    /// RAM as devices see it; discarding zeroes it.
    pub fn ram(&self) -> Arc<TestRam> {
        self.ram.clone()
    }

    /// The RAM that a boot map names.
    pub fn boot_ram(&self) -> Vec<PfnRange> {
        let ranges = self.mappings.iter().map(|(range, _)| *range);
        ranges.filter(|range| self.hotplug.as_ref().is_none_or(|(hot, _)| hot != range)).collect()
    }

    fn is_mapped(&self, pfn: Pfn) -> bool {
        self.hotplug.as_ref().is_none_or(|(range, mapped)| {
            !range.contains(pfn)
                || mapped.lock().expect("one thread").iter().any(|block| block.contains(pfn))
        })
    }

    /// Lets time pass.
    pub fn advance(&self, ns: u64) {
        self.now_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What moves whenever the guest waits, from now on: nothing but the guest by default.
    pub fn while_waiting(&self, moves: Option<Box<dyn FnMut()>>) {
        *self.waiting.borrow_mut() = moves;
    }

    /// Lets real time pass instead of virtual time, from now on: for measurements.
    pub fn use_real_time(&self) {
        self.real_since.get_or_init(Instant::now);
    }

    /// The machine's time.
    pub fn now(&self) -> u64 {
        match self.real_since.get() {
            None => self.now_ns.load(Ordering::Relaxed),
            Some(since) => u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Makes one step in `one_in` fail at every fault site; 0 ends it.
    pub fn fail_one_in(&self, one_in: u64) {
        self.faults_one_in.store(one_in, Ordering::Relaxed);
    }

    /// Steps that were made to fail.
    pub fn faults_struck(&self) -> u64 {
        self.faults_struck.load(Ordering::Relaxed)
    }
}

impl Clock for SimMachine {
    fn now(&self) -> Duration {
        Duration::from_nanos(SimMachine::now(self))
    }
}

/// The machine as the guest's memory manager sees it.
#[derive(Clone)]
pub struct SimPlatform(pub Arc<SimMachine>);

// SAFETY: each range of RAM is one mapping of the machine's `TestRam`, alive as
// long as the machine, page-aligned, and handed out as raw pointers only.
unsafe impl Platform for SimPlatform {
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8> {
        let found = self.0.mappings.iter().find(|(range, _)| range.contains(pfn));
        let found = found.filter(|_| self.0.is_mapped(pfn));
        let (range, start) = found.unwrap_or_else(|| panic!("{pfn:?} is not RAM"));
        let offset = usize::try_from(pfn.gpa() - range.start().gpa()).expect("inside a mapping");
        // SAFETY: `pfn` lies in the range, so the offset in its mapping.
        unsafe { start.add(offset) }
    }

    fn frame_of(&self, address: usize) -> Option<Pfn> {
        self.0.mappings.iter().find_map(|(range, start)| {
            let offset = address.checked_sub(start.addr().get())? as u64 / abi::PAGE_SIZE;
            let pfn = range.start().checked_add(PageCount::new(offset))?;
            (range.contains(pfn) && self.0.is_mapped(pfn)).then_some(pfn)
        })
    }

    fn cpu(&self) -> usize {
        0
    }

    fn irq_save(&self) -> bool {
        self.0.masked.swap(true, Ordering::Relaxed)
    }

    fn irq_restore(&self, was_masked: bool) {
        self.0.masked.store(was_masked, Ordering::Relaxed);
    }

    fn now_ns(&self) -> u64 {
        self.0.now()
    }

    fn relax(&self) {
        if let Some(moves) = &mut *self.0.waiting.borrow_mut() {
            moves();
        }
    }

    fn map_block(&self, block: PfnRange, _table: Pfn) -> Result<(), MapError> {
        let hotplug = self.0.hotplug.as_ref().filter(|(range, _)| range.contains_range(block));
        let (_, mapped) = hotplug.ok_or(MapError::OutOfReach(block))?;
        mapped.lock().expect("one thread").push(block);
        Ok(())
    }

    unsafe fn unmap_block(&self, block: PfnRange, _table: Pfn, _heir: Option<Pfn>) {
        let (_, mapped) = self.0.hotplug.as_ref().expect("it was mapped");
        mapped.lock().expect("one thread").retain(|other| *other != block);
    }

    fn held_locks(&self) -> Option<&HeldLocks> {
        Some(&self.0.locks)
    }

    fn inject_fault(&self, _site: FaultSite) -> bool {
        let one_in = self.0.faults_one_in.load(Ordering::Relaxed);
        if one_in == 0 {
            return false;
        }
        let strikes = self
            .0
            .faults_rng
            .lock()
            .expect("one thread")
            .random_ratio(1, u32::try_from(one_in).unwrap_or(u32::MAX));
        self.0.faults_struck.fetch_add(u64::from(strikes), Ordering::Relaxed);
        strikes
    }
}
