//! A cache's slabs: those with free objects, and those that are leaving.

use abi::{PAGE_SIZE, Pfn};

use super::descriptor::Slab;
use crate::memory::Memory;
use crate::platform::Platform;
use crate::rcu::{Batches, List, Rcu};

/// Slabs without a used object that a cache keeps.
const EMPTY_SLABS_KEPT: u64 = 1;

/// What is to become of slabs that are no longer needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// They go back to the buddy allocator at once.
    AtOnce,
    /// They stay slabs until a grace period has passed.
    AfterGracePeriod,
}

/// Slabs that wait for something, linked through their descriptors.
#[derive(Debug, Default)]
pub(super) struct Chain {
    first: Option<u32>,
    len: u64,
}

impl List for Chain {
    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Chain {
    fn push<P: Platform>(&mut self, memory: &Memory<P>, slab: Slab<'_>) {
        slab.set_next(self.first);
        self.first = slab.link(memory);
        self.len += 1;
    }

    pub(super) fn pop<'m, P: Platform>(&mut self, memory: &'m Memory<P>) -> Option<Slab<'m>> {
        let slab = Slab::linked(memory, self.first?)?;
        self.first = slab.next();
        self.len -= 1;
        Some(slab)
    }
}

/// Behind the cache's lock.
#[derive(Debug)]
pub(super) struct Slabs {
    leave: Leave,
    /// First slab that has an object to hand out: zone-relative frame.
    partial: Option<u32>,
    /// All slabs, those in limbo included.
    slabs: u64,
    /// Slabs on the partial list that have all their objects.
    empty: u64,
    /// Objects that are not in their slabs: in use or with a CPU.
    out: u64,
    limbo: Batches<Chain>,
    /// Of them, those in the statistics of deferred memory.
    noted: u64,
}

impl Slabs {
    pub(super) const fn new(leave: Leave) -> Self {
        let nothing = Chain { first: None, len: 0 };
        let limbo = Batches::new(Chain { first: None, len: 0 }, nothing);
        Self { leave, partial: None, slabs: 0, empty: 0, out: 0, limbo, noted: 0 }
    }

    pub(super) const fn slabs(&self) -> u64 {
        self.slabs
    }

    pub(super) const fn out(&self) -> u64 {
        self.out
    }

    pub(super) fn in_limbo(&self) -> u64 {
        self.limbo.lists().iter().map(|list| list.len).sum()
    }

    /// Takes an object from the first slab that has one; a slab in limbo comes
    /// back for it. Returns the slab and the object's number.
    pub(super) fn take<'m, P: Platform>(
        &mut self,
        memory: &'m Memory<P>,
    ) -> Option<(Slab<'m>, usize)> {
        if self.partial.is_none() {
            let slab = self.limbo.lists_mut().into_iter().find_map(|list| list.pop(memory))?;
            self.link(memory, slab);
            self.empty += 1;
        }
        let slab = Slab::linked(memory, self.partial?)?;
        if slab.is_empty() {
            self.empty -= 1;
        }
        let object = slab.take()?;
        if slab.here() == 0 {
            self.unlink(memory, slab);
        }
        self.out += 1;
        Some((slab, object))
    }

    /// Gives a slab its object back. A slab that the cache need not keep is put
    /// in limbo or on `leaving`, as [`Leave`] says.
    pub(super) fn put<P: Platform>(
        &mut self,
        memory: &Memory<P>,
        slab: Slab<'_>,
        object: usize,
        leaving: &mut Chain,
    ) {
        if slab.here() == 0 {
            self.link(memory, slab);
        }
        slab.put(object);
        self.out -= 1;
        if !slab.is_empty() {
            return;
        }
        self.empty += 1;
        if self.empty > EMPTY_SLABS_KEPT {
            self.dismiss(memory, slab, leaving);
        }
    }

    /// Adds a new slab with all its objects.
    pub(super) fn add<P: Platform>(&mut self, memory: &Memory<P>, slab: Slab<'_>) {
        self.link(memory, slab);
        self.slabs += 1;
        self.empty += 1;
    }

    /// Dismisses all slabs without a used object.
    pub(super) fn dismiss_empty<P: Platform>(&mut self, memory: &Memory<P>, leaving: &mut Chain) {
        let mut at = self.partial;
        while let Some(slab) = at.and_then(|link| Slab::linked(memory, link)) {
            at = slab.next();
            if slab.is_empty() {
                self.dismiss(memory, slab, leaving);
            }
        }
    }

    /// A slab whose grace period is over, out of the books.
    pub(super) fn pop_over<P: Platform>(&mut self, memory: &Memory<P>, rcu: &Rcu) -> Option<Pfn> {
        self.note(rcu);
        let slab = self.limbo.over(rcu, || memory.platform().now_ns())?.pop(memory)?;
        self.slabs -= 1;
        self.note(rcu);
        slab.pfn(memory)
    }

    /// Brings the statistics of deferred memory up to date.
    fn note(&mut self, rcu: &Rcu) {
        let (limbo, bytes) = (self.in_limbo(), |slabs: u64| slabs * PAGE_SIZE);
        rcu.note_deferred(bytes(limbo.saturating_sub(self.noted)));
        rcu.note_reclaimed(bytes(self.noted.saturating_sub(limbo)));
        self.noted = limbo;
    }

    /// Takes an empty slab off the list.
    fn dismiss<P: Platform>(&mut self, memory: &Memory<P>, slab: Slab<'_>, leaving: &mut Chain) {
        self.unlink(memory, slab);
        self.empty -= 1;
        match self.leave {
            Leave::AtOnce => {
                self.slabs -= 1;
                leaving.push(memory, slab);
            }
            Leave::AfterGracePeriod => self.limbo.fresh().push(memory, slab),
        }
    }

    fn link<P: Platform>(&mut self, memory: &Memory<P>, slab: Slab<'_>) {
        let link = slab.link(memory);
        slab.set_prev(None);
        slab.set_next(self.partial);
        if let Some(first) = self.partial.and_then(|first| Slab::linked(memory, first)) {
            first.set_prev(link);
        }
        self.partial = link;
    }

    fn unlink<P: Platform>(&mut self, memory: &Memory<P>, slab: Slab<'_>) {
        let (prev, next) = (slab.prev(), slab.next());
        match prev.and_then(|prev| Slab::linked(memory, prev)) {
            Some(prev) => prev.set_next(next),
            None => self.partial = next,
        }
        if let Some(next) = next.and_then(|next| Slab::linked(memory, next)) {
            next.set_prev(prev);
        }
    }
}
