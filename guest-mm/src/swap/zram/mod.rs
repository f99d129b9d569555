//! A swap device in compressed RAM (Linux's zram).
//!
//! A page of one value takes no memory but its slot's word; what LZ4 makes
//! smaller is an object of a zsmalloc pool; what it does not is kept as it is.
//! So the device's memory is in pages that migration can move. Each CPU has a
//! compressor, taken when the device is made, so that writing allocates
//! nothing but the object.

mod slot;
mod stats;
mod stream;

use core::fmt;

pub use stats::ZramStats;

use super::area::{alloc_words, words_of};
use super::device::{SLOT_BYTES, SlotBytes, SwapDevice, SwapIoError};
use super::error::SwapError;
use crate::buddy::Gfp;
use crate::memory::FrozenFrames;
use crate::mm::{Base, Mm};
use crate::platform::{MAX_CPUS, Platform};
use crate::sync::shim::{AtomicU64, Ordering};
use crate::sync::{LockClass, SpinLock};
use crate::zsmalloc::{ALL_CLASSES, CLASSES, ZsHandle, ZsPool};
use slot::Stored;
use stats::Counters;
use stream::Stream;

/// The longest result that is worth keeping: longer ones would take a page of
/// their own too, and time to decompress.
const WORTH_KEEPING: usize = ALL_CLASSES[CLASSES - 2].capacity();

/// A device of compressed pages.
pub(super) struct Zram<'m, P: Platform> {
    base: &'m Base<P>,
    pool: ZsPool<'m, P>,
    slots: &'m [AtomicU64],
    slot_frames: FrozenFrames,
    streams: [Option<SpinLock<Stream>>; MAX_CPUS],
    counters: Counters,
}

impl<'m, P: Platform> Zram<'m, P> {
    /// A device of `slots` slots, none of which takes memory yet.
    ///
    /// # Errors
    /// [`SwapError::BadSize`], [`SwapError::NoMemory`], [`SwapError::Pool`], with nothing kept.
    pub(super) fn new(mm: &Mm<'m, P>, slots: u32) -> Result<Self, SwapError> {
        let (base, memory) = (mm.base(), mm.memory());
        let slot_frames = alloc_words(memory, slots)?;
        let pool = match mm.zs_create_pool() {
            Ok(pool) => pool,
            Err(error) => {
                memory.free_frozen(slot_frames);
                return Err(error.into());
            }
        };
        let slots = words_of(memory, &slot_frames, slots);
        let streams = [const { None }; MAX_CPUS];
        let counters = Counters::default();
        let mut device = Self { base, pool, slots, slot_frames, streams, counters };
        for at in 0..MAX_CPUS {
            match Stream::new(memory) {
                Ok(stream) => {
                    device.streams[at] = Some(SpinLock::new(LockClass::Zram, stream));
                }
                Err(error) => {
                    device.free(mm);
                    return Err(error.into());
                }
            }
        }
        Ok(device)
    }

    /// Gives its memory back, with what is in it. Nobody uses it any more.
    pub(super) fn free(self, mm: &Mm<'m, P>) {
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        (0..slots).for_each(|slot| self.discard(slot));
        let memory = mm.memory();
        for stream in self.streams.into_iter().flatten() {
            stream.into_inner().free(memory);
        }
        let destroyed = mm.zs_destroy_pool(self.pool);
        debug_assert!(destroyed.is_ok(), "every slot was discarded: {destroyed:?}");
        memory.free_frozen(self.slot_frames);
    }

    /// What it has and has done.
    pub(super) fn stats(&self) -> ZramStats {
        let pool = self.pool.stats();
        let slots = self.slot_frames.pages().get();
        self.counters.snapshot(SLOT_BYTES as u64, pool.pages + pool.own_pages + slots)
    }

    /// Where its objects are.
    #[cfg(test)]
    pub(super) const fn pool(&self) -> &ZsPool<'m, P> {
        &self.pool
    }

    fn word(&self, slot: u32) -> Result<&AtomicU64, SwapIoError> {
        let at = usize::try_from(slot).ok();
        at.and_then(|at| self.slots.get(at)).ok_or(SwapIoError::NoSlot(slot))
    }

    /// Runs `act` with a compressor: this CPU's, unless it is another's by the time.
    fn with_stream<R>(&self, act: impl FnOnce(&mut Stream) -> R) -> Option<R> {
        let platform = self.base.platform();
        let stream = self.streams.get(platform.cpu())?.as_ref()?;
        Some(act(&mut stream.lock(platform)))
    }

    /// Makes an object of a page; `None` if there is no memory.
    fn keep(&self, page: &SlotBytes) -> Option<(ZsHandle, usize)> {
        // It frees a page for each that it writes.
        let store = |bytes: &[u8]| Some((self.pool.store(bytes, Gfp::MEMALLOC).ok()?, bytes.len()));
        let compressed = self.with_stream(|stream| {
            let bytes = stream.compress(page, WORTH_KEEPING)?;
            Some(store(bytes))
        });
        match compressed.flatten() {
            Some(kept) => kept,
            None => store(page),
        }
    }

    /// Reads an object into a page. Whether it is one.
    fn restore(&self, handle: ZsHandle, len: usize, page: &mut SlotBytes) -> bool {
        if len == SLOT_BYTES {
            return self.pool.read(handle, page).is_ok();
        }
        let read = |bytes: &mut [u8]| self.pool.read(handle, bytes).is_ok();
        self.with_stream(|stream| stream.decompress(len, page, read)).unwrap_or(false)
    }

    /// Counts a page that is kept now.
    fn note(&self, stored: Stored) {
        let add = |counter: &AtomicU64, count| counter.fetch_add(count, Ordering::Relaxed);
        add(&self.counters.pages, 1);
        match stored {
            Stored::Empty => {}
            Stored::Same(_) => {
                add(&self.counters.same, 1);
            }
            Stored::Object { len, .. } => {
                add(&self.counters.whole, u64::from(len == SLOT_BYTES));
                add(&self.counters.bytes, len as u64);
            }
        }
    }

    /// Takes what a slot holds out of it.
    fn drop_stored(&self, word: &AtomicU64) {
        // One call at a time for one slot, ordered by the caller.
        let stored = Stored::decode(word.swap(0, Ordering::Relaxed));
        let sub = |counter: &AtomicU64, count| counter.fetch_sub(count, Ordering::Relaxed);
        match stored {
            Stored::Empty => return,
            Stored::Same(_) => {
                sub(&self.counters.same, 1);
            }
            Stored::Object { handle, len } => {
                let freed = self.pool.free(handle);
                debug_assert_eq!(freed, Ok(()), "a slot's own object");
                sub(&self.counters.whole, u64::from(len == SLOT_BYTES));
                sub(&self.counters.bytes, len as u64);
            }
        }
        sub(&self.counters.pages, 1);
    }
}

impl<P: Platform> SwapDevice for Zram<'_, P> {
    fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    fn read(&self, slot: u32, page: &mut SlotBytes) -> Result<(), SwapIoError> {
        let is_page = match Stored::decode(self.word(slot)?.load(Ordering::Relaxed)) {
            Stored::Empty => Err(SwapIoError::NotWritten(slot)),
            Stored::Same(value) => {
                page.chunks_exact_mut(4)
                    .for_each(|part| part.copy_from_slice(&value.to_ne_bytes()));
                Ok(true)
            }
            Stored::Object { handle, len } => Ok(self.restore(handle, len, page)),
        };
        let read = is_page.and_then(|is| if is { Ok(()) } else { Err(SwapIoError::Corrupt(slot)) });
        read.inspect_err(|_| {
            self.counters.failed_reads.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn write(&self, slot: u32, page: &SlotBytes) -> Result<(), SwapIoError> {
        let word = self.word(slot)?;
        // What was there is out of date, and its memory is needed.
        self.drop_stored(word);
        let stored = match same_value(page) {
            Some(value) => Some(Stored::Same(value)),
            None => self.keep(page).map(|(handle, len)| Stored::Object { handle, len }),
        };
        let Some(stored) = stored else {
            self.counters.failed_writes.fetch_add(1, Ordering::Relaxed);
            return Err(SwapIoError::NoMemory(slot));
        };
        self.note(stored);
        word.store(stored.encode(), Ordering::Relaxed);
        Ok(())
    }

    fn discard(&self, slot: u32) {
        if let Ok(word) = self.word(slot) {
            self.drop_stored(word);
        }
    }
}

/// The value that a page consists of, if it is one over and over.
fn same_value(page: &SlotBytes) -> Option<u32> {
    let (first, _) = page.split_first_chunk::<4>()?;
    // Each byte is that of four before: the page is periodic.
    (page[..SLOT_BYTES - 4] == page[4..]).then(|| u32::from_ne_bytes(*first))
}

impl<P: Platform> fmt::Debug for Zram<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zram").field("counters", &self.counters).finish_non_exhaustive()
    }
}
