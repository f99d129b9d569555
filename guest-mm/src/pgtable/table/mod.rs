//! The tables of one address space: making, finding, locking them.
//!
//! A walk goes root, page-directory-pointer table, page directory, PTE table.
//! Entries of the two upper tables are installed by compare-and-swap; entries
//! of a directory change under its PMD lock, those of a PTE table under its PTE
//! lock. Tables are made outside of locks, and who comes second gives his back.
//!
//! A table disappears only when its entries have: unlinked under its own lock
//! and its parent's, TLBs flushed, and freed after a grace period. So a walk in
//! a read section never meets a freed table, and one that has taken a table's
//! lock looks whether the table is stray and walks again.

mod desc;
mod guard;
mod walk;

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use abi::{PageCount, Pfn};

pub use desc::{ENTRIES, PtDesc, ROOT_LEVEL, TableCounters, TableState, USER_ROOT_ENTRIES};
pub use guard::{NoTable, PmdGuard, PteGuard, TableGuard};
pub use walk::{Found, SlotRef};

use super::entry::{Entry, PmdState, PteState, Size2M, UpperState};
use super::{LeafSize, UnknownLeaf};
use crate::addr::VirtAddr;
use crate::memdesc::Tag;
use crate::memory::AllocError;
use crate::mm::Base;
use crate::platform::{AtomicCpuSet, Platform, TlbFlush};

/// The page tables of one address space, borrowed from it.
pub struct Tables<'a, P: Platform> {
    base: &'a Base<P>,
    root: Pfn,
    cpus: &'a AtomicCpuSet,
    pages: &'a AtomicU64,
}

impl<P: Platform> Clone for Tables<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Tables<'_, P> {}

impl<P: Platform> fmt::Debug for Tables<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Makes a root table: nothing in the user half, the kernel's in the other.
///
/// # Errors
/// Out of memory.
pub fn new_root<P: Platform>(base: &Base<P>) -> Result<Pfn, AllocError> {
    let table = base.new_table(ROOT_LEVEL)?;
    let frame = table.frame();
    base.platform().init_root(base.platform().frame_ptr(frame).cast());
    let _linked = table.into_desc();
    Ok(frame)
}

/// Gives a root back once its last reader is gone.
///
/// # Errors
/// The frame is no root, or its user half is not empty: nothing is changed, and
/// the tables stay.
///
/// # Safety
/// No CPU has the root loaded or will load it, and nobody uses [`Tables`] of it.
pub unsafe fn free_root<P: Platform>(base: &Base<P>, root: Pfn) -> Result<(), RootInUse> {
    let guard = base.rcu.read(base.platform().cpu());
    let desc = base.table_desc(root, ROOT_LEVEL).ok_or(RootInUse { root, live: 0 })?;
    if desc.live() != 0 || desc.is_stray() {
        return Err(RootInUse { root, live: desc.live() });
    }
    desc.mark_stray();
    let desc = core::ptr::NonNull::from(desc);
    drop(guard);
    // SAFETY: nothing leads to a root but CPUs and its address space, which are done
    // with it; a second call finds it stray.
    unsafe { base.defer_table(desc) };
    Ok(())
}

/// A root that was not freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootInUse {
    /// The frame.
    pub root: Pfn,
    /// Entries of its user half; 0 if the frame is no root, or no longer.
    pub live: u16,
}

impl fmt::Display for RootInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root table {} has {} entries", self.root, self.live)
    }
}

impl core::error::Error for RootInUse {}

impl<'a, P: Platform> Tables<'a, P> {
    /// The tables below `root`, which [`new_root`] made. `cpus` are those that
    /// have it loaded; `pages` counts the tables below it.
    ///
    /// Nothing unsafe follows from a wrong frame: each table on a walk is checked
    /// to be one.
    pub const fn new(
        base: &'a Base<P>,
        root: Pfn,
        cpus: &'a AtomicCpuSet,
        pages: &'a AtomicU64,
    ) -> Self {
        Self { base, root, cpus, pages }
    }

    /// The root's frame.
    pub const fn root(&self) -> Pfn {
        self.root
    }

    /// What the tables stand on.
    pub const fn base(&self) -> &'a Base<P> {
        self.base
    }

    pub(in crate::pgtable) fn platform(&self) -> &'a P {
        self.base.platform()
    }

    /// The CPUs whose TLBs may know these tables.
    pub const fn cpus(&self) -> &'a AtomicCpuSet {
        self.cpus
    }

    /// Tables below the root.
    pub fn table_pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    pub(in crate::pgtable) fn add_table_page(&self) {
        self.pages.fetch_add(1, Ordering::Relaxed);
    }

    /// The table in `frame`, which nobody can find yet, was filled.
    pub(in crate::pgtable) fn fill_live(&self, frame: Pfn) {
        if let Some(desc) = self.base.table_desc(frame, 0) {
            desc.fill_live();
        }
    }

    pub(in crate::pgtable) fn sub_table_page(&self) {
        self.pages.fetch_sub(1, Ordering::Relaxed);
    }

    /// Makes all CPUs that may know the tables forget `what`.
    pub fn flush(&self, what: TlbFlush) {
        let cpus = self.cpus.load();
        if !cpus.is_empty() {
            self.platform().flush_tlb(self.root, cpus, what);
        }
    }

    /// The slot `index` of the table in `frame`, which the caller has checked to
    /// be a table and keeps by a lock or a read section.
    pub(in crate::pgtable) fn slot(&self, frame: Pfn, index: usize) -> &'a AtomicU64 {
        debug_assert!(index < ENTRIES, "index {index}");
        let table = self.platform().frame_ptr(frame).cast::<AtomicU64>();
        // SAFETY: below 512 entries of 8 bytes, so inside the frame.
        let slot = unsafe { table.add(index & (ENTRIES - 1)) };
        // SAFETY: the frame is a table, whose words are only reached as atomics, by us
        // and by the MMU, and is not freed while the caller's lock or section lasts.
        unsafe { slot.as_ref() }
    }

    pub(in crate::pgtable) fn load(&self, frame: Pfn, index: usize) -> Entry {
        // Acquire pairs with the Release of whoever stored the entry: a table's zeros
        // and a page's contents are there before the entry that leads to them.
        Entry::from_bits(self.slot(frame, index).load(Ordering::Acquire))
    }

    /// The frame of the page directory for `va`. The caller has a read section
    /// open or otherwise keeps the tables.
    pub(in crate::pgtable) fn directory(&self, va: VirtAddr) -> Result<Pfn, NoTable> {
        let mut frame = self.root;
        for level in (2..=ROOT_LEVEL).rev() {
            self.check_table(frame)?;
            frame = match self.load(frame, va.table_index(level)).upper() {
                UpperState::None => return Err(NoTable::Hole { level }),
                UpperState::Table(frame) => frame,
                UpperState::Unknown(unknown) => {
                    return Err(NoTable::Unknown(self.base.note_unknown(unknown)));
                }
            };
        }
        Ok(frame)
    }

    /// Checks that a frame which an entry led to is a table.
    ///
    /// Its tag alone is looked at: whether the level is right is checked where a
    /// table is locked, filled or unlinked, and by the census.
    pub(in crate::pgtable) fn check_table(&self, frame: Pfn) -> Result<(), NoTable> {
        match self.base.memory.words().load(frame) {
            Ok(word) if word.tag() == Tag::PtDesc => Ok(()),
            Ok(_) | Err(_) => Err(self.corrupt(frame)),
        }
    }

    /// An entry led to a frame that is no table, or not one of the right level.
    pub(in crate::pgtable) fn corrupt(&self, frame: Pfn) -> NoTable {
        let entry = Entry::table(frame).unwrap_or(Entry::NONE);
        NoTable::Unknown(self.base.note_unknown(UnknownLeaf(entry)))
    }

    /// Makes the tables down to the page directory for `va`. A hint for the
    /// future only: unless the caller excludes [`Self::free_tables`] for the
    /// range (a mapping there, and its lock), they may be gone again.
    ///
    /// # Errors
    /// Out of memory, or an entry on the way is malformed.
    ///
    /// [`Self::free_tables`]: Tables::free_tables
    pub fn alloc_pmd(&self, va: VirtAddr) -> Result<(), MakeTableError> {
        loop {
            let guard = self.base.rcu.read(self.platform().cpu());
            let missing = match self.directory(va) {
                Ok(_) => return Ok(()),
                Err(NoTable::Hole { level }) => level,
                Err(NoTable::Unknown(unknown)) => return Err(MakeTableError::Unknown(unknown)),
                Err(NoTable::Huge(_)) => unreachable!("upper levels hold tables only"),
            };
            drop(guard);
            self.make_upper(va, missing)?;
        }
    }

    /// Fills the empty entry for `va` in its table of `level` (2 or 3).
    fn make_upper(&self, va: VirtAddr, level: u32) -> Result<(), MakeTableError> {
        let table = self.base.new_table(level - 1)?;
        let guard = self.base.rcu.read(self.platform().cpu());
        let linked = self.link_upper(va, level, table.frame());
        drop(guard);
        if linked {
            self.add_table_page();
            let _linked = table.into_desc();
        } else {
            self.base.discard_table(table);
            self.platform().relax();
        }
        Ok(())
    }

    /// `false` if somebody else was faster, or the table above is gone.
    fn link_upper(&self, va: VirtAddr, level: u32, table: Pfn) -> bool {
        let mut parent = self.root;
        if level < ROOT_LEVEL {
            match self.load(self.root, va.table_index(ROOT_LEVEL)).upper() {
                UpperState::Table(frame) => parent = frame,
                UpperState::None | UpperState::Unknown(_) => return false,
            }
        }
        let (Some(desc), Some(entry)) = (self.base.table_desc(parent, level), Entry::table(table))
        else {
            return false;
        };
        // Counted first: an entry that is there is always counted.
        if !desc.try_add_live() {
            return false;
        }
        // Release publishes the table's zeros; Acquire because the loser goes on by
        // the winner's table.
        let slot = self.slot(parent, va.table_index(level));
        let linked =
            slot.compare_exchange(0, entry.bits(), Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !linked {
            desc.sub_live();
        }
        linked
    }

    /// Makes the tables down to the PTE table for `va`, unless a leaf of the
    /// directory maps it.
    ///
    /// # Errors
    /// As [`Self::alloc_pmd`].
    pub fn alloc_pte(&self, va: VirtAddr) -> Result<(), MakeTableError> {
        self.alloc_pmd(va)?;
        let wanted = self.lock_pmd(va).is_ok_and(|pmd| pmd.load(va).is_none());
        if !wanted {
            return Ok(());
        }
        let table = self.base.new_table(0)?;
        self.install_pte_table(va, table);
        Ok(())
    }

    fn install_pte_table(&self, va: VirtAddr, table: desc::NewTable) {
        let linked = match (self.lock_pmd(va), Entry::table(table.frame())) {
            (Ok(mut pmd), Some(entry)) if pmd.load(va).is_none() => {
                pmd.set(va, entry);
                true
            }
            _ => false,
        };
        if linked {
            self.add_table_page();
            let _linked = table.into_desc();
        } else {
            self.base.discard_table(table);
        }
    }

    /// Whether every frame of a present leaf exists.
    pub(in crate::pgtable) fn is_mappable(&self, level: u32, entry: Entry) -> bool {
        let words = self.base.memory.words();
        if level == 0 {
            return match entry.pte() {
                PteState::Present(pte) => words.cell(pte.pfn()).is_ok(),
                PteState::None | PteState::Soft(_) => true,
                PteState::Unknown(_) => false,
            };
        }
        match entry.pmd() {
            PmdState::Present(pmd) => {
                let last = PageCount::new((1 << Size2M::ORDER) - 1);
                let last = pmd.pfn().checked_add(last);
                words.cell(pmd.pfn()).is_ok() && last.is_some_and(|last| words.cell(last).is_ok())
            }
            PmdState::Table(table) => self.base.table_desc(table, 0).is_some(),
            PmdState::None | PmdState::Soft(_) => true,
            PmdState::Unknown(_) => false,
        }
    }
}

/// Why there is no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MakeTableError {
    /// Out of memory.
    OutOfMemory(AllocError),
    /// An entry on the way is malformed.
    Unknown(UnknownLeaf),
    /// The address lies beyond the user half.
    OutOfRange,
}

impl From<AllocError> for MakeTableError {
    fn from(error: AllocError) -> Self {
        Self::OutOfMemory(error)
    }
}

impl From<MakeTableError> for crate::errno::Errno {
    fn from(error: MakeTableError) -> Self {
        match error {
            MakeTableError::OutOfMemory(_) => Self::ENOMEM,
            MakeTableError::Unknown(_) | MakeTableError::OutOfRange => Self::EFAULT,
        }
    }
}

impl fmt::Display for MakeTableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(error) => error.fmt(f),
            Self::Unknown(unknown) => unknown.fmt(f),
            Self::OutOfRange => f.write_str("Beyond the user half"),
        }
    }
}

impl core::error::Error for MakeTableError {}

#[cfg(test)]
mod tests;
