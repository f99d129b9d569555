//! Counts everything and checks that all books agree.
//!
//! [`Memory::census`] walks every word, every free list, every per-CPU list and
//! every slab; with a [`CensusScope`] also the balloon's store and the caches.
//! It runs after each test and, in the guest, on demand (`exec census`).
//!
//! The walk holds the locks of all CPU lists and of the zone, so free memory is
//! exact at any time. Frames in use change by their owners' leave alone: for
//! them, and for stores and caches, the answer is exact once those are quiet.

mod discrepancy;
mod lists;
mod scope;
mod words;

use abi::PageCount;

pub use discrepancy::{Discrepancies, Discrepancy, MAX_DISCREPANCIES};
pub use scope::{BalloonClaim, CensusScope, CensusStore, MAX_CACHES};

use crate::memdesc::{DriverId, Hold, Kind, MigrateType, Order};
use crate::memory::Memory;
use crate::platform::Platform;

/// Number of [`DriverId`]s.
const DRIVERS: usize = 16;

/// The result of a census.
#[derive(Debug, Clone)]
pub struct Census {
    pages: [u64; Kind::COUNT],
    blocks: [u64; Kind::COUNT],
    free_blocks: [[u64; MigrateType::COUNT]; Order::COUNT],
    offline: [[u64; Hold::COUNT]; DRIVERS],
    isolated: [u64; Kind::COUNT],
    reported: u64,
    unknown: u64,
    slabs: [SlabCount; MAX_CACHES],
    discrepancies: Discrepancies,
}

/// Slabs of one cache, as the words tell.
#[derive(Debug, Clone, Copy, Default)]
struct SlabCount {
    slabs: u64,
    in_use: u64,
}

impl Census {
    const fn new() -> Self {
        Self {
            pages: [0; Kind::COUNT],
            blocks: [0; Kind::COUNT],
            free_blocks: [[0; MigrateType::COUNT]; Order::COUNT],
            offline: [[0; Hold::COUNT]; DRIVERS],
            isolated: [0; Kind::COUNT],
            reported: 0,
            unknown: 0,
            slabs: [SlabCount { slabs: 0, in_use: 0 }; MAX_CACHES],
            discrepancies: Discrepancies::new(),
        }
    }

    /// Whether all books agree.
    pub const fn is_consistent(&self) -> bool {
        self.discrepancies.total() == 0
    }

    /// What does not agree.
    pub const fn discrepancies(&self) -> &Discrepancies {
        &self.discrepancies
    }

    /// Pages in blocks of `kind`, tails included.
    pub const fn pages(&self, kind: Kind) -> PageCount {
        PageCount::new(self.pages[kind.index()])
    }

    /// Blocks of `kind`.
    pub const fn blocks(&self, kind: Kind) -> u64 {
        self.blocks[kind.index()]
    }

    /// Pages of all kinds: all RAM, unless words are malformed.
    pub fn total_pages(&self) -> PageCount {
        PageCount::new(self.pages.iter().sum())
    }

    /// Free pages: on free lists, on per-CPU lists, or being reported.
    pub const fn free_pages(&self) -> PageCount {
        self.pages(Kind::Buddy)
            .saturating_add(self.pages(Kind::Pcp))
            .saturating_add(self.pages(Kind::Report))
    }

    /// Free blocks of one order and type on the zone's lists.
    pub const fn free_blocks(&self, order: Order, migratetype: MigrateType) -> u64 {
        self.free_blocks[order.index()][migratetype.index()]
    }

    /// Free pages for which the host holds no memory.
    pub const fn reported_pages(&self) -> PageCount {
        PageCount::new(self.reported)
    }

    /// Offline pages of one driver in one hold.
    pub const fn offline_pages(&self, driver: DriverId, hold: Hold) -> PageCount {
        PageCount::new(self.offline[driver.get() as usize][hold as usize])
    }

    /// Offline pages of one driver.
    pub fn offline_total(&self, driver: DriverId) -> PageCount {
        PageCount::new(self.offline[usize::from(driver.get())].iter().sum())
    }

    /// Blocks of `kind` that migration has isolated, those that their owners have
    /// given up since included.
    pub const fn isolated_blocks(&self, kind: Kind) -> u64 {
        self.isolated[kind.index()]
    }

    /// Frames whose word is malformed.
    pub const fn unknown_words(&self) -> u64 {
        self.unknown
    }
}

impl<P: Platform> Memory<P> {
    /// Counts all frames and checks words, free lists and per-CPU lists.
    pub fn census(&self) -> Census {
        self.census_of(&CensusScope::default())
    }

    /// As [`Self::census`], and checks the books of balloons and caches against
    /// the words.
    pub fn census_of(&self, scope: &CensusScope<'_>) -> Census {
        let mut census = Census::new();
        self.walk(&mut census, scope);
        // Stores and caches have locks of outer classes: after the walk.
        scope::check(self, &mut census, scope);
        census
    }

    fn walk(&self, census: &mut Census, scope: &CensusScope<'_>) {
        let platform = self.platform();
        let [first, second, third, fourth] = self.cpus();
        // Ascending by CPU; dropped in reverse.
        let first = first.lock(platform);
        let second = second.lock_nested(platform);
        let third = third.lock_nested(platform);
        let fourth = fourth.lock_nested(platform);
        let zone = self.zone().lock(platform);
        words::walk(self, census, scope);
        #[cfg(not(loom))]
        crate::hotplug::census_check(self, &mut census.discrepancies);
        lists::check_zone(self.map(), &zone, census);
        let mut listed = 0;
        for cpu in [&*first, &*second, &*third, &*fourth] {
            listed += lists::check_cpu(self.map(), cpu, census);
        }
        let counted = census.pages[Kind::Pcp.index()];
        census.discrepancies.check(listed == counted, || Discrepancy::PcpPages { listed, counted });
    }
}

#[cfg(test)]
mod tests;
