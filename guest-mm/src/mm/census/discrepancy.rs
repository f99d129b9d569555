//! What a census of the memory manager can find wrong.

use core::fmt;

use abi::Pfn;

use crate::addr::VirtAddr;
use crate::census::Discrepancy;
use crate::pgtable::TableDiscrepancy;
use crate::rmap::RmapDiscrepancy;
use crate::space::SpaceDiscrepancy;
use crate::swap::SwapDiscrepancy;
use crate::zsmalloc::ZsDiscrepancy;

/// One thing that does not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MmDiscrepancy {
    /// Words, free lists, slabs, stores.
    Memory(Discrepancy),
    /// Page tables of a space.
    Tables {
        /// The space.
        space: u32,
        /// What is wrong.
        found: TableDiscrepancy,
    },
    /// VMAs of a space.
    Vmas {
        /// The space.
        space: u32,
        /// What is wrong.
        found: SpaceDiscrepancy,
    },
    /// A leaf maps a frame that is neither a folio's nor the zero page.
    NoFolio {
        /// The space.
        space: u32,
        /// The leaf.
        at: VirtAddr,
        /// The frame.
        frame: Pfn,
    },
    /// A leaf reaches beyond its folio.
    BeyondFolio {
        /// The space.
        space: u32,
        /// The leaf.
        at: VirtAddr,
        /// The folio.
        folio: Pfn,
    },
    /// A leaf allows writing to an anonymous page that others may share, or to the zero page.
    SharedWritable {
        /// The space.
        space: u32,
        /// The leaf.
        at: VirtAddr,
        /// The folio.
        folio: Pfn,
    },
    /// An exclusive leaf of a folio of one page, which other leaves map too.
    SharedExclusive {
        /// The space.
        space: u32,
        /// The leaf.
        at: VirtAddr,
        /// The folio.
        folio: Pfn,
    },
    /// A space counts other pages than its leaves show.
    Rss {
        /// The space.
        space: u32,
        /// Anonymous, file and swapped pages that it counts.
        counted: [u64; 3],
        /// Those that its leaves show.
        found: [u64; 3],
    },
    /// Leaves and mapcounts of all folios together differ.
    Mapcounts {
        /// Sum of mapcounts.
        counted: u64,
        /// Leaves of folios.
        leaves: u64,
    },
    /// A folio counts other leaves than there are.
    Mapcount {
        /// The folio.
        folio: Pfn,
        /// Its mapcount.
        counted: u32,
        /// Its leaves.
        leaves: u64,
    },
    /// A folio's words are not all its own, or do not fit its descriptor.
    Words(Pfn),
    /// A folio is frozen, though everything is quiet.
    Frozen(Pfn),
    /// A folio is locked, though everything is quiet.
    Locked(Pfn),
    /// A leaf waits for the end of a migration that nobody is doing.
    Migrating {
        /// The space.
        space: u32,
        /// The leaf.
        at: VirtAddr,
        /// The frame.
        frame: Pfn,
    },
    /// The queue of folios to be split has others than say so.
    DeferredSplits {
        /// Folios by the queue's count.
        queued: u64,
        /// Folios that say they are in it.
        found: u64,
    },
    /// A slab cache has objects in use that nothing leads to, or the other way round.
    Objects {
        /// The cache's name.
        cache: &'static str,
        /// Objects in use.
        counted: u64,
        /// Objects found.
        found: u64,
    },
    /// References that nothing explains, or too few.
    References {
        /// The folio.
        folio: Pfn,
        /// Its reference count.
        counted: u32,
        /// Leaves, cache and pins.
        explained: u64,
    },
    /// A file's cache has a folio that says otherwise.
    Cached {
        /// The file.
        file: u64,
        /// Page offset.
        index: u64,
    },
    /// A file's count of cached pages differs from its cache.
    CachedPages {
        /// The file.
        file: u64,
        /// What it counts.
        counted: u64,
        /// What is there.
        found: u64,
    },
    /// Folios say they are in caches that the caches do not have, or the other way round.
    CacheMembers,
    /// Reverse maps.
    Rmap(RmapDiscrepancy),
    /// A folio is on an LRU list that its flags do not name.
    LruFolio(Pfn),
    /// Counts or links of the LRU lists are wrong.
    LruLists,
    /// Folios say they are on LRU lists and are not, or the other way round.
    LruMembers,
    /// Swap slots.
    Swap(SwapDiscrepancy),
    /// Folios say they are in the swap cache that no slot names, or the other way round.
    SwapCached {
        /// Slots with a folio.
        slots: u64,
        /// Folios that say they have a slot.
        folios: u64,
    },
    /// Swap leaves and the slots' counts differ.
    SwapLeaves {
        /// Sum of the slots' counts.
        counted: u64,
        /// Leaves.
        leaves: u64,
    },
    /// Pools of compressed pages.
    Zs(ZsDiscrepancy),
    /// Pages of kind zpdesc are not those of the pools.
    ZsPages {
        /// Pages of all pools.
        pools: u64,
        /// Pages by their words.
        words: u64,
    },
    /// Frames of page tables are not those that were made and not freed.
    TableFrames {
        /// Made and not freed.
        counted: u64,
        /// By their words.
        found: u64,
    },
    /// Blocks whose words say that migration has them are not as many as it has.
    Isolated {
        /// Entries of its batches.
        entries: u64,
        /// By their words.
        found: u64,
    },
    /// Page tables that no space reaches, and that do not wait for their readers either.
    LostTables {
        /// Made and not freed.
        counted: u64,
        /// Reached, roots included, or waiting.
        reached: u64,
    },
}

impl fmt::Display for MmDiscrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Memory(found) => found.fmt(f),
            Self::Tables { space, found } => write!(f, "space {space}: {found}"),
            Self::Vmas { space, found } => write!(f, "space {space}: {found}"),
            Self::NoFolio { space, at, frame } => {
                write!(f, "space {space}, {at}: frame {frame} is no folio's")
            }
            Self::BeyondFolio { space, at, folio } => {
                write!(f, "space {space}, {at}: leaf reaches beyond folio {folio}")
            }
            Self::SharedWritable { space, at, folio } => {
                write!(f, "space {space}, {at}: folio {folio} is writable and not exclusive")
            }
            Self::SharedExclusive { space, at, folio } => {
                write!(f, "space {space}, {at}: folio {folio} is exclusive and shared")
            }
            Self::Rss { space, counted, found } => write!(
                f,
                "space {space} counts anon, file, swap pages {counted:?}, its leaves {found:?}"
            ),
            Self::Mapcounts { counted, leaves } => {
                write!(f, "mapcounts are {counted} in all, leaves {leaves}")
            }
            Self::Mapcount { folio, counted, leaves } => {
                write!(f, "folio {folio} counts {counted} leaves, has {leaves}")
            }
            Self::Words(folio) => write!(f, "words of folio {folio} are not all its own"),
            Self::Frozen(folio) => write!(f, "folio {folio} is frozen"),
            Self::Locked(folio) => write!(f, "folio {folio} is locked"),
            Self::Migrating { space, at, frame } => {
                write!(f, "space {space}, {at}: nobody is moving frame {frame}")
            }
            Self::DeferredSplits { queued, found } => {
                write!(f, "{queued} folios are queued to be split, {found} say so")
            }
            Self::Objects { cache, counted, found } => {
                write!(f, "cache {cache} has {counted} objects in use, {found} were found")
            }
            Self::SwapCached { slots, folios } => {
                write!(f, "{slots} swap slots have a folio, {folios} folios a slot")
            }
            Self::References { folio, counted, explained } => {
                write!(f, "folio {folio} has {counted} references, of which {explained} explained")
            }
            Self::Cached { file, index } => {
                write!(f, "file {file}, page {index}: not the folio that the cache names")
            }
            Self::CachedPages { file, counted, found } => {
                write!(f, "file {file} counts {counted} cached pages, has {found}")
            }
            Self::CacheMembers => f.write_str("folios in files' caches are not those of the files"),
            Self::Rmap(found) => found.fmt(f),
            Self::LruFolio(folio) => write!(f, "folio {folio} is on the wrong LRU list"),
            Self::LruLists => f.write_str("counts or links of the LRU lists are wrong"),
            Self::LruMembers => f.write_str("folios on LRU lists are not those that say so"),
            Self::Swap(found) => found.fmt(f),
            Self::SwapLeaves { counted, leaves } => {
                write!(f, "swap slots count {counted} leaves, there are {leaves}")
            }
            Self::Zs(found) => found.fmt(f),
            Self::ZsPages { pools, words } => {
                write!(f, "zsmalloc's pools have {pools} pages, words say {words}")
            }
            Self::TableFrames { counted, found } => {
                write!(f, "{counted} page tables were made and not freed, {found} are there")
            }
            Self::Isolated { entries, found } => {
                write!(f, "migration has {entries} blocks isolated, {found} words say so")
            }
            Self::LostTables { counted, reached } => {
                write!(f, "{counted} page tables were made and not freed, {reached} are reached")
            }
        }
    }
}

/// Discrepancies that a census keeps; it counts the rest.
const KEPT: usize = 16;

/// The first few discrepancies, and how many there were.
#[derive(Debug, Clone, Default)]
pub struct MmDiscrepancies {
    kept: [Option<MmDiscrepancy>; KEPT],
    total: u64,
}

impl MmDiscrepancies {
    /// How many were found.
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The first of them.
    pub fn iter(&self) -> impl Iterator<Item = &MmDiscrepancy> {
        self.kept.iter().flatten()
    }

    pub(super) fn add(&mut self, found: MmDiscrepancy) {
        if let Some(slot) = self.kept.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(found);
        }
        self.total += 1;
    }

    pub(super) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> MmDiscrepancy) {
        if !holds {
            self.add(otherwise());
        }
    }
}
