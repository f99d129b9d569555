//! A check of every invariant of the tree, for tests and the census.

use core::fmt;

use super::entry::RawEntry;
use super::mark::Mark;
use super::node::{Node, SLOT_BITS, SLOTS, bit};
use super::tree::{Pin, Tree};

/// What a tree holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// Entries, of whatever order.
    pub entries: u64,
    /// Reserved places.
    pub reserved: u64,
}

/// An invariant that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corrupt {
    /// A node with nothing in it, or a head node with an entry that the head could hold.
    Superfluous,
    /// A node's count of used slots.
    Count,
    /// A node's count of values.
    Values,
    /// A node's shift, offset or parent.
    Link,
    /// A sibling without its entry, or in a run that is no aligned power of two.
    Sibling,
    /// A retry word in a live node.
    Retry,
    /// A mark that is not the OR of those below, or stands on nothing.
    Mark,
    /// A free bit that is not what is below.
    Free,
    /// An internal word, or a multi-index one, in the head.
    Head,
    /// The array's number of nodes.
    NodeCount,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XArray invariant violated: {self:?}")
    }
}

impl core::error::Error for Corrupt {}

/// Checks the tree; nobody changes it meanwhile.
pub(super) fn check(tree: &Tree, pin: Pin<'_>) -> Result<Shape, Corrupt> {
    let mut shape = Shape::default();
    let head = tree.head();
    if let Some(top) = head.child(pin) {
        if top.parent().is_some() || top.offset() != 0 {
            return Err(Corrupt::Link);
        }
        let only = top.slot(0);
        if top.count() == 1 && !only.is_empty() && (only.is_node() || top.shift() == 0) {
            return Err(Corrupt::Superfluous);
        }
        check_node(top, pin, &mut shape)?;
        let agrees = |mark| tree.is_marked(mark) == (top.marks(mark) != 0);
        return if Mark::ALL.into_iter().all(agrees) { Ok(shape) } else { Err(Corrupt::Mark) };
    }
    if head.is_sibling() || head == RawEntry::RETRY {
        return Err(Corrupt::Head);
    }
    let has_entry = !head.is_empty() && head != RawEntry::ZERO;
    if !has_entry && Mark::ALL.into_iter().any(|mark| tree.is_marked(mark)) {
        return Err(Corrupt::Mark);
    }
    shape.entries += u64::from(has_entry);
    shape.reserved += u64::from(head == RawEntry::ZERO);
    Ok(shape)
}

fn check_node(node: &Node, pin: Pin<'_>, shape: &mut Shape) -> Result<(), Corrupt> {
    shape.nodes += 1;
    if !node.shift().is_multiple_of(SLOT_BITS) {
        return Err(Corrupt::Link);
    }
    let (mut count, mut values) = (0, 0);
    let mut slot = 0;
    while slot < SLOTS {
        let word = node.slot(slot);
        if word == RawEntry::RETRY {
            return Err(Corrupt::Retry);
        }
        if word.is_sibling() {
            return Err(Corrupt::Sibling);
        }
        let (_, len) = node.group(slot);
        if !len.is_power_of_two() || slot % len != 0 {
            return Err(Corrupt::Sibling);
        }
        if !word.is_empty() {
            count += len;
        }
        if word.is_value() {
            values += len;
        }
        check_slot(node, slot, len, pin, shape)?;
        slot += len;
    }
    if count == 0 {
        return Err(Corrupt::Superfluous);
    }
    if count != node.count() {
        return Err(Corrupt::Count);
    }
    if values != node.values() {
        return Err(Corrupt::Values);
    }
    Ok(())
}

fn check_slot(
    node: &Node,
    slot: usize,
    len: usize,
    pin: Pin<'_>,
    shape: &mut Shape,
) -> Result<(), Corrupt> {
    let word = node.slot(slot);
    let is_free = |slot| node.free() & bit(slot) != 0;
    if let Some(child) = word.child(pin) {
        let parent = child.parent().map(|parent| parent.as_ptr().cast_const());
        if child.shift() + SLOT_BITS != node.shift()
            || child.offset() != slot
            || parent != Some(core::ptr::from_ref(node))
        {
            return Err(Corrupt::Link);
        }
        check_node(child, pin, shape)?;
        let agrees = |mark| node.is_marked(slot, mark) == (child.marks(mark) != 0);
        if !Mark::ALL.into_iter().all(agrees) {
            return Err(Corrupt::Mark);
        }
        return if is_free(slot) == (child.free() != 0) { Ok(()) } else { Err(Corrupt::Free) };
    }
    let is_entry = !word.is_empty() && word != RawEntry::ZERO;
    shape.entries += u64::from(is_entry);
    shape.reserved += u64::from(word == RawEntry::ZERO);
    let unmarked = if is_entry { slot + 1 } else { slot };
    for mark in Mark::ALL {
        if (unmarked..slot + len).any(|slot| node.is_marked(slot, mark)) {
            return Err(Corrupt::Mark);
        }
    }
    if (slot..slot + len).any(|slot| is_free(slot) != word.is_empty()) {
        return Err(Corrupt::Free);
    }
    Ok(())
}
