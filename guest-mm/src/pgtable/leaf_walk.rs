//! [`LeafWalk`]: the leaves of one folio in one address space, for reverse maps
//! (Linux: `page_vma_mapped_walk`).

use core::fmt;

use abi::PfnRange;

use super::entry::Entry;
use super::range::{LeafState, SizedLeaf, Step, is_whole, pages};
use super::softleaf::{DevOffset, Location, Target};
use super::table::{PmdGuard, PteGuard, Tables};
use crate::addr::{PMD_SHIFT, VaRange, VirtAddr};
use crate::platform::{Platform, TlbFlush};

/// Whose leaves to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sought {
    /// Those of a folio in RAM.
    Frames(PfnRange),
    /// Those of a folio in device memory: so many pages from the offset on.
    Device(DevOffset, u64),
}

impl Sought {
    fn holds(self, at: Location) -> bool {
        match (self, at) {
            (Self::Frames(frames), Location::Pfn(pfn)) => frames.contains(pfn),
            (Self::Device(first, count), Location::DevOffset(at)) => {
                at.get().checked_sub(first.get()).is_some_and(|n| n < count)
            }
            (Self::Frames(_), Location::DevOffset(_)) | (Self::Device(..), Location::Pfn(_)) => {
                false
            }
        }
    }
}

/// Which of its leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoughtLeaves {
    /// Those that map it, and have a reference and a mapcount: present ones,
    /// device-private and device-exclusive ones.
    Mapped,
    /// Those that say it is on the move.
    Migrating,
}

/// Walks over the leaves of a folio, each with its table's lock held.
///
/// The lock stays from one leaf to the next of the same table. Nothing may be
/// allocated or waited for between [`Self::next_leaf`] and [`Self::unlock`],
/// the end or the drop of the walk.
#[must_use = "a walk finds nothing until `next_leaf` is called"]
pub struct LeafWalk<'a, P: Platform> {
    tables: Tables<'a, P>,
    sought: Sought,
    leaves: SoughtLeaves,
    /// Where to look next.
    at: VirtAddr,
    end: VirtAddr,
    held: Held<'a, P>,
    /// The leaf found last.
    found: VirtAddr,
    /// What to flush before the lock is dropped.
    stale: Option<(VirtAddr, VirtAddr)>,
}

/// The lock that the walk holds.
enum Held<'a, P: Platform> {
    Nothing,
    Pte(PteGuard<'a, P>),
    Pmd(PmdGuard<'a, P>),
}

impl<'a, P: Platform> LeafWalk<'a, P> {
    /// A walk over `range`, where a mapping may map the folio.
    pub fn new(
        tables: Tables<'a, P>,
        range: VaRange,
        sought: Sought,
        leaves: SoughtLeaves,
    ) -> Self {
        let (at, end) = (range.start(), range.end());
        Self { tables, sought, leaves, at, end, held: Held::Nothing, found: at, stale: None }
    }

    /// The next leaf and its first address, which for a PMD leaf may lie before
    /// the range.
    pub fn next_leaf(&mut self) -> Option<(VirtAddr, SizedLeaf)> {
        while self.at < self.end {
            if let Held::Pte(guard) = &self.held {
                let until = self.end.min(guard.end());
                let next = pages(self.at, until).find_map(|page| {
                    let leaf = SizedLeaf::of_pte(guard.load(page)).ok()??;
                    self.is_sought(leaf).then_some((page, leaf))
                });
                if let Some((page, leaf)) = next {
                    self.found = page;
                    self.at = page.checked_add(abi::PAGE_SIZE).unwrap_or(VirtAddr::END);
                    return Some((page, leaf));
                }
                self.at = until;
            }
            self.unlock();
            if self.at >= self.end {
                break;
            }
            match self.tables.step(self.at, self.end) {
                Step::Hole(next) => self.at = next,
                Step::Pte(guard, _) => self.held = Held::Pte(guard),
                Step::Pmd(guard, next) => {
                    let block = self.at.align_down(PMD_SHIFT);
                    let leaf = SizedLeaf::of_pmd(guard.load(block));
                    self.at = next.min(self.end);
                    if let Ok(Some(leaf)) = leaf
                        && self.is_sought(leaf)
                    {
                        self.found = block;
                        self.held = Held::Pmd(guard);
                        return Some((block, leaf));
                    }
                }
            }
        }
        self.unlock();
        None
    }

    fn is_sought(&self, leaf: SizedLeaf) -> bool {
        let (at, kind) = match leaf.state {
            LeafState::Present(pte) if pte.is_special() => return false,
            LeafState::Present(pte) => (Location::Pfn(pte.pfn()), SoughtLeaves::Mapped),
            LeafState::Soft(leaf) => match leaf.kind().target() {
                Target::Mapped(at) => (at, SoughtLeaves::Mapped),
                Target::Migrating(at) => (at, SoughtLeaves::Migrating),
                Target::Nothing | Target::Swap(_) => return false,
            },
        };
        kind == self.leaves && self.sought.holds(at)
    }

    /// Drops the lock. The walk goes on where it was.
    pub fn unlock(&mut self) {
        self.flush();
        self.held = Held::Nothing;
    }

    /// Has the leaf found last flushed from all TLBs before the lock is dropped:
    /// together with others of its table, so that nobody sees what replaces it
    /// while a CPU still uses what was there.
    pub fn note_stale(&mut self) {
        let bytes = match self.held {
            Held::Pmd(_) => crate::addr::PMD_SIZE,
            Held::Pte(_) | Held::Nothing => abi::PAGE_SIZE,
        };
        let end = self.found.checked_add(bytes).unwrap_or(VirtAddr::END);
        self.stale = Some(match self.stale {
            None => (self.found, end),
            Some((first, last)) => (first.min(self.found), last.max(end)),
        });
    }

    /// Flushes now what [`Self::note_stale`] noted.
    pub fn flush(&mut self) {
        if let Some((start, end)) = self.stale.take()
            && let Some(range) = VaRange::new(start, end)
        {
            self.tables.flush(TlbFlush::Range(range));
        }
    }

    /// Whether the whole of a PMD leaf found last lies in the walk's range.
    pub fn is_whole(&self) -> bool {
        is_whole(self.found, self.end)
    }

    /// The entry of the leaf found last.
    ///
    /// # Panics
    /// If no leaf is locked: a caller's bug, as for the methods below.
    pub fn load(&self) -> Entry {
        match &self.held {
            Held::Pte(guard) => guard.load(self.found),
            Held::Pmd(guard) => guard.load(self.found),
            Held::Nothing => not_locked(),
        }
    }

    /// Empties the leaf found last; see [`TableGuard::clear`](super::TableGuard::clear).
    pub fn clear(&mut self) -> Entry {
        self.replace(Entry::NONE)
    }

    /// Replaces the leaf found last; see [`TableGuard::swap`](super::TableGuard::swap).
    pub fn replace(&mut self, entry: Entry) -> Entry {
        match &mut self.held {
            Held::Pte(guard) => guard.swap(self.found, entry),
            Held::Pmd(guard) => guard.swap(self.found, entry),
            Held::Nothing => not_locked(),
        }
    }

    /// Changes the leaf found last; see [`TableGuard::update`](super::TableGuard::update).
    pub fn update(&mut self, change: impl FnMut(Entry) -> Entry) -> Entry {
        match &mut self.held {
            Held::Pte(guard) => guard.update(self.found, change),
            Held::Pmd(guard) => guard.update(self.found, change),
            Held::Nothing => not_locked(),
        }
    }

    /// The tables that it walks.
    pub const fn tables(&self) -> Tables<'a, P> {
        self.tables
    }
}

impl<P: Platform> Drop for LeafWalk<'_, P> {
    fn drop(&mut self) {
        self.unlock();
    }
}

fn not_locked() -> ! {
    unreachable!("the walk holds no leaf: nothing was found, or it was unlocked")
}

impl<P: Platform> fmt::Debug for LeafWalk<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafWalk")
            .field("sought", &self.sought)
            .field("leaves", &self.leaves)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
