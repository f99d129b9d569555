//! Mappings of guest RAM in this process, each between two guard areas.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "guest RAM needs a 64-bit host");

/// Mappings start at this alignment, as the guest-physical ranges do, so that
/// huge pages of host and guest can coincide.
const ALIGN: usize = 2 << 20;

/// A number of bytes of guest RAM as the host's system calls take it.
#[expect(clippy::cast_possible_truncation, reason = "the assertion above: usize has 64 bits")]
pub(crate) const fn to_usize(bytes: u64) -> usize {
    bytes as usize
}

/// A range of addresses in this process: what a release call takes.
///
/// It proves nothing about what is mapped there; this crate makes only those
/// that lie inside guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRange {
    /// First byte.
    pub(crate) start: usize,
    /// Length in bytes.
    pub(crate) len: usize,
}

impl HostRange {
    /// Address of the first byte.
    pub const fn start(self) -> usize {
        self.start
    }

    /// Length in bytes.
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// One past the last byte.
    pub const fn end(self) -> usize {
        self.start + self.len
    }

    /// The range without its first `bytes` (all of them if there are fewer).
    pub(crate) const fn without_first(self, bytes: usize) -> Self {
        let skipped = if bytes < self.len { bytes } else { self.len };
        Self { start: self.start + skipped, len: self.len - skipped }
    }
}

/// What lies behind a mapping.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Private anonymous memory.
    Anonymous,
    /// The file from this offset, shared.
    SharedFile(&'a File, u64),
}

/// A mapping of guest RAM, readable and writable; unmapped with its guards when dropped.
///
/// The inaccessible guard area on either side keeps an overrun of the VMM from
/// reaching a neighbour, and keeps the kernel from merging the mapping with
/// another, which would blur what `/proc/self/smaps` says about it.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The whole reservation, guards included.
    reserved: NonNull<u8>,
    reserved_len: usize,
    /// Offset of guest RAM in the reservation.
    offset: usize,
    len: usize,
}

// SAFETY: the pointers are addresses of a mapping that this value owns until
// it is dropped; nothing in it depends on the thread, and no method gives a
// reference to its bytes.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; all methods take `&self` and only compute addresses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `source`; without swap reservation, because a
    /// balloon exists to promise more than there is (docs/guest-ram.md).
    pub(crate) fn new(len: usize, source: Source<'_>) -> io::Result<Self> {
        let too_big = || io::Error::from_raw_os_error(libc::ENOMEM);
        let reserved_len = len.checked_add(2 * ALIGN).ok_or_else(too_big)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), reserved_len, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let reserved = NonNull::new(start.cast::<u8>()).ok_or_else(too_big)?;
        // At least a page stays reserved on either side: the offset is in [1, ALIGN].
        let offset = ALIGN - start.addr() % ALIGN;
        let mapping = Self { reserved, reserved_len, offset, len };
        mapping.fill(source)?;
        Ok(mapping)
    }

    /// Maps the source over the middle of the reservation.
    fn fill(&self, source: Source<'_>) -> io::Result<()> {
        let (kind, fd, at) = match source {
            Source::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            Source::SharedFile(file, at) => (libc::MAP_SHARED, file.as_raw_fd(), at),
        };
        let at = i64::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        let flags = kind | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: MAP_FIXED replaces only pages of `[offset, offset + len)` of the reservation,
        // which `new` made long enough and which nothing else refers to yet.
        let got = unsafe { libc::mmap(self.as_ptr().cast(), self.len, protection, flags, fd, at) };
        if got == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The first byte of guest RAM.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.reserved.as_ptr().wrapping_add(self.offset)
    }

    /// Bytes of guest RAM.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// All of it.
    pub(crate) fn range(&self) -> HostRange {
        HostRange { start: self.as_ptr().addr(), len: self.len }
    }

    /// `len` bytes from `offset`, or `None` if they do not all lie in the mapping.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Option<HostRange> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| HostRange { start: self.as_ptr().addr() + offset, len })
    }

    /// Gives the kernel `advice` about the whole mapping; one that it does not know is no error.
    pub(crate) fn hint(&self, advice: libc::c_int) {
        // SAFETY: the range is this mapping; callers pass only advice that keeps contents.
        let result = unsafe { libc::madvise(self.as_ptr().cast(), self.len, advice) };
        if result != 0 {
            log::debug!("madvise advice={advice}: {}", io::Error::last_os_error());
        }
    }

    /// Reads the byte at `offset`, which must lie in the mapping.
    pub(crate) fn read_byte(&self, offset: usize) -> u8 {
        assert!(offset < self.len, "offset {offset} is outside the mapping");
        // SAFETY: the assertion keeps the address inside this live, readable mapping; a u8 has
        // no alignment; volatile, because a guest may write it at any time.
        unsafe { self.as_ptr().wrapping_add(offset).read_volatile() }
    }

    /// Writes the byte at `offset`, which must lie in the mapping.
    pub(crate) fn write_byte(&self, offset: usize, value: u8) {
        assert!(offset < self.len, "offset {offset} is outside the mapping");
        // SAFETY: as in `read_byte`; the mapping is writable and no Rust reference covers it.
        unsafe { self.as_ptr().wrapping_add(offset).write_volatile(value) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the reservation is owned by this value, and the owner dropped every holder of
        // its addresses before (`HostRam::drop`).
        let result = unsafe { libc::munmap(self.reserved.as_ptr().cast(), self.reserved_len) };
        debug_assert_eq!(result, 0, "munmap of our own mapping");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_is_aligned_and_starts_as_zeros() {
        let mapping = Mapping::new(3 << 12, Source::Anonymous).expect("a small mapping");
        assert_eq!(mapping.range().start() % ALIGN, 0);
        assert!((0..3).all(|page| mapping.read_byte(page << 12) == 0));
        mapping.write_byte(4097, 7);
        assert_eq!(mapping.read_byte(4097), 7);
    }

    #[test]
    fn slices_outside_the_mapping_are_refused() {
        let mapping = Mapping::new(2 << 12, Source::Anonymous).expect("a small mapping");
        assert!(mapping.slice(0, 2 << 12).is_some());
        assert!(mapping.slice(1, 2 << 12).is_none());
        assert!(mapping.slice(usize::MAX, 2).is_none());
    }

    #[test]
    fn mapping_beyond_the_address_space_is_an_error() {
        for len in [usize::MAX & !0xfff, 1 << 62] {
            let error = Mapping::new(len, Source::Anonymous).expect_err("no host has this much");
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        }
    }
}
