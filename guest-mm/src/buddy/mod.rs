//! The buddy allocator: free blocks of 2^0 … 2^10 pages by migratetype.
//!
//! [`Zone`] is the part behind the zone lock: list heads and counts. The links
//! themselves are in the words of the free blocks ([`crate::memdesc::Buddy`]),
//! so free memory needs no other bookkeeping. [`FrameMap`] is what every CPU
//! may read without the lock: words and pageblock types.
//!
//! Invariants, checked by the census: a free block is on the list of its order
//! and of its pageblock's type; two free buddies of one order that may merge
//! are merged; counts equal lists.

mod contig;
mod fallback;
mod free_list;
mod gfp;
mod pageblock;
mod watermark;
mod zone;

pub(crate) use contig::free_block_around;
pub use free_list::{Corrupt, FreeList};
pub use gfp::Gfp;
pub use pageblock::PageblockTable;
pub use watermark::Watermarks;
pub use zone::{BuddyCounters, FreeBlock, Zone};
pub(crate) use zone::{frozen_word, mergeable_buddy, tail_word};

use crate::memdesc::WordTable;

/// The tables of all frames.
#[derive(Debug)]
pub struct FrameMap {
    /// A word per frame.
    pub words: WordTable,
    /// A migratetype per pageblock.
    pub pageblocks: PageblockTable,
}
