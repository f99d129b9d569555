//! What a census can find wrong.

use core::fmt;

use abi::Pfn;

use crate::memdesc::{DriverId, Memdesc, MigrateType, Order, Word};

/// One thing that does not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discrepancy {
    /// A word that nothing encodes.
    UnknownWord(Pfn, Word),
    /// A frame that was never initialised.
    Uninitialised(Pfn),
    /// A tail outside every block.
    OrphanTail(Pfn),
    /// A frame inside the block at `head` that is no tail.
    BrokenTail {
        /// The block.
        head: Pfn,
        /// The frame.
        at: Pfn,
    },
    /// A block that is not aligned to its order, or leaves RAM.
    Misplaced(Pfn, Order),
    /// A free block whose type is not its pageblock's.
    WrongType(Pfn, MigrateType),
    /// Two free buddies that should be one block.
    Unmerged(Pfn, Pfn),
    /// A list whose links do not fit its blocks' words.
    BrokenList(Order, MigrateType, Option<Pfn>),
    /// A list is not as long as the words say.
    ListLength {
        /// Which list.
        order: Order,
        /// Which list.
        migratetype: MigrateType,
        /// Its length.
        listed: u64,
        /// Blocks by their words.
        counted: u64,
    },
    /// A zone's count of free pages is not what the words say.
    FreePages(MigrateType, u64, u64),
    /// A per-CPU list whose links do not fit its blocks' words.
    BrokenCpuList(Order, MigrateType, Option<Pfn>),
    /// Per-CPU lists hold another number of pages than the words say.
    PcpPages {
        /// Pages on the lists.
        listed: u64,
        /// Pages by their words.
        counted: u64,
    },
    /// All blocks together are not RAM.
    TotalPages {
        /// Frames in the table.
        ram: u64,
        /// Pages counted.
        counted: u64,
    },
    /// A frame of an added block whose bit is not what its word says.
    OfflineBit {
        /// The frame.
        pfn: Pfn,
        /// Whether its word says that it waits to come to life.
        is_offline: bool,
    },
    /// A slab's descriptor is not where its word says.
    BadSlab(Pfn),
    /// A cache counts other slabs or objects than the words show.
    CacheCount {
        /// The cache.
        cache: u32,
        /// Objects by the cache's count.
        cached: u64,
        /// Objects by the slabs' bit maps.
        counted: u64,
    },
    /// A block in a store that is not an Offline block of the driver.
    StoreEntry(Pfn, Order, Option<Memdesc>),
    /// A store holds another number of pages than the words say.
    StorePages {
        /// The driver.
        driver: DriverId,
        /// Pages in its store.
        stored: u64,
        /// Pages by their words.
        counted: u64,
    },
    /// Offline pages are not `actual` and those in flight.
    Actual {
        /// The driver.
        driver: DriverId,
        /// Pages that it has told the host, plus those in flight.
        claimed: u64,
        /// Pages by their words.
        counted: u64,
    },
}

impl fmt::Display for Discrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Discrepancies that a census keeps; it counts the rest.
pub const MAX_DISCREPANCIES: usize = 16;

/// The first few discrepancies, and how many there were.
#[derive(Debug, Clone)]
pub struct Discrepancies {
    kept: [Option<Discrepancy>; MAX_DISCREPANCIES],
    total: u64,
}

impl Discrepancies {
    pub(super) const fn new() -> Self {
        Self { kept: [None; MAX_DISCREPANCIES], total: 0 }
    }

    /// How many were found.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The first [`MAX_DISCREPANCIES`] of them.
    pub fn iter(&self) -> impl Iterator<Item = &Discrepancy> {
        self.kept.iter().flatten()
    }

    pub(crate) fn add(&mut self, found: Discrepancy) {
        if let Some(slot) = self.kept.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(found);
        }
        self.total += 1;
    }

    pub(super) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> Discrepancy) {
        if !holds {
            self.add(otherwise());
        }
    }
}
