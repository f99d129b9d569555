//! The descriptor: 64 bytes per folio, whatever its order.

use abi::{PageCount, Pfn, PfnRange};
use bitflags::bitflags;

use super::FolioKind;
use crate::memdesc::Order;
#[cfg(not(loom))]
use crate::slab::TypeSafe;
use crate::sync::shim::{AtomicU32, AtomicU64, Ordering, fence};

bitflags! {
    /// State bits of a folio, in the lower 24 bits of its flags word.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FolioFlags: u32 {
        /// The folio lock: one owner, who may wait while holding it.
        const LOCKED = 1 << 0;
        /// Contents are valid.
        const UPTODATE = 1 << 1;
        /// Differs from what the file has.
        const DIRTY = 1 << 2;
        /// Being written back.
        const WRITEBACK = 1 << 3;
        /// On an LRU list.
        const LRU = 1 << 4;
        /// That list is the active one.
        const ACTIVE = 1 << 5;
        /// Used since reclaim last looked.
        const REFERENCED = 1 << 6;
        /// May be swapped: anonymous, and not to be dropped (MADV_FREE clears it).
        const SWAPBACKED = 1 << 7;
        /// In the swap cache; `private` is the slot.
        const SWAPCACHE = 1 << 8;
        /// A page of it is poisoned.
        const HWPOISON = 1 << 10;
        /// Waits on the deferred split queue.
        const DEFERRED_SPLIT = 1 << 11;
        /// Taken off the LRU by somebody who owns its place: reclaim, migration.
        const ISOLATED = 1 << 12;
        /// Anonymous: what the tag of its words says too.
        const ANON = 1 << 13;
        /// Device memory: what the tag of its words says too.
        const DEVICE = 1 << 14;
        /// Somebody sleeps until it is unlocked, or is about to.
        const WAITERS = 1 << 15;
    }
}

/// Where the order stands in the flags word.
pub(super) const ORDER_SHIFT: u32 = 24;

/// A folio's descriptor.
///
/// | field | bytes | what |
/// |---|---|---|
/// | `refcount` | 4 | mappings + page cache (one a page) + swap cache (one a page) + pins + explicit references; 0: frozen or free |
/// | `mapcount` | 4 | leaves that map any part of it: PTEs, and PMDs as one |
/// | `pincount` | 4 | long-lived users by GUP, exactly; each holds a reference too |
/// | `flags` | 4 | [`FolioFlags`]; order in bits 24–29 |
/// | `mapping` | 8 | anonymous: its `AnonVma`; file: its `FileMapping`; 0: neither (yet, or any more) |
/// | `index` | 8 | page offset in the mapping of its first page |
/// | `pfn` | 8 | first frame |
/// | `lru` | 16 | neighbours on an LRU list, or its owner's while isolated |
/// | `private` | 8 | swap slot while in the swap cache; links while on the deferred split queue |
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Folio {
    pub(crate) refcount: AtomicU32,
    pub(crate) mapcount: AtomicU32,
    pub(crate) pincount: AtomicU32,
    pub(crate) flags: AtomicU32,
    pub(crate) mapping: AtomicU64,
    pub(crate) index: AtomicU64,
    pub(crate) pfn: AtomicU64,
    pub(crate) lru: [AtomicU64; 2],
    pub(crate) private: AtomicU64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Folio>() == 64, "one cache line");

// SAFETY: all fields are atomics. Readers take a reference by `FolioRef::try_get`,
// which fails on a count of 0, and that is the count of a free descriptor; owners
// store fields one by one and the count last.
#[cfg(not(loom))]
unsafe impl TypeSafe for Folio {
    fn new_free() -> Self {
        Self::unused()
    }
}

impl Folio {
    /// A descriptor that describes nothing.
    pub fn unused() -> Self {
        Self {
            refcount: AtomicU32::new(0),
            mapcount: AtomicU32::new(0),
            pincount: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            mapping: AtomicU64::new(0),
            index: AtomicU64::new(0),
            pfn: AtomicU64::new(0),
            lru: [AtomicU64::new(0), AtomicU64::new(0)],
            private: AtomicU64::new(0),
        }
    }

    /// What it holds.
    pub fn kind(&self) -> FolioKind {
        let flags = self.flags();
        if flags.contains(FolioFlags::ANON) {
            FolioKind::Anon
        } else if flags.contains(FolioFlags::DEVICE) {
            FolioKind::Device
        } else {
            FolioKind::File
        }
    }

    /// Whether it is anonymous.
    pub fn is_anon(&self) -> bool {
        self.has(FolioFlags::ANON)
    }

    /// Whether it is larger than a page.
    pub fn is_large(&self) -> bool {
        self.order() != Order::ZERO
    }

    /// Whether anybody has it pinned. A caller who has just taken a leaf away
    /// sees the pin of everybody who found that leaf and did not see it gone:
    /// the fence pairs with the one in [`FolioRef::pin`](super::FolioRef::pin).
    pub fn is_pinned(&self) -> bool {
        #[cfg(loom)]
        if super::mutant::Mutant::NoBarrierBeforePins.is_active() {
            return self.pincount() != 0;
        }
        fence(Ordering::SeqCst);
        self.pincount() != 0
    }

    /// Whether it has a mapping: a file folio is in that file's cache then.
    pub fn has_mapping(&self) -> bool {
        self.mapping.load(Ordering::Acquire) != 0
    }

    /// Whether any leaf maps it.
    pub fn is_mapped(&self) -> bool {
        self.mapcount() != 0
    }

    /// Swap slot, or links of a queue.
    pub fn private(&self) -> u64 {
        self.private.load(Ordering::Relaxed)
    }

    /// References: 0 while frozen or free.
    pub fn refcount(&self) -> u32 {
        self.refcount.load(Ordering::Relaxed)
    }

    /// Leaves that map it.
    pub fn mapcount(&self) -> u32 {
        self.mapcount.load(Ordering::Relaxed)
    }

    /// Pins.
    pub fn pincount(&self) -> u32 {
        self.pincount.load(Ordering::Acquire)
    }

    /// Its flags.
    pub fn flags(&self) -> FolioFlags {
        FolioFlags::from_bits_truncate(self.flags.load(Ordering::Acquire))
    }

    /// Whether all of `flags` are set.
    pub fn has(&self, flags: FolioFlags) -> bool {
        self.flags().contains(flags)
    }

    /// Sets `flags`; returns what was set before.
    pub fn set_flags(&self, flags: FolioFlags) -> FolioFlags {
        FolioFlags::from_bits_truncate(self.flags.fetch_or(flags.bits(), Ordering::AcqRel))
    }

    /// Clears `flags`; returns what was set before.
    pub fn clear_flags(&self, flags: FolioFlags) -> FolioFlags {
        FolioFlags::from_bits_truncate(self.flags.fetch_and(!flags.bits(), Ordering::AcqRel))
    }

    /// log2 of its pages.
    pub fn order(&self) -> Order {
        let bits = self.flags.load(Ordering::Relaxed) >> ORDER_SHIFT;
        Order::try_from(bits).unwrap_or(Order::MAX)
    }

    /// Its pages.
    pub fn pages(&self) -> PageCount {
        self.order().pages()
    }

    /// Its first frame.
    pub fn pfn(&self) -> Pfn {
        Pfn::new(self.pfn.load(Ordering::Relaxed)).unwrap_or(Pfn::ZERO)
    }

    /// Its frames.
    pub fn range(&self) -> PfnRange {
        PfnRange::from_start(self.pfn(), self.pages())
            .unwrap_or_else(|| unreachable!("a block of RAM ends below 2^64"))
    }

    /// Page offset of its first page in its mapping.
    pub fn index(&self) -> u64 {
        self.index.load(Ordering::Relaxed)
    }
}
