//! fork: the child's leaves.

use core::fmt;
use core::sync::atomic::{Ordering, fence};

use super::super::entry::{Entry, HwLeaf, LeafSize, PmdState, Pte, PteState};
use super::super::gather::TlbGather;
use super::super::softleaf::{ForkLeaf, Leaf, Sharing};
use super::super::table::{MakeTableError, NoTable, PmdGuard, PteGuard, Tables};
use super::{LeafOwner, LeafState, SizedLeaf, Step, pages};
use crate::addr::{PMD_SIZE, VaRange, VirtAddr};
use crate::memory::AllocError;
use crate::platform::Platform;

/// What the child gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkRules {
    /// Whether writes go to private copies: then parent and child share every
    /// page read-only until one of them writes.
    pub sharing: Sharing,
    /// Whether userfaultfd watches the child's mapping too.
    pub child_has_uffd: bool,
}

/// The owner's answer to [`LeafOwner::duplicate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicate {
    /// One more mapping of the same page, counted: the child gets the same leaf.
    Shared,
    /// The page is pinned. Its contents were copied, and this is the child's leaf.
    Copied(Pte),
    /// The page is pinned, and the owner needs memory for the copy, or a smaller
    /// leaf: the parent's leaf becomes what it was, and locks are dropped.
    NeedsCopy,
    /// The child gets nothing: it can fault the page in by itself.
    Skip,
}

/// Why fork stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkError {
    /// No memory for a table or for a copy. What the child has so far is right,
    /// and goes when the child does.
    OutOfMemory,
    /// A leaf at this address must become present in the parent first: the
    /// device's exclusive access ends by a fault, then the caller goes on there.
    Restore(VirtAddr),
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("No memory for the child's page tables"),
            Self::Restore(at) => write!(f, "The page at {at} is a device's"),
        }
    }
}

impl core::error::Error for ForkError {}

impl From<MakeTableError> for ForkError {
    fn from(_: MakeTableError) -> Self {
        Self::OutOfMemory
    }
}

impl From<AllocError> for ForkError {
    fn from(_: AllocError) -> Self {
        Self::OutOfMemory
    }
}

/// How a table's part of the range ended.
enum Copied {
    /// All of it.
    Done,
    /// Up to this address, where memory is needed first.
    Needs(VirtAddr),
    /// Up to this address, where a device's access has to end first.
    Restore(VirtAddr),
}

impl ForkRules {
    /// The parent's leaf while two map the page.
    fn parent<S: LeafSize>(self, leaf: HwLeaf<S>) -> HwLeaf<S> {
        match self.sharing {
            Sharing::Private => leaf.wrprotect().clear_anon_exclusive(),
            Sharing::Shared => leaf,
        }
    }

    /// The child's leaf of the same page: not used so far, and if shared not
    /// written by it either.
    fn child<S: LeafSize>(self, leaf: HwLeaf<S>) -> HwLeaf<S> {
        let leaf = self.parent(leaf).mk_old();
        let leaf = match self.sharing {
            Sharing::Private => leaf,
            Sharing::Shared => leaf.mk_clean(),
        };
        if self.child_has_uffd { leaf } else { leaf.clear_uffd_wp() }
    }
}

impl<'a, P: Platform> Tables<'a, P> {
    /// Copies the leaves of `range` into `child`, which has none there.
    ///
    /// Under the table's lock a private leaf first loses W and anon-exclusive, then its
    /// pins are looked at; a lockless pinner counts first and looks at the leaf
    /// then. So one of the two sees the other: a pinned page stays exclusive in
    /// the parent and is copied for the child.
    ///
    /// `gather` (the parent's) is left for the caller to flush before the child
    /// runs.
    ///
    /// # Errors
    /// See [`ForkError`].
    pub fn copy_range<O: LeafOwner>(
        &self,
        child: &Tables<'a, P>,
        range: VaRange,
        rules: ForkRules,
        gather: &mut TlbGather<'a, P, O::Put>,
        owner: &mut O,
    ) -> Result<(), ForkError> {
        let (mut at, end) = (range.start(), range.end());
        while at < end {
            // The child's table comes first: locks are taken child, parent, and
            // nothing is allocated below them.
            let is_table = match self.step(at, end) {
                Step::Hole(next) => {
                    at = next;
                    continue;
                }
                Step::Pte(guard, _) => {
                    drop(guard);
                    true
                }
                Step::Pmd(guard, _) => {
                    drop(guard);
                    false
                }
            };
            if is_table {
                child.alloc_pte(at)?;
            } else {
                child.alloc_pmd(at)?;
            }
            let (copied, next) = self.copy_step(child, (at, end), rules, gather, owner);
            match copied {
                Copied::Done => at = next,
                Copied::Restore(there) => return Err(ForkError::Restore(there)),
                Copied::Needs(there) => {
                    // A pinned page of a PMD leaf is copied by itself.
                    if !self.split_pmd(there, owner)? {
                        owner.prepare_copy(there)?;
                    }
                    at = there;
                }
            }
        }
        Ok(())
    }

    /// Copies one table's part, or one PMD leaf. Returns how it ended, and where
    /// the next part begins.
    fn copy_step<O: LeafOwner>(
        &self,
        child: &Tables<'a, P>,
        (at, end): (VirtAddr, VirtAddr),
        rules: ForkRules,
        gather: &mut TlbGather<'a, P, O::Put>,
        owner: &mut O,
    ) -> (Copied, VirtAddr) {
        if let Ok(mut to) = child.lock_pte(at) {
            let until = end.min(to.end());
            return match self.lock_pte_nested(at) {
                Ok(mut from) => {
                    let part = (at, until);
                    (copy_table((&mut from, &mut to), part, rules, gather, owner), until)
                }
                // Only leaves fit the child's table.
                Err(NoTable::Huge(_)) => (Copied::Needs(at), at),
                // The parent's table went: look again.
                Err(NoTable::Hole { .. }) => (Copied::Done, at),
                // Counted; the child does not get it.
                Err(NoTable::Unknown(_)) => (Copied::Done, until),
            };
        }
        let next = end.min(super::entry_end(at, 1));
        let Ok(mut to) = child.lock_pmd(at) else { return (Copied::Done, at) };
        if !to.load(at).is_none() {
            // Not the empty child that was promised: nothing is overwritten.
            return (Copied::Done, next);
        }
        match self.lock_pmd_nested(at) {
            Ok(mut from) if from.load(at).pmd_is_leaf() => {
                (copy_pmd((&mut from, &mut to), at, rules, gather, owner), next)
            }
            Ok(from) if self.leads_nowhere(from.state(at)) => (Copied::Done, next),
            Ok(_) | Err(_) => (Copied::Done, at),
        }
    }
}

fn copy_table<P: Platform, O: LeafOwner>(
    (from, to): (&mut PteGuard<'_, P>, &mut PteGuard<'_, P>),
    (at, until): (VirtAddr, VirtAddr),
    rules: ForkRules,
    gather: &mut TlbGather<'_, P, O::Put>,
    owner: &mut O,
) -> Copied {
    for page in pages(at, until) {
        match from.load(page).pte() {
            PteState::None => {}
            PteState::Unknown(_) => {
                // Met and counted; the child does not get it.
                from.state(page);
            }
            PteState::Soft(leaf) => match copy_leaf(page, leaf, rules, owner) {
                Ok(None) => {}
                Ok(Some((parent, child))) => {
                    from.swap(page, parent.entry());
                    to.set(page, child.entry());
                }
                Err(()) => return Copied::Restore(page),
            },
            PteState::Present(pte) => {
                let old = from.update(page, |entry| match entry.pte() {
                    PteState::Present(pte) => rules.parent(pte).entry(),
                    PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
                });
                // Orders the change before the look at the pins; pairs with the fence
                // between a lockless pinner's count and its second look at the leaf.
                fence(Ordering::SeqCst);
                let leaf = SizedLeaf { state: LeafState::Present(pte), order: 0 };
                let child = match owner.duplicate(page, leaf) {
                    Duplicate::Shared => Some(rules.child(pte)),
                    Duplicate::Copied(copy) => Some(copy),
                    Duplicate::Skip => None,
                    Duplicate::NeedsCopy => {
                        restore(|change| from.update(page, change), old);
                        return Copied::Needs(page);
                    }
                };
                if matches!(child, Some(copy) if copy.pfn() != pte.pfn()) {
                    restore(|change| from.update(page, change), old);
                } else if from.load(page).bits() != old.bits() {
                    gather.note(page, abi::PAGE_SIZE);
                }
                if let Some(child) = child {
                    to.set(page, child.entry());
                }
            }
        }
    }
    Copied::Done
}

fn copy_pmd<P: Platform, O: LeafOwner>(
    (from, to): (&mut PmdGuard<'_, P>, &mut PmdGuard<'_, P>),
    at: VirtAddr,
    rules: ForkRules,
    gather: &mut TlbGather<'_, P, O::Put>,
    owner: &mut O,
) -> Copied {
    let old = from.update(at, |entry| match entry.pmd() {
        PmdState::Present(pmd) => rules.parent(pmd).entry(),
        PmdState::None | PmdState::Table(_) | PmdState::Soft(_) | PmdState::Unknown(_) => entry,
    });
    match old.pmd() {
        PmdState::Present(pmd) => {
            // As in `copy_table`.
            fence(Ordering::SeqCst);
            let Ok(Some(leaf)) = SizedLeaf::of_pmd(old) else { return Copied::Done };
            match owner.duplicate(at, leaf) {
                Duplicate::Shared => to.set(at, rules.child(pmd).entry()),
                Duplicate::Skip => {}
                Duplicate::NeedsCopy | Duplicate::Copied(_) => {
                    restore(|change| from.update(at, change), old);
                    return Copied::Needs(at);
                }
            }
            if from.load(at) != old {
                gather.note(at, PMD_SIZE);
            }
        }
        PmdState::Soft(leaf) => {
            let forked = leaf.for_fork(rules.sharing, rules.child_has_uffd);
            let found = SizedLeaf { state: LeafState::Soft(leaf.leaf()), order: 9 };
            if let (Some((parent, child)), Duplicate::Shared) = (forked, owner.duplicate(at, found))
            {
                from.swap(at, parent.entry());
                to.set(at, child.entry());
            }
        }
        PmdState::None | PmdState::Table(_) | PmdState::Unknown(_) => {}
    }
    Copied::Done
}

/// Parent's and child's leaf; `Err` if the page has to become present first.
fn copy_leaf<O: LeafOwner>(
    at: VirtAddr,
    leaf: Leaf,
    rules: ForkRules,
    owner: &mut O,
) -> Result<Option<(Leaf, Leaf)>, ()> {
    match leaf.for_fork(rules.sharing, rules.child_has_uffd) {
        ForkLeaf::Skip => Ok(None),
        ForkLeaf::RestoreExclusive(_) => Err(()),
        ForkLeaf::Copy { parent, child } => {
            let found = SizedLeaf { state: LeafState::Soft(leaf), order: 0 };
            match owner.duplicate(at, found) {
                Duplicate::Shared => Ok(Some((parent, child))),
                Duplicate::Skip | Duplicate::NeedsCopy | Duplicate::Copied(_) => Ok(None),
            }
        }
    }
}

/// Gives the parent's leaf back what fork took, keeping the A and D that the MMU
/// has set since.
fn restore(update: impl FnOnce(&mut dyn FnMut(Entry) -> Entry) -> Entry, old: Entry) {
    update(&mut |entry| Entry::from_bits(entry.bits() | old.bits()));
}

impl Entry {
    /// Whether a directory's entry is a leaf.
    const fn pmd_is_leaf(self) -> bool {
        matches!(self.pmd(), PmdState::Present(_) | PmdState::Soft(_))
    }
}
