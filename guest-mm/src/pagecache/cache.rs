//! Folios in a file's cache: put in, found, taken out.

use core::fmt;

use super::FileMapping;
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::folio::{
    CacheGlance, Folio, FolioFlags, FolioKind, FolioRef, FrozenFolio, LockedFolio, cache_glance,
};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::xarray::{Entry, InsertError, Mark};

/// The mark of entries whose folio differs from what its file was given.
pub const DIRTY: Mark = Mark::M0;

/// Why there is no folio to map at a file's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFault {
    /// The page lies beyond the file's end: SIGBUS.
    BeyondEnd,
    /// No memory.
    OutOfMemory,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeyondEnd => "Page lies beyond the file's end",
            Self::OutOfMemory => "No memory for the page",
        })
    }
}

impl core::error::Error for FileFault {}

impl From<FileFault> for Errno {
    fn from(fault: FileFault) -> Self {
        match fault {
            FileFault::BeyondEnd => Self::EFAULT,
            FileFault::OutOfMemory => Self::ENOMEM,
        }
    }
}

impl<'m, P: Platform> FileMapping<'m, P> {
    /// Lets folios of up to `order` be made for the file; 0 is where it starts.
    pub fn set_folio_order(&self, order: Order) {
        self.folio_order.store(order.get(), Ordering::Relaxed);
    }

    /// The largest order of folios made for the file.
    pub fn folio_order(&self) -> Order {
        Order::try_from(self.folio_order.load(Ordering::Relaxed)).unwrap_or(Order::ZERO)
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// The folio that the cache has at page `index`, with a reference. Takes no lock.
    pub fn find_get_folio(&self, file: &FileMapping<'m, P>, index: u64) -> Option<FolioRef<'m>> {
        loop {
            match self.glance_at_cache(file, index) {
                CacheGlance::Folio(folio) => return Some(folio),
                CacheGlance::Absent => return None,
                CacheGlance::Frozen => {}
                CacheGlance::Moved(folio) => self.put(folio),
            }
            self.platform().relax();
        }
    }

    /// One look at what the cache has at page `index`.
    pub(crate) fn glance_at_cache(&self, file: &FileMapping<'m, P>, index: u64) -> CacheGlance<'m> {
        let section = self.base().rcu.read(self.platform().cpu());
        // SAFETY: a section of the base's domain; entries come from `add_to_page_cache`.
        unsafe { cache_glance(&file.pages, &section, file.token(), index) }
    }

    /// Puts a folio into the cache, at page `index`, a multiple of its pages. The
    /// cache takes a reference for each page.
    ///
    /// The folio is locked, of kind File and in no cache.
    ///
    /// # Errors
    /// EEXIST if the cache has a folio at one of the pages, ENOMEM, EINVAL for an
    /// `index` that is no multiple; nothing is changed.
    pub fn add_to_page_cache(
        &self,
        file: &FileMapping<'m, P>,
        folio: &FolioRef<'m>,
        index: u64,
    ) -> Result<(), Errno> {
        debug_assert!(folio.is_locked() && folio.kind() == FolioKind::File, "{folio:?}");
        let pages = folio.pages().get();
        if !index.is_multiple_of(pages) {
            return Err(Errno::EINVAL);
        }
        folio.add_refs(pages);
        folio.place(file.token(), index);
        let entry = Entry::Pointer(folio.as_ptr());
        let inserted = file.pages.insert_order(index, folio.order().get(), entry);
        if let Err(error) = inserted {
            folio.unplace();
            folio.drop_refs(pages);
            return Err(match error {
                InsertError::Occupied => Errno::EEXIST,
                InsertError::NoMemory => Errno::ENOMEM,
            });
        }
        file.cached.fetch_add(pages, Ordering::Relaxed);
        self.lru_add(folio);
        Ok(())
    }

    /// Takes a folio out of its file's cache, with the cache's references. It is
    /// locked and not mapped any more.
    pub fn remove_from_page_cache(&self, folio: &FolioRef<'m>) {
        debug_assert!(folio.is_locked(), "{folio:?}");
        let Some(file) = self.mapping_of(folio) else { return };
        // SAFETY: a file with cached folios stays, and a locked one stays cached.
        let file = unsafe { file.as_ref() };
        let removed = file.pages.erase(folio.index());
        debug_assert_eq!(removed, Some(Entry::Pointer(folio.as_ptr())), "{folio:?}");
        folio.unplace();
        folio.clear_flags(FolioFlags::DIRTY);
        let pages = folio.pages().get();
        file.cached.fetch_sub(pages, Ordering::Relaxed);
        folio.drop_refs(pages);
    }

    /// Takes a frozen folio out of its file's cache; the cache's references were
    /// frozen with the others. Lookups wait meanwhile, and then find nothing.
    pub(crate) fn evict_frozen(&self, folio: &FrozenFolio<'m>) {
        let Some(file) = self.mapping_of(folio) else { return };
        // SAFETY: a file with cached folios stays: who ends it takes them all out and
        // then takes the array's lock once, so not before `erase` is through.
        let file = unsafe { file.as_ref() };
        file.cached.fetch_sub(folio.pages().get(), Ordering::Relaxed);
        let removed = file.pages.erase(folio.index());
        debug_assert_eq!(removed, Some(Entry::Pointer(folio.as_ptr())), "{folio:?}");
        folio.unplace();
    }

    /// Notes that a folio differs from what its file had. Returns whether that is news.
    ///
    /// It is locked, or a leaf whose lock is held maps it.
    pub fn mark_folio_dirty(&self, folio: &Folio) -> bool {
        if folio.set_flags(FolioFlags::DIRTY).contains(FolioFlags::DIRTY) {
            return false;
        }
        if let Some(file) = self.mapping_of(folio) {
            // SAFETY: as in `remove_from_page_cache`; a mapped folio stays cached too,
            // because truncation unmaps first.
            unsafe { file.as_ref() }.pages.set_mark(folio.index(), DIRTY);
        }
        true
    }

    /// The folio to map at page `index`, locked and in the cache: found or made.
    ///
    /// With the folio lock held, the page stays inside the file: truncation sets
    /// the new end first, then locks each folio beyond it, unmaps it and takes it
    /// out. So either this sees the new end, or truncation finds the leaf.
    ///
    /// # Errors
    /// [`FileFault`].
    pub fn file_fault_folio(
        &self,
        file: &FileMapping<'m, P>,
        index: u64,
        gfp: Gfp,
    ) -> Result<LockedFolio<'m, P>, FileFault> {
        if index >= file.size_pages() {
            return Err(FileFault::BeyondEnd);
        }
        let folio = self.grab_folio(file, index, gfp)?;
        if index < file.size_pages() {
            return Ok(folio);
        }
        // Made after truncation passed by: nobody else will take it out.
        if !folio.is_mapped() && folio.index() >= file.size_pages() {
            self.remove_from_page_cache(folio.reference());
        }
        self.put(folio.unlock());
        Err(FileFault::BeyondEnd)
    }

    /// The folio at page `index`, locked and in the cache: found or made, whatever the file's end.
    pub(super) fn grab_folio(
        &self,
        file: &FileMapping<'m, P>,
        index: u64,
        gfp: Gfp,
    ) -> Result<LockedFolio<'m, P>, FileFault> {
        let mut order = file.folio_order();
        loop {
            if let Some(folio) = self.find_get_folio(file, index) {
                let folio = folio.into_locked(self.platform());
                if folio.is_at(file.token(), index) {
                    return Ok(folio);
                }
                // Truncated, or split, before it was locked.
                self.put(folio.unlock());
                continue;
            }
            match self.make_folio_at(file, index, order, gfp) {
                Ok(folio) => return Ok(folio),
                Err(Errno::EEXIST) => order = order.down().unwrap_or(Order::ZERO),
                Err(_) => order = order.down().ok_or(FileFault::OutOfMemory)?,
            }
        }
    }

    /// A new folio of zeros around page `index`, locked and in the cache.
    fn make_folio_at(
        &self,
        file: &FileMapping<'m, P>,
        index: u64,
        order: Order,
        gfp: Gfp,
    ) -> Result<LockedFolio<'m, P>, Errno> {
        let folio = self.alloc_folio(order, gfp | Gfp::ZERO, FolioKind::File)?;
        folio.set_flags(FolioFlags::UPTODATE);
        let folio = folio.into_locked(self.platform());
        let first = index & !(order.pages().get() - 1);
        match self.add_to_page_cache(file, folio.reference(), first) {
            Ok(()) => {
                self.lru_add(&folio);
                Ok(folio)
            }
            Err(error) => {
                self.put(folio.unlock());
                Err(error)
            }
        }
    }

    /// Takes a locked folio out of its file's cache if nobody but the cache and the
    /// caller has it and it was never written: it holds zeros, as would the folio
    /// made in its place. What reclaim does with file pages.
    ///
    /// Returns whether it is out; the caller's reference is then the last.
    pub fn drop_clean_folio(&self, folio: &FolioRef<'m>) -> bool {
        debug_assert!(folio.is_locked(), "{folio:?}");
        let pages = u32::try_from(folio.pages().get()).unwrap_or(u32::MAX);
        if self.mapping_of(folio).is_none() || folio.is_mapped() {
            return false;
        }
        // Frozen, so that no lookup gets it; written to before that, it shows as dirty.
        let frozen = match folio.get().freeze(pages + 2) {
            Ok(frozen) => frozen,
            Err(extra) => {
                self.put(extra);
                return false;
            }
        };
        let clean = !frozen.has(FolioFlags::DIRTY);
        self.put(frozen.unfreeze(pages + 2));
        if clean {
            self.remove_from_page_cache(folio);
        }
        clean
    }
}
