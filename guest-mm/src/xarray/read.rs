//! Reading an array, without its lock.

use core::ops::RangeInclusive;

use super::tree::{Filter, Pin};
use super::{Content, Cursor, Entries, Entry, Found, Mark, NodeAlloc, XArray};
use crate::platform::Platform;
use crate::rcu::ReadGuard;

impl<A: NodeAlloc, T> XArray<'_, A, T> {
    /// The entry at `index`; `None` where there is none, or only a reserved place.
    pub fn load(&self, index: u64) -> Option<Entry<T>> {
        self.read(|pin| Entry::from_raw(self.tree.walk(pin, index).entry))
    }

    /// What stands at `index`.
    pub fn content(&self, index: u64) -> Content<T> {
        self.read(|pin| Content::from_raw(self.tree.walk(pin, index).entry))
    }

    /// The order of the entry that covers `index`.
    pub fn order_at(&self, index: u64) -> Option<u32> {
        self.read(|pin| {
            let hit = self.tree.find(pin, index, index, Filter::All, None)?;
            Some(hit.order)
        })
    }

    /// Whether the entry that covers `index` has `mark`.
    pub fn is_marked(&self, index: u64, mark: Mark) -> bool {
        self.read(|pin| self.tree.find(pin, index, index, Filter::Marked(mark), None).is_some())
    }

    /// Whether any entry has `mark`.
    pub fn any_marked(&self, mark: Mark) -> bool {
        self.tree.is_marked(mark)
    }

    /// Whether there is neither an entry nor a reserved place.
    pub fn is_empty(&self) -> bool {
        self.tree.head().is_empty()
    }

    /// The first entry that covers or follows `range`'s start, and begins in it.
    /// One that covers the start may begin before it.
    pub fn find(&self, range: RangeInclusive<u64>) -> Option<Found<T>> {
        self.read(|pin| self.find_raw(pin, &range, Filter::All))
    }

    /// Like [`Self::find`], among the entries with `mark`.
    pub fn find_marked(&self, range: RangeInclusive<u64>, mark: Mark) -> Option<Found<T>> {
        self.read(|pin| self.find_raw(pin, &range, Filter::Marked(mark)))
    }

    /// The last entry that begins at or below `from`.
    pub fn find_back(&self, from: u64) -> Option<Found<T>> {
        self.read(|pin| Found::from_hit(self.tree.find_back(pin, from, Filter::All)?))
    }

    /// Like [`Self::find_back`], among the entries with `mark`.
    pub fn find_back_marked(&self, from: u64, mark: Mark) -> Option<Found<T>> {
        self.read(|pin| Found::from_hit(self.tree.find_back(pin, from, Filter::Marked(mark))?))
    }

    /// A cursor at `index`, valid within the read section of `guard`.
    ///
    /// # Panics
    /// If `guard` is of another domain.
    pub fn cursor<'g>(&'g self, guard: &'g ReadGuard<'_>, index: u64) -> Cursor<'g, T> {
        Cursor::new(&self.tree, self.pin(guard), index)
    }

    /// The entries in `range`, in order; the first may begin before it.
    ///
    /// # Panics
    /// If `guard` is of another domain.
    pub fn entries<'g>(
        &'g self,
        guard: &'g ReadGuard<'_>,
        range: RangeInclusive<u64>,
    ) -> Entries<'g, T> {
        Entries::new(&self.tree, self.pin(guard), range, Filter::All)
    }

    /// The entries in `range` with `mark`, in order; the first may begin before it.
    ///
    /// # Panics
    /// If `guard` is of another domain.
    pub fn marked_entries<'g>(
        &'g self,
        guard: &'g ReadGuard<'_>,
        range: RangeInclusive<u64>,
        mark: Mark,
    ) -> Entries<'g, T> {
        Entries::new(&self.tree, self.pin(guard), range, Filter::Marked(mark))
    }

    fn find_raw(
        &self,
        pin: Pin<'_>,
        range: &RangeInclusive<u64>,
        filter: Filter,
    ) -> Option<Found<T>> {
        Found::from_hit(self.tree.find(pin, *range.start(), *range.end(), filter, None)?)
    }

    fn read<R>(&self, op: impl FnOnce(Pin<'_>) -> R) -> R {
        let guard = self.rcu.read(self.alloc.platform().cpu());
        op(self.pin(&guard))
    }

    fn pin<'g>(&self, guard: &'g ReadGuard<'_>) -> Pin<'g> {
        assert!(guard.is_of(self.rcu), "read section of another RCU domain");
        // SAFETY: a read section of the array's domain is open for `'g`.
        unsafe { Pin::new() }
    }
}
