//! [`Tree`]: the root, and the walks that need no lock.
//!
//! # Invariants
//! - The head is empty, a node, or the one entry at index 0 with order 0.
//! - A node has at least one slot in use, and the head node more than a lone
//!   slot 0 that the head itself could hold.
//! - An entry of order `o` lies in a node of shift `s = o` rounded down to a
//!   multiple of 6, in `2^(o - s)` aligned slots: the first holds the entry, the
//!   others point to it as siblings.
//! - A node's mark bit for a child is the OR of the child's bits; for an entry it
//!   stands at its first slot only. Likewise `free`, over empty slots.
//! - A node that leaves the tree is unlinked first and then filled with retry
//!   words; its memory is reused after a grace period.
//!
//! # Orderings
//! Slots and head are stored with Release and loaded with Acquire. A writer that
//! covers slots with one entry stores the entry first and the siblings after it;
//! one that splits an entry stores the last slot first. So a reader that goes
//! from a sibling to the entry and finds both words unchanged afterwards has
//! read an entry that covered its index.
//!
//! A free bit is cleared before its slot is stored and set after its slot is
//! emptied (Release, loaded with Acquire), so a search that skips free slots
//! never misses an entry that the same reader has seen, nor finds one it has seen gone.

use core::ptr::{self, NonNull};

use super::entry::RawEntry;
use super::mark::Mark;
use super::node::{Node, SLOT_BITS, SLOTS};
use crate::sync::shim::{AtomicPtr, AtomicU8, Ordering};

/// Proof that nodes found in the tree stay valid for `'g`: a read section of the
/// array's domain is open, or the array's lock is held, for that long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pin<'g>(core::marker::PhantomData<&'g ()>);

impl Pin<'_> {
    /// # Safety
    /// For `'g`, a read section of the array's RCU domain is open, or the array's
    /// lock is held and nothing is reclaimed, or the array is borrowed exclusively
    /// and none of its nodes freed.
    pub(super) const unsafe fn new() -> Self {
        Self(core::marker::PhantomData)
    }
}

/// The node behind a node pointer that was found in the tree under `pin`.
pub(super) fn node_ref<'g>(node: NonNull<Node>, _pin: Pin<'g>) -> &'g Node {
    // SAFETY: words in the tree point to initialised nodes; `pin` says that a node
    // reachable since it began is not reused during `'g`. Nodes are only ever
    // shared: all their fields are atomic.
    unsafe { node.as_ref() }
}

impl RawEntry {
    pub(super) fn child(self, pin: Pin<'_>) -> Option<&Node> {
        self.node().map(|node| node_ref(node, pin))
    }
}

/// The root of the tree.
#[derive(Debug)]
pub(super) struct Tree {
    head: AtomicPtr<()>,
    /// Bit m: something in the tree has mark m.
    marks: AtomicU8,
}

/// An entry that a search found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawHit<'g> {
    pub(crate) base: u64,
    pub(crate) order: u32,
    pub(super) entry: RawEntry,
    /// Where the next search may start; `None` for an entry in the head.
    pub(super) node: Option<&'g Node>,
    pub(super) slot: usize,
}

impl RawHit<'_> {
    /// The last index that the entry covers.
    pub(crate) fn last(&self) -> u64 {
        last_of(self.base, self.order)
    }

    /// The pointer that the entry is, if it is one.
    #[cfg_attr(loom, allow(dead_code, reason = "the store that uses it is not built for models"))]
    pub(crate) fn pointer<T>(&self) -> Option<core::ptr::NonNull<T>> {
        super::entry::Entry::from_raw(self.entry)?.as_pointer()
    }
}

/// The last index of the block of `order` at `base`.
pub(super) const fn last_of(base: u64, order: u32) -> u64 {
    base | low_mask(order)
}

/// `2^order - 1`, for `order` up to 64.
pub(super) const fn low_mask(order: u32) -> u64 {
    if order >= 64 { u64::MAX } else { (1 << order) - 1 }
}

/// The largest index that a node of `shift` covers when it starts at 0.
pub(super) const fn max_index(shift: u32) -> u64 {
    low_mask(shift + SLOT_BITS)
}

/// Where a walk for one index ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'g> {
    /// The node, or `None` for the head and for an index beyond the head node.
    pub(super) node: Option<&'g Node>,
    /// The index's own slot, perhaps a sibling.
    pub(super) slot: usize,
    /// What covers the index: never a sibling, a retry word or a node.
    pub(super) entry: RawEntry,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()), marks: AtomicU8::new(0) }
    }

    /// Acquire pairs with the Release in [`Self::set_head`].
    pub(super) fn head(&self) -> RawEntry {
        RawEntry::from_word(self.head.load(Ordering::Acquire))
    }

    pub(super) fn set_head(&self, head: RawEntry) {
        self.head.store(head.to_word(), Ordering::Release);
    }

    /// Whether anything has `mark`. Relaxed: a hint to readers, exact to the lock's holder.
    pub(super) fn is_marked(&self, mark: Mark) -> bool {
        self.marks.load(Ordering::Relaxed) & 1 << mark.index() != 0
    }

    pub(super) fn set_marked(&self, mark: Mark, marked: bool) {
        let bit = 1u8 << mark.index();
        let marks = self.marks.load(Ordering::Relaxed);
        self.marks.store(if marked { marks | bit } else { marks & !bit }, Ordering::Relaxed);
    }

    /// Finds what covers `index`.
    pub(super) fn walk<'g>(&self, pin: Pin<'g>, index: u64) -> Place<'g> {
        loop {
            let head = self.head();
            let Some(top) = head.child(pin) else {
                let entry = if index == 0 { head } else { RawEntry::EMPTY };
                return Place { node: None, slot: 0, entry };
            };
            if index > max_index(top.shift()) {
                return Place { node: None, slot: 0, entry: RawEntry::EMPTY };
            }
            if let Some(place) = walk_from(pin, top, index) {
                return place;
            }
        }
    }
}

/// Finds what covers `index` at or below `node`, whose range has it; `None` if
/// the node has died and the walk must start again from the head.
pub(super) fn walk_from<'g>(pin: Pin<'g>, mut node: &'g Node, index: u64) -> Option<Place<'g>> {
    loop {
        let slot = node.slot_of(index);
        let entry = settled_slot(node, slot)?;
        match entry.child(pin) {
            Some(child) => node = child,
            None => return Some(Place { node: Some(node), slot, entry }),
        }
    }
}

/// The entry, child or emptiness that `slot` stands for, siblings resolved;
/// `None` if the node has died.
pub(super) fn settled_slot(node: &Node, slot: usize) -> Option<RawEntry> {
    loop {
        let word = node.slot(slot);
        if word == RawEntry::RETRY {
            return None;
        }
        let Some(first) = word.sibling() else { return Some(word) };
        let entry = node.slot(first);
        #[cfg(loom)]
        if super::Mutant::TrustSiblings.is_active() {
            return Some(entry);
        }
        // Between the two loads the entry may have been split or replaced by a
        // smaller one, and `entry` may be one that never covered `slot`. Neither
        // word has changed: it did.
        if node.slot(slot) == word && node.slot(first) == entry && !entry.is_node() {
            return if entry == RawEntry::RETRY { None } else { Some(entry) };
        }
    }
}

/// Which entries a search admits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Filter {
    /// Every entry.
    All,
    /// Every entry and every reserved place.
    Used,
    /// Entries with the mark.
    Marked(Mark),
}

impl Filter {
    fn admits(self, node: &Node, slot: usize) -> bool {
        match self {
            Self::All | Self::Used => true,
            Self::Marked(mark) => node.is_marked(slot, mark),
        }
    }

    /// Whether the search stops at such a word at all, whatever its marks.
    fn stops_at(self, word: RawEntry) -> bool {
        match self {
            Self::All | Self::Marked(_) => !word.is_empty() && word != RawEntry::ZERO,
            Self::Used => !word.is_empty(),
        }
    }

    fn admits_head(self, tree: &Tree) -> bool {
        match self {
            Self::All | Self::Used => true,
            Self::Marked(mark) => tree.is_marked(mark),
        }
    }
}

/// How a step inside one node ended.
enum Step<'g> {
    Hit(RawHit<'g>),
    /// Go on at this index, from the head.
    Continue(u64),
    /// Past the last index.
    End,
}

impl Tree {
    /// The first entry that covers `from` or lies above it, not above `max`.
    ///
    /// `near` may be a node where an earlier search under the same pin ended,
    /// with its first index: the search starts there if the node covers `from`.
    pub(super) fn find<'g>(
        &self,
        pin: Pin<'g>,
        from: u64,
        max: u64,
        filter: Filter,
        mut near: Option<(&'g Node, u64)>,
    ) -> Option<RawHit<'g>> {
        let mut index = from;
        while index <= max {
            let start = near
                .take()
                .filter(|(node, base)| index >= *base && index - *base <= max_index(node.shift()));
            let node = match start {
                Some((node, _)) => node,
                None => match self.top_for(pin, index, filter) {
                    Top::Node(node) => node,
                    Top::Entry(hit) if filter.admits_head(self) => return Some(hit),
                    Top::Entry(_) | Top::Beyond => return None,
                },
            };
            match step_up(pin, node, index, max, filter) {
                Step::Hit(hit) => return Some(hit),
                Step::Continue(next) => index = next,
                Step::End => return None,
            }
        }
        None
    }

    /// The last entry whose first index is at or below `from`.
    pub(super) fn find_back<'g>(
        &self,
        pin: Pin<'g>,
        from: u64,
        filter: Filter,
    ) -> Option<RawHit<'g>> {
        let mut index = from;
        loop {
            let head = self.head();
            let Some(top) = head.child(pin) else {
                let hit = RawHit { base: 0, order: 0, entry: head, node: None, slot: 0 };
                return (filter.stops_at(head) && filter.admits_head(self)).then_some(hit);
            };
            index = index.min(max_index(top.shift()));
            match step_down(pin, top, index, filter) {
                Step::Hit(hit) => return Some(hit),
                Step::Continue(next) => index = next,
                Step::End => return None,
            }
        }
    }

    fn top_for<'g>(&self, pin: Pin<'g>, index: u64, filter: Filter) -> Top<'g> {
        let head = self.head();
        match head.child(pin) {
            Some(top) if index <= max_index(top.shift()) => Top::Node(top),
            None if index == 0 && filter.stops_at(head) => {
                Top::Entry(RawHit { base: 0, order: 0, entry: head, node: None, slot: 0 })
            }
            Some(_) | None => Top::Beyond,
        }
    }
}

/// What the head offers a search for an index.
enum Top<'g> {
    Node(&'g Node),
    Entry(RawHit<'g>),
    Beyond,
}

/// Searches upward from `index` in `node` and its children, until one node is exhausted.
fn step_up<'g>(
    pin: Pin<'g>,
    mut node: &'g Node,
    mut index: u64,
    max: u64,
    filter: Filter,
) -> Step<'g> {
    loop {
        let shift = node.shift();
        let slot = node.slot_of(index);
        let Some(entry) = settled_slot(node, slot) else { return Step::Continue(index) };
        if let Some(child) = entry.child(pin) {
            if filter.admits(node, slot) {
                node = child;
                continue;
            }
        } else if filter.stops_at(entry) {
            let Some(hit) = hit(node, index, slot, entry) else { return Step::Continue(index) };
            if filter.admits(node, hit.slot) {
                return Step::Hit(hit);
            }
        }
        let Some(next) = next_slot(node, index, slot, filter) else { return Step::End };
        index = next;
        if index > max {
            return Step::End;
        }
        if slot_of_is_first(index, shift) {
            return Step::Continue(index);
        }
    }
}

/// The first index of the next slot worth a look; the node's end if there is
/// none; `None` past the last index.
fn next_slot(node: &Node, index: u64, slot: usize, filter: Filter) -> Option<u64> {
    let shift = node.shift();
    let above = match slot + 1 {
        SLOTS => 0,
        next => u64::MAX << next,
    };
    let candidates = match filter {
        // Without children every slot in use is one that is not free.
        Filter::All | Filter::Used if shift == 0 => !node.free(),
        Filter::All | Filter::Used => u64::MAX,
        // Only first slots and children carry marks.
        Filter::Marked(mark) => node.marks(mark),
    };
    let skip = (candidates & above).trailing_zeros() as usize;
    let slots = (index >> shift) - slot as u64;
    let next = slots.checked_add(skip.min(SLOTS) as u64)?;
    if next > u64::MAX >> shift { None } else { Some(next << shift) }
}

fn slot_of_is_first(index: u64, shift: u32) -> bool {
    (index >> shift) & (SLOTS as u64 - 1) == 0
}

/// Searches downward from `index`, until one node is exhausted.
fn step_down<'g>(pin: Pin<'g>, mut node: &'g Node, mut index: u64, filter: Filter) -> Step<'g> {
    loop {
        let shift = node.shift();
        let slot = node.slot_of(index);
        let Some(entry) = settled_slot(node, slot) else { return Step::Continue(index) };
        if let Some(child) = entry.child(pin) {
            if filter.admits(node, slot) {
                node = child;
                continue;
            }
        } else if filter.stops_at(entry) {
            let Some(hit) = hit(node, index, slot, entry) else { return Step::Continue(index) };
            if filter.admits(node, hit.slot) {
                return Step::Hit(hit);
            }
        }
        let Some(below) = prev_slot(node, index, slot, filter) else { return Step::End };
        index = below;
        if slot_of_is_first(index.wrapping_add(1), shift) {
            return Step::Continue(index);
        }
    }
}

/// The last index of the next slot below worth a look; the one below the node if
/// there is none; `None` past index 0.
fn prev_slot(node: &Node, index: u64, slot: usize, filter: Filter) -> Option<u64> {
    let shift = node.shift();
    let candidates = match filter {
        Filter::All | Filter::Used if shift == 0 => !node.free(),
        Filter::All | Filter::Used => u64::MAX,
        // A first slot with the mark may lie anywhere below its last sibling.
        Filter::Marked(_) => u64::MAX,
    };
    let below = candidates & low_mask(u32::try_from(slot).unwrap_or(0));
    // Slots to go up from the node's first; 0 leaves the node.
    let keep = u64::MAX.count_ones() - below.leading_zeros();
    let slots = (index >> shift) - slot as u64 + u64::from(keep);
    // `slots << shift` may be 2^64: the index below it is meant.
    slots.checked_sub(1).map(|slot| slot << shift | low_mask(shift))
}

/// The hit for `entry`, read at `slot`; `None` if the slot has changed since.
///
/// A reader without the lock may meet an entry whose siblings are being stored:
/// the order is then that of the part it sees.
fn hit(node: &Node, index: u64, slot: usize, entry: RawEntry) -> Option<RawHit<'_>> {
    let (first, len) = node.group(slot);
    if settled_slot(node, slot) != Some(entry) || slot >= first + len {
        return None;
    }
    let order = node.shift() + len.ilog2();
    Some(RawHit { base: index & !low_mask(order), order, entry, node: Some(node), slot: first })
}
