//! The machine as the memory manager sees it.

use core::fmt;
use core::ptr::NonNull;

use abi::{Pfn, PfnRange};

use crate::addr::VaRange;
use crate::sync::HeldLocks;
use crate::sync::shim::{AtomicU32, Ordering};

/// Largest number of CPUs, the length of per-CPU arrays.
pub const MAX_CPUS: usize = 4;

/// What the memory manager needs of a machine.
///
/// The kernel implements it on the virtual machine; tests implement it on the
/// host with simulated time, injected faults and a seeded scheduler. Every
/// method may be called from any CPU, masked or not, and from a trap handler.
///
/// # Safety
/// Implementors promise what [`Self::frame_ptr`] says: callers dereference the
/// pointer. [`Self::frame_of`] is its inverse.
pub unsafe trait Platform: Sync + 'static {
    /// The frame's first byte in the direct map: 4096-aligned, valid for reads
    /// and writes for as long as the platform lives, whoever holds it; in a block
    /// of [`Self::map_block`], until that is unmapped.
    ///
    /// Frames that follow each other in one range of RAM follow each other in
    /// the direct map too, and the pointer may be moved over the whole range:
    /// tables and blocks of higher order are used as one piece.
    ///
    /// # Panics
    /// If `pfn` is not a frame of RAM: a caller's bug.
    fn frame_ptr(&self, pfn: Pfn) -> NonNull<u8>;

    /// The frame whose direct mapping holds the byte at `address`, or `None`
    /// if the address lies outside the direct map. Never dereferences it.
    fn frame_of(&self, address: usize) -> Option<Pfn>;

    /// The CPU that runs the caller, below [`MAX_CPUS`]; stable while masked.
    fn cpu(&self) -> usize;

    /// Masks interrupts on this CPU and returns whether they were masked before.
    fn irq_save(&self) -> bool;

    /// Undoes the matching [`Self::irq_save`], to which `was_masked` belongs.
    fn irq_restore(&self, was_masked: bool);

    /// Monotonic nanoseconds.
    fn now_ns(&self) -> u64;

    /// Called in every iteration of a spin: PAUSE on a machine, a scheduling
    /// point in the simulator.
    ///
    /// Serves what other CPUs ask of this one by [`Self::flush_tlb`], masked or
    /// not, so that a CPU which spins for a lock cannot hold up the lock's
    /// holder. May run another thread if interrupts are not masked.
    fn relax(&self);

    /// Waits until `is_over` says so, of what is known by `key`. It is asked at
    /// least once, perhaps masked and often; it neither waits nor takes a lock.
    ///
    /// Whoever makes it true calls [`Self::wake`] afterwards. A machine with
    /// threads lets this one sleep until then, and others run; without them it
    /// asks again and again. The caller is unmasked and holds nothing that the
    /// one it waits for wants.
    fn wait_until(&self, key: WaitKey, is_over: &dyn Fn() -> bool) {
        let _ = key;
        while !is_over() {
            self.relax();
        }
    }

    /// Lets those go on who sleep on one of the `count` keys from `first` on: each
    /// asks again. Whoever is about to sleep and asked before the caller's change
    /// does not. Masked or not; may be called with spin locks held.
    fn wake(&self, _first: WaitKey, _count: u64) {}

    /// Makes the entries of the upper half of `table`, a zeroed root page
    /// table, those of the kernel. A machine without an MMU leaves them empty.
    fn init_root(&self, _table: NonNull<u64>) {}

    /// Makes `root` this CPU's root page table, or the kernel's own if `None`,
    /// and forgets its cached translations of the user half.
    ///
    /// Called unmasked or masked; the caller has noted the CPU in the address
    /// space's [`CpuSet`] before, and takes it out afterwards.
    fn load_root(&self, _root: Option<Pfn>) {}

    /// Makes each of `cpus`, this one included if it is in the set, forget its
    /// cached translations of `what` in the address space of `root`, cached
    /// upper-level entries for these addresses included. Returns when all have.
    ///
    /// A CPU that has another root loaded when the request comes has nothing to forget.
    fn flush_tlb(&self, _root: Pfn, _cpus: CpuSet, _what: TlbFlush) {}

    /// Ends the time slice of what runs on each of `cpus`, so that threads which
    /// wait there, perhaps inside a read section, get their turn sooner. Returns
    /// at once. A machine without threads has nothing to do.
    fn kick(&self, _cpus: CpuSet) {}

    /// Makes the frames of `block` part of the direct map: memory of which the boot map knew nothing.
    /// Takes no memory: `table`, a page of the block with anything in it, becomes a page table if one is needed.
    ///
    /// `block` begins and ends at multiples of 4 MiB, crosses no multiple of 1 GiB and touches no
    /// frame that is mapped. Parts of it may have no memory behind them; those are mapped, but not touched.
    ///
    /// # Errors
    /// [`MapError`]; nothing is mapped.
    fn map_block(&self, _block: PfnRange, _table: Pfn) -> Result<(), MapError> {
        Err(MapError::Unsupported)
    }

    /// Undoes [`Self::map_block`] with the same arguments, on every CPU. If `table` serves other blocks of its GiB
    /// too, its contents move to `heir`, the table page of one of them.
    ///
    /// # Safety
    /// Nobody uses pointers into the block any more. `heir` is the table page of a mapped block in the
    /// same GiB, if there is one, and `None` only if there is none.
    unsafe fn unmap_block(&self, _block: PfnRange, _table: Pfn, _heir: Option<Pfn>) {}

    /// Where the lock-order checker of debug builds notes the locks that each
    /// CPU holds; `None` switches the checker off.
    fn held_locks(&self) -> Option<&HeldLocks> {
        None
    }

    /// Asks whether the step at `site` shall fail; always `false` on a real machine.
    fn inject_fault(&self, _site: FaultSite) -> bool {
        false
    }
}

/// Why a block cannot be part of the direct map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// The machine cannot map anything later.
    Unsupported,
    /// The block lies, in part, beyond what the direct map reaches.
    OutOfReach(PfnRange),
    /// The block does not begin and end where blocks do, or crosses a GiB.
    Misplaced(PfnRange),
    /// Something is mapped there already.
    Taken(Pfn),
    /// An injected fault.
    Injected,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("The machine maps no memory after its start"),
            Self::OutOfReach(range) => write!(f, "Block {range:?} is beyond the direct map"),
            Self::Misplaced(range) => write!(f, "Block {range:?} is not where blocks may be"),
            Self::Taken(pfn) => write!(f, "Frame {pfn} is mapped already"),
            Self::Injected => f.write_str("The block was not mapped: injected fault"),
        }
    }
}

impl core::error::Error for MapError {}

/// What somebody waits for ([`Platform::wait_until`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitKey(u64);

impl WaitKey {
    /// Set in keys of addresses, which are even; frame numbers are far smaller.
    const OBJECT: u64 = 1 << 63;

    /// The first key, and how many there are.
    pub const ALL: (Self, u64) = (Self(0), u64::MAX);

    /// That the page in frame `pfn` is there or elsewhere, and no longer on its way.
    pub const fn frame(pfn: Pfn) -> Self {
        Self(pfn.number() & !Self::OBJECT)
    }

    /// That `object` is no longer locked.
    pub fn object<T>(object: &T) -> Self {
        Self(core::ptr::from_ref(object).addr() as u64 >> 1 | Self::OBJECT)
    }

    /// Whether it is one of the `count` keys from `first` on.
    pub const fn is_among(self, first: Self, count: u64) -> bool {
        match self.0.checked_sub(first.0) {
            Some(nth) => nth < count,
            None => false,
        }
    }

    /// A number of its own, not `u64::MAX`.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The key with this number.
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// A step that tests can make fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultSite {
    /// Taking a block from the buddy allocator.
    BuddyAlloc,
    /// Taking an object from a slab cache.
    SlabAlloc,
    /// Reserving a slot in a PFN store.
    StoreReserve,
    /// Adding a buffer to a virtqueue.
    QueueAdd,
    /// Making a hot-added block part of the direct map.
    MapBlock,
    /// Isolating a movable page.
    MigrateIsolate,
    /// Finding a destination for a migration.
    MigrateDestination,
    /// Calling the owner of a page that migrates.
    MigrateCallback,
}

/// What to forget of a TLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlbFlush {
    /// The pages of a range, and the tables on the way to them.
    Range(VaRange),
    /// The whole user half.
    All,
}

/// A set of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuSet(u32);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: Self = Self(0);

    /// This CPU alone.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub const fn of(cpu: usize) -> Self {
        assert!(cpu < MAX_CPUS, "no such CPU");
        Self(1 << cpu)
    }

    /// The first `count` CPUs, at most [`MAX_CPUS`].
    pub const fn first(count: usize) -> Self {
        let count = if count < MAX_CPUS { count } else { MAX_CPUS };
        Self((1 << count) - 1)
    }

    /// Whether `cpu` is in the set.
    pub const fn contains(self, cpu: usize) -> bool {
        cpu < MAX_CPUS && self.0 >> cpu & 1 == 1
    }

    /// The set with `cpu`.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub const fn with(self, cpu: usize) -> Self {
        Self(self.0 | Self::of(cpu).0)
    }

    /// The set without `cpu`.
    pub const fn without(self, cpu: usize) -> Self {
        if cpu < MAX_CPUS { Self(self.0 & !(1 << cpu)) } else { self }
    }

    /// Whether no CPU is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its CPUs, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_CPUS).filter(move |cpu| self.contains(*cpu))
    }
}

/// A set of CPUs that any of them changes.
#[derive(Debug)]
pub struct AtomicCpuSet(AtomicU32);

impl AtomicCpuSet {
    /// No CPU.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// No CPU.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Puts `cpu` in.
    ///
    /// Sequentially consistent: the CPU's later page walks come after it, and a
    /// flusher's [`Self::load`] comes after its change of the tables.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub fn insert(&self, cpu: usize) {
        self.0.fetch_or(CpuSet::of(cpu).0, Ordering::SeqCst);
    }

    /// Takes `cpu` out.
    ///
    /// # Panics
    /// If there is no such CPU.
    pub fn remove(&self, cpu: usize) {
        self.0.fetch_and(!CpuSet::of(cpu).0, Ordering::SeqCst);
    }

    /// The CPUs in it now.
    pub fn load(&self) -> CpuSet {
        crate::sync::shim::fence(Ordering::SeqCst);
        CpuSet(self.0.load(Ordering::SeqCst))
    }
}

impl Default for AtomicCpuSet {
    fn default() -> Self {
        Self::new()
    }
}
