//! A process of a few pages, made by hand: nothing of the memory manager's own is under test here.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::Pfn;
use guest_kernel::direct_map::entry;
use guest_kernel::layout::{PAGE, word};
use guest_mm::addr::{VaRange, VirtAddr};
use guest_mm::buddy::Gfp;
use guest_mm::fault::FaultAccess;
use guest_mm::memdesc::Order;
use guest_mm::memory::{FrozenFrames, Memory};
use guest_mm::platform::{AtomicCpuSet, Platform, TlbFlush};
use guest_mm::scenario::{Access, Signal};

use crate::image::paging::direct;
use crate::image::platform::Machine;
use crate::image::smp;
use crate::image::user::{self, UserFault};

/// Pages of the process, with two frames each.
pub(super) const PAGES: usize = 8;
/// The first page's address: any in the lower half.
const BASE: u64 = 0x7f12_3460_0000;
/// Root, PDPT, directory, table.
const TABLES: usize = 4;
const FRAMES: usize = TABLES + 2 * PAGES;

/// The process: GPAs of its frames, tables first.
pub(super) struct Process {
    frames: [u64; FRAMES],
    cpus: AtomicCpuSet,
}

impl Process {
    /// Takes its frames and maps every page to its first; `None`, with nothing taken, without memory.
    pub(super) fn new(memory: &Memory<Machine>) -> Option<Self> {
        let mut this = Self { frames: [0; FRAMES], cpus: AtomicCpuSet::new() };
        for index in 0..FRAMES {
            match memory.alloc_frozen(Order::ZERO, Gfp::KERNEL | Gfp::ZERO) {
                Ok(frame) => this.frames[index] = frame.into_raw().0.gpa(),
                Err(_) => {
                    this.free(memory);
                    return None;
                }
            }
        }
        let address = VirtAddr::new(BASE)?;
        let root = memory.platform().frame_ptr(this.root()).cast();
        memory.platform().init_root(root);
        for (level, table) in [3, 2, 1].into_iter().zip(0..TABLES - 1) {
            let below = this.frames[table + 1] | entry::TABLE;
            Self::entry(this.frames[table], address.table_index(level))
                .store(below, Ordering::Relaxed);
        }
        (0..PAGES).for_each(|page| this.map(page, 0));
        Some(this)
    }

    /// Gives the frames back.
    pub(super) fn free(&self, memory: &Memory<Machine>) {
        for gpa in self.frames.iter().filter(|gpa| **gpa != 0) {
            let pfn = Pfn::containing(*gpa);
            // SAFETY: `new` gave the handle of this frame up.
            memory.free_frozen(unsafe { FrozenFrames::from_raw(pfn, Order::ZERO) });
        }
    }

    fn root(&self) -> Pfn {
        Pfn::containing(self.frames[0])
    }

    /// The address of a page.
    pub(super) const fn address(page: usize) -> u64 {
        BASE + page as u64 * PAGE
    }

    fn entry(table: u64, index: usize) -> &'static AtomicU64 {
        // SAFETY: a quad of a frame that `new` took, in the direct map; the MMU writes no bits that are set already.
        unsafe { AtomicU64::from_ptr(direct(table + index as u64 % 512 * 8).cast()) }
    }

    fn leaf(&self, page: usize) -> &'static AtomicU64 {
        Self::entry(self.frames[TABLES - 1], word(Self::address(page) / PAGE % 512))
    }

    fn frame(&self, page: usize, number: u64) -> u64 {
        self.frames[TABLES + page * 2 + usize::from(number % 2 == 1)]
    }

    /// The first quad of the frame that move `number` of a page leads to.
    pub(super) fn frame_word(&self, page: usize, number: u64) -> &'static AtomicU64 {
        Self::entry(self.frame(page, number), 0)
    }

    /// Maps a page to the frame of move `number`.
    pub(super) fn map(&self, page: usize, number: u64) {
        self.leaf(page).store(self.frame(page, number) | entry::DATA, Ordering::Release);
    }

    /// Maps a page nowhere.
    pub(super) fn unmap(&self, page: usize) {
        self.leaf(page).store(0, Ordering::Release);
    }

    /// Has every CPU that runs the process drop its translation of a page, and now and then all of them.
    pub(super) fn flush(&self, machine: &Machine, page: usize) {
        let address = VirtAddr::new(Self::address(page));
        let what = address.and_then(VaRange::page_of).map_or(TlbFlush::All, TlbFlush::Range);
        machine.flush_tlb(self.root(), self.cpus.load(), what);
    }

    /// Enters the process with the calling thread.
    ///
    /// # Safety
    /// The process must live until the thread leaves.
    pub(super) unsafe fn enter(&self) {
        // SAFETY: by the caller's promise.
        unsafe { smp::enter(self.root(), &self.cpus) };
    }

    /// Accesses that must be refused, and some that must not be.
    ///
    /// # Errors
    /// What went otherwise.
    pub(super) fn expect_refusals(&self) -> Result<(), &'static str> {
        // SAFETY: left below, before the process can end.
        unsafe { self.enter() };
        let result = self.refusals();
        smp::leave();
        let outside = user::access(Self::address(0), Access::LoadU64);
        if outside != Err(Signal::SegvMapErr) {
            return Err("a load after leaving");
        }
        result
    }

    fn refusals(&self) -> Result<(), &'static str> {
        let expect = |is_so: bool, what| if is_so { Ok(()) } else { Err(what) };
        let at = Self::address(1);
        let read_only = |fault: UserFault| {
            let is_store = fault == UserFault { address: at, access: FaultAccess::Write };
            Err(if is_store { Signal::SegvAccErr } else { Signal::Bus })
        };
        let exchange = |current| Access::CompareExchangeU64 { current, new: 7 };
        expect(user::access(at, Access::StoreU64(5)).is_ok(), "a store")?;
        expect(user::access(at, exchange(4)) == Ok(5), "a failed exchange")?;
        expect(user::access(at, exchange(5)) == Ok(5), "an exchange")?;
        expect(user::access(at, Access::StoreU8(9)).is_ok(), "a store of a byte")?;
        expect(user::access(at, Access::LoadU64) == Ok(9), "a load")?;
        expect(user::access(at + 1, Access::LoadU8) == Ok(0), "a load of a byte")?;
        let leaf = self.leaf(1);
        let mapped = leaf.load(Ordering::Relaxed);
        leaf.store(mapped & !entry::WRITABLE, Ordering::Relaxed);
        smp::load_root(Some(self.root()));
        for access in [Access::StoreU64(1), Access::StoreU8(1), exchange(9), exchange(1)] {
            let found = user::with_faults(&read_only, || user::access(at, access));
            expect(found == Err(Signal::SegvAccErr), "a store to a read-only page")?;
        }
        let found = user::with_faults(&read_only, || user::access(at, Access::LoadU64));
        expect(found == Ok(9), "a load from a read-only page")?;
        leaf.store(mapped, Ordering::Relaxed);
        self.frame_word(1, 0).store(0, Ordering::Relaxed);
        smp::load_root(Some(self.root()));
        let nothing = Self::address(PAGES);
        for address in
            [nothing, 0, u64::MAX - 6, 1 << 47, (1 << 47) - PAGE, direct(0).addr() as u64]
        {
            let found = user::access(address, Access::LoadU64);
            expect(found == Err(Signal::SegvMapErr), "a load from nowhere")?;
        }
        Ok(())
    }
}
