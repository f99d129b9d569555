//! Handles: what users of a pool know of an object, while it may move.
//!
//! A handle names an entry of the pool's table, and the entry says in which
//! zspage the object is, and which of its objects. An entry changes only with
//! the lock of that zspage held. So whoever has read it locks what it names and
//! looks again: if it says the same, it will until the lock is dropped
//! ([`lock_named`]). There is no pin bit, and nothing that migration of a page
//! would have to rewrite.

use core::fmt;
use core::num::NonZeroU64;

use crate::sync::shim::{AtomicU64, Ordering};

/// Most objects of a zspage.
pub(super) const MAX_OBJECTS: usize = 1 << OBJECT_BITS;
/// Handles that a table can have.
pub(super) const MAX_HANDLES: u32 = 1 << INDEX_BITS;

const OBJECT_BITS: u32 = 8;
const INDEX_BITS: u32 = 27;
const GENERATION_BITS: u32 = 13;
/// Where the address is in an entry; zspages are aligned to 64 bytes.
const ADDRESS_SHIFT: u32 = 1 + OBJECT_BITS;
const ADDRESS_BITS: u32 = 42;
const ALIGN_SHIFT: u32 = 6;
const GENERATION_SHIFT: u32 = ADDRESS_SHIFT + ADDRESS_BITS;
const _: () = assert!(GENERATION_SHIFT + GENERATION_BITS == 64);

const USED: u64 = 1;

/// An object of a pool, until it is freed. A value of 40 bits: it can share a
/// word with other things.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct ZsHandle(NonZeroU64);

impl ZsHandle {
    /// Bits of a handle's value.
    pub const BITS: u32 = INDEX_BITS + GENERATION_BITS;

    pub(super) fn new(index: u32, generation: u64) -> Option<Self> {
        let bits = generation << INDEX_BITS | u64::from(index);
        NonZeroU64::new(bits + 1).map(Self)
    }

    /// The handle with this value; `None` for 0. That it means an object is seen when it is used.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match NonZeroU64::new(bits) {
            Some(bits) => Some(Self(bits)),
            None => None,
        }
    }

    /// The value, not 0, at most 2^[`Self::BITS`].
    pub const fn bits(self) -> u64 {
        self.0.get()
    }

    /// Which entry, if a table can have it.
    #[expect(clippy::cast_possible_truncation, reason = "27 bits")]
    pub(super) const fn index(self) -> u32 {
        (self.0.get() - 1) as u32 & (MAX_HANDLES - 1)
    }

    /// Which of the entry's lives.
    pub(super) const fn generation(self) -> u64 {
        (self.0.get() - 1) >> INDEX_BITS
    }
}

impl fmt::Debug for ZsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zs:{:x}.{:x}", self.index(), self.generation())
    }
}

/// Where an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Address of its zspage, a multiple of 64.
    pub zspage: u64,
    /// Which of the zspage's objects, below 256.
    pub object: u32,
}

/// An entry's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// The entry of an object there.
    ///
    /// # Panics
    /// In debug builds, if the location has no place in it.
    pub fn used(at: Location, generation: u64) -> Self {
        let address = at.zspage >> ALIGN_SHIFT & ((1 << ADDRESS_BITS) - 1);
        let object = u64::from(at.object) & ((1 << OBJECT_BITS) - 1);
        let entry = USED | object << 1 | address << ADDRESS_SHIFT | generation << GENERATION_SHIFT;
        debug_assert_eq!(Self(entry).location(), Some(at));
        Self(entry)
    }

    /// A free entry; `next` is the one after it on the free list.
    pub(super) fn free(next: Option<u32>, generation: u64) -> Self {
        let next = next.map_or(0, |next| u64::from(next) + 1);
        Self(next << 1 | (generation & ((1 << GENERATION_BITS) - 1)) << GENERATION_SHIFT)
    }

    /// The entry with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Where the object is, unless the entry is free.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "fields of a word")]
    pub const fn location(self) -> Option<Location> {
        if self.0 & USED == 0 {
            return None;
        }
        let address = self.0 >> ADDRESS_SHIFT & ((1 << ADDRESS_BITS) - 1);
        // Canonical again: bits 48 to 63 are bit 47's.
        let unused = 64 - ADDRESS_BITS - ALIGN_SHIFT;
        let zspage = ((address << ALIGN_SHIFT << unused).cast_signed() >> unused) as u64;
        let object = (self.0 >> 1) as u32 & (MAX_OBJECTS as u32 - 1);
        Some(Location { zspage, object })
    }

    /// The next entry of the free list.
    #[expect(clippy::cast_possible_truncation, reason = "28 bits")]
    pub(super) const fn next(self) -> Option<u32> {
        ((self.0 >> 1) as u32 & (2 * MAX_HANDLES - 1)).checked_sub(1)
    }

    pub(super) const fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT
    }
}

/// Whether whoever has locked what an entry named looks at the entry again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recheck {
    /// Yes.
    Yes,
    /// No: the mutant that the models must kill.
    No,
}

/// Locks what the entry in `cell` names, and returns it with the guard: the
/// entry says so until the guard is dropped. `None` if the entry is not one of
/// `generation`.
///
/// `lock` gets a location that may be out of date, of memory that is a zspage
/// still: the caller is in a read section.
pub fn lock_named<G>(
    cell: &AtomicU64,
    generation: u64,
    recheck: Recheck,
    mut lock: impl FnMut(Location) -> G,
) -> Option<(Location, G)> {
    loop {
        // Acquire pairs with the Release of who placed the object: the zspage's fields.
        let entry = Entry(cell.load(Ordering::Acquire));
        let at = entry.location().filter(|_| entry.generation() == generation)?;
        let guard = lock(at);
        // Relaxed: the lock orders this after whatever change was made under it.
        if recheck == Recheck::No || cell.load(Ordering::Relaxed) == entry.0 {
            return Some((at, guard));
        }
    }
}
