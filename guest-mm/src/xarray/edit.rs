//! [`Edit`]: changes to the tree, by the holder of the array's lock.
//!
//! An operation first counts the nodes it may need ([`Edit::nodes_for_store`] and
//! its like) and refuses with [`Shortage`] if the caller brought fewer. From
//! there on nothing can fail, so no failure leaves a half-made change.

use super::entry::{Entry, RawEntry};
use super::mark::Mark;
use super::node::{ALL_SLOTS, FreshNodes, Node, SLOT_BITS, SLOTS, base_shift, bit, bits, slot_at};
use super::tree::{Filter, Pin, RawHit, Tree, last_of, max_index, node_ref};
use crate::rcu::{DeferQueue, Rcu};

/// The operation needs this many fresh nodes; the tree is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) nodes: usize,
}

/// One change under the lock.
pub(crate) struct Edit<'w> {
    pub(super) tree: &'w Tree,
    pub(super) pin: Pin<'w>,
    pub(super) rcu: &'w Rcu,
    pub(super) limbo: &'w mut DeferQueue<Node>,
    pub(super) fresh: &'w mut FreshNodes,
    /// Nodes in the tree.
    pub(super) nodes: &'w mut usize,
    /// Nodes that this change unlinked, until [`Self::finish`].
    pub(super) dead: FreshNodes,
}

impl<'w> Edit<'w> {
    pub(super) fn new(
        tree: &'w Tree,
        pin: Pin<'w>,
        rcu: &'w Rcu,
        limbo: &'w mut DeferQueue<Node>,
        nodes: &'w mut usize,
        fresh: &'w mut FreshNodes,
    ) -> Self {
        Self { tree, pin, rcu, limbo, fresh, nodes, dead: FreshNodes::new() }
    }

    /// Refuses unless `nodes` fresh ones are there.
    pub(super) fn need(&self, nodes: usize) -> Result<(), Shortage> {
        if self.fresh.len() < nodes { Err(Shortage { nodes }) } else { Ok(()) }
    }

    /// Nodes that a store at `index` with `order` may take at most.
    pub(super) fn nodes_for_store(&self, index: u64, order: u32) -> usize {
        let last = last_of(index, order);
        let base = base_shift(order);
        let levels = |from: u32, to: u32| (from.saturating_sub(to) / SLOT_BITS) as usize;
        let head = self.tree.head();
        let top = top_shift(last, base);
        let Some(node) = head.child(self.pin) else {
            return match (last, head.is_empty()) {
                (0, _) => 0,
                (_, true) => levels(top, base) + 1,
                // The entry in the head gets a node of its own and a chain above it.
                (_, false) => levels(top, 0) + 1 + levels(top, base),
            };
        };
        if last > max_index(node.shift()) || base > node.shift() {
            let below = if slot_at(index, top) == 0 { 0 } else { levels(top, base) };
            return levels(top, node.shift()) + below;
        }
        self.nodes_below(node, index, base)
    }

    /// Nodes that one store may take at most at any index up to `last`, whatever
    /// the tree holds: a node for an entry in the head, the growth above it, and
    /// the way down again.
    pub(crate) fn nodes_for_any_store(last: u64) -> usize {
        let levels = (top_shift(last, 0) / SLOT_BITS) as usize;
        2 * levels + 1
    }

    /// [`Tree::find`].
    pub(crate) fn find(&self, from: u64, max: u64, filter: Filter) -> Option<RawHit<'w>> {
        self.tree.find(self.pin, from, max, filter, None)
    }

    /// [`Tree::find_back`].
    pub(crate) fn find_back(&self, from: u64, filter: Filter) -> Option<RawHit<'w>> {
        self.tree.find_back(self.pin, from, filter)
    }

    /// Whether the entry of `hit` has `mark`.
    pub(crate) fn has_mark(&self, hit: &RawHit<'w>, mark: Mark) -> bool {
        hit.node.map_or(self.tree.is_marked(mark), |node| node.is_marked(hit.slot, mark))
    }

    /// Nodes missing between `node` and the level `base` on the way to `index`.
    fn nodes_below(&self, mut node: &'w Node, index: u64, base: u32) -> usize {
        while node.shift() > base {
            let entry = node.slot(node.slot_of(index));
            if let Some(child) = entry.child(self.pin) {
                node = child;
            } else if entry.is_empty() {
                return ((node.shift() - base) / SLOT_BITS) as usize;
            } else {
                return 0;
            }
        }
        0
    }

    /// Puts `entry`, not an empty word, over the block of `order` at `index`.
    ///
    /// An entry that covers more than the block is replaced as a whole. Returns
    /// what stood at `index`.
    pub(super) fn store(
        &mut self,
        index: u64,
        order: u32,
        entry: RawEntry,
    ) -> Result<RawEntry, Shortage> {
        debug_assert!(!entry.is_empty());
        self.need(self.nodes_for_store(index, order))?;
        let last = last_of(index, order);
        let head = self.tree.head();
        if last == 0 && !head.is_node() {
            self.tree.set_head(entry);
            return Ok(head);
        }
        let base = base_shift(order);
        let mut node = self.grow(last, base);
        while node.shift() > base {
            let slot = node.slot_of(index);
            let word = node.slot(slot);
            if let Some(child) = word.child(self.pin) {
                node = child;
            } else if word.is_empty() {
                node = self.add_child(node, slot);
            } else {
                break;
            }
        }
        let len = if node.shift() == base { 1 << (order - base) } else { 1 };
        Ok(self.replace(node, index, len, entry))
    }

    /// Puts `entry` over the block unless something is in it: `None` then.
    pub(super) fn insert(
        &mut self,
        index: u64,
        order: u32,
        entry: RawEntry,
    ) -> Result<Option<()>, Shortage> {
        if self.first_used(index, last_of(index, order)).is_some() {
            return Ok(None);
        }
        self.store(index, order, entry).map(|_| Some(()))
    }

    /// Puts `entry` over the block unless something is in it: `false` then.
    pub(crate) fn insert_entry<T>(
        &mut self,
        index: u64,
        order: u32,
        entry: Entry<T>,
    ) -> Result<bool, Shortage> {
        Ok(self.insert(index, order, entry.to_raw())?.is_some())
    }

    /// Removes everything.
    pub(super) fn clear(&mut self) {
        let head = self.tree.head();
        self.tree.set_head(RawEntry::EMPTY);
        self.clear_head_marks();
        if let Some(top) = head.child(self.pin) {
            self.retire_subtree(top);
        }
    }

    /// Makes the head a node that covers `last` and has `base` at or below it.
    fn grow(&mut self, last: u64, base: u32) -> &'w Node {
        let head = self.tree.head();
        let mut node = match head.child(self.pin) {
            Some(node) => node,
            None if head.is_empty() => {
                let node = self.fresh_node(top_shift(last, base), 0, None);
                self.tree.set_head(node_word(node));
                return node;
            }
            None => {
                let node = self.fresh_node(0, 0, None);
                node.set_slot(0, head);
                node.set_counts(1, usize::from(head.is_value()));
                node.set_free(ALL_SLOTS & !1);
                for mark in Mark::ALL {
                    node.set_marks(mark, u64::from(self.tree.is_marked(mark)));
                }
                self.tree.set_head(node_word(node));
                node
            }
        };
        while last > max_index(node.shift()) || base > node.shift() {
            let above = self.fresh_node(node.shift() + SLOT_BITS, 0, None);
            above.set_slot(0, node_word(node));
            above.set_counts(1, 0);
            above.set_free(ALL_SLOTS & !u64::from(node.free() == 0));
            for mark in Mark::ALL {
                above.set_marks(mark, u64::from(node.marks(mark) != 0));
            }
            node.set_parent(Some(above));
            self.tree.set_head(node_word(above));
            node = above;
        }
        node
    }

    /// An initialised node from the caller's supply. `need` made sure of it.
    pub(super) fn fresh_node(
        &mut self,
        shift: u32,
        offset: usize,
        parent: Option<&Node>,
    ) -> &'w Node {
        let node = self.fresh.pop().unwrap_or_else(|| unreachable!("counted by `need`"));
        *self.nodes += 1;
        let node = node_ref(node, self.pin);
        node.place(shift, offset, parent);
        node
    }

    fn add_child(&mut self, parent: &'w Node, slot: usize) -> &'w Node {
        let child = self.fresh_node(parent.shift() - SLOT_BITS, slot, Some(parent));
        parent.set_slot(slot, node_word(child));
        parent.set_counts(parent.count() + 1, parent.values());
        child
    }

    /// Puts `entry` over `len` slots at `index` of `node`, or over the whole of a
    /// larger entry there. Returns what stood at `index`.
    fn replace(&mut self, node: &'w Node, index: u64, len: usize, entry: RawEntry) -> RawEntry {
        let slot = node.slot_of(index);
        let (group, group_len) = node.group(slot);
        let (first, len) = if group_len > len { (group, group_len) } else { (slot, len) };
        let old = self.covering(node, index);
        let range = bits(first, len);

        for mark in Mark::ALL {
            let marks = node.marks(mark);
            let kept = if marks & range == 0 { 0 } else { bit(first) };
            node.set_marks(mark, marks & !range | kept);
        }
        let (count, values) = usage(node, first, len);
        let new_values = if entry.is_value() { len } else { 0 };
        node.set_counts(node.count() - count + len, node.values() - values + new_values);
        // Free bits before slots, the entry before its siblings: see `tree`.
        node.set_free(node.free() & !range);
        #[cfg(loom)]
        if super::Mutant::SiblingsFirst.is_active() {
            (first + 1..first + len).for_each(|i| node.set_slot(i, RawEntry::sibling_of(first)));
        }
        for i in first..first + len {
            let before = node.slot(i);
            node.set_slot(i, if i == first { entry } else { RawEntry::sibling_of(first) });
            if let Some(child) = before.child(self.pin) {
                self.retire_subtree(child);
            }
        }
        self.sync_up(node);
        old
    }

    /// What covers `index` at or below `node`.
    fn covering(&self, node: &'w Node, index: u64) -> RawEntry {
        let place = super::tree::walk_from(self.pin, node, index);
        place.map_or(RawEntry::EMPTY, |place| place.entry)
    }

    /// Removes the entry that covers `index`, all of it, and returns it.
    pub(crate) fn erase(&mut self, index: u64) -> RawEntry {
        let place = self.tree.walk(self.pin, index);
        if place.entry.is_empty() {
            return RawEntry::EMPTY;
        }
        let Some(node) = place.node else {
            self.tree.set_head(RawEntry::EMPTY);
            self.clear_head_marks();
            return place.entry;
        };
        let (first, len) = node.group(place.slot);
        let range = bits(first, len);
        for mark in Mark::ALL {
            node.set_marks(mark, node.marks(mark) & !range);
        }
        let (count, values) = usage(node, first, len);
        node.set_counts(node.count() - count, node.values() - values);
        // The first slot goes first: then its siblings read as empty.
        for slot in first..first + len {
            node.set_slot(slot, RawEntry::EMPTY);
        }
        node.set_free(node.free() | range);
        self.sync_up(node);
        self.prune(node);
        place.entry
    }

    /// Sets `mark` on the entry that covers `index`, or clears it; returns what
    /// it was, `None` if there is no entry.
    pub(crate) fn set_mark(&mut self, index: u64, mark: Mark, marked: bool) -> Option<bool> {
        let place = self.tree.walk(self.pin, index);
        if place.entry.is_empty() || place.entry == RawEntry::ZERO {
            return None;
        }
        let Some(node) = place.node else {
            let before = self.tree.is_marked(mark);
            self.tree.set_marked(mark, marked);
            return Some(before);
        };
        let (first, _) = node.group(place.slot);
        let before = node.is_marked(first, mark);
        if before != marked {
            node.set_marks(mark, node.marks(mark) ^ bit(first));
            self.sync_up(node);
        }
        Some(before)
    }

    /// Carries the summary bits of `node` up to the head, as far as they change.
    pub(super) fn sync_up(&mut self, mut node: &'w Node) {
        loop {
            let Some(parent) = node.parent() else {
                for mark in Mark::ALL {
                    self.tree.set_marked(mark, node.marks(mark) != 0);
                }
                return;
            };
            let parent = node_ref(parent, self.pin);
            let slot = node.offset();
            let mut changed = false;
            for mark in Mark::ALL {
                let before = parent.marks(mark);
                let after = with_bit(before, slot, node.marks(mark) != 0);
                changed |= before != after;
                parent.set_marks(mark, after);
            }
            let before = parent.free();
            let after = with_bit(before, slot, node.free() != 0);
            parent.set_free(after);
            if !changed && before == after {
                return;
            }
            node = parent;
        }
    }

    fn clear_head_marks(&mut self) {
        for mark in Mark::ALL {
            self.tree.set_marked(mark, false);
        }
    }

    /// Takes `node` out of the tree if it is empty, and its parents likewise;
    /// then lowers the head as far as slot 0 alone allows.
    fn prune(&mut self, mut node: &'w Node) {
        while node.count() == 0 {
            let Some(parent) = node.parent() else {
                self.tree.set_head(RawEntry::EMPTY);
                self.clear_head_marks();
                self.retire(node);
                return;
            };
            let parent = node_ref(parent, self.pin);
            parent.set_slot(node.offset(), RawEntry::EMPTY);
            parent.set_counts(parent.count() - 1, parent.values());
            self.retire(node);
            node = parent;
        }
        self.shrink();
    }

    /// Lowers the head while all there is lies in its slot 0.
    pub(super) fn shrink(&mut self) {
        while let Some(top) = self.tree.head().child(self.pin) {
            let only = top.slot(0);
            if top.count() != 1 || only.is_empty() {
                return;
            }
            if let Some(child) = only.child(self.pin) {
                child.set_parent(None);
            } else if top.shift() != 0 {
                // An entry of order `shift`: the head could not say so.
                return;
            }
            for mark in Mark::ALL {
                self.tree.set_marked(mark, top.marks(mark) & 1 != 0);
            }
            self.tree.set_head(only);
            self.retire(top);
        }
    }

    /// Ends the change: starts the grace period of the nodes that it unlinked.
    pub(super) fn finish(mut self) {
        if self.dead.len() == 0 {
            return;
        }
        // After the last unlinking, so that one stamp, and one fence, serves all.
        let stamp = self.rcu.stamp();
        self.rcu.note_deferred((self.dead.len() * size_of::<Node>()) as u64);
        while let Some(node) = self.dead.pop() {
            // SAFETY: the node stays allocated until it comes out of the queue, and
            // it was in the tree until now, so in no queue.
            unsafe { self.limbo.defer(node, stamp) };
        }
    }

    /// Marks an unlinked node dead.
    fn retire(&mut self, node: &'w Node) {
        #[cfg(loom)]
        let retry = !super::Mutant::NoRetry.is_active();
        #[cfg(not(loom))]
        let retry = true;
        if retry {
            (0..SLOTS).for_each(|slot| node.set_slot(slot, RawEntry::RETRY));
        }
        *self.nodes -= 1;
        // SAFETY: initialised, and out of the tree it belongs to this change alone
        // but for readers, who do not use the link.
        unsafe { self.dead.push(core::ptr::NonNull::from(node)) };
    }

    /// Marks an unlinked node dead, and all below it.
    fn retire_subtree(&mut self, node: &'w Node) {
        for slot in 0..SLOTS {
            if let Some(child) = node.slot(slot).child(self.pin) {
                self.retire_subtree(child);
            }
        }
        self.retire(node);
    }
}

/// The node's word.
pub(super) fn node_word(node: &Node) -> RawEntry {
    RawEntry::of_node(core::ptr::NonNull::from(node))
}

/// Smallest shift of a head node that covers `last` and is at least `base`.
fn top_shift(last: u64, base: u32) -> u32 {
    let mut shift = base;
    while last > max_index(shift) {
        shift += SLOT_BITS;
    }
    shift
}

const fn with_bit(bits: u64, slot: usize, set: bool) -> u64 {
    if set { bits | bit(slot) } else { bits & !bit(slot) }
}

/// Slots in use, and slots of values, among `len` from `first`. The range holds
/// entries and siblings whole.
fn usage(node: &Node, first: usize, len: usize) -> (usize, usize) {
    let (mut count, mut values) = (0, 0);
    let mut in_value = false;
    for slot in first..first + len {
        let word = node.slot(slot);
        if !word.is_sibling() {
            in_value = word.is_value();
        }
        count += usize::from(!word.is_empty());
        values += usize::from(!word.is_empty() && in_value);
    }
    (count, values)
}
