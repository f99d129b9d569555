//! The page cache of one file (Linux: `struct address_space`).

use core::marker::PhantomData;

use crate::platform::Platform;

/// A file's folios by page offset, and the VMAs that map the file.
pub struct FileMapping<'m, P: Platform> {
    pub(crate) owner: PhantomData<&'m P>,
}
