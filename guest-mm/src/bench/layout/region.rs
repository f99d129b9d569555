//! Frames under one layout: a table, free lists, descriptors.

use core::ptr::NonNull;

use super::{Free, Layout, Use};
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{FrozenFrames, Memory};
use crate::platform::Platform;
use crate::slab::{CacheError, KmemCache, SlabOptions};
use crate::sync::shim::{AtomicU32, Ordering};

/// Orders of free blocks.
const ORDERS: usize = Order::COUNT;
/// Order of the largest.
const MAX_ORDER: u32 = Order::MAX.get();

/// A block in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) at: u32,
    pub(super) order: u8,
    pub(super) what: Use,
    descriptor: Option<NonNull<u8>>,
}

/// `frames` frames that layout `L` describes.
pub(super) struct Region<'m, P: Platform, L: Layout> {
    memory: &'m Memory<P>,
    /// Holds the table.
    backing: FrozenFrames,
    frames: u32,
    heads: [Option<u32>; ORDERS],
    folios: Option<KmemCache>,
    tables: Option<KmemCache>,
    layout: core::marker::PhantomData<L>,
}

/// A cache for descriptors of `bytes`, if the layout has any.
fn cache<P: Platform>(memory: &Memory<P>, bytes: usize) -> Result<Option<KmemCache>, CacheError> {
    // On cache lines if that costs nothing.
    let align = if bytes == 64 { 64 } else { 16 };
    let options = SlabOptions { align, ..SlabOptions::default() };
    (bytes > 0).then(|| KmemCache::new(memory, "bench", bytes, options)).transpose()
}

impl<'m, P: Platform, L: Layout> Region<'m, P, L> {
    /// Memory for the table of `frames` frames, a power of two, and nothing in
    /// it yet: [`Self::init`] comes next. `None` without memory.
    pub(super) fn new(memory: &'m Memory<P>, frames: u32) -> Option<Self> {
        let bytes = frames as usize * size_of::<L::Entry>();
        let pages = bytes.div_ceil(4096).next_power_of_two();
        let order = Order::try_from(pages.trailing_zeros()).ok()?;
        let folios = cache(memory, L::FOLIO_BYTES).ok()?;
        let tables = cache(memory, L::TABLE_BYTES).ok()?;
        let backing = memory.alloc_frozen(order, Gfp::KERNEL | Gfp::ZERO).ok()?;
        let layout = core::marker::PhantomData;
        Some(Self { memory, backing, frames, heads: [None; ORDERS], folios, tables, layout })
    }

    /// Gives the table's memory back.
    ///
    /// # Panics
    /// If a block is in use.
    pub(super) fn destroy(self) {
        assert_eq!(self.free_frames(), self.frames, "blocks in use");
        for cache in [self.folios, self.tables].into_iter().flatten() {
            cache.shrink(self.memory);
        }
        self.memory.free_frozen(self.backing);
    }

    fn table(&mut self) -> &mut [L::Entry] {
        let start = self.memory.platform().frame_ptr(self.backing.head()).cast::<L::Entry>();
        // SAFETY: the block is ours, zeroed when it was taken, which is a valid value
        // of an entry (`Layout::Entry`), large enough, and aligned to a page.
        unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), self.frames as usize) }
    }

    fn shared(&self) -> &[L::Entry] {
        let start = self.memory.platform().frame_ptr(self.backing.head()).cast::<L::Entry>();
        // SAFETY: as in `table`.
        unsafe { core::slice::from_raw_parts(start.as_ptr(), self.frames as usize) }
    }

    /// Writes every entry and puts all frames on the free lists.
    pub(super) fn init(&mut self) {
        let frames = self.frames;
        let table = self.table();
        for at in 0..frames {
            L::init(table, at);
        }
        self.heads = [None; ORDERS];
        for at in (0..frames).step_by(1 << MAX_ORDER) {
            self.link(at, MAX_ORDER);
        }
    }

    /// Bytes of the table and of the descriptors' slabs.
    pub(super) fn bytes(&self) -> u64 {
        let slabs = [&self.folios, &self.tables].into_iter().flatten();
        let slab_bytes: u64 = slabs.map(|cache| cache.stats(self.memory).pages().bytes()).sum();
        size_of::<L::Entry>() as u64 * u64::from(self.frames) + slab_bytes
    }

    /// Takes a block and gives it its use; `None` without memory.
    pub(super) fn begin(&mut self, order: u32, what: Use) -> Option<Block> {
        let cache = match what {
            Use::Folio => self.folios.as_ref(),
            Use::Table => self.tables.as_ref(),
            Use::Slab => None,
        };
        let descriptor = cache.map(|cache| describe(self.memory, cache)).transpose().ok()?;
        // A caller without a block may lose a descriptor: it gives up then.
        let at = self.take(order)?;
        L::begin(self.table(), at, order, what, descriptor);
        Some(Block { at, order: u8::try_from(order).unwrap_or(0), what, descriptor })
    }

    /// Ends the use of a block and frees it.
    pub(super) fn end(&mut self, block: Block) {
        let order = u32::from(block.order);
        L::end(self.table(), block.at, order);
        let cache = match block.what {
            Use::Folio => self.folios.as_ref(),
            Use::Table => self.tables.as_ref(),
            Use::Slab => None,
        };
        if let (Some(cache), Some(descriptor)) = (cache, block.descriptor) {
            // SAFETY: `begin` took it from this cache; the block's entries no longer lead to it.
            let freed = unsafe { cache.free(self.memory, descriptor) };
            debug_assert_eq!(freed, Ok(()));
        }
        self.give(block.at, order);
    }

    /// What a lockless reader does with frame `at`: finds the folio, takes a
    /// reference, drops it. `false` if it is no folio's.
    pub(super) fn look_up(&self, at: u32) -> bool {
        let Some(count) = L::count(self.shared(), at) else { return false };
        count.fetch_add(1, Ordering::Acquire);
        count.fetch_sub(1, Ordering::Release);
        true
    }

    fn free_frames(&self) -> u32 {
        let table = self.shared();
        let mut free = 0;
        for (order, head) in self.heads.iter().enumerate() {
            let mut at = *head;
            while let Some(block) = at.and_then(|at| L::free(table, at)) {
                free += 1 << order;
                at = block.next;
            }
        }
        free
    }

    fn take(&mut self, order: u32) -> Option<u32> {
        let found = (order..=MAX_ORDER).find(|&order| self.heads[order as usize].is_some())?;
        let at = self.heads[found as usize]?;
        self.unlink(at, found);
        L::take(self.table(), at, order);
        for half in (order..found).rev() {
            self.link(at + (1 << half), half);
        }
        Some(at)
    }

    fn give(&mut self, at: u32, order: u32) {
        let (mut at, mut order) = (at, order);
        while order < MAX_ORDER {
            let buddy = at ^ (1 << order);
            let merges = L::free(self.shared(), buddy).is_some_and(|free| free.order == order);
            if !merges {
                break;
            }
            self.unlink(buddy, order);
            L::set_tail(self.table(), at.max(buddy));
            at = at.min(buddy);
            order += 1;
        }
        self.link(at, order);
    }

    fn link(&mut self, at: u32, order: u32) {
        let next = self.heads[order as usize];
        L::set_free(self.table(), at, Free { order, prev: None, next });
        if let Some(first) = next {
            self.relink(first, |free| free.prev = Some(at));
        }
        self.heads[order as usize] = Some(at);
    }

    fn unlink(&mut self, at: u32, order: u32) {
        let Some(Free { prev, next, .. }) = L::free(self.shared(), at) else { return };
        match prev {
            Some(prev) => self.relink(prev, |free| free.next = next),
            None => self.heads[order as usize] = next,
        }
        if let Some(next) = next {
            self.relink(next, |free| free.prev = prev);
        }
    }

    fn relink(&mut self, at: u32, change: impl FnOnce(&mut Free)) {
        if let Some(mut free) = L::free(self.shared(), at) {
            change(&mut free);
            L::set_free(self.table(), at, free);
        }
    }
}

/// A descriptor, written as a new folio's is: a count and fields behind it.
fn describe<P: Platform>(
    memory: &Memory<P>,
    cache: &KmemCache,
) -> Result<NonNull<u8>, crate::memory::AllocError> {
    let descriptor = cache.alloc(memory, Gfp::KERNEL)?;
    // SAFETY: ours, and of that size.
    unsafe { descriptor.write_bytes(0, cache.object_bytes()) };
    // Words keep it as an address.
    let _address = descriptor.as_ptr().expose_provenance();
    // SAFETY: as above; aligned to 16 bytes.
    unsafe { descriptor.cast::<AtomicU32>().write(AtomicU32::new(1)) };
    Ok(descriptor)
}
