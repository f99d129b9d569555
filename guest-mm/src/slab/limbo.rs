//! What waits for a grace period in two batches: no stamp per member.

use crate::rcu::{Rcu, Stamp};

/// A list that can be handed on as a whole.
pub(super) trait List: Default {
    /// Members.
    fn len(&self) -> u64;
}

/// Members join *fresh*; all of fresh becomes *waiting* with one stamp when
/// nothing waits. So one stamp, one fence and no room in the members.
///
/// A member may be taken back from either list at any time: it is still what it was.
#[derive(Debug)]
pub(super) struct Limbo<L> {
    fresh: L,
    waiting: L,
    /// Of the waiting ones.
    stamp: Option<Stamp>,
}

impl<L: List> Limbo<L> {
    /// Nothing waits: two empty lists.
    pub(super) const fn new(fresh: L, waiting: L) -> Self {
        Self { fresh, waiting, stamp: None }
    }

    /// Members.
    pub(super) fn len(&self) -> u64 {
        self.fresh.len() + self.waiting.len()
    }

    /// Where members join.
    pub(super) const fn fresh(&mut self) -> &mut L {
        &mut self.fresh
    }

    /// Both lists, to take a member back.
    pub(super) fn lists(&mut self) -> impl Iterator<Item = &mut L> {
        [&mut self.fresh, &mut self.waiting].into_iter()
    }

    /// The members whose grace period is over, if any; moves the grace period
    /// on as far as its readers allow.
    pub(super) fn over(&mut self, rcu: &Rcu) -> Option<&mut L> {
        if self.waiting.len() == 0 {
            if self.fresh.len() == 0 {
                return None;
            }
            self.waiting = core::mem::take(&mut self.fresh);
            self.stamp = Some(rcu.stamp());
        }
        let is_over = self.stamp.is_some_and(|stamp| rcu.is_over(stamp));
        is_over.then_some(&mut self.waiting)
    }
}
