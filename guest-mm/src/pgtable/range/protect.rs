//! mprotect.

use super::super::entry::{Entry, HwLeaf, LeafSize, PageProt, PmdState, PteState};
use super::super::gather::TlbGather;
use super::super::softleaf::{Owner, Sharing};
use super::super::table::{MakeTableError, Tables};
use super::{LeafOwner, SizedLeaf, Step, is_whole, pages};
use crate::addr::{PMD_SIZE, VaRange, VirtAddr};
use crate::platform::Platform;

/// What mprotect wants of the leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// What the mapping allows now.
    pub prot: PageProt,
    /// Whether writes go to private copies.
    pub sharing: Sharing,
    /// Whether soft-dirty bits were cleared here: then a clean page must fault
    /// on its first write.
    pub tracks_soft_dirty: bool,
}

impl Protection {
    /// The leaf under the new permissions. Page state stays. Writable only if a
    /// write needs no fault: private pages that are exclusive, shared pages that
    /// are dirty already and thus known to their file (Linux:
    /// `can_change_pte_writable`).
    fn apply<S: LeafSize>(self, leaf: HwLeaf<S>) -> HwLeaf<S> {
        let changed = leaf.with_prot(self.prot - PageProt::WRITE);
        if !self.prot.contains(PageProt::WRITE) {
            return changed;
        }
        // Write permission implies read permission, also when only that was asked for.
        let changed = changed.with_prot((self.prot - PageProt::WRITE) | PageProt::READ);
        let known = match self.sharing {
            Sharing::Private => leaf.is_anon_exclusive(),
            Sharing::Shared => leaf.is_dirty(),
        };
        let watched = leaf.is_uffd_wp() || (self.tracks_soft_dirty && !leaf.is_soft_dirty());
        if known && !watched { changed.mk_write() } else { changed }
    }

    /// Whose pages a writable leaf of the mapping stands for: a private mapping
    /// maps pages of its file read-only.
    const fn owner(self) -> Owner {
        match self.sharing {
            Sharing::Private => Owner::Anon,
            Sharing::Shared => Owner::File,
        }
    }

    fn of_pte(self, entry: Entry) -> Entry {
        match entry.pte() {
            PteState::Present(pte) => self.apply(pte).entry(),
            PteState::Soft(leaf) => leaf.for_mprotect(self.owner()).entry(),
            PteState::None | PteState::Unknown(_) => entry,
        }
    }

    fn of_pmd(self, entry: Entry) -> Entry {
        match entry.pmd() {
            PmdState::Present(pmd) => self.apply(pmd).entry(),
            PmdState::Soft(leaf) => {
                leaf.for_mprotect(self.owner()).map_or(entry, |leaf| leaf.entry())
            }
            PmdState::None | PmdState::Table(_) | PmdState::Unknown(_) => entry,
        }
    }
}

/// Whether a TLB may hold more than `new` allows. More permissions need no
/// flush: the fault that a stale translation causes finds the new leaf. The same
/// goes for A and D, which only the MMU adds.
const fn needs_flush(old: Entry, new: Entry) -> bool {
    old.is_present() && old.bits() != new.bits()
}

impl<'a, P: Platform> Tables<'a, P> {
    /// Gives every leaf of `range` new permissions. Returns how many pages
    /// changed; `gather` is left for the caller to flush before it says that the
    /// mapping is protected.
    ///
    /// # Errors
    /// A PMD leaf lies across an end of the range and there is no memory to split
    /// it: what lies before it is changed.
    pub fn change_protection<O: LeafOwner>(
        &self,
        range: VaRange,
        to: Protection,
        gather: &mut TlbGather<'a, P, O::Put>,
        owner: &mut O,
    ) -> Result<u64, MakeTableError> {
        let (mut at, end) = (range.start(), range.end());
        let mut changed = 0;
        while at < end {
            match self.step(at, end) {
                Step::Hole(next) => at = next,
                Step::Pte(mut guard, until) => {
                    for page in pages(at, until) {
                        match guard.state(page) {
                            PteState::Present(_) | PteState::Soft(_) => {}
                            // A malformed entry was counted, and is left as it is.
                            PteState::None | PteState::Unknown(_) => continue,
                        }
                        let mut new = Entry::NONE;
                        let old = guard.update(page, |entry| {
                            new = to.of_pte(entry);
                            new
                        });
                        changed += u64::from(old != new);
                        if needs_flush(old, new) {
                            gather.note(page, abi::PAGE_SIZE);
                        }
                    }
                    at = until;
                }
                Step::Pmd(mut pmd, next) => {
                    let leaf = SizedLeaf::of_pmd(pmd.load(at));
                    if matches!(leaf, Ok(Some(_))) && !is_whole(at, end) {
                        drop(pmd);
                        self.split_pmd(at, owner)?;
                        continue;
                    }
                    changed += self.protect_pmd(&mut pmd, at, to, gather);
                    at = end.min(next);
                }
            }
        }
        Ok(changed)
    }

    fn protect_pmd<T>(
        &self,
        pmd: &mut super::PmdGuard<'a, P>,
        at: VirtAddr,
        to: Protection,
        gather: &mut TlbGather<'a, P, T>,
    ) -> u64 {
        match pmd.state(at) {
            PmdState::Present(_) | PmdState::Soft(_) => {}
            PmdState::None | PmdState::Table(_) | PmdState::Unknown(_) => return 0,
        }
        let mut new = Entry::NONE;
        let old = pmd.update(at, |entry| {
            new = to.of_pmd(entry);
            new
        });
        if old == new {
            return 0;
        }
        if needs_flush(old, new) {
            gather.note(at, PMD_SIZE);
        }
        PMD_SIZE >> abi::PAGE_SHIFT
    }
}
