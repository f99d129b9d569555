//! An interval tree: VMAs by the page offsets that they map.
//!
//! Intrusive and balanced (AVL): nodes lie in the objects that they stand for,
//! so inserting and removing never allocates. Each node knows the largest end
//! below it, which lets a search skip subtrees that end too early: all
//! overlaps of an interval are found in O(log n + found).
//!
//! Keys are the interval's start, then the order of insertion, so no two are
//! equal and removal finds a node by its key without parent pointers. Depth is at
//! most 1.44 log2 n, so recursion is shallow.
//!
//! The order of insertion matters to reverse maps too. Fork and mremap copy
//! leaves from a VMA into one that was inserted later and starts no earlier, so
//! a walk meets the copy after the original and misses neither.
//!
//! Links are atomics, accessed relaxed: the lock that guards the tree orders
//! its users, and shared borrows of the objects around may exist at any time.

use core::fmt;
use core::ops::ControlFlow;
use core::ptr::{self, NonNull};

use crate::sync::shim::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The place of a `T` in a tree.
pub struct IntervalNode<T> {
    start: AtomicU64,
    last: AtomicU64,
    /// The largest `last` at or below this node.
    max_last: AtomicU64,
    left: AtomicPtr<Self>,
    right: AtomicPtr<Self>,
    height: AtomicU32,
    /// Insertions into the tree before this one, modulo 2^32.
    turn: AtomicU32,
    item: AtomicPtr<T>,
}

type Link<T> = Option<NonNull<IntervalNode<T>>>;

impl<T> IntervalNode<T> {
    /// A node that is in no tree.
    pub const fn new() -> Self {
        Self {
            start: AtomicU64::new(0),
            last: AtomicU64::new(0),
            max_last: AtomicU64::new(0),
            left: AtomicPtr::new(ptr::null_mut()),
            right: AtomicPtr::new(ptr::null_mut()),
            height: AtomicU32::new(0),
            turn: AtomicU32::new(0),
            item: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether the node is in a tree.
    pub fn is_linked(&self) -> bool {
        self.height.load(Ordering::Relaxed) != 0
    }

    /// First page offset, while linked.
    pub fn start(&self) -> u64 {
        self.start.load(Ordering::Relaxed)
    }

    /// Last page offset, while linked.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    fn max_last(&self) -> u64 {
        self.max_last.load(Ordering::Relaxed)
    }

    fn left(&self) -> Link<T> {
        NonNull::new(self.left.load(Ordering::Relaxed))
    }

    fn right(&self) -> Link<T> {
        NonNull::new(self.right.load(Ordering::Relaxed))
    }

    fn set_left(&self, link: Link<T>) {
        self.left.store(as_ptr(link), Ordering::Relaxed);
    }

    fn set_right(&self, link: Link<T>) {
        self.right.store(as_ptr(link), Ordering::Relaxed);
    }

    fn height(&self) -> u32 {
        self.height.load(Ordering::Relaxed)
    }
}

impl<T> Default for IntervalNode<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for IntervalNode<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IntervalNode({}..={}, linked: {})", self.start(), self.last(), self.is_linked())
    }
}

fn as_ptr<T>(link: Link<T>) -> *mut IntervalNode<T> {
    link.map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// Nodes by interval. Its users guard it by a lock.
pub struct IntervalTree<T> {
    root: AtomicPtr<IntervalNode<T>>,
    len: AtomicU32,
    /// Insertions so far.
    turns: AtomicU32,
}

/// What [`IntervalTree::validate`] found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenTree {
    /// Nodes are not in the order of their keys.
    Order,
    /// A node's height is not that of its subtrees, or they differ by more than 1.
    Balance,
    /// A node's largest end is not that of its subtree.
    MaxLast,
    /// The tree counts another number of nodes than it has.
    Length,
}

impl<T> IntervalTree<T> {
    /// No interval.
    pub const fn new() -> Self {
        Self {
            root: AtomicPtr::new(ptr::null_mut()),
            len: AtomicU32::new(0),
            turns: AtomicU32::new(0),
        }
    }

    /// Intervals in it.
    pub fn len(&self) -> u32 {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.root().is_none()
    }

    fn root(&self) -> Link<T> {
        NonNull::new(self.root.load(Ordering::Relaxed))
    }

    /// Adds `start..=last`, which stands for `item`, at `node`.
    ///
    /// # Safety
    /// The tree's lock is held for writing. `node` is in no tree and stays where
    /// it is until it is removed; so do all nodes of the tree.
    pub unsafe fn insert(
        &self,
        node: NonNull<IntervalNode<T>>,
        item: NonNull<T>,
        start: u64,
        last: u64,
    ) {
        // SAFETY: valid by the caller's promise.
        let fresh = unsafe { node.as_ref() };
        debug_assert!(!fresh.is_linked() && start <= last, "{fresh:?}");
        fresh.start.store(start, Ordering::Relaxed);
        fresh.last.store(last, Ordering::Relaxed);
        fresh.max_last.store(last, Ordering::Relaxed);
        fresh.set_left(None);
        fresh.set_right(None);
        fresh.height.store(1, Ordering::Relaxed);
        fresh.item.store(item.as_ptr(), Ordering::Relaxed);
        // Starts over when the tree is empty; four thousand million insertions into a
        // tree that never is would be needed to wrap.
        let turn = if self.is_empty() { 0 } else { self.turns.load(Ordering::Relaxed) };
        fresh.turn.store(turn, Ordering::Relaxed);
        self.turns.store(turn.wrapping_add(1), Ordering::Relaxed);
        let root = insert_below(self.root(), node);
        self.root.store(root.as_ptr(), Ordering::Relaxed);
        self.len.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes `node` out.
    ///
    /// # Safety
    /// The tree's lock is held for writing, and the node is in this tree.
    pub unsafe fn remove(&self, node: NonNull<IntervalNode<T>>) {
        // SAFETY: valid while in the tree.
        debug_assert!(unsafe { node.as_ref() }.is_linked(), "removed twice");
        let root = remove_below(self.root(), node);
        self.root.store(as_ptr(root), Ordering::Relaxed);
        self.len.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: as above; nothing links to it any more.
        unsafe { node.as_ref() }.height.store(0, Ordering::Relaxed);
    }

    /// Calls `visit` with each item whose interval overlaps `first..=last`, by start.
    ///
    /// # Safety
    /// The tree's lock is held, for reading at least, until this returns.
    pub unsafe fn for_each_overlap<B>(
        &self,
        first: u64,
        last: u64,
        visit: &mut dyn FnMut(NonNull<T>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        visit_below(self.root(), first, last, visit)
    }

    /// Checks order, balance, and the ends kept in nodes.
    ///
    /// # Safety
    /// As for [`Self::for_each_overlap`].
    ///
    /// # Errors
    /// The first thing found wrong.
    pub unsafe fn validate(&self) -> Result<(), BrokenTree> {
        let mut seen = Seen { len: 0, key: None };
        validate_below(self.root(), &mut seen)?;
        if seen.len == self.len() { Ok(()) } else { Err(BrokenTree::Length) }
    }
}

impl<T> Default for IntervalTree<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for IntervalTree<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntervalTree").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The node at a link of a locked tree.
fn at<'a, T>(link: NonNull<IntervalNode<T>>) -> &'a IntervalNode<T> {
    // SAFETY: links of a tree lead to nodes that are in it, which by the promise of
    // `insert` are valid; the public functions' callers hold the lock. The borrow
    // is used within one of them only.
    unsafe { link.as_ref() }
}

fn key<T>(node: NonNull<IntervalNode<T>>) -> (u64, u32) {
    (at(node).start(), at(node).turn.load(Ordering::Relaxed))
}

fn height<T>(link: Link<T>) -> u32 {
    link.map_or(0, |node| at(node).height())
}

/// Makes a node's height and largest end those of its subtrees.
fn update<T>(node: NonNull<IntervalNode<T>>) {
    let here = at(node);
    let below = [here.left(), here.right()];
    let tallest = below.map(height).into_iter().max().unwrap_or(0);
    let ends = below.into_iter().flatten().map(|child| at(child).max_last());
    here.height.store(tallest + 1, Ordering::Relaxed);
    here.max_last.store(ends.fold(here.last(), u64::max), Ordering::Relaxed);
}

/// The right child takes the place of `node`.
fn rotate_left<T>(node: NonNull<IntervalNode<T>>) -> NonNull<IntervalNode<T>> {
    let Some(up) = at(node).right() else { return node };
    at(node).set_right(at(up).left());
    at(up).set_left(Some(node));
    update(node);
    update(up);
    up
}

/// The left child takes the place of `node`.
fn rotate_right<T>(node: NonNull<IntervalNode<T>>) -> NonNull<IntervalNode<T>> {
    let Some(up) = at(node).left() else { return node };
    at(node).set_left(at(up).right());
    at(up).set_right(Some(node));
    update(node);
    update(up);
    up
}

/// Restores balance at `node`, whose subtrees are balanced; returns what stands there then.
fn balance<T>(node: NonNull<IntervalNode<T>>) -> NonNull<IntervalNode<T>> {
    update(node);
    let here = at(node);
    let (left, right) = (height(here.left()), height(here.right()));
    if left > right + 1 {
        if let Some(child) = here.left()
            && height(at(child).left()) < height(at(child).right())
        {
            here.set_left(Some(rotate_left(child)));
        }
        return rotate_right(node);
    }
    if right > left + 1 {
        if let Some(child) = here.right()
            && height(at(child).right()) < height(at(child).left())
        {
            here.set_right(Some(rotate_right(child)));
        }
        return rotate_left(node);
    }
    node
}

fn insert_below<T>(root: Link<T>, node: NonNull<IntervalNode<T>>) -> NonNull<IntervalNode<T>> {
    let Some(root) = root else { return node };
    let here = at(root);
    if key(node) < key(root) {
        here.set_left(Some(insert_below(here.left(), node)));
    } else {
        here.set_right(Some(insert_below(here.right(), node)));
    }
    balance(root)
}

fn remove_below<T>(root: Link<T>, node: NonNull<IntervalNode<T>>) -> Link<T> {
    let root = root?;
    let here = at(root);
    if root != node {
        if key(node) < key(root) {
            here.set_left(remove_below(here.left(), node));
        } else {
            here.set_right(remove_below(here.right(), node));
        }
        return Some(balance(root));
    }
    match (here.left(), here.right()) {
        (None, other) | (other, None) => other,
        (Some(left), Some(right)) => {
            let (rest, first) = take_first(right);
            at(first).set_left(Some(left));
            at(first).set_right(rest);
            Some(balance(first))
        }
    }
}

/// Takes the node with the lowest key out of the subtree at `root`.
fn take_first<T>(root: NonNull<IntervalNode<T>>) -> (Link<T>, NonNull<IntervalNode<T>>) {
    let here = at(root);
    match here.left() {
        None => (here.right(), root),
        Some(left) => {
            let (rest, first) = take_first(left);
            here.set_left(rest);
            (Some(balance(root)), first)
        }
    }
}

fn visit_below<T, B>(
    root: Link<T>,
    first: u64,
    last: u64,
    visit: &mut dyn FnMut(NonNull<T>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let Some(here) = root.map(at) else { return ControlFlow::Continue(()) };
    if here.max_last() < first {
        return ControlFlow::Continue(());
    }
    visit_below(here.left(), first, last, visit)?;
    if here.start() > last {
        return ControlFlow::Continue(());
    }
    if here.last() >= first
        && let Some(item) = NonNull::new(here.item.load(Ordering::Relaxed))
    {
        visit(item)?;
    }
    visit_below(here.right(), first, last, visit)
}

struct Seen {
    len: u32,
    key: Option<(u64, u32)>,
}

fn validate_below<T>(root: Link<T>, seen: &mut Seen) -> Result<(), BrokenTree> {
    let Some(node) = root else { return Ok(()) };
    let here = at(node);
    validate_below(here.left(), seen)?;
    if seen.key.is_some_and(|before| before >= key(node)) {
        return Err(BrokenTree::Order);
    }
    seen.len += 1;
    seen.key = Some(key(node));
    validate_below(here.right(), seen)?;
    let (left, right) = (height(here.left()), height(here.right()));
    if here.height() != left.max(right) + 1 || left.abs_diff(right) > 1 {
        return Err(BrokenTree::Balance);
    }
    let ends = [here.left(), here.right()].into_iter().flatten().map(|child| at(child).max_last());
    if here.max_last() != ends.fold(here.last(), u64::max) {
        return Err(BrokenTree::MaxLast);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Item {
        node: IntervalNode<Item>,
        id: usize,
    }

    fn overlaps(tree: &IntervalTree<Item>, first: u64, last: u64) -> Vec<usize> {
        let mut found = Vec::new();
        let mut visit = |item: NonNull<Item>| {
            // SAFETY: the test's items outlive the tree.
            found.push(unsafe { item.as_ref() }.id);
            ControlFlow::Continue(())
        };
        // SAFETY: one thread.
        let walk = unsafe { tree.for_each_overlap::<()>(first, last, &mut visit) };
        assert_eq!(walk, ControlFlow::Continue(()));
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn the_tree_finds_what_a_list_finds(
            intervals in prop::collection::vec((0u64..64, 0u64..12), 1..80),
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0u64..70, 0u64..10), 1..160),
        ) {
            let items: Vec<Item> = (0..intervals.len())
                .map(|id| Item { node: IntervalNode::new(), id })
                .collect();
            let tree = IntervalTree::new();
            for (index, first, length) in steps {
                let item = &items[index.index(items.len())];
                let (start, extra) = intervals[item.id];
                let node = NonNull::from(&item.node);
                if item.node.is_linked() {
                    // SAFETY: one thread, and linked in this tree.
                    unsafe { tree.remove(node) };
                } else {
                    // SAFETY: one thread; `items` outlives the tree and does not move.
                    unsafe { tree.insert(node, NonNull::from(item), start, start + extra) };
                }
                // SAFETY: one thread.
                prop_assert_eq!(unsafe { tree.validate() }, Ok(()));
                let last = first + length;
                let mut found = overlaps(&tree, first, last);
                found.sort_unstable();
                let expected: Vec<usize> = items
                    .iter()
                    .filter(|item| item.node.is_linked())
                    .filter(|item| item.node.start() <= last && item.node.last() >= first)
                    .map(|item| item.id)
                    .collect();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_visitor_that_breaks_sees_no_more() {
        let items: Vec<Item> = (0..8).map(|id| Item { node: IntervalNode::new(), id }).collect();
        let tree = IntervalTree::new();
        for item in &items {
            // SAFETY: one thread; `items` outlives the tree and does not move.
            unsafe { tree.insert(NonNull::from(&item.node), NonNull::from(item), 5, 5) };
        }
        let mut seen = 0;
        // SAFETY: one thread.
        let walk = unsafe {
            tree.for_each_overlap(5, 5, &mut |_| {
                seen += 1;
                if seen == 3 { ControlFlow::Break(seen) } else { ControlFlow::Continue(()) }
            })
        };
        assert_eq!((walk, seen, tree.len()), (ControlFlow::Break(3), 3, 8));
    }

    #[test]
    fn equal_starts_are_visited_in_the_order_of_insertion() {
        let items: Vec<Item> = (0..40).map(|id| Item { node: IntervalNode::new(), id }).collect();
        let tree = IntervalTree::new();
        // Inserted against the order of addresses.
        for item in items.iter().rev() {
            // SAFETY: one thread; `items` outlives the tree and does not move.
            unsafe { tree.insert(NonNull::from(&item.node), NonNull::from(item), 5, 5) };
        }
        assert!(overlaps(&tree, 0, 9).into_iter().eq((0..40).rev()));
    }
}
