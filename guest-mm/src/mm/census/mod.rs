//! Counts everything that the memory manager has, and checks that all books agree.
//!
//! [`Mm::census`] takes the census of frames ([`crate::census`]) and then walks
//! every page table, every folio, every file's cache and every swap slot. What
//! one side says of the other is compared without memory for a table of
//! counts: each folio has a pseudo-random weight, and the sum of weights over
//! all leaves must be the sum of weight times mapcount over all folios. Any one
//! difference shows for certain, several of them cancel with a probability of
//! 2^-63. The same for caches and swap slots. Only when sums differ, folios
//! are looked at one by one.
//!
//! Exact when nobody faults, maps or reclaims, and what waits for readers has been freed
//! ([`Base::settle`](super::Base::settle)).

mod discrepancy;
mod files;
mod folios;
mod spaces;

pub use discrepancy::{MmDiscrepancies, MmDiscrepancy};

use abi::Pfn;

use super::Mm;
use crate::census::{BalloonClaim, Census, CensusScope};
use crate::memdesc::Kind;
use crate::migrate::MovableKind;
use crate::platform::Platform;
use crate::slab::KmemCache;
use crate::swap::SwapCensus;
use crate::zsmalloc::ZsCensus;

/// The result of a census of the memory manager.
#[derive(Debug, Clone)]
pub struct MmCensus {
    /// Frames by kind, free lists, slabs.
    pub memory: Census,
    /// Address spaces.
    pub spaces: u64,
    /// Page tables below the roots.
    pub tables: u64,
    /// Leaves that map folios.
    pub leaves: u64,
    /// Folios.
    pub folios: u64,
    /// Folios in files' caches.
    pub cached: u64,
    /// Pins on folios. Each explains a reference: whether its holder lives only the caller knows.
    pub pins: u64,
    /// Swap slots.
    pub swap: SwapCensus,
    /// Pools of compressed pages.
    pub zs: ZsCensus,
    discrepancies: MmDiscrepancies,
}

impl MmCensus {
    /// What does not agree, that of the frames included.
    pub const fn discrepancies(&self) -> &MmDiscrepancies {
        &self.discrepancies
    }

    /// Whether all books agree.
    pub const fn is_consistent(&self) -> bool {
        self.discrepancies.total() == 0
    }
}

/// Sums of weights that must come in pairs.
#[derive(Debug, Default)]
struct Sums {
    /// Over leaves, of their folios' weights.
    leaves: u64,
    /// Over folios, of weight times mapcount.
    mapcounts: u64,
    /// Sum of mapcounts.
    mapped: u64,
    /// Over swap leaves, of their slots' weights.
    swap_leaves: u64,
    /// Number of swap leaves.
    swapped: u64,
    /// Over entries of files' caches.
    cached: u64,
    /// Over folios that say they are in a file's cache.
    members: u64,
    /// Over folios on LRU lists.
    listed: u64,
    /// Over folios that say they are on one.
    on_lru: u64,
    /// Folios that say they are queued to be split.
    deferred: u64,
    /// Folios that say they are in the swap cache.
    swap_cached: u64,
}

/// The weight of a number: SplitMix64 (Steele, Lea, Flood 2014). Odd, so that no
/// multiple of one weight by less than 2^64 is 0.
const fn weight(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) | 1
}

const fn folio_weight(head: Pfn) -> u64 {
    weight(head.number())
}

/// A census under way.
struct Taking<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    sums: Sums,
    census: MmCensus,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Counts everything and compares all books, those of `balloons` included.
    pub fn census(&self, balloons: &[BalloonClaim<'_>]) -> MmCensus {
        let scope = CensusScope { balloons, caches: &self.base().caches.all() };
        let memory = self.memory().census_of(&scope);
        let census = MmCensus {
            memory,
            spaces: 0,
            tables: 0,
            leaves: 0,
            folios: 0,
            cached: 0,
            pins: 0,
            swap: SwapCensus::default(),
            zs: ZsCensus::default(),
            discrepancies: MmDiscrepancies::default(),
        };
        let mut taking = Taking { mm: self, sums: Sums::default(), census };
        taking.frames();
        taking.spaces();
        taking.files();
        taking.folios();
        taking.deferred_splits();
        taking.descriptors();
        taking.isolated();
        taking.rmap();
        taking.swap();
        taking.zsmalloc();
        taking.lru();
        taking.compare();
        taking.census
    }
}

impl<P: Platform> Taking<'_, '_, P> {
    fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> MmDiscrepancy) {
        self.census.discrepancies.check(holds, otherwise);
    }

    /// Takes over what the census of frames found, and counts page tables by their words.
    fn frames(&mut self) {
        for found in self.census.memory.discrepancies().clone().iter() {
            self.census.discrepancies.add(MmDiscrepancy::Memory(*found));
        }
        let counters = self.mm.base().table_counters();
        let counted = counters.allocated.wrapping_sub(counters.freed);
        let found = self.census.memory.pages(Kind::PtDesc).get();
        self.check(counted == found, || MmDiscrepancy::TableFrames { counted, found });
    }

    /// Checks that the queue of folios to be split has those that say so.
    fn deferred_splits(&mut self) {
        let (queued, found) = (self.mm.deferred_splits(), self.sums.deferred);
        self.check(queued == found, || MmDiscrepancy::DeferredSplits { queued, found });
    }

    /// Checks that each descriptor in use is named by a word.
    fn descriptors(&mut self) {
        let caches = &self.mm.base().caches;
        let blocks = |kind| self.census.memory.blocks(kind);
        let (tables, movable, zpdescs) =
            (blocks(Kind::PtDesc), blocks(Kind::Movable), blocks(Kind::ZpDesc));
        self.objects(caches.folio.kmem(), self.census.folios);
        self.objects(&caches.ptdesc, tables);
        self.objects(caches.movable.kmem(), movable);
        self.objects(caches.zpdesc.kmem(), zpdescs);
    }

    /// Checks that what is isolated, by its word, is in a batch of migration.
    fn isolated(&mut self) {
        let kinds = MovableKind::ALL.map(MovableKind::kind);
        let found = kinds.iter().map(|&kind| self.census.memory.isolated_blocks(kind)).sum();
        let entries = self.mm.isolated_blocks();
        self.check(entries == found, || MmDiscrepancy::Isolated { entries, found });
    }

    /// Checks that a cache has as many objects in use as were `found`.
    fn objects(&mut self, cache: &KmemCache, found: u64) {
        let counted = cache.stats(self.mm.memory()).in_use;
        let cache = cache.name();
        self.check(counted == found, || MmDiscrepancy::Objects { cache, counted, found });
    }

    fn rmap(&mut self) {
        let discrepancies = &mut self.census.discrepancies;
        self.mm.rmap_census(&mut |found| discrepancies.add(MmDiscrepancy::Rmap(found)));
    }

    fn swap(&mut self) {
        let mut sum = 0u64;
        let discrepancies = &mut self.census.discrepancies;
        let swap = self.mm.swap_census(None, &mut |found| {
            discrepancies.add(MmDiscrepancy::Swap(found));
        });
        self.mm.for_each_swap_count(&mut |slot, count| {
            sum = sum.wrapping_add(weight(slot.get()).wrapping_mul(u64::from(count)));
        });
        let (counted, leaves) = (swap.leaves, self.sums.swapped);
        let agree = counted == leaves && sum == self.sums.swap_leaves;
        self.check(agree, || MmDiscrepancy::SwapLeaves { counted, leaves });
        let (slots, folios) = (u64::from(swap.cached), self.sums.swap_cached);
        self.check(slots == folios, || MmDiscrepancy::SwapCached { slots, folios });
        self.census.swap = swap;
    }

    /// Checks that the pools' books agree, and that they have all pages of their kind.
    fn zsmalloc(&mut self) {
        let discrepancies = &mut self.census.discrepancies;
        let zs = self.mm.zs_census(&mut |found| discrepancies.add(MmDiscrepancy::Zs(found)));
        let (pools, words) = (zs.pages, self.census.memory.blocks(Kind::ZpDesc));
        self.check(pools == words, || MmDiscrepancy::ZsPages { pools, words });
        self.objects(self.mm.base().caches.zspage.kmem(), zs.zspages);
        self.census.zs = zs;
    }

    fn lru(&mut self) {
        let mm = self.mm;
        let mut listed = 0u64;
        let discrepancies = &mut self.census.discrepancies;
        let agrees = mm.lru_census(&mut |folio, is_here| {
            listed = listed.wrapping_add(folio_weight(folio.pfn()));
            discrepancies.check(is_here, || MmDiscrepancy::LruFolio(folio.pfn()));
        });
        self.sums.listed = listed;
        self.check(agrees, || MmDiscrepancy::LruLists);
    }

    /// Compares the sums; looks for the culprits if they differ.
    fn compare(&mut self) {
        let agree = self.sums.members == self.sums.cached;
        self.check(agree, || MmDiscrepancy::CacheMembers);
        let agree = self.sums.listed == self.sums.on_lru;
        self.check(agree, || MmDiscrepancy::LruMembers);
        if self.sums.leaves != self.sums.mapcounts {
            let (counted, leaves) = (self.sums.mapped, self.census.leaves);
            self.census.discrepancies.add(MmDiscrepancy::Mapcounts { counted, leaves });
            self.find_wrong_mapcounts();
        }
    }
}

#[cfg(test)]
mod tests;
