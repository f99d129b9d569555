//! Reading, writing and cutting files.

use abi::{PAGE_SHIFT, PAGE_SIZE};

use super::FileMapping;
use crate::buddy::Gfp;
use crate::errno::Errno;
use crate::folio::LockedFolio;
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::rmap::Unmap;
use crate::sync::shim::Ordering;

/// One past the largest length of a file, in bytes: page offsets of ranges stay below 2^64.
pub const SIZE_LIMIT: u64 = 1 << 62;

impl<'m, P: Platform> Mm<'m, P> {
    /// Copies bytes of a file from `offset` on, up to its end. Returns how many.
    pub fn read_file(&self, file: &FileMapping<'m, P>, offset: u64, out: &mut [u8]) -> usize {
        let left = usize::try_from(file.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = out.len().min(left);
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let in_page = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(0);
            let part = &mut out[done..length.min(done + in_page)];
            match self.find_get_folio(file, at >> PAGE_SHIFT) {
                Some(folio) => {
                    self.read_folio(&folio, at - (folio.index() << PAGE_SHIFT), part);
                    self.put(folio);
                }
                None => part.fill(0),
            }
            done += part.len();
        }
        length
    }

    /// Copies `bytes` into a file from `offset` on, which grows to hold them. Returns how many.
    ///
    /// # Errors
    /// EINVAL if the end would lie beyond [`SIZE_LIMIT`]; ENOMEM if not even the
    /// first page could be had, otherwise the write is short.
    pub fn write_file(
        &self,
        file: &FileMapping<'m, P>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= SIZE_LIMIT);
        end.ok_or(Errno::EINVAL)?;
        // Others may neither cut nor grow it meanwhile.
        let resize = file.resize.write(self.platform());
        if offset > file.size() {
            self.zero_tail(file);
        }
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let in_page = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(0);
            let part = &bytes[done..bytes.len().min(done + in_page)];
            let folio = match self.grab_folio(file, at >> PAGE_SHIFT, Gfp::USER) {
                Ok(folio) => folio,
                Err(_) if done > 0 => break,
                Err(fault) => return Err(fault.into()),
            };
            self.write_folio(&folio, at - (folio.index() << PAGE_SHIFT), part);
            self.mark_folio_dirty(&folio);
            done += part.len();
            file.size.fetch_max(offset + done as u64, Ordering::AcqRel);
            self.put(folio.unlock());
        }
        drop(resize);
        Ok(done)
    }

    /// Sets a file's length. What lies beyond a lower one is gone for all: bytes
    /// read as zeros if the file grows again, and accesses by mappings fault.
    ///
    /// # Errors
    /// EINVAL beyond [`SIZE_LIMIT`].
    pub fn truncate_file(&self, file: &FileMapping<'m, P>, size: u64) -> Result<(), Errno> {
        if size > SIZE_LIMIT {
            return Err(Errno::EINVAL);
        }
        let resize = file.resize.write(self.platform());
        if size > file.size() {
            self.zero_tail(file);
        }
        // First the end, so that no fault maps a page beyond it once its folio is unlocked.
        let old = file.size.swap(size, Ordering::AcqRel);
        if size < old {
            self.discard_from(file, size);
        }
        drop(resize);
        Ok(())
    }

    /// Makes `length` bytes of a file from `offset` on read as zeros and gives whole pages
    /// back, the length of the file staying as it is (`FALLOC_FL_PUNCH_HOLE`).
    ///
    /// # Errors
    /// EINVAL for no bytes, or beyond [`SIZE_LIMIT`].
    pub fn punch_hole(
        &self,
        file: &FileMapping<'m, P>,
        offset: u64,
        length: u64,
    ) -> Result<(), Errno> {
        let end = offset.checked_add(length).filter(|&end| length > 0 && end <= SIZE_LIMIT);
        let end = end.ok_or(Errno::EINVAL)?;
        let resize = file.resize.write(self.platform());
        self.discard(file, offset, end);
        drop(resize);
        Ok(())
    }

    /// Zeros what mappings wrote behind the file's end in its last page, before it grows.
    fn zero_tail(&self, file: &FileMapping<'m, P>) {
        let size = file.size();
        let tail = size.next_multiple_of(PAGE_SIZE) - size;
        if tail == 0 {
            return;
        }
        let Some(folio) = self.find_get_folio(file, size >> PAGE_SHIFT) else { return };
        let folio = folio.into_locked(self.platform());
        if folio.is_at(file.token(), size >> PAGE_SHIFT) {
            self.zero_folio(&folio, size - (folio.index() << PAGE_SHIFT), tail);
        }
        self.put(folio.unlock());
    }

    /// Takes all folios out of a file that nobody maps or uses any more.
    pub(super) fn evict_file(&self, file: &FileMapping<'m, P>) {
        self.discard_from(file, 0);
        // Reclaim may be about to leave the array after it took the last folio out.
        file.pages.erase(0);
        debug_assert!(file.pages.is_empty(), "{file:?} has folios left");
    }

    fn discard_from(&self, file: &FileMapping<'m, P>, offset: u64) {
        self.unmap_file_range(file, offset.div_ceil(PAGE_SIZE), u64::MAX);
        self.discard(file, offset, u64::MAX);
    }

    /// Drops the bytes `offset..end`: whole folios from the cache, parts by zeros.
    fn discard(&self, file: &FileMapping<'m, P>, offset: u64, end: u64) {
        let (first, last) = (offset >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT);
        let mut index = first;
        while let Some(found) = file.pages.find(index..=last) {
            let at = found.index.max(index);
            // Otherwise somebody else took it out.
            let Some(folio) = self.find_get_folio(file, at) else { continue };
            let folio = folio.into_locked(self.platform());
            // By the locked folio: what was found may have been split since.
            let next = folio.index() + folio.pages().get();
            let is_there = folio.is_at(file.token(), at);
            let done = is_there && self.discard_folio(&folio, offset, end);
            self.put(folio.unlock());
            if !done {
                continue;
            }
            if next > last {
                break;
            }
            index = next;
        }
    }

    /// Drops what `offset..end` has of a locked folio. `false` if it was split
    /// instead, and its parts are to be looked at.
    fn discard_folio(&self, folio: &LockedFolio<'m, P>, offset: u64, end: u64) -> bool {
        let start = folio.index() << PAGE_SHIFT;
        let length = folio.pages().bytes();
        let from = offset.saturating_sub(start);
        let to = end.saturating_sub(start).min(length);
        if from == 0 && to == length {
            // Here for a hole; for truncation, if a fault that held the lock mapped it.
            let unmapped = self.try_to_unmap(folio, Unmap::Drop);
            debug_assert!(unmapped, "{folio:?} is mapped where its file does not say");
            self.remove_from_page_cache(folio.reference());
        } else {
            if folio.is_large() {
                // Whole pages of it go: by themselves if it can be split. Otherwise they
                // stay in the cache as zeros, and nothing may map them.
                if self.split_folio(folio.reference(), Order::ZERO).is_ok() {
                    return false;
                }
                self.try_to_unmap(folio, Unmap::Drop);
            }
            self.zero_folio(folio, from, to.saturating_sub(from));
            self.mark_folio_dirty(folio);
        }
        true
    }
}
