//! Empty tables are unlinked.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::super::entry::{PmdState, UpperState};
use super::super::gather::TlbGather;
use super::super::table::{ROOT_LEVEL, Tables};
use super::{LeafOwner, entry_end};
use crate::addr::{PMD_SIZE, VaRange, VirtAddr};
use crate::platform::Platform;

impl<'a, P: Platform> Tables<'a, P> {
    /// Unlinks the tables of `range` that hold no entry, for `gather` to free.
    ///
    /// Needs no lock of the caller: a table that somebody fills meanwhile stays,
    /// and who comes too late finds it stray and makes another. After the whole
    /// range of a mapping was zapped, none is left but those that its neighbours
    /// use.
    pub fn free_tables<O: LeafOwner>(
        &self,
        range: VaRange,
        gather: &mut TlbGather<'a, P, O::Put>,
        owner: &mut O,
    ) {
        let (mut at, end) = (range.start(), range.end());
        while at < end {
            if gather.is_full() {
                gather.flush(owner);
            }
            self.free_pte_table(at, gather);
            let next = self.next_table(at, entry_end(at, 1));
            // On leaving a directory, or the range: is the directory empty too?
            if next >= end || next >= entry_end(at, 2) {
                self.free_directory(at, gather);
            }
            if next >= end || next >= entry_end(at, 3) {
                self.free_upper(at, gather);
            }
            at = next;
        }
    }

    /// Skips what has no directory at all.
    fn next_table(&self, at: VirtAddr, next: VirtAddr) -> VirtAddr {
        let _section = self.base().rcu.read(self.platform().cpu());
        match self.directory(at) {
            Err(super::NoTable::Hole { level }) => next.max(entry_end(at, level)),
            Ok(_) | Err(super::NoTable::Huge(_) | super::NoTable::Unknown(_)) => next,
        }
    }

    fn free_pte_table<T>(&self, at: VirtAddr, gather: &mut TlbGather<'a, P, T>) {
        let Ok(mut pmd) = self.lock_pmd(at) else { return };
        if !matches!(pmd.load(at).pmd(), PmdState::Table(_)) {
            return;
        }
        // Its own lock too: whoever holds it relies on the table being linked.
        let Ok(table) = self.lock_pte(at) else { return };
        if table.live() != 0 {
            return;
        }
        pmd.clear(at);
        table.desc().mark_stray();
        self.sub_table_page();
        gather.note(at.align_down(crate::addr::PMD_SHIFT), PMD_SIZE);
        gather.add_table(NonNull::from(table.desc()));
    }

    fn free_directory<T>(&self, at: VirtAddr, gather: &mut TlbGather<'a, P, T>) {
        let Ok(directory) = self.lock_pmd(at) else { return };
        if directory.live() != 0 {
            return;
        }
        let _section = self.base().rcu.read(self.platform().cpu());
        let UpperState::Table(parent) = self.load(self.root(), at.table_index(ROOT_LEVEL)).upper()
        else {
            return;
        };
        let Some(above) = self.base().table_desc(parent, 2) else { return };
        directory.desc().mark_stray();
        // Only the holder of the directory's lock takes its entry away.
        self.slot(parent, at.table_index(2)).store(0, Ordering::Release);
        above.sub_live();
        self.sub_table_page();
        gather.note(at, abi::PAGE_SIZE);
        gather.add_table(NonNull::from(directory.desc()));
    }

    fn free_upper<T>(&self, at: VirtAddr, gather: &mut TlbGather<'a, P, T>) {
        let _section = self.base().rcu.read(self.platform().cpu());
        let slot = self.slot(self.root(), at.table_index(ROOT_LEVEL));
        let UpperState::Table(frame) = self.load(self.root(), at.table_index(ROOT_LEVEL)).upper()
        else {
            return;
        };
        let (Some(root), Some(desc)) =
            (self.base().table_desc(self.root(), ROOT_LEVEL), self.base().table_desc(frame, 2))
        else {
            return;
        };
        // From here on nobody links a directory into it.
        if !desc.claim_empty() {
            return;
        }
        desc.mark_stray();
        slot.store(0, Ordering::Release);
        root.sub_live();
        self.sub_table_page();
        gather.note(at, abi::PAGE_SIZE);
        gather.add_table(NonNull::from(desc));
    }
}
