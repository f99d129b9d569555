//! The bytes of folios.
//!
//! Processes and devices may read and write them at any time, so they are
//! reached by atomics of eight bytes, or one where an end is not aligned, in
//! relaxed order: what a racing reader sees is old or new, byte by byte.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use abi::PAGE_SIZE;

use super::Folio;
use crate::mm::Mm;
use crate::platform::Platform;

/// Bytes of a word.
const WORD: usize = 8;

impl<'m, P: Platform> Mm<'m, P> {
    /// Where the folio's first byte is in the direct map.
    pub fn folio_ptr(&self, folio: &Folio) -> NonNull<u8> {
        self.platform().frame_ptr(folio.pfn())
    }

    /// Copies bytes out of a folio, from `offset` on. Stops at its end; returns how many.
    pub fn read_folio(&self, folio: &Folio, offset: u64, out: &mut [u8]) -> usize {
        let Some((start, length)) = self.part(folio, offset, out.len()) else { return 0 };
        let mut at = 0;
        while at < length {
            // SAFETY: `part` keeps `at` inside the folio.
            let from = unsafe { start.add(at) };
            if let Some(word) = whole_word(from, length - at) {
                out[at..at + WORD].copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
                at += WORD;
            } else {
                out[at] = byte(from).load(Ordering::Relaxed);
                at += 1;
            }
        }
        length
    }

    /// Copies bytes into a folio, from `offset` on. Stops at its end; returns how many.
    pub fn write_folio(&self, folio: &Folio, offset: u64, bytes: &[u8]) -> usize {
        let Some((start, length)) = self.part(folio, offset, bytes.len()) else { return 0 };
        let mut at = 0;
        while at < length {
            // SAFETY: `part` keeps `at` inside the folio.
            let to = unsafe { start.add(at) };
            let chunk = bytes.get(at..at + WORD).and_then(|chunk| chunk.try_into().ok());
            if let (Some(word), Some(chunk)) = (whole_word(to, length - at), chunk) {
                word.store(u64::from_ne_bytes(chunk), Ordering::Relaxed);
                at += WORD;
            } else {
                byte(to).store(bytes[at], Ordering::Relaxed);
                at += 1;
            }
        }
        length
    }

    /// Fills `length` bytes of a folio with zeros, from `offset` on. Stops at its end.
    pub fn zero_folio(&self, folio: &Folio, offset: u64, length: u64) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some((start, length)) = self.part(folio, offset, length) else { return };
        let mut at = 0;
        while at < length {
            // SAFETY: `part` keeps `at` inside the folio.
            let to = unsafe { start.add(at) };
            if let Some(word) = whole_word(to, length - at) {
                word.store(0, Ordering::Relaxed);
                at += WORD;
            } else {
                byte(to).store(0, Ordering::Relaxed);
                at += 1;
            }
        }
    }

    /// Copies page `from_page` of `from` over page `to_page` of `to`.
    pub fn copy_folio_page(&self, to: (&Folio, u64), from: (&Folio, u64)) {
        let bytes = usize::try_from(PAGE_SIZE).unwrap_or(0);
        let to = self.part(to.0, to.1 << abi::PAGE_SHIFT, bytes);
        let from = self.part(from.0, from.1 << abi::PAGE_SHIFT, bytes);
        let (Some((to, _)), Some((from, _))) = (to, from) else { return };
        for at in (0..bytes).step_by(WORD) {
            // SAFETY: the part is a page long.
            let to = unsafe { to.add(at) };
            // SAFETY: as above.
            let from = unsafe { from.add(at) };
            if let (Some(to), Some(from)) = (whole_word(to, WORD), whole_word(from, WORD)) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    /// Where `offset` is, and how many of `length` bytes lie in the folio from there.
    fn part(&self, folio: &Folio, offset: u64, length: usize) -> Option<(NonNull<u8>, usize)> {
        let left = folio.pages().bytes().checked_sub(offset)?;
        let length = length.min(usize::try_from(left).ok()?);
        // SAFETY: at most the folio's end, and the direct map is contiguous over it
        // (`Platform::frame_ptr`).
        let start = unsafe { self.folio_ptr(folio).add(usize::try_from(offset).ok()?) };
        Some((start, length))
    }
}

/// The word at `at` if it is aligned and `left` bytes reach over it.
fn whole_word<'a>(at: NonNull<u8>, left: usize) -> Option<&'a AtomicU64> {
    if left < WORD || !at.addr().get().is_multiple_of(WORD) {
        return None;
    }
    // SAFETY: aligned, and inside a folio that the caller of the public function
    // borrows; frames are RAM that is accessed by atomics and by the MMU only.
    Some(unsafe { at.cast::<AtomicU64>().as_ref() })
}

fn byte<'a>(at: NonNull<u8>) -> &'a AtomicU8 {
    // SAFETY: as in `whole_word`.
    unsafe { at.cast::<AtomicU8>().as_ref() }
}
