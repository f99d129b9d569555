//! Locked tables.

use core::fmt;
use core::sync::atomic::Ordering;

use abi::Pfn;

use super::super::entry::{Entry, PmdState, PteState};
use super::super::softleaf::UnknownLeaf;
use super::desc::PtDesc;
use super::{MakeTableError, Tables};
use crate::addr::{PMD_SHIFT, VirtAddr};
use crate::platform::Platform;
use crate::sync::SpinGuard;

/// Why a table could not be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTable {
    /// The entry at this level (1–3) is empty: nothing is mapped in all that it spans.
    Hole {
        /// 1: no PTE table; 2: no page directory; 3: no page-directory-pointer table.
        level: u32,
    },
    /// The directory has a leaf there; take the PMD lock.
    Huge(PmdState),
    /// An entry on the way is malformed; counted.
    Unknown(UnknownLeaf),
}

/// A locked table of level `LEVEL`: [`PteGuard`], [`PmdGuard`].
///
/// Holding one proves that the table is linked and that nobody else changes its
/// entries. The MMU does: it sets A and D at any time, so a present entry is
/// changed by [`Self::update`] or taken by [`Self::clear`].
///
/// Interrupts are masked; nothing may be allocated or waited for.
#[must_use = "the lock is released when the guard is dropped"]
pub struct TableGuard<'a, P: Platform, const LEVEL: u32> {
    tables: Tables<'a, P>,
    desc: &'a PtDesc,
    frame: Pfn,
    /// First address that the table spans.
    first: VirtAddr,
    _lock: SpinGuard<'a, (), P>,
}

/// A locked PTE table: 512 pages, 2 MiB.
pub type PteGuard<'a, P> = TableGuard<'a, P, 0>;
/// A locked page directory: 512 entries, 1 GiB.
pub type PmdGuard<'a, P> = TableGuard<'a, P, 1>;

impl<'a, P: Platform> Tables<'a, P> {
    /// Locks the PTE table for `va`.
    ///
    /// # Errors
    /// There is none.
    pub fn lock_pte(&self, va: VirtAddr) -> Result<PteGuard<'a, P>, NoTable> {
        self.lock_pte_as(va, Locking::First)
    }

    /// As [`Self::lock_pte`] while another PTE lock is held: fork's and mremap's
    /// second table. Callers order them: mremap holds the mmap lock for writing,
    /// fork the parent's and a child that nobody knows; rmap takes one at a time.
    ///
    /// # Errors
    /// There is none.
    pub fn lock_pte_nested(&self, va: VirtAddr) -> Result<PteGuard<'a, P>, NoTable> {
        self.lock_pte_as(va, Locking::Second)
    }

    fn lock_pte_as(&self, va: VirtAddr, locking: Locking) -> Result<PteGuard<'a, P>, NoTable> {
        loop {
            // Keeps the table from the look at the directory until its lock is held.
            let _section = self.base.rcu.read(self.platform().cpu());
            let directory = self.directory(va)?;
            self.check_table(directory)?;
            let pmd = self.load(directory, va.table_index(1));
            let frame = match pmd.pmd() {
                PmdState::Table(frame) => frame,
                PmdState::None => return Err(NoTable::Hole { level: 1 }),
                PmdState::Unknown(unknown) => {
                    return Err(NoTable::Unknown(self.base.note_unknown(unknown)));
                }
                leaf @ (PmdState::Present(_) | PmdState::Soft(_)) => {
                    return Err(NoTable::Huge(leaf));
                }
            };
            let desc = self.base.table_desc(frame, 0).ok_or_else(|| self.corrupt(frame))?;
            let guard = self.hold(desc, va.align_down(PMD_SHIFT), locking);
            // A table is unlinked under its lock: what is linked now stays so.
            if !desc.is_stray() && self.load(directory, va.table_index(1)) == pmd {
                return Ok(guard);
            }
        }
    }

    /// Locks the page directory for `va`.
    ///
    /// # Errors
    /// There is none.
    pub fn lock_pmd(&self, va: VirtAddr) -> Result<PmdGuard<'a, P>, NoTable> {
        self.lock_pmd_as(va, Locking::First)
    }

    /// As [`Self::lock_pmd`] while another PMD lock is held; see
    /// [`Self::lock_pte_nested`]. The two must not be the same directory.
    ///
    /// # Errors
    /// There is none.
    pub fn lock_pmd_nested(&self, va: VirtAddr) -> Result<PmdGuard<'a, P>, NoTable> {
        self.lock_pmd_as(va, Locking::Second)
    }

    fn lock_pmd_as(&self, va: VirtAddr, locking: Locking) -> Result<PmdGuard<'a, P>, NoTable> {
        loop {
            let _section = self.base.rcu.read(self.platform().cpu());
            let frame = self.directory(va)?;
            let desc = self.base.table_desc(frame, 1).ok_or_else(|| self.corrupt(frame))?;
            let guard = self.hold(desc, va.align_down(PMD_SHIFT + 9), locking);
            if !desc.is_stray() && self.directory(va) == Ok(frame) {
                return Ok(guard);
            }
        }
    }

    fn hold<const LEVEL: u32>(
        &self,
        desc: &'a PtDesc,
        first: VirtAddr,
        locking: Locking,
    ) -> TableGuard<'a, P, LEVEL> {
        let lock = match locking {
            Locking::First => desc.lock().lock(self.platform()),
            Locking::Second => desc.lock().lock_nested(self.platform()),
        };
        TableGuard { tables: *self, desc, frame: desc.frame(), first, _lock: lock }
    }

    /// Makes the tables for `va` and locks the PTE table.
    ///
    /// # Errors
    /// Out of memory or a malformed entry (outer); a leaf of the directory maps
    /// `va` (inner).
    pub fn alloc_lock_pte(
        &self,
        va: VirtAddr,
    ) -> Result<Result<PteGuard<'a, P>, PmdState>, MakeTableError> {
        loop {
            match self.lock_pte(va) {
                Ok(guard) => return Ok(Ok(guard)),
                Err(NoTable::Huge(leaf)) => return Ok(Err(leaf)),
                Err(NoTable::Unknown(unknown)) => return Err(MakeTableError::Unknown(unknown)),
                Err(NoTable::Hole { .. }) => self.alloc_pte(va)?,
            }
        }
    }

    /// Makes the tables for `va` and locks the page directory.
    ///
    /// # Errors
    /// Out of memory or a malformed entry.
    pub fn alloc_lock_pmd(&self, va: VirtAddr) -> Result<PmdGuard<'a, P>, MakeTableError> {
        loop {
            match self.lock_pmd(va) {
                Ok(guard) => return Ok(guard),
                Err(NoTable::Unknown(unknown)) => return Err(MakeTableError::Unknown(unknown)),
                Err(NoTable::Hole { .. } | NoTable::Huge(_)) => self.alloc_pmd(va)?,
            }
        }
    }
}

/// How many locks of the class the caller holds.
#[derive(Clone, Copy)]
enum Locking {
    First,
    Second,
}

impl<'a, P: Platform, const LEVEL: u32> TableGuard<'a, P, LEVEL> {
    /// First address that the table spans.
    pub const fn first(&self) -> VirtAddr {
        self.first
    }

    /// One past the last address that the table spans, or the end of the user half.
    pub fn end(&self) -> VirtAddr {
        self.first.checked_add(1 << (12 + 9 * (LEVEL + 1))).unwrap_or(VirtAddr::END)
    }

    /// The table's frame.
    pub const fn frame(&self) -> Pfn {
        self.frame
    }

    pub(in crate::pgtable) const fn desc(&self) -> &'a PtDesc {
        self.desc
    }

    /// Entries that are not empty.
    pub fn live(&self) -> u16 {
        self.desc.live()
    }

    fn index(&self, va: VirtAddr) -> usize {
        debug_assert!(self.first <= va && va < self.end(), "{va:?} is not in {self:?}");
        va.table_index(LEVEL)
    }

    /// The entry for `va`, which the table spans.
    pub fn load(&self, va: VirtAddr) -> Entry {
        self.tables.load(self.frame, self.index(va))
    }

    /// Puts `entry` where the MMU does not look: over an empty or a non-present
    /// entry. A mapping of a frame beyond the map is refused: counted, and the
    /// place left as it was.
    ///
    /// # Panics
    /// In debug builds if the old entry is present, or the new one refused.
    pub fn set(&mut self, va: VirtAddr, entry: Entry) {
        debug_assert!(!self.load(va).is_present(), "{va:?}: D would be lost");
        self.swap(va, entry);
    }

    /// Empties the place; returns what stood there, with the A and D that the
    /// MMU set last. Other CPUs may go on using the old mapping until they flush.
    pub fn clear(&mut self, va: VirtAddr) -> Entry {
        self.swap(va, Entry::NONE)
    }

    /// Puts `entry` for whatever stood there, which it returns with its final A
    /// and D. Refuses as [`Self::set`] does, returning the present entry.
    pub fn swap(&mut self, va: VirtAddr, entry: Entry) -> Entry {
        let index = self.index(va);
        let slot = self.tables.slot(self.frame, index);
        if !self.tables.is_mappable(LEVEL, entry) {
            let refused = self.tables.base.note_unknown(UnknownLeaf(entry));
            debug_assert!(false, "{va:?}: {refused}");
            return self.load(va);
        }
        if !entry.is_none() && self.load(va).is_none() {
            self.desc.add_live();
        }
        // Release publishes the page's contents, or a table's, before the entry;
        // Acquire takes over what those before us stored.
        let old = Entry::from_bits(slot.swap(entry.bits(), Ordering::AcqRel));
        if entry.is_none() && !old.is_none() {
            self.desc.sub_live();
        }
        old
    }

    /// Changes a present entry without losing the A and D that the MMU sets
    /// meanwhile: `change` may run more than once. Returns the entry before.
    pub fn update(&mut self, va: VirtAddr, mut change: impl FnMut(Entry) -> Entry) -> Entry {
        let slot = self.tables.slot(self.frame, self.index(va));
        let mut old = self.load(va);
        loop {
            let new = change(old);
            debug_assert!(old.is_none() == new.is_none(), "{va:?}: clear or set it");
            debug_assert!(self.tables.is_mappable(LEVEL, new), "{va:?}: {new:?}");
            let changed = slot.compare_exchange_weak(
                old.bits(),
                new.bits(),
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            match changed {
                Ok(_) => return old,
                Err(now) => old = Entry::from_bits(now),
            }
        }
    }
}

impl<P: Platform> PteGuard<'_, P> {
    /// What stands at `va`. Malformed entries are counted.
    pub fn state(&self, va: VirtAddr) -> PteState {
        let state = self.load(va).pte();
        if let PteState::Unknown(unknown) = state {
            self.tables.base.note_unknown(unknown);
        }
        state
    }
}

impl<P: Platform> PmdGuard<'_, P> {
    /// What stands at `va`. Malformed entries are counted.
    pub fn state(&self, va: VirtAddr) -> PmdState {
        let state = self.load(va).pmd();
        if let PmdState::Unknown(unknown) = state {
            self.tables.base.note_unknown(unknown);
        }
        state
    }
}

impl<P: Platform, const LEVEL: u32> fmt::Debug for TableGuard<'_, P, LEVEL> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableGuard<{LEVEL}>({:?} at {:?})", self.frame, self.first)
    }
}
