//! What waits for a grace period in two batches: no stamp per member.

use super::{Rcu, Stamp};

/// A list that can be handed on as a whole.
pub(crate) trait List: Default {
    /// Whether it has no member.
    fn is_empty(&self) -> bool;
}

/// Members join *fresh*; all of fresh becomes *waiting* with one stamp when
/// nothing waits. So one stamp, one fence, and no room in the members.
///
/// Whoever needs a member back may take it from either list at any time.
#[derive(Debug)]
pub(crate) struct Batches<L> {
    fresh: L,
    waiting: L,
    /// Of the waiting ones: their stamp, and when it was taken.
    stamp: Option<(Stamp, u64)>,
}

impl<L: List> Batches<L> {
    /// Nothing waits: two empty lists.
    pub(crate) const fn new(fresh: L, waiting: L) -> Self {
        Self { fresh, waiting, stamp: None }
    }

    /// Where members join.
    pub(crate) const fn fresh(&mut self) -> &mut L {
        &mut self.fresh
    }

    /// Both lists, to count them.
    pub(crate) const fn lists(&self) -> [&L; 2] {
        [&self.fresh, &self.waiting]
    }

    /// Both lists, to take a member back.
    pub(crate) const fn lists_mut(&mut self) -> [&mut L; 2] {
        [&mut self.fresh, &mut self.waiting]
    }

    /// The members whose grace period is over, if any; moves the grace period
    /// on as far as its readers allow, and notes how long it took.
    ///
    /// `now`: the time in nanoseconds, asked for when it matters.
    pub(crate) fn over(&mut self, rcu: &Rcu, now: impl Fn() -> u64) -> Option<&mut L> {
        if self.waiting.is_empty() {
            if self.fresh.is_empty() {
                return None;
            }
            self.waiting = core::mem::take(&mut self.fresh);
            self.stamp = Some((rcu.stamp(), now()));
        }
        if let Some((stamp, since)) = self.stamp {
            if !rcu.is_over(stamp) {
                return None;
            }
            self.stamp = None;
            rcu.note_grace_period(now().saturating_sub(since));
        }
        // Without a stamp: of a batch that is over and not used up yet.
        Some(&mut self.waiting)
    }
}
