//! What else a census compares with the words: stores and caches.

use core::fmt;

use abi::{PageCount, Pfn};

use super::{Census, Discrepancy};
use crate::memdesc::{DriverId, Memdesc, Order};
use crate::memory::Memory;
use crate::platform::Platform;
use crate::slab::KmemCache;
use crate::store::{PfnStore, Select};

/// Caches that one census can check.
pub const MAX_CACHES: usize = 24;

/// The books to compare with the words; none by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct CensusScope<'a> {
    /// Balloons, and other drivers with Offline blocks.
    pub balloons: &'a [BalloonClaim<'a>],
    /// Caches, of which the first [`MAX_CACHES`] are checked.
    pub caches: &'a [&'a KmemCache],
}

/// What a driver says about its Offline blocks.
#[derive(Clone, Copy)]
pub struct BalloonClaim<'a> {
    /// The driver in the words.
    pub driver: DriverId,
    /// Its store.
    pub store: &'a dyn CensusStore,
    /// Pages that it last told the host.
    pub actual: PageCount,
    /// Offline pages that `actual` does not count yet, or no more.
    pub in_flight: PageCount,
}

impl fmt::Debug for BalloonClaim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalloonClaim")
            .field("driver", &self.driver)
            .field("actual", &self.actual)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// A set of blocks that should be Offline blocks of one driver.
pub trait CensusStore {
    /// Calls `visit` with the head and order of every block. A store that does
    /// not keep orders may show the pages of a block one by one.
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order));
}

impl<S: PfnStore> CensusStore for S {
    fn for_each_block(&self, visit: &mut dyn FnMut(Pfn, Order)) {
        let mut from = Pfn::ZERO;
        while let Some(stored) = self.next(from, Select::Any) {
            let block = stored.block;
            visit(block.head(), Order::try_from(block.order()).unwrap_or(Order::MAX));
            let Some(next) = block.head().checked_add(block.pages()) else { return };
            from = next;
        }
    }
}

/// Compares the books in `scope` with what the walk counted.
pub(super) fn check<P: Platform>(memory: &Memory<P>, census: &mut Census, scope: &CensusScope<'_>) {
    for (i, cache) in scope.caches.iter().enumerate().take(MAX_CACHES) {
        let stats = cache.stats(memory);
        let count = census.slabs[i];
        let agree = stats.slabs == count.slabs && stats.in_use == count.in_use;
        census.discrepancies.check(agree, || Discrepancy::CacheCount {
            cache: cache.id(),
            cached: stats.in_use,
            counted: count.in_use,
        });
    }
    // After the caches: a look into a store that is an XArray frees nodes of it that waited for their readers.
    for claim in scope.balloons {
        check_balloon(memory, census, claim);
    }
}

fn check_balloon<P: Platform>(memory: &Memory<P>, census: &mut Census, claim: &BalloonClaim<'_>) {
    let driver = claim.driver;
    let mut stored = 0;
    claim.store.for_each_block(&mut |pfn, order| {
        stored += order.pages().get();
        let found = memory.words().head_of(pfn).ok();
        let covered = found.is_some_and(|(head, memdesc)| match memdesc {
            Memdesc::Offline(offline) => {
                let end = pfn.number() + order.pages().get();
                offline.driver == driver && end <= head.number() + offline.order.pages().get()
            }
            Memdesc::Block(_)
            | Memdesc::Pcp(_)
            | Memdesc::Tail(_)
            | Memdesc::Buddy(_)
            | Memdesc::Descriptor(_)
            | Memdesc::Transit(_) => false,
        });
        let found = found.map(|(_, memdesc)| memdesc);
        census.discrepancies.check(covered, || Discrepancy::StoreEntry(pfn, order, found));
    });
    // Disjoint blocks, each inside Offline ones, and as many pages: the same set.
    let counted = census.offline_total(driver).get();
    census.discrepancies.check(stored == counted, || Discrepancy::StorePages {
        driver,
        stored,
        counted,
    });
    let claimed = claim.actual.saturating_add(claim.in_flight).get();
    census.discrepancies.check(claimed == counted, || Discrepancy::Actual {
        driver,
        claimed,
        counted,
    });
}
