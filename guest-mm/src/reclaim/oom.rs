//! Out of memory: the last resorts, in order.

use core::fmt;

use super::scan::RECLAIM_BATCH;
use super::stats::ReclaimEvent;
use crate::errno::Errno;
use crate::mm::Mm;
use crate::pgtable::ZapRules;
use crate::platform::{Platform, WaitKey};
use crate::space::{AddressSpace, SpaceGrab, VmFlags};
use crate::sync::shim::Ordering;

/// Rounds of one allocation's [`Mm::make_room`].
const MAX_ROUNDS: u32 = 32;
/// Looks at a process that was killed and still has memory, before another is: at least so many …
const MAX_WAITS: u32 = 4096;
/// … and for at least so long, where the clock runs: a host with more vCPUs than cores may keep the one that is to
/// give the memory back from running for a while.
const MAX_WAIT_NS: u64 = 2_000_000_000;

/// Somebody who keeps memory for the case that there is none: the balloon, when
/// DEFLATE_ON_OOM is negotiated.
pub trait OomNotifier: Sync {
    /// Gives memory back; returns pages. May wait for a device, not for memory:
    /// it allocates nothing. Called with no lock of the memory manager held.
    fn out_of_memory(&self) -> u64;
}

/// There is no memory and nobody to take it from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Out of memory, and nobody to kill for it")
    }
}

impl core::error::Error for OutOfMemory {}

/// How often one operation has asked for room.
#[derive(Debug, Default)]
pub struct Attempts {
    rounds: u32,
    waits: u32,
    /// When it began to wait for somebody who dies.
    waiting_since: Option<u64>,
}

impl Attempts {
    /// Whether to look once more at somebody who dies.
    fn may_wait(&mut self, now_ns: u64) -> bool {
        self.waits += 1;
        let waited = now_ns.saturating_sub(*self.waiting_since.get_or_insert(now_ns));
        // A clock that stands still is a test's: then looks alone count.
        self.waits < MAX_WAITS || (waited > 0 && waited < MAX_WAIT_NS)
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes `notifier` the one that is asked before a process is killed; `None`
    /// takes it away.
    pub fn set_oom_notifier(&self, notifier: Option<&'m dyn OomNotifier>) {
        *self.reclaim.notifier.lock(self.platform()) = notifier;
    }

    /// Frees memory for an operation that has found none and undone everything:
    /// reclaim, then the notifier, then the process that has most is killed.
    /// Returns when something came free, or may have: the operation is tried again.
    ///
    /// The caller holds no lock at all and is in no read section. Calls of one
    /// operation share `attempts`, which bounds them.
    ///
    /// # Errors
    /// [`OutOfMemory`]: everything is pinned or in use, and nobody is left to kill.
    pub fn make_room(&self, attempts: &mut Attempts) -> Result<(), OutOfMemory> {
        attempts.rounds += 1;
        if attempts.rounds <= MAX_ROUNDS && self.direct_reclaim(RECLAIM_BATCH) > 0 {
            return Ok(());
        }
        // What only waits for readers is not lost: wait for them.
        let before = self.memory().free_pages();
        self.base().settle();
        if attempts.rounds <= MAX_ROUNDS && self.memory().free_pages() > before {
            return Ok(());
        }
        if self.notify() > 0 {
            return Ok(());
        }
        self.kill_somebody(attempts)
    }

    /// Does `operation`, and does it again after [`Self::make_room`] while it ends
    /// in ENOMEM. For calls whose other reasons for ENOMEM have been ruled out.
    ///
    /// # Errors
    /// The operation's.
    pub fn with_room<T>(
        &self,
        mut operation: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut attempts = Attempts::default();
        loop {
            match operation() {
                Err(Errno::ENOMEM) if self.make_room(&mut attempts).is_ok() => {}
                ended => return ended,
            }
        }
    }

    fn notify(&self) -> u64 {
        let notifier = *self.reclaim.notifier.lock(self.platform());
        let Some(notifier) = notifier else { return 0 };
        self.reclaim.count(ReclaimEvent::Notified);
        let pages = notifier.out_of_memory();
        self.reclaim.add(ReclaimEvent::NotifiedPages, pages);
        pages
    }

    /// Kills the process with most memory and takes that memory, unless one that was
    /// killed before still has some to give.
    fn kill_somebody(&self, attempts: &mut Attempts) -> Result<(), OutOfMemory> {
        if self.reclaim.is_killing.swap(true, Ordering::Acquire) {
            // Somebody else kills: what comes free is for all.
            self.platform().relax();
            let may_wait = attempts.may_wait(self.platform().now_ns());
            return if may_wait { Ok(()) } else { Err(OutOfMemory) };
        }
        let ended = self.kill_and_reap(attempts);
        self.reclaim.is_killing.store(false, Ordering::Release);
        ended
    }

    fn kill_and_reap(&self, attempts: &mut Attempts) -> Result<(), OutOfMemory> {
        if self.reap_the_dead() > 0 {
            return Ok(());
        }
        if self.is_somebody_dying() {
            self.platform().relax();
            if attempts.may_wait(self.platform().now_ns()) {
                return Ok(());
            }
        }
        // What a process that ended meanwhile left is found by trying again.
        let has_room = self.memory().free_pages().get() > self.memory().watermarks().min;
        if has_room && attempts.may_wait(self.platform().now_ns()) {
            return Ok(());
        }
        let Some(victim) = self.select_victim() else {
            self.reclaim.count(ReclaimEvent::NobodyToKill);
            return Err(OutOfMemory);
        };
        self.mark_dead(&victim);
        self.reclaim.count(ReclaimEvent::Killed);
        self.reap(&victim);
        self.drop_space(victim);
        Ok(())
    }

    /// Says that a process is to end. Its threads that sleep look again.
    pub(super) fn mark_dead(&self, space: &AddressSpace<'m, P>) {
        space.dead.store(true, Ordering::Release);
        // On what they sleep, only they know.
        let (first, count) = WaitKey::ALL;
        self.platform().wake(first, count);
    }

    /// The living space with most pages in memory, in swap and in tables.
    fn select_victim(&self) -> Option<SpaceGrab<'m, P>> {
        let mut worst: Option<(u64, SpaceGrab<'m, P>)> = None;
        self.for_each_space(|space| {
            let points = badness(&space);
            let is_worse = worst.as_ref().is_none_or(|(most, _)| points > *most);
            if space.is_dead() || points == 0 || !is_worse {
                self.drop_space(space);
            } else if let Some((_, before)) = worst.replace((points, space)) {
                self.drop_space(before);
            }
        });
        worst.map(|(_, space)| space)
    }

    /// Whether a killed process still has memory.
    fn is_somebody_dying(&self) -> bool {
        let mut is_dying = false;
        self.for_each_space(|space| {
            is_dying |= space.is_dead() && badness(&space) > 0;
            self.drop_space(space);
        });
        is_dying
    }

    /// Takes the memory of all processes that were killed. Returns pages.
    fn reap_the_dead(&self) -> u64 {
        let mut reaped = 0;
        self.for_each_space(|space| {
            if space.is_dead() && badness(&space) > 0 {
                reaped += self.reap(&space);
            }
            self.drop_space(space);
        });
        reaped
    }

    fn for_each_space(&self, mut visit: impl FnMut(SpaceGrab<'m, P>)) {
        let mut from = 0;
        while let Some(space) = self.next_space(from) {
            let id = space.id();
            visit(space);
            let Some(next) = id.checked_add(1) else { break };
            from = next;
        }
    }

    /// Takes the memory of a process that was killed, while it may still run.
    /// Returns pages that came free.
    fn reap(&self, space: &AddressSpace<'m, P>) -> u64 {
        let before = badness(space);
        self.reap_space(space);
        let reaped = before.saturating_sub(badness(space));
        self.reclaim.add(ReclaimEvent::Reaped, reaped);
        reaped
    }
}

/// What killing the process would give: pages in memory, in swap, in tables.
fn badness<P: Platform>(space: &AddressSpace<'_, P>) -> u64 {
    let rss = &space.rss;
    [&rss.anon, &rss.file, &rss.swap, &rss.tables]
        .map(|pages| pages.load(Ordering::Relaxed))
        .iter()
        .sum()
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Clears the leaves of a space that was killed. Its VMAs stay, and it may
    /// still run until its next fault, which ends in an error.
    ///
    /// Nothing if somebody changes its VMAs: he will see that it is dead.
    fn reap_space(&self, space: &AddressSpace<'m, P>) {
        let Some(guard) = space.try_read() else { return };
        for vma in guard.iter() {
            // What others share is not freed by it.
            if vma.flags().contains(VmFlags::SHARED) {
                continue;
            }
            let zapped = self.zap_leaves(space, vma.range(), ZapRules::UNMAP);
            debug_assert!(zapped.is_ok(), "no PMD leaf lies across a VMA's end: {zapped:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A victim that its host did not let run was given up after some milliseconds of looks, and another was killed.
    #[test]
    fn who_dies_slowly_is_waited_for_by_time_and_by_looks() {
        let mut attempts = Attempts::default();
        let looks = (0..).take_while(|look| attempts.may_wait(1_000 * look)).count() as u64;
        assert_eq!(looks, MAX_WAIT_NS / 1_000, "by time, where looks are quick");
        let mut attempts = Attempts::default();
        let slow = (0..).take_while(|look| attempts.may_wait(MAX_WAIT_NS * look)).count();
        assert_eq!(slow, MAX_WAITS as usize - 1, "by looks, where they are slow");
        let mut attempts = Attempts::default();
        let still = (0..).take_while(|_| attempts.may_wait(7)).count();
        assert_eq!(still, MAX_WAITS as usize - 1, "by looks, where the clock stands still");
    }
}
