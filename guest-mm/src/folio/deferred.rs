//! Large anonymous folios that seem to be mapped in part: the queue to be split.
//!
//! Counts are per folio, so a partial unmapping shows as fewer leaves than
//! pages. The unmapped pages are not free until the folio is split, which needs
//! locks that the unmapper may not wait for: he queues the folio, and reclaim
//! splits it when memory is short.

use core::fmt;
use core::ptr::NonNull;

use abi::Pfn;

use super::{Folio, FolioFlags, FolioRef};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::sync::{LockClass, SpinLock};

/// The queue: folios linked by frame numbers in their `private` field, which
/// the swap cache uses at other times. Oldest first; holds no references.
pub struct DeferredSplit(SpinLock<Queue>);

struct Queue {
    first: Option<Pfn>,
    last: Option<Pfn>,
    len: u64,
}

/// Bits of a link.
const LINK_BITS: u32 = 32;
const LINK_NONE: u64 = (1 << LINK_BITS) - 1;

/// The two links as one field. Frame numbers of 64 GiB need 24 bits.
fn pack(prev: Option<Pfn>, next: Option<Pfn>) -> u64 {
    let link = |pfn: Option<Pfn>| pfn.map_or(LINK_NONE, |pfn| pfn.number() & LINK_NONE);
    link(prev) << LINK_BITS | link(next)
}

fn unpack(private: u64) -> (Option<Pfn>, Option<Pfn>) {
    let link = |bits: u64| if bits == LINK_NONE { None } else { Pfn::new(bits) };
    (link(private >> LINK_BITS), link(private & LINK_NONE))
}

impl DeferredSplit {
    /// An empty queue.
    pub const fn new() -> Self {
        Self(SpinLock::new(LockClass::Lru, Queue { first: None, last: None, len: 0 }))
    }
}

impl Default for DeferredSplit {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DeferredSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeferredSplit")
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Folios on the queue.
    pub fn deferred_splits(&self) -> u64 {
        self.deferred_split.0.lock(self.platform()).len
    }

    /// Splits up to `most` queued folios into pages, so that those which nothing
    /// maps are freed. Returns how many were split.
    ///
    /// One that cannot be split now, being locked or pinned, goes to the end of the queue.
    pub fn run_deferred_split(&self, most: u64) -> u64 {
        let mut split = 0;
        for _ in 0..most.min(self.deferred_splits()) {
            let Some(folio) = self.pop_deferred() else { break };
            let folio = match folio.try_into_locked(self.platform()) {
                Ok(folio) => {
                    let done = self.split_folio(folio.reference(), Order::ZERO);
                    split += u64::from(done.is_ok());
                    folio.unlock()
                }
                Err(folio) => folio,
            };
            // Split, it is not large any more; otherwise it still waits, if it is mapped at all.
            if folio.is_mapped() {
                self.deferred_split_folio(&folio);
            }
            self.put(folio);
        }
        split
    }

    /// Queues a large folio of which part seems to be unmapped. A folio in the
    /// swap cache is not queued: swapping it out splits it anyway.
    ///
    /// May be called with page-table locks held.
    pub(crate) fn deferred_split_folio(&self, folio: &Folio) {
        if !folio.is_large() || folio.has(FolioFlags::DEFERRED_SPLIT) {
            return;
        }
        let mut queue = self.deferred_split.0.lock(self.platform());
        if folio.has(FolioFlags::SWAPCACHE) || folio.has(FolioFlags::DEFERRED_SPLIT) {
            return;
        }
        folio.set_flags(FolioFlags::DEFERRED_SPLIT);
        folio.private.store(pack(queue.last, None), Ordering::Relaxed);
        match queue.last {
            Some(last) => self.relink(last, |(prev, _)| (prev, Some(folio.pfn()))),
            None => queue.first = Some(folio.pfn()),
        }
        queue.last = Some(folio.pfn());
        queue.len += 1;
    }

    /// Takes a folio off the queue if it is on it: before it is freed, split, or
    /// put into the swap cache. Its caller keeps it from being queued again.
    pub(crate) fn undefer_split(&self, folio: &Folio) {
        if !folio.has(FolioFlags::DEFERRED_SPLIT) {
            return;
        }
        let mut queue = self.deferred_split.0.lock(self.platform());
        self.unlink_deferred(&mut queue, folio);
    }

    /// The oldest folio that still exists, off the queue, with a reference.
    pub(super) fn pop_deferred(&self) -> Option<FolioRef<'m>> {
        let mut queue = self.deferred_split.0.lock(self.platform());
        let mut next = queue.first;
        while let Some(pfn) = next {
            let folio = self.queued(pfn)?;
            next = unpack(folio.private()).1;
            // One that is being freed takes itself off.
            if let Some(folio) = FolioRef::try_get(folio) {
                self.unlink_deferred(&mut queue, &folio);
                return Some(folio);
            }
        }
        None
    }

    fn unlink_deferred(&self, queue: &mut Queue, folio: &Folio) {
        let before = folio.clear_flags(FolioFlags::DEFERRED_SPLIT);
        if !before.contains(FolioFlags::DEFERRED_SPLIT) {
            return;
        }
        let (prev, next) = unpack(folio.private());
        match prev {
            Some(prev) => self.relink(prev, |(before, _)| (before, next)),
            None => queue.first = next,
        }
        match next {
            Some(next) => self.relink(next, |(_, after)| (prev, after)),
            None => queue.last = prev,
        }
        folio.private.store(0, Ordering::Relaxed);
        queue.len -= 1;
    }

    fn relink(
        &self,
        at: Pfn,
        change: impl FnOnce((Option<Pfn>, Option<Pfn>)) -> (Option<Pfn>, Option<Pfn>),
    ) {
        let Some(folio) = self.queued(at) else { return };
        let (prev, next) = change(unpack(folio.private()));
        folio.private.store(pack(prev, next), Ordering::Relaxed);
    }

    /// A folio on the queue, whose lock is held.
    fn queued(&self, pfn: Pfn) -> Option<&'m Folio> {
        let word = self.memory().words().load(pfn).ok()?;
        let folio: NonNull<Folio> = super::kind::descriptor_of(word)?;
        // SAFETY: a folio leaves the queue, under its lock, before its words go and its
        // descriptor is freed.
        let folio = unsafe { folio.as_ref() };
        debug_assert!(folio.has(FolioFlags::DEFERRED_SPLIT), "{pfn:?} is not queued");
        Some(folio)
    }
}
