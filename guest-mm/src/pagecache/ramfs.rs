//! Files by name, and their life.

use core::fmt;
use core::ptr::{self, NonNull};

use super::mapping::{FileMapping, FileRef, NAME_MAX};
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::sync::shim::Ordering;
use crate::sync::{LockClass, RwLock};

/// All files, with and without a name.
pub struct Files<'m, P: Platform>(RwLock<List<'m, P>>);

struct List<'m, P: Platform> {
    first: *mut FileMapping<'m, P>,
    next_id: u64,
}

// SAFETY: files are shared between CPUs; the list is changed under its lock.
unsafe impl<P: Platform> Send for List<'_, P> {}
// SAFETY: as for `Send`.
unsafe impl<P: Platform> Sync for List<'_, P> {}

impl<P: Platform> Files<'_, P> {
    /// No file.
    pub const fn new() -> Self {
        Self(RwLock::new(LockClass::Files, List { first: ptr::null_mut(), next_id: 1 }))
    }
}

impl<P: Platform> Default for Files<'_, P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> fmt::Debug for Files<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

impl<'m, P: Platform> List<'m, P> {
    fn iter<'a>(&'a self) -> impl Iterator<Item = &'a FileMapping<'m, P>> {
        let next = |file: &&'a FileMapping<'m, P>| {
            // SAFETY: a file leaves the list, under its lock, before it is freed.
            unsafe { file.next.load(Ordering::Relaxed).as_ref() }
        };
        // SAFETY: as above.
        core::iter::successors(unsafe { self.first.as_ref() }, next)
    }

    fn named(&self, name: &[u8]) -> Option<&FileMapping<'m, P>> {
        self.iter().find(|file| !file.name().is_empty() && file.name() == name)
    }

    fn add(&mut self, file: NonNull<FileMapping<'m, P>>) {
        // SAFETY: the caller's reference keeps it.
        let new = unsafe { file.as_ref() };
        new.next.store(self.first, Ordering::Relaxed);
        // SAFETY: as in `iter`.
        if let Some(second) = unsafe { self.first.as_ref() } {
            second.prev.store(file.as_ptr(), Ordering::Relaxed);
        }
        self.first = file.as_ptr();
    }

    fn remove(&mut self, file: &FileMapping<'m, P>) {
        let (prev, next) = (file.prev.load(Ordering::Relaxed), file.next.load(Ordering::Relaxed));
        // SAFETY: as in `iter`.
        match unsafe { prev.as_ref() } {
            Some(prev) => prev.next.store(next, Ordering::Relaxed),
            None => self.first = next,
        }
        // SAFETY: as in `iter`.
        if let Some(next) = unsafe { next.as_ref() } {
            next.prev.store(prev, Ordering::Relaxed);
        }
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes an empty file with a name.
    ///
    /// # Errors
    /// EEXIST if the name is taken, EINVAL if it is empty or longer than
    /// [`NAME_MAX`], ENOMEM.
    pub fn create_file(&self, name: &[u8]) -> Result<FileRef<'m, P>, Errno> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Errno::EINVAL);
        }
        let file = self.new_file(name, 0)?;
        let mut files = self.files.0.write(self.platform());
        if files.named(name).is_some() {
            drop(files);
            self.free_file(file.into_raw());
            return Err(Errno::EEXIST);
        }
        // The name's reference.
        let raw = file.get().into_raw();
        files.add(raw);
        Ok(file)
    }

    /// Memory that processes share without a name: a file of `size` bytes that ends with its last user
    /// (Linux's shmem, for `MAP_SHARED | MAP_ANONYMOUS`).
    ///
    /// # Errors
    /// ENOMEM.
    pub fn shmem_file(&self, size: u64) -> Result<FileRef<'m, P>, Errno> {
        let file = self.new_file(&[], size)?;
        self.files.0.write(self.platform()).add(NonNull::from(&*file));
        Ok(file)
    }

    /// The file with a name.
    ///
    /// # Errors
    /// ENOENT.
    pub fn open_file(&self, name: &[u8]) -> Result<FileRef<'m, P>, Errno> {
        let files = self.files.0.read(self.platform());
        let file = files.named(name).ok_or(Errno::ENOENT)?;
        Ok(self.file_get(file))
    }

    /// Takes a file's name away; the file lives on until its last user is gone.
    ///
    /// # Errors
    /// ENOENT.
    pub fn unlink_file(&self, name: &[u8]) -> Result<(), Errno> {
        let files = self.files.0.write(self.platform());
        let file = files.named(name).ok_or(Errno::ENOENT)?;
        file.name_len.store(0, Ordering::Relaxed);
        let raw = NonNull::from(file);
        drop(files);
        // SAFETY: the name's reference, which the file has no more.
        self.file_put(unsafe { FileRef::from_raw(raw) });
        Ok(())
    }

    /// One more reference of a file that the caller's borrow keeps.
    pub fn file_get(&self, file: &FileMapping<'m, P>) -> FileRef<'m, P> {
        let before = file.refcount.fetch_add(1, Ordering::Relaxed);
        debug_assert!(before != 0, "a freed file got a reference");
        // SAFETY: the reference just taken.
        unsafe { FileRef::from_raw(NonNull::from(file)) }
    }

    /// Gives a reference up. The last one ends the file and its pages.
    ///
    /// May wait for folio locks.
    pub fn file_put(&self, file: FileRef<'m, P>) {
        let raw = file.into_raw();
        // SAFETY: the reference that is given up keeps it until here.
        let object = unsafe { raw.as_ref() };
        // AcqRel: the last one comes after what all others did.
        let before = object.refcount.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before != 0, "file put twice");
        if before != 1 {
            return;
        }
        self.files.0.write(self.platform()).remove(object);
        self.evict_file(object);
        self.free_file(raw);
    }

    /// Calls `visit` with every file, named or not. The list is locked meanwhile.
    pub fn for_each_file(&self, visit: &mut dyn FnMut(&FileMapping<'m, P>)) {
        self.files.0.read(self.platform()).iter().for_each(visit);
    }

    fn new_file(&self, name: &[u8], size: u64) -> Result<FileRef<'m, P>, Errno> {
        let object = self.base().caches.file.alloc(self.memory(), Gfp::KERNEL)?;
        let file = object.cast::<FileMapping<'m, P>>();
        let mut files = self.files.0.write(self.platform());
        let id = files.next_id;
        files.next_id += 1;
        drop(files);
        // SAFETY: an object of this type's size and alignment, nobody else's.
        unsafe { file.write(FileMapping::new(self.base(), id, name, size)) };
        // SAFETY: it starts with one reference.
        Ok(unsafe { FileRef::from_raw(file) })
    }

    /// Frees a file without users and folios that is on no list.
    fn free_file(&self, file: NonNull<FileMapping<'m, P>>) {
        // SAFETY: no reference is left, and lockless readers of its cache borrowed one.
        unsafe { file.drop_in_place() };
        // SAFETY: as above.
        let freed = unsafe { self.base().caches.file.free(self.memory(), file.cast()) };
        debug_assert!(freed.is_ok(), "file: {freed:?}");
    }
}
