//! [`Cursor`] and [`Entries`]: walks that remember the node they are in.
//!
//! A remembered node may leave the tree at any time. Its slots then hold retry
//! words, which send the walk back to the head; the read section keeps its
//! memory readable until then.

use core::marker::PhantomData;
use core::ops::RangeInclusive;

use super::entry::Content;
use super::node::Node;
use super::tree::{Filter, Pin, Tree, max_index, walk_from};
use super::{Found, Mark};

/// A position in an array, valid within one read section.
#[derive(Debug)]
pub struct Cursor<'g, T> {
    tree: &'g Tree,
    pin: Pin<'g>,
    index: u64,
    /// The node where the last look ended, and its first index.
    near: Option<(&'g Node, u64)>,
    entry: PhantomData<fn() -> T>,
}

/// A cursor's position without its read section; see [`Cursor::pause`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    next: Option<u64>,
}

impl Paused {
    /// The index to go on from; `None` if there is none left.
    pub const fn next(self) -> Option<u64> {
        self.next
    }
}

impl<'g, T> Cursor<'g, T> {
    pub(super) fn new(tree: &'g Tree, pin: Pin<'g>, index: u64) -> Self {
        Self { tree, pin, index, near: None, entry: PhantomData }
    }

    /// Its index.
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// Moves it to `index`.
    pub fn seek(&mut self, index: u64) {
        self.index = index;
    }

    /// What stands at its index now.
    pub fn load(&mut self) -> Content<T> {
        let near = self.near.filter(|(node, base)| covers(node, *base, self.index));
        let place = near
            .and_then(|(node, _)| walk_from(self.pin, node, self.index))
            .unwrap_or_else(|| self.tree.walk(self.pin, self.index));
        self.near = place.node.map(|node| (node, self.index & !max_index(node.shift())));
        Content::from_raw(place.entry)
    }

    /// Moves one index up and looks; `None`, without moving, at `u64::MAX`.
    pub fn advance(&mut self) -> Option<Content<T>> {
        self.index = self.index.checked_add(1)?;
        Some(self.load())
    }

    /// Moves one index down and looks; `None`, without moving, at 0.
    pub fn retreat(&mut self) -> Option<Content<T>> {
        self.index = self.index.checked_sub(1)?;
        Some(self.load())
    }

    /// Finds the first entry that covers its index or lies above, not above
    /// `max`, and moves to the entry's first index, or stays if it is inside.
    pub fn find(&mut self, max: u64) -> Option<Found<T>> {
        self.find_filtered(max, Filter::All)
    }

    /// Like [`Self::find`], among the entries with `mark`.
    pub fn find_marked(&mut self, max: u64, mark: Mark) -> Option<Found<T>> {
        self.find_filtered(max, Filter::Marked(mark))
    }

    fn find_filtered(&mut self, max: u64, filter: Filter) -> Option<Found<T>> {
        let hit = self.tree.find(self.pin, self.index, max, filter, self.near)?;
        self.index = self.index.max(hit.base);
        self.near = hit.node.map(|node| (node, hit.base & !max_index(node.shift())));
        Found::from_hit(hit)
    }

    /// Gives the read section up: the position after the entry at its index.
    ///
    /// The caller may then drop the guard, wait, and go on with a new cursor at
    /// [`Paused::next`].
    pub fn pause(mut self) -> Paused {
        let here = self.index;
        let last = match self.find(here) {
            Some(found) => found.last(),
            None => here,
        };
        Paused { next: last.checked_add(1) }
    }
}

fn covers(node: &Node, base: u64, index: u64) -> bool {
    index >= base && index - base <= max_index(node.shift())
}

/// The entries of a range, in order.
#[derive(Debug)]
pub struct Entries<'g, T> {
    cursor: Cursor<'g, T>,
    /// The last index wanted; `None` when there is nothing more.
    max: Option<u64>,
    filter: Filter,
}

impl<'g, T> Entries<'g, T> {
    pub(super) fn new(
        tree: &'g Tree,
        pin: Pin<'g>,
        range: RangeInclusive<u64>,
        filter: Filter,
    ) -> Self {
        let (first, last) = range.into_inner();
        let max = (first <= last).then_some(last);
        Self { cursor: Cursor::new(tree, pin, first), max, filter }
    }

    /// Gives the read section up: the position after the last entry returned.
    pub fn pause(self) -> Paused {
        Paused { next: self.max.map(|_| self.cursor.index) }
    }
}

impl<T> Iterator for Entries<'_, T> {
    type Item = Found<T>;

    fn next(&mut self) -> Option<Found<T>> {
        let max = self.max?;
        let found = self.cursor.find_filtered(max, self.filter);
        match found.and_then(|found| found.last().checked_add(1)).filter(|next| *next <= max) {
            Some(next) => self.cursor.seek(next),
            None => self.max = None,
        }
        found
    }
}
