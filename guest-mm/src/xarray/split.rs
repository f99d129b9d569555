//! Splitting a multi-index entry into entries of a lower order.

use super::edit::{Edit, Shortage, node_word};
use super::entry::RawEntry;
use super::mark::Mark;
use super::node::{ALL_SLOTS, Node, SLOT_BITS, SLOTS, base_shift, bit};

/// What every piece of a split entry gets.
#[derive(Clone, Copy)]
struct Piece {
    entry: RawEntry,
    order: u32,
    marks: [bool; 3],
}

impl<'w> Edit<'w> {
    /// The order of the entry that covers `index`, `None` if there is none.
    pub(super) fn order_at(&self, index: u64) -> Option<u32> {
        let place = self.tree.walk(self.pin, index);
        if place.entry.is_empty() {
            return None;
        }
        Some(place.node.map_or(0, |node| node.order_at(place.slot)))
    }

    /// Nodes that splitting an entry of order `from` into pieces of `to` takes.
    pub(crate) fn nodes_for_split(from: u32, to: u32) -> usize {
        let (mut shift, base) = (base_shift(from), base_shift(to));
        let mut per_level = 1usize << (from - shift);
        let mut nodes = 0usize;
        while shift > base {
            nodes = nodes.saturating_add(per_level);
            per_level = per_level.saturating_mul(SLOTS);
            shift -= SLOT_BITS;
        }
        nodes
    }

    /// Nodes that cutting one piece of `to` out of an entry of order `from` takes.
    pub(crate) fn nodes_for_isolate(from: u32, to: u32) -> usize {
        ((base_shift(from) - base_shift(to)) / SLOT_BITS) as usize
    }

    /// Splits the entry that covers `index` into pieces of `order`, each with its
    /// word and marks. Does nothing if there is none above `order`.
    pub(crate) fn split(&mut self, index: u64, order: u32) -> Result<(), Shortage> {
        let Some(from) = self.order_at(index).filter(|&from| from > order) else { return Ok(()) };
        self.need(Self::nodes_for_split(from, order))?;
        let place = self.tree.walk(self.pin, index);
        let Some(node) = place.node else { return Ok(()) };
        let (first, len) = node.group(place.slot);
        let marks = Mark::ALL.map(|mark| node.is_marked(first, mark));
        let piece = Piece { entry: place.entry, order, marks };
        if base_shift(order) == node.shift() {
            let piece_len = 1 << (order - node.shift());
            // The last piece first: until its own turn a slot's sibling word still
            // leads to the same entry.
            for start in (first..first + len).step_by(piece_len).rev() {
                piece.put(node, start, piece_len);
            }
            return Ok(());
        }
        let values = if place.entry.is_value() { len } else { 0 };
        for slot in (first..first + len).rev() {
            let child = self.filled_node(node, slot, piece);
            node.set_slot(slot, node_word(child));
            piece.mark(node, bit(slot));
        }
        node.set_counts(node.count(), node.values() - values);
        // A head that held nothing but the entry holds nothing but its first child now.
        self.shrink();
        Ok(())
    }

    /// Cuts the piece of `order` around `index` out of the entry that covers it;
    /// the rest keeps the largest aligned orders.
    pub(crate) fn isolate(&mut self, index: u64, order: u32) -> Result<(), Shortage> {
        let Some(from) = self.order_at(index).filter(|&from| from > order) else { return Ok(()) };
        self.need(Self::nodes_for_isolate(from, order))?;
        for half in (order..from).rev() {
            self.split(index, half)?;
        }
        Ok(())
    }

    /// A child for `slot` of `parent`, not linked yet, full of pieces.
    fn filled_node(&mut self, parent: &'w Node, slot: usize, piece: Piece) -> &'w Node {
        let shift = parent.shift() - SLOT_BITS;
        let node = self.fresh_node(shift, slot, Some(parent));
        node.set_free(0);
        if base_shift(piece.order) == shift {
            let len = 1 << (piece.order - shift);
            node.set_counts(SLOTS, if piece.entry.is_value() { SLOTS } else { 0 });
            for start in (0..SLOTS).step_by(len) {
                piece.put(node, start, len);
            }
        } else {
            node.set_counts(SLOTS, 0);
            for slot in 0..SLOTS {
                let child = self.filled_node(node, slot, piece);
                node.set_slot(slot, node_word(child));
            }
            piece.mark(node, ALL_SLOTS);
        }
        node
    }
}

impl Piece {
    /// Stores one piece in `len` slots from `first`.
    fn put(self, node: &Node, first: usize, len: usize) {
        node.set_slot(first, self.entry);
        for slot in first + 1..first + len {
            node.set_slot(slot, RawEntry::sibling_of(first));
        }
        self.mark(node, bit(first));
    }

    fn mark(self, node: &Node, bits: u64) {
        for mark in Mark::ALL {
            if self.marks[mark.index()] {
                node.set_marks(mark, node.marks(mark) | bits);
            }
        }
    }
}
