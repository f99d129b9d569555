//! Operations on ranges of addresses: what unmapping, mprotect, mremap and fork
//! do to tables.
//!
//! Each walks the range by tables, locks one at a time, and knows leaves only:
//! what is behind them (folios, swap slots, counters) is its [`LeafOwner`]'s.
//! Every kind of non-present leaf is decided by the matches of
//! [`softleaf`](super::softleaf).

mod fork;
mod free;
mod protect;
mod remap;
mod split;
mod zap;

use super::entry::{PmdState, Pte, PteState, Size2M};
use super::softleaf::{Leaf, UnknownLeaf};
use super::table::{NoTable, PmdGuard, PteGuard, Tables};
use super::{Entry, LeafSize};
use crate::addr::{VaRange, VirtAddr};
use crate::memory::AllocError;
use crate::platform::Platform;

pub use fork::{Duplicate, ForkError, ForkRules};
pub use protect::Protection;
pub use remap::MoveError;
pub use zap::ZapRules;

/// A leaf of either size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizedLeaf {
    /// The leaf of the first page; those after it are alike.
    pub state: LeafState,
    /// log2 of the pages: 0 or 9.
    pub order: u32,
}

/// What a leaf says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafState {
    /// A mapping.
    Present(Pte),
    /// Anything else.
    Soft(Leaf),
}

impl SizedLeaf {
    /// Pages that the leaf stands for.
    pub const fn pages(self) -> u64 {
        1 << self.order
    }

    /// The leaf in an entry of a PTE table. `Ok(None)` for an empty one.
    ///
    /// # Errors
    /// The entry is malformed.
    pub const fn of_pte(entry: Entry) -> Result<Option<Self>, UnknownLeaf> {
        Ok(match entry.pte() {
            PteState::None => None,
            PteState::Present(pte) => Some(Self { state: LeafState::Present(pte), order: 0 }),
            PteState::Soft(leaf) => Some(Self { state: LeafState::Soft(leaf), order: 0 }),
            PteState::Unknown(unknown) => return Err(unknown),
        })
    }

    /// The leaf in an entry of a directory. `Ok(None)` for a table or nothing.
    ///
    /// # Errors
    /// The entry is malformed.
    pub const fn of_pmd(entry: Entry) -> Result<Option<Self>, UnknownLeaf> {
        let state = match entry.pmd() {
            PmdState::None | PmdState::Table(_) => return Ok(None),
            PmdState::Present(pmd) => match pmd.split(0) {
                Some(first) => LeafState::Present(first),
                None => return Err(UnknownLeaf(entry)),
            },
            PmdState::Soft(leaf) => LeafState::Soft(leaf.leaf()),
            PmdState::Unknown(unknown) => return Err(unknown),
        };
        Ok(Some(Self { state, order: Size2M::ORDER }))
    }
}

/// What is behind the leaves of one address space.
///
/// Called with the lock of the leaf's table held, except for [`Self::put`] and
/// [`Self::prepare_copy`]: nothing may be allocated or waited for.
pub trait LeafOwner {
    /// What is given up after the TLB flush: a reference, a swap slot.
    type Put;

    /// The leaf at `at` was cleared: its mapcount and its place in the counters
    /// go now, its reference after the flush.
    fn unmapped(&mut self, at: VirtAddr, leaf: SizedLeaf) -> Unmapped<Self::Put>;

    /// Gives up what [`Self::unmapped`] returned. No lock is held.
    fn put(&mut self, put: Self::Put);

    /// The PMD leaf at `at` is 512 leaves now: so many mapcounts and references.
    fn split(&mut self, at: VirtAddr, leaf: SizedLeaf);

    /// Fork: the child gets a leaf like `leaf`, which in the parent is neither
    /// writable nor exclusive any more if the mapping is private.
    fn duplicate(&mut self, at: VirtAddr, leaf: SizedLeaf) -> Duplicate;

    /// Fork: before `Duplicate::Copied` can be answered, memory is needed. No lock is held.
    ///
    /// # Errors
    /// Out of memory.
    fn prepare_copy(&mut self, at: VirtAddr) -> Result<(), AllocError>;
}

/// What is left to do for a cleared leaf.
#[derive(Debug)]
pub struct Unmapped<T> {
    /// Given up after the flush.
    pub put: Option<T>,
    /// Whether the flush must come before the table's lock is dropped: the page
    /// was dirty and others may clean it, who trust the leaf to say so.
    pub flush_now: bool,
}

impl<T> Unmapped<T> {
    /// Nothing left to do.
    pub const NOTHING: Self = Self { put: None, flush_now: false };
}

/// What lies next in a range.
pub(super) enum Step<'a, P: Platform> {
    /// Nothing up to this address.
    Hole(VirtAddr),
    /// A PTE table, for the pages up to this address.
    Pte(PteGuard<'a, P>, VirtAddr),
    /// A leaf or a malformed entry in a directory, which spans up to this address;
    /// part of it may lie outside the range.
    Pmd(PmdGuard<'a, P>, VirtAddr),
}

/// The first address after the table entry of `level` that spans `at`.
fn entry_end(at: VirtAddr, level: u32) -> VirtAddr {
    let shift = 12 + 9 * level;
    at.align_down(shift).checked_add(1 << shift).unwrap_or(VirtAddr::END)
}

impl<'a, P: Platform> Tables<'a, P> {
    /// Whether a directory's entry is malformed, or leads to a frame that is no table.
    fn leads_nowhere(&self, state: PmdState) -> bool {
        match state {
            PmdState::Unknown(_) => true,
            PmdState::Table(frame) => self.base().table_desc(frame, 0).is_none(),
            PmdState::None | PmdState::Present(_) | PmdState::Soft(_) => false,
        }
    }

    /// What lies at `at`, which is below `end`.
    pub(super) fn step(&self, at: VirtAddr, end: VirtAddr) -> Step<'a, P> {
        loop {
            let is_bad = match self.lock_pte(at) {
                Ok(guard) => {
                    let until = end.min(guard.end());
                    return Step::Pte(guard, until);
                }
                Err(NoTable::Hole { level }) => return Step::Hole(end.min(entry_end(at, level))),
                Err(NoTable::Huge(_)) => false,
                Err(NoTable::Unknown(_)) => true,
            };
            let until = entry_end(at, 1);
            let Ok(pmd) = self.lock_pmd(at) else {
                if is_bad {
                    return Step::Hole(end.min(until));
                }
                continue;
            };
            match pmd.load(at).pmd() {
                PmdState::Present(_) | PmdState::Soft(_) | PmdState::Unknown(_) => {
                    return Step::Pmd(pmd, until);
                }
                // It leads to a frame that is no table.
                PmdState::Table(_) if is_bad => return Step::Pmd(pmd, until),
                PmdState::Table(_) | PmdState::None => {}
            }
        }
    }
}

/// Whether the directory entry at `at` lies in the range `[at, end)` as a whole.
pub(super) fn is_whole(at: VirtAddr, end: VirtAddr) -> bool {
    at.is_aligned(crate::addr::PMD_SHIFT) && entry_end(at, 1) <= end
}

/// Pages of `[at, end)`.
pub(super) fn pages(at: VirtAddr, end: VirtAddr) -> impl Iterator<Item = VirtAddr> {
    VaRange::new(at, end).into_iter().flat_map(VaRange::iter_pages)
}
