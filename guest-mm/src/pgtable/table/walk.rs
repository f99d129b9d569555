//! Walks without locks.

use core::sync::atomic::{AtomicU64, Ordering};

use super::super::entry::{Entry, PmdState};
use super::super::softleaf::UnknownLeaf;
use super::Tables;
use super::guard::NoTable;
use crate::addr::VirtAddr;
use crate::platform::Platform;
use crate::rcu::ReadGuard;

/// A slot of a table, valid for as long as the read section it was found in.
#[derive(Debug, Clone, Copy)]
pub struct SlotRef<'g>(&'g AtomicU64);

impl SlotRef<'_> {
    /// What stands there now. Ordered after earlier loads and before later ones.
    pub fn load(self) -> Entry {
        Entry::from_bits(self.0.load(Ordering::Acquire))
    }

    /// Whether the same stands there as when `seen` was loaded: the recheck of
    /// GUP-fast. The caller's fence lies between its count and this.
    pub fn is_still(self, seen: Entry) -> bool {
        self.0.load(Ordering::Relaxed) == seen.bits()
    }
}

/// What a lockless walk found, a moment ago.
#[derive(Debug, Clone, Copy)]
pub enum Found<'g> {
    /// No table for the address.
    Hole,
    /// A slot of a PTE table, and the directory's that led to it.
    Pte {
        /// In the directory.
        pmd_slot: SlotRef<'g>,
        /// What it held: the table.
        pmd: Entry,
        /// In the PTE table.
        slot: SlotRef<'g>,
        /// What it held.
        entry: Entry,
    },
    /// A leaf of the directory, present or not.
    Pmd {
        /// In the directory.
        slot: SlotRef<'g>,
        /// What it held.
        entry: Entry,
    },
    /// A malformed entry on the way; counted.
    Unknown(UnknownLeaf),
}

impl<'a, P: Platform> Tables<'a, P> {
    /// Looks `va` up without a lock. `section` keeps the tables that it meets.
    ///
    /// # Panics
    /// In debug builds if `section` is of another domain: it would keep nothing.
    pub fn walk<'g>(&self, section: &'g ReadGuard<'_>, va: VirtAddr) -> Found<'g>
    where
        'a: 'g,
    {
        debug_assert!(section.is_of(&self.base.rcu), "a read section of another memory manager");
        match self.walk_slots(va) {
            Ok(found) => found,
            Err(NoTable::Unknown(unknown)) => Found::Unknown(unknown),
            Err(NoTable::Hole { .. } | NoTable::Huge(_)) => Found::Hole,
        }
    }

    /// The slot for `va` in the PTE table that the directory's entry `pmd` leads
    /// to, which a [`Self::walk`] in the same section found for an address in the
    /// same 2 MiB; `None` if that is no table's entry.
    pub(crate) fn slot_beside<'g>(
        &self,
        _section: &'g ReadGuard<'_>,
        pmd: Entry,
        va: VirtAddr,
    ) -> Option<SlotRef<'g>>
    where
        'a: 'g,
    {
        match pmd.pmd() {
            PmdState::Table(frame) => Some(SlotRef(self.slot(frame, va.table_index(0)))),
            PmdState::None | PmdState::Present(_) | PmdState::Soft(_) | PmdState::Unknown(_) => {
                None
            }
        }
    }

    fn walk_slots(&self, va: VirtAddr) -> Result<Found<'a>, NoTable> {
        let directory = self.directory(va)?;
        self.check_table(directory)?;
        let pmd_slot = SlotRef(self.slot(directory, va.table_index(1)));
        let pmd = pmd_slot.load();
        Ok(match pmd.pmd() {
            PmdState::None => Found::Hole,
            PmdState::Unknown(unknown) => Found::Unknown(self.base.note_unknown(unknown)),
            PmdState::Present(_) | PmdState::Soft(_) => Found::Pmd { slot: pmd_slot, entry: pmd },
            PmdState::Table(frame) => {
                self.check_table(frame)?;
                let slot = SlotRef(self.slot(frame, va.table_index(0)));
                Found::Pte { pmd_slot, pmd, slot, entry: slot.load() }
            }
        })
    }
}
