//! mremap: leaves and whole tables change their address.

use core::fmt;

use super::super::entry::{Entry, PmdState, PteState};
use super::super::table::{MakeTableError, NoTable, Tables};
use super::{LeafOwner, entry_end, pages};
use crate::addr::{PMD_SHIFT, PMD_SIZE, VaRange, VirtAddr};
use crate::platform::{Platform, TlbFlush};

/// Leaves that could not be moved on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveError {
    /// Bytes from the start that have moved; the caller moves them back.
    pub moved: u64,
    /// Why.
    pub cause: MakeTableError,
}

impl fmt::Display for MoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Moved {} bytes: {}", self.moved, self.cause)
    }
}

impl core::error::Error for MoveError {}

/// The entry at its new address; `None` if nothing is left of it.
fn moved_pte(entry: Entry, keep_uffd: bool) -> Option<Entry> {
    match entry.pte() {
        PteState::None => None,
        PteState::Present(pte) => {
            let pte = if keep_uffd { pte } else { pte.clear_uffd_wp() };
            Some(pte.mk_soft_dirty().entry())
        }
        PteState::Soft(leaf) => leaf.for_move(keep_uffd).map(Entry::from),
        // Whatever it was, nobody can use it.
        PteState::Unknown(_) => None,
    }
}

fn moved_pmd(entry: Entry, keep_uffd: bool) -> Option<Entry> {
    match entry.pmd() {
        PmdState::None => None,
        PmdState::Present(pmd) => {
            let pmd = if keep_uffd { pmd } else { pmd.clear_uffd_wp() };
            Some(pmd.mk_soft_dirty().entry())
        }
        PmdState::Soft(leaf) => leaf.for_move(keep_uffd).map(Entry::from),
        PmdState::Table(_) => Some(entry),
        PmdState::Unknown(_) => None,
    }
}

impl<'a, P: Platform> Tables<'a, P> {
    /// Moves every leaf of `range` to the addresses from `to` on, which hold none.
    /// Where both ends are aligned to 2 MiB, whole tables and PMD leaves move at
    /// once. Old translations are flushed before the leaves can be changed at
    /// their new place.
    ///
    /// The caller holds the mmap lock for writing, and the rmap locks of the
    /// mapping, so that no walk looks for a leaf between its two places.
    /// `keep_uffd`: userfaultfd goes on watching.
    ///
    /// A whole table moves without a look at its leaves: that they count as
    /// soft-dirty is said by the new mapping.
    ///
    /// # Errors
    /// Out of memory; part of the range has moved.
    pub fn move_range<O: LeafOwner>(
        &self,
        range: VaRange,
        to: VirtAddr,
        keep_uffd: bool,
        owner: &mut O,
    ) -> Result<(), MoveError> {
        let mut at = range.start();
        while at < range.end() {
            let moved = at.get() - range.start().get();
            let next = to
                .checked_add(moved)
                .ok_or(MakeTableError::OutOfRange)
                .and_then(|to| self.move_some((at, range.end()), to, keep_uffd, owner));
            at = next.map_err(|cause| MoveError { moved, cause })?;
        }
        Ok(())
    }

    /// Moves leaves from `at` on, up to the end of a table of either place.
    /// Returns where to go on.
    fn move_some<O: LeafOwner>(
        &self,
        (at, end): (VirtAddr, VirtAddr),
        to: VirtAddr,
        keep_uffd: bool,
        owner: &mut O,
    ) -> Result<VirtAddr, MakeTableError> {
        let step = (entry_end(at, 1).get() - at.get()).min(entry_end(to, 1).get() - to.get());
        let until = at.checked_add(step).unwrap_or(end).min(end);
        let aligned = at.is_aligned(PMD_SHIFT) && to.is_aligned(PMD_SHIFT);
        let whole = aligned && entry_end(at, 1) <= end;
        if whole {
            drop(self.alloc_lock_pmd(to)?);
            if self.move_pmd(at, to, keep_uffd) {
                return Ok(until);
            }
        }
        match self.lock_pte(at) {
            Ok(_) => {}
            Err(NoTable::Hole { level }) => {
                // Skip what both sides agree is nothing.
                return Ok(entry_end(at, level).min(end));
            }
            Err(NoTable::Huge(_)) => {
                self.split_pmd(at, owner)?;
                return Ok(at);
            }
            Err(NoTable::Unknown(_)) => return Ok(until),
        }
        self.alloc_pte(to)?;
        let moved = self.move_ptes((at, until), to, keep_uffd);
        Ok(if moved { until } else { at })
    }

    /// Moves the directory's entry for `at` to the one for `to` if that is free.
    fn move_pmd(&self, at: VirtAddr, to: VirtAddr, keep_uffd: bool) -> bool {
        let Ok(mut first) = self.lock_pmd(at) else { return false };
        let entry = first.load(at);
        if matches!(entry.pmd(), PmdState::None | PmdState::Unknown(_)) {
            return false;
        }
        let same = first.first() == to.align_down(PMD_SHIFT + 9);
        let mut second = if same {
            None
        } else {
            match self.lock_pmd_nested(to) {
                Ok(second) => Some(second),
                Err(_) => return false,
            }
        };
        let target = second.as_ref().map_or_else(|| first.load(to), |second| second.load(to));
        if !target.is_none() {
            // An empty table may stand there, left by what was mapped before.
            return false;
        }
        // Whoever holds the table's lock now finishes before it moves.
        let held = match entry.pmd() {
            PmdState::Table(_) => match self.lock_pte(at) {
                Ok(table) => Some(table),
                // It leads to a frame that is no table: counted, and left where it is.
                Err(_) => return false,
            },
            PmdState::None | PmdState::Present(_) | PmdState::Soft(_) | PmdState::Unknown(_) => {
                None
            }
        };
        let old = first.clear(at);
        if let Some(block) = at.checked_add(PMD_SIZE).and_then(|end| VaRange::new(at, end)) {
            self.flush(TlbFlush::Range(block));
        }
        if let Some(moved) = moved_pmd(old, keep_uffd) {
            match &mut second {
                Some(second) => second.set(to, moved),
                None => first.set(to, moved),
            }
        }
        drop(held);
        drop(second);
        true
    }

    /// Moves the leaves of `[at, until)`, which lie in one table, to `to` on,
    /// which do too. `false` if one of the tables is gone again.
    fn move_ptes(&self, (at, until): (VirtAddr, VirtAddr), to: VirtAddr, keep_uffd: bool) -> bool {
        let Ok(mut source) = self.lock_pte(at) else { return false };
        let same = source.first() == to.align_down(PMD_SHIFT);
        let mut target = if same {
            None
        } else {
            match self.lock_pte_nested(to) {
                Ok(target) => Some(target),
                Err(NoTable::Hole { .. }) => return false,
                // Not the empty place that was promised: what is here stays here.
                Err(NoTable::Huge(_) | NoTable::Unknown(_)) => return true,
            }
        };
        let mut flush = false;
        for page in pages(at, until) {
            let Some(new_place) = to.checked_add(page.get() - at.get()) else { break };
            if matches!(source.state(page), PteState::None) {
                continue;
            }
            let old = source.clear(page);
            flush |= old.is_present();
            if let Some(moved) = moved_pte(old, keep_uffd) {
                match &mut target {
                    Some(target) => target.set(new_place, moved),
                    None => source.set(new_place, moved),
                }
            }
        }
        if flush && let Some(moved) = VaRange::new(at, until) {
            // Before the locks go: a write by the old address after somebody has
            // cleaned or copied the page at the new one would be lost.
            self.flush(TlbFlush::Range(moved));
        }
        drop(target);
        true
    }
}
