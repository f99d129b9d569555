//! The page cache of one file (Linux: `struct address_space`, with its inode).

use core::fmt;
use core::ops::Deref;
use core::ptr::{self, NonNull};

use abi::PAGE_SIZE;

use crate::folio::Folio;
use crate::mm::Base;
use crate::platform::Platform;
use crate::rmap::IntervalTree;
use crate::space::Vma;
use crate::sync::shim::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sync::{LockClass, RwLock};
use crate::xarray::{SlabNodes, XArray};

/// Longest name of a file, in bytes.
pub const NAME_MAX: usize = 31;

/// A file's folios by page offset, and the VMAs that map the file.
///
/// Files live in memory alone: what is in the cache is the file, and a page that
/// is not there reads as zeros.
pub struct FileMapping<'m, P: Platform> {
    /// Its name's, its users', and one for each VMA that maps it.
    pub(super) refcount: AtomicU32,
    /// Tells files apart in output; never reused.
    pub(super) id: u64,
    /// Folios by page offset, each over all its pages. Each page is a reference.
    pub(crate) pages: XArray<'m, SlabNodes<'m, P>, Folio>,
    /// VMAs that map the file, by page offset.
    pub(crate) i_mmap: RwLock<IntervalTree<Vma<'m, P>>>,
    /// Length in bytes. Changes under `resize`.
    pub(super) size: AtomicU64,
    /// Held for writing by who writes, cuts or punches (Linux: the inode lock).
    pub(super) resize: RwLock<()>,
    /// The largest order of folios made for it.
    pub(super) folio_order: AtomicU32,
    /// Pages in the cache.
    pub(super) cached: AtomicU64,
    pub(super) name: [u8; NAME_MAX],
    /// Length of the name; 0 once it is unlinked, and for shared anonymous memory.
    pub(super) name_len: AtomicU32,
    /// The list of all files.
    pub(super) next: AtomicPtr<Self>,
    pub(super) prev: AtomicPtr<Self>,
}

impl<'m, P: Platform> FileMapping<'m, P> {
    /// An empty file with one reference.
    pub(super) fn new(base: &'m Base<P>, id: u64, name: &[u8], size: u64) -> Self {
        let mut bytes = [0; NAME_MAX];
        let length = name.len().min(NAME_MAX);
        bytes[..length].copy_from_slice(&name[..length]);
        Self {
            refcount: AtomicU32::new(1),
            id,
            pages: XArray::new(&base.rcu, base.xa_nodes()),
            i_mmap: RwLock::new(LockClass::Rmap, IntervalTree::new()),
            size: AtomicU64::new(size),
            resize: RwLock::new(LockClass::Files, ()),
            folio_order: AtomicU32::new(0),
            cached: AtomicU64::new(0),
            name: bytes,
            name_len: AtomicU32::new(u32::try_from(length).unwrap_or(0)),
            next: AtomicPtr::new(ptr::null_mut()),
            prev: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Its number.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Pages that the length covers, the last one perhaps in part.
    pub fn size_pages(&self) -> u64 {
        self.size().div_ceil(PAGE_SIZE)
    }

    /// Pages in the cache.
    pub fn cached_pages(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Its name, empty if it has none.
    pub fn name(&self) -> &[u8] {
        let length = usize::try_from(self.name_len.load(Ordering::Relaxed)).unwrap_or(0);
        &self.name[..length.min(NAME_MAX)]
    }

    /// References.
    pub fn refcount(&self) -> u32 {
        self.refcount.load(Ordering::Relaxed)
    }

    /// What folios have as mapping.
    pub(super) fn token(&self) -> u64 {
        ptr::from_ref(self).expose_provenance() as u64
    }
}

impl<P: Platform> fmt::Debug for FileMapping<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileMapping")
            .field("id", &self.id)
            .field("size", &self.size())
            .field("cached", &self.cached_pages())
            .finish_non_exhaustive()
    }
}

/// One reference of a file. Not `Clone`, and dropping it leaks the file: give it
/// back by [`Mm::file_put`](crate::mm::Mm::file_put).
#[must_use = "put it, or its file is never freed"]
pub struct FileRef<'m, P: Platform>(NonNull<FileMapping<'m, P>>);

impl<'m, P: Platform> FileRef<'m, P> {
    /// Gives up the handle but not the reference: what a VMA keeps.
    pub fn into_raw(self) -> NonNull<FileMapping<'m, P>> {
        self.0
    }

    /// Makes the handle again from what [`Self::into_raw`] returned.
    ///
    /// # Safety
    /// The caller owns one reference, whose handle is gone.
    pub unsafe fn from_raw(file: NonNull<FileMapping<'m, P>>) -> Self {
        Self(file)
    }

    /// One more reference.
    pub fn get(&self) -> Self {
        let before = self.refcount.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before != 0, "a freed file got a reference");
        Self(self.0)
    }
}

// SAFETY: a file is shared between CPUs; all that changes in it is atomic or locked.
unsafe impl<P: Platform> Send for FileRef<'_, P> {}
// SAFETY: as for `Send`.
unsafe impl<P: Platform> Sync for FileRef<'_, P> {}

impl<'m, P: Platform> Deref for FileRef<'m, P> {
    type Target = FileMapping<'m, P>;

    fn deref(&self) -> &FileMapping<'m, P> {
        // SAFETY: the handle's reference keeps it.
        unsafe { self.0.as_ref() }
    }
}

impl<P: Platform> fmt::Debug for FileRef<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
