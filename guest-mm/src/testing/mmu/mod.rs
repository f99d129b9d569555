//! A simulated x86-64 MMU: page walks, A and D bits, and a TLB per CPU that
//! forgets only what it is told to.
//!
//! An access holds its CPU's TLB, as an instruction is not interrupted in the
//! middle; a flush takes the TLB of each CPU that it names. So a missing or late
//! flush shows: the old translation goes on working, and at the latest when the
//! frame behind it belongs to somebody else, [`Mmu::access`] panics.
//!
//! Written from Intel SDM volume 3, chapter 5, and by its own reading of the
//! bits, so that it checks `pgtable` rather than repeats it. A walk may start at
//! a cached entry of a page directory, as paging-structure caches allow.

mod tlb;
mod walk;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use abi::{PAGE_SHIFT, Pfn};

use crate::memdesc::{Kind, Word};
use crate::memory::Memory;
use crate::platform::{CpuSet, MAX_CPUS, Platform, TlbFlush};
use tlb::{Tlb, TlbEntry};

/// What an access wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MmuAccess {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

/// Why the MMU refused: the bits of its error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageFault {
    /// A translation was there and did not allow the access (bit 0).
    pub present: bool,
    /// The access was a store (bit 1).
    pub write: bool,
    /// The access came from ring 3 (bit 2); always.
    pub user: bool,
    /// An entry has bits set that it must not (bit 3): a frame beyond RAM too.
    pub reserved: bool,
    /// The access was an instruction fetch (bit 4).
    pub fetch: bool,
}

impl PageFault {
    const fn new(access: MmuAccess, present: bool) -> Self {
        Self {
            present,
            write: matches!(access, MmuAccess::Write),
            user: true,
            reserved: false,
            fetch: matches!(access, MmuAccess::Exec),
        }
    }

    /// As the CPU reports it.
    pub const fn error_code(self) -> u64 {
        self.present as u64
            | (self.write as u64) << 1
            | (self.user as u64) << 2
            | (self.reserved as u64) << 3
            | (self.fetch as u64) << 4
    }
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page fault, error code {:#x}", self.error_code())
    }
}

impl std::error::Error for PageFault {}

/// What the MMU has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MmuStats {
    /// Accesses answered by a TLB.
    pub hits: u64,
    /// Accesses that took a walk.
    pub walks: u64,
    /// Accesses refused.
    pub faults: u64,
    /// Flushes, counted once for each CPU.
    pub flushes: u64,
    /// Flushes that were asked for and lost, on purpose.
    pub lost: u64,
}

/// The MMUs of all CPUs of a machine.
#[derive(Debug)]
pub struct Mmu {
    cpus: [Mutex<Tlb>; MAX_CPUS],
    /// Turns that a flush gives to others before it reaches a CPU.
    flush_delay: AtomicU64,
    /// One flush in so many is lost; 0 = none.
    lose_one_in: AtomicU64,
    asked: AtomicU64,
    hits: AtomicU64,
    walks: AtomicU64,
    faults: AtomicU64,
    flushes: AtomicU64,
    lost: AtomicU64,
}

impl Mmu {
    /// MMUs that know nothing; `seed` decides what their TLBs evict.
    pub(super) fn new(seed: u64) -> Self {
        let mut cpu = 0;
        Self {
            cpus: [(); MAX_CPUS].map(|()| {
                cpu += 1;
                Mutex::new(Tlb::new(seed.wrapping_add(cpu)))
            }),
            flush_delay: AtomicU64::new(0),
            lose_one_in: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            walks: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Makes every flush give others `turns` turns before it reaches a CPU, as a
    /// slow interrupt would.
    pub fn delay_flushes(&self, turns: u64) {
        self.flush_delay.store(turns, Ordering::Relaxed);
    }

    /// Loses one flush in `one_in`: what a forgotten flush looks like. 0 ends it.
    pub fn lose_flushes(&self, one_in: u64) {
        self.lose_one_in.store(one_in, Ordering::Relaxed);
    }

    /// What was done so far.
    pub fn stats(&self) -> MmuStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MmuStats {
            hits: get(&self.hits),
            walks: get(&self.walks),
            faults: get(&self.faults),
            flushes: get(&self.flushes),
            lost: get(&self.lost),
        }
    }

    /// One access of the calling CPU to `va` in the address space of `root`:
    /// `touch` gets the byte's place in RAM and does it, all in one piece.
    ///
    /// # Errors
    /// The page fault that a CPU would raise; `touch` was not called.
    ///
    /// # Panics
    /// If the TLB leads to a frame that is no longer what it was when the
    /// translation was made: it was given away before the flush.
    pub fn access<P: Platform, R>(
        &self,
        memory: &Memory<P>,
        root: Pfn,
        va: u64,
        access: MmuAccess,
        touch: impl FnOnce(NonNull<u8>) -> R,
    ) -> Result<R, PageFault> {
        let mut tlb = self.tlb(memory.platform().cpu());
        let pfn = self.translate_in(&mut tlb, memory, root, va, access);
        let pfn = pfn.inspect_err(|_| {
            self.faults.fetch_add(1, Ordering::Relaxed);
        })?;
        let frame = memory.platform().frame_ptr(pfn);
        let offset = va & (abi::PAGE_SIZE - 1);
        let offset = usize::try_from(offset).unwrap_or_else(|_| unreachable!("below 4096"));
        // SAFETY: below the bytes of a frame (`Platform::frame_ptr`).
        Ok(touch(unsafe { frame.add(offset) }))
    }

    /// Where the calling CPU's access to `va` goes: a guest-physical address,
    /// stale as soon as it is known.
    ///
    /// # Errors
    /// As [`Self::access`].
    ///
    /// # Panics
    /// As [`Self::access`].
    pub fn translate<P: Platform>(
        &self,
        memory: &Memory<P>,
        root: Pfn,
        va: u64,
        access: MmuAccess,
    ) -> Result<u64, PageFault> {
        let mut tlb = self.tlb(memory.platform().cpu());
        let pfn = self.translate_in(&mut tlb, memory, root, va, access)?;
        Ok(pfn.gpa() + (va & (abi::PAGE_SIZE - 1)))
    }

    /// Forgets all of this CPU: what loading a root does.
    pub(super) fn load_root(&self, cpu: usize) {
        self.tlb(cpu).clear();
    }

    /// Makes `cpus` forget `what` of the address space of `root`.
    pub(super) fn flush(&self, root: Pfn, cpus: CpuSet, what: TlbFlush) {
        let one_in = self.lose_one_in.load(Ordering::Relaxed);
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if one_in != 0 && asked.is_multiple_of(one_in) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        for cpu in cpus.iter() {
            for _ in 0..self.flush_delay.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            self.tlb(cpu).flush(root, what);
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tlb(&self, cpu: usize) -> MutexGuard<'_, Tlb> {
        // A test that panics on purpose while it holds a TLB leaves it usable.
        self.cpus[cpu].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn translate_in<P: Platform>(
        &self,
        tlb: &mut Tlb,
        memory: &Memory<P>,
        root: Pfn,
        va: u64,
        access: MmuAccess,
    ) -> Result<Pfn, PageFault> {
        if va >> 47 != 0 {
            // The upper half belongs to the kernel and to nobody; addresses that are
            // not canonical raise #GP, which ends a process just the same.
            return Err(PageFault::new(access, false));
        }
        let page = va >> PAGE_SHIFT;
        if let Some(entry) = tlb.find(root, page) {
            check_owner(memory, entry, va);
            if !entry.allows(access) {
                // A fault forgets the translation that caused it.
                tlb.forget(root, page);
                return Err(PageFault::new(access, true));
            }
            if access != MmuAccess::Write || entry.dirty {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(entry.pfn_of(page));
            }
            // The first store walks again to set D.
            tlb.forget(root, page);
        }
        self.walks.fetch_add(1, Ordering::Relaxed);
        let entry = walk::walk(tlb, memory, root, va, access)?;
        check_owner(memory, entry, va);
        tlb.insert(entry);
        Ok(entry.pfn_of(page))
    }
}

/// The word without who may move the frame: migration changes those bits while
/// the page is still mapped.
fn owner(word: Word) -> u64 {
    word.bits() & !(3 << 62)
}

/// # Panics
/// If the frame that the entry leads to has another owner than when the entry
/// was made, or is nothing that is mapped at all.
fn check_owner<P: Platform>(memory: &Memory<P>, entry: TlbEntry, va: u64) {
    let pfn = entry.pfn_of(va >> PAGE_SHIFT);
    let word = memory.words().load(pfn).unwrap_or(Word::EMPTY);
    let first = memory.words().load(entry.pfn).unwrap_or(Word::EMPTY);
    assert!(
        owner(first) == owner(entry.word),
        "stale TLB entry: {va:#x} leads to {pfn:?}, which was {:?} and is {first:?}",
        entry.word
    );
    let kind = word.kind();
    let is_mapped = matches!(
        kind,
        Ok(Kind::File | Kind::Anon | Kind::Ksm | Kind::DevFolio | Kind::Zero | Kind::Driver)
            | Ok(Kind::Tail)
    );
    assert!(is_mapped, "{va:#x} is mapped to {pfn:?}, which is {word:?}");
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
