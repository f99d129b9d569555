//! From a page offset to a reference, without a lock.

use super::{Folio, FolioRef};
use crate::rcu::ReadGuard;
use crate::sync::shim::Ordering;
use crate::xarray::{Content, Entry, NodeAlloc, XArray};

/// What one look into a page cache gave.
#[derive(Debug)]
pub enum CacheGlance<'m> {
    /// A reference to the folio that the cache has at the index.
    Folio(FolioRef<'m>),
    /// The cache has none there.
    Absent,
    /// The folio is frozen: being split, or on its way out. Look again.
    Frozen,
    /// A reference to a folio that is no longer there: to be put. Look again.
    Moved(FolioRef<'m>),
}

/// Takes a reference to the folio that `pages` has at `index`: slot, reference, slot again.
///
/// Between the slot and the reference the folio may be truncated, freed, and its
/// descriptor used for another folio, even one of this file at another index.
/// So the slot must still hold it, and the folio must still say that it is this
/// `mapping`'s at this index. Both are removed before a folio is freed, and
/// taking the reference synchronised with whoever published the next.
///
/// # Safety
/// `guard` is a section of the domain that frees descriptors' slabs; entries of
/// `pages` are descriptors of a cache that lives for `'m`.
pub unsafe fn cache_glance<'m, A: NodeAlloc>(
    pages: &XArray<'_, A, Folio>,
    guard: &ReadGuard<'_>,
    mapping: u64,
    index: u64,
) -> CacheGlance<'m> {
    let mut cursor = pages.cursor(guard, index);
    let seen = cursor.load();
    let Content::Entry(Entry::Pointer(descriptor)) = seen else { return CacheGlance::Absent };
    // SAFETY: in a slot during the read section, hence memory of the type-safe cache
    // until the section ends, all of it atomic and initialised.
    let folio: &'m Folio = unsafe { descriptor.as_ref() };
    let Some(folio) = FolioRef::try_get(folio) else { return CacheGlance::Frozen };
    #[cfg(loom)]
    if super::mutant::Mutant::NoSlotRecheck.is_active() {
        return CacheGlance::Folio(folio);
    }
    if cursor.load() == seen && folio.is_at(mapping, index) {
        CacheGlance::Folio(folio)
    } else {
        CacheGlance::Moved(folio)
    }
}

impl Folio {
    /// Whether it is in the cache of `mapping` and holds page `index` of it.
    pub fn is_at(&self, mapping: u64, index: u64) -> bool {
        // Acquire pairs with the Release in `place`: the index is this mapping's.
        self.mapping.load(Ordering::Acquire) == mapping
            && index.checked_sub(self.index()).is_some_and(|page| page < self.pages().get())
    }

    /// Puts it at `index` of `mapping`, before the cache shows it.
    ///
    /// Only who has it locked, or to himself, may.
    pub fn place(&self, mapping: u64, index: u64) {
        self.index.store(index, Ordering::Relaxed);
        // Release pairs with the Acquire in `is_at`.
        self.mapping.store(mapping, Ordering::Release);
    }

    /// The token of the mapping that it belongs to; 0 for none.
    pub fn mapping(&self) -> u64 {
        self.mapping.load(Ordering::Acquire)
    }

    /// Takes it from its mapping, after the cache has ceased to show it.
    pub fn unplace(&self) {
        self.mapping.store(0, Ordering::Release);
    }
}
