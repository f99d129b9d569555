//! Changes to whole ranges of indices, and the search for free ones.

use super::edit::{Edit, Shortage};
use super::entry::RawEntry;
use super::node::{Node, SLOT_BITS, SLOTS, bit};
use super::tree::{Filter, last_of, low_mask, max_index};

/// The aligned power-of-two blocks that make up a range, largest first where they fit.
pub(super) struct Blocks {
    next: Option<u64>,
    last: u64,
}

impl Blocks {
    pub(super) fn of(first: u64, last: u64) -> Self {
        Self { next: (first <= last).then_some(first), last }
    }
}

impl Iterator for Blocks {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        let index = self.next?;
        // Order 63 is the largest: the whole space would need 64.
        let mut order = index.trailing_zeros().min(63);
        while last_of(index, order) > self.last {
            order -= 1;
        }
        let last = last_of(index, order);
        self.next = if last == self.last { None } else { Some(last + 1) };
        Some((index, order))
    }
}

impl<'w> Edit<'w> {
    /// The first entry or reserved place that overlaps `first..=last`.
    pub(super) fn first_used(&self, first: u64, last: u64) -> Option<u64> {
        Some(self.tree.find(self.pin, first, last, Filter::Used, None)?.base.max(first))
    }

    /// Whether an entry lies partly inside `first..=last` and partly outside.
    pub(super) fn straddles(&self, first: u64, last: u64) -> bool {
        let sticks_out = |index: u64| {
            self.order_at(index).is_some_and(|order| {
                let base = index & !low_mask(order);
                base < first || last_of(base, order) > last
            })
        };
        sticks_out(first) || sticks_out(last)
    }

    /// Covers `first..=last` with `entry`, in blocks. Nothing in it sticks out.
    pub(super) fn store_range(
        &mut self,
        first: u64,
        last: u64,
        entry: RawEntry,
    ) -> Result<(), Shortage> {
        let mut nodes = 0;
        for (index, order) in Blocks::of(first, last) {
            nodes += self.nodes_for_store(index, order);
        }
        // An upper bound: neighbouring blocks share nodes that each count includes.
        self.need(nodes)?;
        for (index, order) in Blocks::of(first, last) {
            self.store(index, order, entry)?;
        }
        Ok(())
    }

    /// Reserves every index of `first..=last` that is empty.
    pub(super) fn reserve_range(&mut self, first: u64, last: u64) -> Result<(), Shortage> {
        let mut nodes = 0;
        let mut index = first;
        // One leaf at a time, by the last index wanted in it: index 0 alone would
        // be counted as the head's own entry.
        loop {
            let leaf_last = last_of(index, SLOT_BITS);
            nodes += self.nodes_for_store(leaf_last.min(last), 0);
            if leaf_last >= last {
                break;
            }
            index = leaf_last + 1;
        }
        self.need(nodes)?;
        let mut index = first;
        loop {
            if self.tree.walk(self.pin, index).entry.is_empty() {
                self.store(index, 0, RawEntry::ZERO)?;
            }
            if index == last {
                return Ok(());
            }
            index += 1;
        }
    }

    /// Removes every entry and reserved place that overlaps `first..=last`.
    pub(super) fn erase_range(&mut self, first: u64, last: u64) {
        let mut from = first;
        while let Some(index) = self.first_used(from, last) {
            self.erase(index);
            from = index;
        }
    }

    /// The lowest index in `min..=max` that is empty.
    pub(super) fn first_free(&self, min: u64, max: u64) -> Option<u64> {
        let mut index = min;
        while index <= max {
            let head = self.tree.head();
            let Some(top) = head.child(self.pin) else {
                let free = if index == 0 && !head.is_empty() { 1 } else { index };
                return (free <= max).then_some(free);
            };
            if index > max_index(top.shift()) {
                return Some(index);
            }
            match self.free_below(top, index) {
                Ok(free) => return (free <= max).then_some(free),
                Err(next) => index = next?,
            }
        }
        None
    }

    /// A free index at or above `index` in the nodes on its path, or the index to
    /// go on from, `None` at the end of the space.
    fn free_below(&self, mut node: &'w Node, mut index: u64) -> Result<u64, Option<u64>> {
        loop {
            let shift = node.shift();
            let slot = node.slot_of(index);
            if node.free() & bit(slot) != 0 {
                match node.slot(slot).child(self.pin) {
                    Some(child) => {
                        node = child;
                        continue;
                    }
                    None => return Ok(index),
                }
            }
            let above = if slot + 1 == SLOTS { 0 } else { u64::MAX << (slot + 1) };
            let next_slot = ((node.free() & above).trailing_zeros() as usize).min(SLOTS);
            let next = ((index >> shift) - slot as u64).checked_add(next_slot as u64);
            let Some(next) = next.filter(|&next| next <= u64::MAX >> shift) else {
                return Err(None);
            };
            index = next << shift;
            if next_slot == SLOTS {
                return Err(Some(index));
            }
        }
    }
}
