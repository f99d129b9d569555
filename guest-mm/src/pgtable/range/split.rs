//! A PMD leaf becomes 512 PTEs.

use core::sync::atomic::Ordering;

use super::super::entry::{Entry, PmdState};
use super::super::table::{ENTRIES, MakeTableError, NoTable, PmdGuard, Tables};
use super::{LeafOwner, SizedLeaf};
use crate::addr::{PMD_SHIFT, PMD_SIZE, VaRange, VirtAddr};
use crate::platform::{Platform, TlbFlush};

impl<'a, P: Platform> Tables<'a, P> {
    /// Replaces the PMD leaf for `va`, if there is one, by a table of 512 leaves
    /// that say the same: A, D, permissions and software bits stay. Returns
    /// whether there was one.
    ///
    /// In between, the entry is empty and flushed: no CPU ever has the large and
    /// the small translation of an address at once, and the MMU sets A and D in
    /// one of them only.
    ///
    /// # Errors
    /// No memory for the table, or a malformed entry; nothing is changed.
    pub fn split_pmd<O: LeafOwner>(
        &self,
        va: VirtAddr,
        owner: &mut O,
    ) -> Result<bool, MakeTableError> {
        match self.lock_pte(va) {
            Err(NoTable::Huge(_)) => {}
            Err(NoTable::Unknown(unknown)) => return Err(MakeTableError::Unknown(unknown)),
            Ok(_) | Err(NoTable::Hole { .. }) => return Ok(false),
        }
        let table = self.base().new_table(0)?;
        let at = va.align_down(PMD_SHIFT);
        let split = match self.lock_pmd(at) {
            Ok(mut pmd) => self.split_locked(&mut pmd, at, table.frame(), owner),
            Err(_) => false,
        };
        if split {
            self.add_table_page();
            let _linked = table.into_desc();
        } else {
            self.base().discard_table(table);
        }
        Ok(split)
    }

    /// Splits the leaf at each end of `range` that lies inside one, so that the
    /// range consists of whole leaves: before a step that must not fail.
    ///
    /// # Errors
    /// As [`Self::split_pmd`].
    pub fn split_ends<O: LeafOwner>(
        &self,
        range: VaRange,
        owner: &mut O,
    ) -> Result<(), MakeTableError> {
        for end in [range.start(), range.end()] {
            if !end.is_aligned(PMD_SHIFT) {
                self.split_pmd(end, owner)?;
            }
        }
        Ok(())
    }

    fn split_locked<O: LeafOwner>(
        &self,
        pmd: &mut PmdGuard<'a, P>,
        at: VirtAddr,
        table: abi::Pfn,
        owner: &mut O,
    ) -> bool {
        let (Ok(Some(_)), Some(linked)) = (SizedLeaf::of_pmd(pmd.load(at)), Entry::table(table))
        else {
            return false;
        };
        let old = pmd.clear(at);
        if old.is_present()
            && let Some(block) = at.checked_add(PMD_SIZE).and_then(|end| VaRange::new(at, end))
        {
            self.flush(TlbFlush::Range(block));
        }
        for index in 0..ENTRIES {
            let page = index as u64;
            let leaf = match old.pmd() {
                PmdState::Present(pmd) => pmd.split(page).map(Entry::from),
                PmdState::Soft(leaf) => leaf.split(page).map(Entry::from),
                PmdState::None | PmdState::Table(_) | PmdState::Unknown(_) => None,
            };
            // Relaxed: the directory's entry, stored below, publishes the table.
            self.slot(table, index).store(leaf.map_or(0, Entry::bits), Ordering::Relaxed);
        }
        self.fill_live(table);
        // Counted before anybody can take one of the 512 away.
        if let Ok(Some(leaf)) = SizedLeaf::of_pmd(old) {
            owner.split(at, leaf);
        }
        pmd.set(at, linked);
        true
    }
}
