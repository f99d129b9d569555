//! Splitting a folio into smaller ones, in place.
//!
//! The order of events, and where it may still turn back:
//!
//! 1. descriptors for all parts but the first are taken (no memory: nothing happened);
//! 2. migration leaves replace all leaves (a pin: leaves are put back);
//! 3. the folio is frozen (another reference: leaves are put back);
//! 4. its page-cache entry becomes one for each part (no memory: unfrozen, leaves put back);
//! 5. words, fields, cache slots: nothing can fail any more. Readers of words and
//!    slots fail on the frozen folio and look again;
//! 6. parts are unfrozen, leaves put back, and parts that nobody uses are freed.

use core::ptr::NonNull;

use abi::{Pfn, PfnRange};

use super::{Folio, FolioFlags, FolioRef, FrozenFolio};
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::pagecache::FileMapping;
use crate::platform::Platform;
use crate::rmap::Unmap;
use crate::sync::shim::Ordering;
use crate::xarray::Entry;

/// What the parts take over from the whole.
const INHERITED: FolioFlags = FolioFlags::UPTODATE
    .union(FolioFlags::DIRTY)
    .union(FolioFlags::REFERENCED)
    .union(FolioFlags::ACTIVE)
    .union(FolioFlags::SWAPBACKED);

/// Descriptors in a row, linked by their `private` field.
struct Row<'m> {
    first: Option<&'m Folio>,
}

impl<'m> Row<'m> {
    fn push(&mut self, folio: FrozenFolio<'m>) {
        let next = self.first.map_or(0, |next| core::ptr::from_ref(next).expose_provenance());
        folio.private.store(next as u64, Ordering::Relaxed);
        // SAFETY: a handle's descriptor is of a cache that lives for `'m`.
        self.first = Some(unsafe { &*folio.as_ptr().as_ptr() });
    }

    fn pop(&mut self) -> Option<FrozenFolio<'m>> {
        let folio = self.first?;
        let next = usize::try_from(folio.private()).unwrap_or(0);
        let next = NonNull::new(core::ptr::with_exposed_provenance_mut::<Folio>(next));
        // SAFETY: put there by `push`, whose handle it stands for.
        self.first = next.map(|next| unsafe { &*next.as_ptr() });
        folio.private.store(0, Ordering::Relaxed);
        // SAFETY: as above; taken out of the row, it is the only handle.
        Some(unsafe { FrozenFolio::own(folio) })
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Splits a locked folio into folios of `order`, each with its share of
    /// everything: words, leaves with all that they keep, cache entries, references.
    ///
    /// The caller's reference and lock stay with the first part. The others are
    /// unlocked; anonymous ones that nothing maps are freed. PMD leaves become PTEs.
    ///
    /// # Errors
    /// Everything is as it was, but for PMD leaves that became PTEs:
    /// * EINVAL: `order` is not below the folio's.
    /// * EBUSY: it is pinned, in the swap cache, being written back, poisoned, or truncated.
    /// * EAGAIN: somebody else has a reference.
    /// * ENOMEM.
    pub fn split_folio(&self, folio: &FolioRef<'m>, order: Order) -> Result<(), Errno> {
        debug_assert!(folio.is_locked(), "{folio:?}");
        if order >= folio.order() {
            return Err(Errno::EINVAL);
        }
        let file = self.mapping_of(folio);
        let busy = FolioFlags::SWAPCACHE | FolioFlags::WRITEBACK | FolioFlags::HWPOISON;
        if folio.flags().intersects(busy)
            || folio.is_pinned()
            || (file.is_none() && !folio.is_anon())
        {
            return Err(Errno::EBUSY);
        }
        if folio.refcount() != folio.mapcount() + cache_refs(folio, file) + 1 {
            return Err(Errno::EAGAIN);
        }
        let parts = 1usize << (folio.order().get() - order.get());
        let row = self.descriptors(parts - 1)?;
        let anchor = self.rmap_anchor(folio);
        let whole = folio.range();
        let split = self.unmap_and_split(folio, order, file, row);
        for part in heads(whole, folio.order()) {
            // SAFETY: the first part is the caller's, the others have a reference for us.
            if let Some((part, anchor)) = unsafe { self.mapped_folio(part) }.zip(anchor.as_ref()) {
                self.restore_leaves(anchor, part, part.pfn());
            }
        }
        if let Some(anchor) = anchor {
            self.rmap_release(anchor);
        }
        split.map(|was_listed| self.let_go(whole, folio.order(), was_listed))
    }

    /// Steps 2 to 5. The parts after the first have a reference for us then, and
    /// are locked. Returns whether the folio was on an LRU list.
    fn unmap_and_split(
        &self,
        folio: &FolioRef<'m>,
        order: Order,
        file: Option<NonNull<FileMapping<'m, P>>>,
        row: Row<'m>,
    ) -> Result<bool, Errno> {
        if folio.is_mapped() && !self.try_to_unmap(folio, Unmap::Migrate) {
            self.free_row(row);
            return Err(if folio.is_pinned() { Errno::EBUSY } else { Errno::EAGAIN });
        }
        // The caller's reference, one for the handle that is frozen, and the cache's.
        let references = 2 + cache_refs(folio, file);
        let frozen = match folio.get().freeze(references) {
            Ok(frozen) => frozen,
            Err(extra) => {
                self.put(extra);
                self.free_row(row);
                return Err(Errno::EAGAIN);
            }
        };
        // SAFETY: a file with cached folios stays, and a locked one stays cached.
        let cache = file.map(|file| unsafe { &*file.as_ptr() });
        let split = cache.map(|file| file.pages.split(frozen.index(), order.get()));
        if split.is_some_and(|split| split.is_err()) {
            self.put(frozen.unfreeze(references));
            self.free_row(row);
            return Err(Errno::ENOMEM);
        }
        self.undefer_split(&frozen);
        let was_listed = frozen.has(FolioFlags::LRU);
        self.lru_remove(&frozen);
        let whole = frozen.range();
        frozen.set_order(order);
        self.divide(&frozen, whole, cache, row);
        let kept = 2 + cache_refs(&frozen, file);
        self.put(frozen.unfreeze(kept));
        Ok(was_listed)
    }

    /// Step 5: gives each part after the first its descriptor, and one reference
    /// beside the cache's, which has no handle.
    fn divide(
        &self,
        first: &FrozenFolio<'m>,
        whole: PfnRange,
        cache: Option<&FileMapping<'m, P>>,
        mut row: Row<'m>,
    ) {
        let (kind, order) = (first.kind(), first.order());
        let old = kind.word_of(first.as_ptr());
        let inherited = first.flags() & INHERITED;
        let mapping = first.mapping.load(Ordering::Relaxed);
        for head in heads(whole, order).skip(1) {
            let Some(part) = row.pop() else { unreachable!("one descriptor for each part") };
            let offset = head.number() - whole.start().number();
            part.describe(head, order, kind);
            part.set_flags(inherited | FolioFlags::LOCKED);
            part.place(mapping, first.index() + offset);
            let frames = PfnRange::from_start(head, order.pages()).unwrap_or(whole);
            let moved = self.memory().redescribe(frames, old, kind.word_of(part.as_ptr()));
            debug_assert!(moved.is_ok(), "words of a folio: {moved:?}");
            if let Some(file) = cache {
                // Its entries exist since the split: no node is needed.
                let entry = Entry::Pointer(part.as_ptr());
                let stored = file.pages.store_order(part.index(), order.get(), entry);
                debug_assert!(stored.is_ok(), "{part:?}: {stored:?}");
            }
            let cached = cache.map_or(0, |_| u32::try_from(order.pages().get()).unwrap_or(0));
            // Found again by its word.
            part.unfreeze(1 + cached).into_raw();
        }
    }

    /// Step 6: unlocks the parts and gives up what kept them.
    fn let_go(&self, whole: PfnRange, order: Order, was_listed: bool) {
        for head in heads(whole, order) {
            // SAFETY: as in `split_folio`.
            let Some(part) = (unsafe { self.mapped_folio(head) }) else { continue };
            let is_first = head == whole.start();
            // What nobody uses goes right away.
            if was_listed && (is_first || part.refcount() > 1) {
                self.lru_add(part);
            }
            if !is_first {
                part.release_lock(self.platform());
                // SAFETY: the reference that `divide` left without a handle.
                self.put(unsafe { FolioRef::from_raw(NonNull::from(part)) });
            }
        }
    }

    fn descriptors(&self, count: usize) -> Result<Row<'m>, Errno> {
        let mut row = Row { first: None };
        for _ in 0..count {
            // Whoever splits is short of memory: pages that nothing maps come free.
            match self.alloc_descriptor(Gfp::MEMALLOC) {
                Ok(folio) => row.push(folio),
                Err(error) => {
                    self.free_row(row);
                    return Err(error.into());
                }
            }
        }
        Ok(row)
    }

    fn free_row(&self, mut row: Row<'m>) {
        while let Some(folio) = row.pop() {
            self.free_descriptor(folio);
        }
    }
}

/// The first frames of the blocks of `order` in `whole`.
fn heads(whole: PfnRange, order: Order) -> impl Iterator<Item = Pfn> {
    let step = usize::try_from(order.pages().get()).unwrap_or(1);
    whole.iter().step_by(step)
}

/// References that the page cache has.
fn cache_refs<P: Platform>(folio: &Folio, file: Option<NonNull<FileMapping<'_, P>>>) -> u32 {
    file.map_or(0, |_| u32::try_from(folio.pages().get()).unwrap_or(u32::MAX))
}
