//! [`PtDesc`]: what a page table knows about itself, and the life of tables.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

use abi::Pfn;

use crate::buddy::Gfp;
use crate::memdesc::{Descriptor, DescriptorKind, Memdesc, Order, Word};
use crate::memory::{AllocError, FrozenFrames};
use crate::mm::Base;
use crate::pgtable::UnknownLeaf;
use crate::platform::Platform;
use crate::rcu::{DeferQueue, Deferrable, RcuHead};
use crate::sync::{LockClass, SpinLock};

/// Entries of a table.
pub const ENTRIES: usize = 512;
/// Level of the root.
pub const ROOT_LEVEL: u32 = 3;
/// Entries of the root that belong to the process: the lower half.
pub const USER_ROOT_ENTRIES: usize = 256;
/// Entries of a full table.
const FULL: u16 = 512;
/// In place of a count: the table is being freed.
const CLAIMED: u16 = u16::MAX;
/// Deferred tables that one call frees at most.
const FREED_AT_ONCE: usize = 16;

/// A page table's descriptor.
///
/// | field | bytes | what |
/// |---|---|---|
/// | `lock` | 2 | guards the entries: PTE lock, PMD lock; unused above |
/// | `level` | 1 | 0 PTE, 1 PMD, 2 PDPT, 3 root |
/// | `stray` | 1 | unlinked: whoever waited for the lock has to walk again |
/// | `live` | 2 | entries that are not empty (of the root: in the lower half) |
/// | `frame` | 8 | the table |
/// | `rcu` | 16 | frees it after a grace period |
#[derive(Debug)]
#[repr(C, align(16))]
pub struct PtDesc {
    lock: SpinLock<()>,
    level: AtomicU8,
    stray: AtomicBool,
    live: AtomicU16,
    frame: AtomicU64,
    rcu: RcuHead,
}

const _: () = assert!(size_of::<PtDesc>() == DescriptorKind::PtDesc.descriptor_bytes());
const _: () = assert!(DescriptorKind::PtDesc.is_type_safe());

// SAFETY: the field is the descriptor's own and used by nothing else.
unsafe impl Deferrable for PtDesc {
    fn rcu_head(&self) -> &RcuHead {
        &self.rcu
    }
}

const fn lock_class(level: u32) -> LockClass {
    if level == 0 { LockClass::Pte } else { LockClass::Pmd }
}

impl PtDesc {
    fn new(level: u32, frame: Pfn) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "four levels")]
        let number = level as u8;
        Self {
            lock: SpinLock::new(lock_class(level), ()),
            level: AtomicU8::new(number),
            stray: AtomicBool::new(false),
            live: AtomicU16::new(0),
            frame: AtomicU64::new(frame.number()),
            rcu: RcuHead::new(),
        }
    }

    pub(in crate::pgtable) const fn lock(&self) -> &SpinLock<()> {
        &self.lock
    }

    /// 0 for a PTE table, 3 for the root.
    pub fn level(&self) -> u32 {
        u32::from(self.level.load(Ordering::Relaxed))
    }

    /// Whether the table was unlinked.
    pub fn is_stray(&self) -> bool {
        self.stray.load(Ordering::Relaxed)
    }

    /// Unlinked, under its lock and its parent's.
    pub(in crate::pgtable) fn mark_stray(&self) {
        self.stray.store(true, Ordering::Relaxed);
    }

    /// Linked again, under the same locks: a collapse that backed out.
    #[expect(dead_code, reason = "collapse reinstalls the table it had taken out")]
    pub(in crate::pgtable) fn clear_stray(&self) {
        self.stray.store(false, Ordering::Relaxed);
    }

    /// Entries that are not empty.
    pub fn live(&self) -> u16 {
        self.live.load(Ordering::Relaxed)
    }

    pub(in crate::pgtable) fn add_live(&self) {
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// As [`Self::add_live`] for a table without a lock: `false` if somebody has
    /// claimed the empty table to free it.
    pub(in crate::pgtable) fn try_add_live(&self) -> bool {
        let add = |live| if live == CLAIMED { None } else { Some(live + 1) };
        // AcqRel pairs with `claim_empty`: one of the two comes first.
        self.live.fetch_update(Ordering::AcqRel, Ordering::Relaxed, add).is_ok()
    }

    /// Claims an empty table without a lock, for ever. Of two, one succeeds.
    pub(in crate::pgtable) fn claim_empty(&self) -> bool {
        self.live.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// All entries were filled before the table was linked.
    pub(in crate::pgtable) fn fill_live(&self) {
        self.live.store(FULL, Ordering::Relaxed);
    }

    pub(in crate::pgtable) fn sub_live(&self) {
        let before = self.live.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "more entries cleared than set");
    }

    /// The table.
    pub fn frame(&self) -> Pfn {
        Pfn::new(self.frame.load(Ordering::Relaxed)).unwrap_or(Pfn::ZERO)
    }
}

/// What a machine knows of its page tables beside the tables themselves.
#[derive(Debug)]
pub struct TableState {
    /// Unlinked tables whose readers may not have left.
    deferred: SpinLock<DeferQueue<PtDesc>>,
    allocated: AtomicU64,
    freed: AtomicU64,
    unknown: AtomicU64,
}

/// Counts of [`TableState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableCounters {
    /// Tables made since start.
    pub allocated: u64,
    /// Tables given back.
    pub freed: u64,
    /// Malformed entries that somebody met. Should stay 0.
    pub unknown: u64,
}

impl TableState {
    /// No table.
    pub const fn new() -> Self {
        Self {
            deferred: SpinLock::new(LockClass::Rcu, DeferQueue::new()),
            allocated: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }
}

impl Default for TableState {
    fn default() -> Self {
        Self::new()
    }
}

/// A table that nobody else can find yet.
#[must_use = "link it or discard it"]
pub(in crate::pgtable) struct NewTable {
    desc: NonNull<PtDesc>,
    frame: Pfn,
}

impl NewTable {
    pub(in crate::pgtable) const fn frame(&self) -> Pfn {
        self.frame
    }

    /// Its descriptor, for who has linked it.
    pub(in crate::pgtable) const fn into_desc(self) -> NonNull<PtDesc> {
        self.desc
    }
}

impl fmt::Debug for NewTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewTable({:?})", self.frame)
    }
}

impl<P: Platform> Base<P> {
    /// Counts of page tables.
    pub fn table_counters(&self) -> TableCounters {
        TableCounters {
            allocated: self.tables.allocated.load(Ordering::Relaxed),
            freed: self.tables.freed.load(Ordering::Relaxed),
            unknown: self.tables.unknown.load(Ordering::Relaxed),
        }
    }

    /// Counts a malformed entry and says it on.
    pub fn note_unknown(&self, unknown: UnknownLeaf) -> UnknownLeaf {
        self.tables.unknown.fetch_add(1, Ordering::Relaxed);
        unknown
    }

    /// An empty table. Takes no lock that ranks above a slab's.
    pub(in crate::pgtable) fn new_table(&self, level: u32) -> Result<NewTable, AllocError> {
        self.reap_tables(FREED_AT_ONCE);
        let frames = self.memory.alloc_frozen(Order::ZERO, Gfp::KERNEL | Gfp::ZERO)?;
        let desc = match self.caches.ptdesc.alloc(&self.memory, Gfp::KERNEL) {
            Ok(object) => object.cast::<PtDesc>(),
            Err(error) => {
                self.memory.free_frozen(frames);
                return Err(error);
            }
        };
        // SAFETY: 32 bytes aligned to 16, ours since `alloc`. A plain write is right
        // though the cache is type-safe: whoever looks at descriptors without a lock
        // does so in a read section, and a descriptor is freed after those.
        unsafe { desc.write(PtDesc::new(level, frames.head())) };
        let described = table_word(desc).map(|word| self.memory.describe(&frames, word));
        if described != Some(Ok(())) {
            // SAFETY: nobody saw the object.
            unsafe { self.free_desc(desc) };
            self.memory.free_frozen(frames);
            return Err(AllocError::OutOfMemory(Order::ZERO));
        }
        self.tables.allocated.fetch_add(1, Ordering::Relaxed);
        let (frame, _) = frames.into_raw();
        Ok(NewTable { desc, frame })
    }

    /// Gives a table back that never was linked.
    pub(in crate::pgtable) fn discard_table(&self, table: NewTable) {
        // SAFETY: nobody could find the table.
        unsafe { self.free_table(table.desc) };
    }

    /// Gives an unlinked table back after a grace period. The caller has flushed
    /// the TLBs: the MMU's walks are over when that is.
    ///
    /// # Safety
    /// No entry leads to the table and no root is loaded that did; nobody frees
    /// it a second time.
    pub(in crate::pgtable) unsafe fn defer_table(&self, desc: NonNull<PtDesc>) {
        let mut deferred = self.tables.deferred.lock(self.platform());
        // SAFETY: a descriptor in use stays valid until `free_table`; it enters the
        // queue once by the caller's promise.
        unsafe { deferred.defer(desc, self.rcu.stamp()) };
    }

    /// Frees up to `most` unlinked tables that no reader can see any more.
    /// Returns how many; never waits.
    pub fn reap_tables(&self, most: usize) -> usize {
        for freed in 0..most {
            let due = self.tables.deferred.lock(self.platform()).pop_over(&self.rcu);
            let Some(desc) = due else { return freed };
            // SAFETY: unlinked when it was deferred, and its readers are gone.
            unsafe { self.free_table(desc) };
        }
        most
    }

    /// Tables that wait for their readers.
    pub fn deferred_tables(&self) -> usize {
        self.tables.deferred.lock(self.platform()).len()
    }

    /// # Safety
    /// Nobody uses the table, and nobody frees it a second time.
    unsafe fn free_table(&self, desc: NonNull<PtDesc>) {
        // SAFETY: in use until `free_desc` below.
        let frame = unsafe { desc.as_ref() }.frame();
        // SAFETY: the table's frame lost its handle in `new_table`, and its user is gone.
        let frames = unsafe { FrozenFrames::from_raw(frame, Order::ZERO) };
        let undone = table_word(desc).map(|word| self.memory.undescribe(&frames, word));
        debug_assert!(matches!(undone, Some(Ok(()))), "table word: {undone:?}");
        self.memory.free_frozen(frames);
        // SAFETY: the frame's word leads here no longer, and readers are gone.
        unsafe { self.free_desc(desc) };
        self.tables.freed.fetch_add(1, Ordering::Relaxed);
    }

    /// # Safety
    /// Nobody uses the object.
    unsafe fn free_desc(&self, desc: NonNull<PtDesc>) {
        // SAFETY: the caller's promise.
        let freed = unsafe { self.caches.ptdesc.free(&self.memory, desc.cast()) };
        debug_assert!(freed.is_ok(), "descriptor: {freed:?}");
    }

    /// The descriptor of the table of `level` in frame `frame`; `None` if the
    /// frame is no such table: then an entry that led here is corrupt.
    ///
    /// The caller has a read section open or holds a lock that keeps the table.
    pub(in crate::pgtable) fn table_desc(&self, frame: Pfn, level: u32) -> Option<&PtDesc> {
        let word = self.memory.words().load(frame).ok()?;
        let Ok(Memdesc::Descriptor(descriptor)) = word.decode() else { return None };
        if descriptor.kind != DescriptorKind::PtDesc {
            return None;
        }
        let desc = self.object_at::<PtDesc>(descriptor.address())?;
        // SAFETY: a frame whose word has the tag points to a descriptor that was
        // written before the word (Release in `WordCell::transition`) and is freed
        // after a grace period, which the caller's read section or lock holds up.
        let desc = unsafe { desc.as_ref() };
        (desc.frame() == frame && desc.level() == level).then_some(desc)
    }

    /// The object of the direct map at `address`, in RAM or nowhere.
    fn object_at<T>(&self, address: u64) -> Option<NonNull<T>> {
        let address = usize::try_from(address).ok()?;
        let platform = self.platform();
        let frame = platform.frame_ptr(platform.frame_of(address)?);
        let offset = address.checked_sub(frame.addr().get())?;
        // SAFETY: `frame_of` says that the address lies in this frame.
        Some(unsafe { frame.add(offset) }.cast())
    }
}

/// The word of a table whose descriptor is at `desc`.
fn table_word(desc: NonNull<PtDesc>) -> Option<Word> {
    let address = u64::try_from(desc.addr().get()).ok()?;
    Some(Memdesc::Descriptor(Descriptor::new(DescriptorKind::PtDesc, address)?).encode())
}
