//! Compaction: objects move out of the emptiest zspages of a class into the
//! fullest, until what is free does not make up a zspage.

use super::class::CLASSES;
use super::handle::{Entry, Location};
use super::pool::{ClassGuard, PoolState};
use super::registry::ZsPool;
use super::stats::ZsEvent;
use super::zspage::{Body, Header, Zspage};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;

impl<'m, P: Platform> ZsPool<'m, P> {
    /// Packs the pool's objects closer, and frees the pages that get empty. Returns
    /// how many. Allocates nothing; waits for short locks only.
    pub fn compact(&self) -> u64 {
        self.state().compact()
    }
}

impl<P: Platform> Mm<'_, P> {
    /// Compacts all pools. Returns the pages that it freed.
    pub fn zs_compact(&self) -> u64 {
        let mut freed = 0;
        self.for_each_zs_pool(&mut |pool| freed += pool.compact());
        freed
    }
}

impl<'m, P: Platform> PoolState<'m, P> {
    fn compact(&self) -> u64 {
        (0..CLASSES).map(|class| self.compact_class(class)).sum()
    }

    fn compact_class(&self, class: usize) -> u64 {
        let mut freed = 0;
        // The lock is dropped between zspages: others get their turn.
        while let Some(pages) = self.empty_one(self.lock_class(class)) {
            freed += pages;
        }
        freed
    }

    /// Moves objects out of the emptiest zspage of a class until it is empty, or
    /// another one is full. Returns the pages that this freed; `None` if there is
    /// nothing to win.
    fn empty_one(&self, mut guard: ClassGuard<'_, P>) -> Option<u64> {
        let class = guard.class;
        let free = guard.lists.zspages * class.objects as u64 - guard.lists.objects;
        if free < class.objects as u64 {
            return None;
        }
        let from: &'m Zspage = guard.lists.emptiest()?;
        // Out of its list, so that it is not its own destination.
        guard.lists.remove(from);
        let to = guard.lists.fullest();
        guard.lists.insert(from, class);
        let to: &'m Zspage = to?;
        let mut source = from.body.lock(self.base.platform());
        // Two zspages are locked here alone, and below the lock of their class.
        let mut target = to.body.lock_nested(self.base.platform());
        let moved = self.move_objects(&guard, &mut source, (to, &mut target));
        self.counters.add(ZsEvent::Compacted, u64::from(moved));
        let now = to.used.load(Ordering::Relaxed) + moved;
        guard.lists.recount(to, class, now);
        drop(target);
        let left = from.used.load(Ordering::Relaxed) - moved;
        guard.lists.recount(from, class, left);
        let mut freed = 0;
        if left == 0 {
            guard.lists.remove(from);
            freed = class.pages as u64;
            self.kill(&mut source);
        }
        drop(source);
        drop(guard);
        if left == 0 {
            self.free_zspage(from);
        }
        (moved > 0).then_some(freed)
    }

    /// Moves objects as long as there are some, and places for them. Returns how many.
    fn move_objects(
        &self,
        guard: &ClassGuard<'_, P>,
        source: &mut Body,
        (to, target): (&Zspage, &mut Body),
    ) -> u32 {
        let mut moved = 0;
        let (fresh, class) = (source.fresh(), guard.class);
        let mut source = self.contents(class, source);
        let mut target = self.contents(class, target);
        for object in 0..fresh {
            let Header::Used(index) = source.header(object) else { continue };
            let Some(cell) = self.handles.cell_at(index) else { continue };
            let Some(place) = target.take(Header::Used(index)) else { break };
            source.copy_object(object, &mut target, place);
            let generation = Entry::from_bits(cell.load(Ordering::Relaxed)).generation();
            let at = Location { zspage: to.address(), object: place };
            // Release pairs with the Acquire in `lock_named`.
            cell.store(Entry::used(at, generation).bits(), Ordering::Release);
            source.give_back(object);
            moved += 1;
        }
        moved
    }
}
