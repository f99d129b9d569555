//! What a slot holds: [`Entry`] and [`Content`] to users, [`RawEntry`] inside.
//!
//! A slot is one pointer-sized word. Its two low bits say what it is:
//!
//! | bits | meaning |
//! |---|---|
//! | word 0 | empty |
//! | `..00` | pointer to a user's object, aligned to 4 |
//! | `...1` | value, in the other 63 bits |
//! | `..10`, above 4096 | pointer to a child node |
//! | `..10`, else | sibling of slot `word >> 2`, or one of the marks below |
//!
//! Words travel as pointers, not integers, so that provenance survives.

use core::fmt;
use core::ptr::{self, NonNull};

use super::node::{Node, SLOTS};

const VALUE_BIT: usize = 0b01;
const INTERNAL_BITS: usize = 0b10;
const TAG_MASK: usize = 0b11;
/// Internal words up to here are not node pointers: nobody maps the first page.
const LAST_SMALL: usize = 4096;

/// An integer stored in the array itself: 63 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(usize);

impl Value {
    /// The largest value.
    pub const MAX: Self = Self(usize::MAX >> 1);

    /// The value, or `None` if it needs the 64th bit.
    pub const fn new(value: usize) -> Option<Self> {
        if value <= Self::MAX.0 { Some(Self(value)) } else { None }
    }

    /// The integer.
    pub const fn get(self) -> usize {
        self.0
    }
}

/// A user's entry: a small integer, or a pointer that the array never follows.
pub enum Entry<T> {
    /// An integer.
    Value(Value),
    /// A pointer to an object aligned to at least 4.
    Pointer(NonNull<T>),
}

impl<T> Entry<T> {
    /// A value entry, or `None` if `value` needs the 64th bit.
    pub const fn value(value: usize) -> Option<Self> {
        match Value::new(value) {
            Some(value) => Some(Self::Value(value)),
            None => None,
        }
    }

    /// The integer of a value entry.
    pub const fn as_value(self) -> Option<usize> {
        match self {
            Self::Value(value) => Some(value.get()),
            Self::Pointer(_) => None,
        }
    }

    /// The pointer of a pointer entry.
    pub const fn as_pointer(self) -> Option<NonNull<T>> {
        match self {
            Self::Value(_) => None,
            Self::Pointer(pointer) => Some(pointer),
        }
    }

    pub(super) fn to_raw(self) -> RawEntry {
        const { assert!(align_of::<T>() >= 4, "the low bits of a pointer entry are the tag") };
        match self {
            Self::Value(Value(value)) => {
                RawEntry(ptr::without_provenance_mut(value << 1 | VALUE_BIT))
            }
            Self::Pointer(pointer) => {
                assert!(pointer.addr().get() & TAG_MASK == 0, "misaligned pointer entry");
                RawEntry(pointer.as_ptr().cast())
            }
        }
    }

    /// The user's view of `raw`; `None` for empty and internal words.
    pub(super) fn from_raw(raw: RawEntry) -> Option<Self> {
        if raw.is_value() {
            return Some(Self::Value(Value(raw.0.addr() >> 1)));
        }
        if raw.0.addr() & TAG_MASK != 0 {
            return None;
        }
        NonNull::new(raw.0.cast()).map(Self::Pointer)
    }
}

// By hand: a derive would ask the same of `T`, which is only pointed to.
impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Entry<T> {}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Value(a), Self::Value(b)) => a == b,
            (Self::Pointer(a), Self::Pointer(b)) => a == b,
            (Self::Value(_), Self::Pointer(_)) | (Self::Pointer(_), Self::Value(_)) => false,
        }
    }
}

impl<T> Eq for Entry<T> {}

impl<T> fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "value:{:x}", value.get()),
            Self::Pointer(pointer) => write!(f, "pointer:{pointer:p}"),
        }
    }
}

/// What stands at an index.
pub enum Content<T> {
    /// Nothing.
    Empty,
    /// A place held by `reserve`: reads as empty, refuses `insert`.
    Reserved,
    /// An entry.
    Entry(Entry<T>),
}

impl<T> Clone for Content<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Content<T> {}

// By hand, as for `Entry`.
impl<T> PartialEq for Content<T> {
    fn eq(&self, other: &Self) -> bool {
        self.to_raw() == other.to_raw()
    }
}

impl<T> Eq for Content<T> {}

impl<T> fmt::Debug for Content<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty"),
            Self::Reserved => f.write_str("reserved"),
            Self::Entry(entry) => entry.fmt(f),
        }
    }
}

impl<T> Content<T> {
    pub(super) fn from_raw(raw: RawEntry) -> Self {
        if raw == RawEntry::ZERO {
            return Self::Reserved;
        }
        Entry::from_raw(raw).map_or(Self::Empty, Self::Entry)
    }

    pub(super) fn to_raw(self) -> RawEntry {
        match self {
            Self::Empty => RawEntry::EMPTY,
            Self::Reserved => RawEntry::ZERO,
            Self::Entry(entry) => entry.to_raw(),
        }
    }
}

/// The word in a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawEntry(*mut ());

impl RawEntry {
    pub(super) const EMPTY: Self = Self(ptr::null_mut());
    /// In every slot of a dead node: start again from the head.
    pub(super) const RETRY: Self = Self::internal(256);
    /// Holds a place for a reservation.
    pub(super) const ZERO: Self = Self::internal(257);

    const fn internal(number: usize) -> Self {
        Self(ptr::without_provenance_mut(number << 2 | INTERNAL_BITS))
    }

    pub(super) fn from_word(word: *mut ()) -> Self {
        Self(word)
    }

    pub(super) fn to_word(self) -> *mut () {
        self.0
    }

    /// The word that sends readers of a multi-index entry to its first slot.
    pub(super) fn sibling_of(slot: usize) -> Self {
        debug_assert!(slot < SLOTS);
        Self::internal(slot)
    }

    pub(super) fn of_node(node: NonNull<Node>) -> Self {
        debug_assert!(node.addr().get() > LAST_SMALL && node.addr().get() & TAG_MASK == 0);
        Self(node.as_ptr().cast::<()>().map_addr(|address| address | INTERNAL_BITS))
    }

    pub(super) fn is_empty(self) -> bool {
        self.0.is_null()
    }

    pub(super) fn is_value(self) -> bool {
        self.0.addr() & VALUE_BIT != 0
    }

    /// The slot that a sibling word points to.
    pub(super) fn sibling(self) -> Option<usize> {
        let word = self.0.addr();
        (word & TAG_MASK == INTERNAL_BITS && word >> 2 < SLOTS).then_some(word >> 2)
    }

    pub(super) fn is_sibling(self) -> bool {
        self.sibling().is_some()
    }

    pub(super) fn is_node(self) -> bool {
        let word = self.0.addr();
        word & TAG_MASK == INTERNAL_BITS && word > LAST_SMALL
    }

    /// The node that a node word points to.
    pub(super) fn node(self) -> Option<NonNull<Node>> {
        if !self.is_node() {
            return None;
        }
        NonNull::new(self.0.map_addr(|address| address & !TAG_MASK).cast())
    }
}

impl fmt::Debug for RawEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0.addr())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn user_entries_survive_the_round_trip_and_internal_words_stay_inside() {
        for value in [0, 1, 4096, Value::MAX.get()] {
            let entry = Entry::<u64>::value(value).unwrap();
            assert!(entry.to_raw().is_value());
            assert_eq!(Entry::from_raw(entry.to_raw()), Some(entry));
        }
        assert!(Value::new(usize::MAX).is_none());
        let object = 7u64;
        let entry = Entry::Pointer(NonNull::from(&object));
        assert_eq!(Entry::from_raw(entry.to_raw()), Some(entry));
        for raw in [RawEntry::EMPTY, RawEntry::RETRY, RawEntry::ZERO, RawEntry::sibling_of(3)] {
            assert_eq!(Entry::<u64>::from_raw(raw), None);
            assert!(!raw.is_node());
        }
    }

    #[test]
    fn xa_err_no_internal_word_is_taken_for_another_kind() {
        for slot in 0..SLOTS {
            assert_eq!(RawEntry::sibling_of(slot).sibling(), Some(slot));
        }
        for raw in [RawEntry::RETRY, RawEntry::ZERO, RawEntry::EMPTY] {
            assert!(!raw.is_sibling() && !raw.is_value() && raw.node().is_none());
        }
        assert_ne!(RawEntry::RETRY, RawEntry::ZERO);
    }
}
