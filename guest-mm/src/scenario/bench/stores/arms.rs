//! The four stores, each made over memory of its own.

use abi::PfnRange;

use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::Memory;
use crate::mm::Mm;
use crate::platform::Platform;
use crate::scenario::{Machine, OrFail, Outcome};
use crate::slab::{CacheError, KmemCache};
use crate::store::{
    BitmapStore, IdaStore, Leaf, ListStore, PfnStore, Record, SlabRecords, XArrayStore,
};
use crate::xarray::SlabNodes;

/// A design of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arm {
    List,
    XArray,
    Ida,
    Bitmap,
}

/// What a store costs at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Footprint {
    /// By [`PfnStore::bytes_used`].
    pub(super) said: u64,
    /// Frames that its slabs hold, free objects included, or the bitmap.
    pub(super) slabs: u64,
}

/// Where the stores' objects come from.
pub(super) struct Caches {
    nodes: KmemCache,
    leaves: KmemCache,
    records: KmemCache,
}

impl Caches {
    pub(super) fn new<P: Platform>(memory: &Memory<P>) -> Result<Self, CacheError> {
        Ok(Self {
            nodes: SlabNodes::cache(memory)?,
            leaves: SlabRecords::<P, Leaf>::cache(memory, "ida_leaf")?,
            records: SlabRecords::<P, Record>::cache(memory, "pfn_record")?,
        })
    }

    fn all(&self) -> [&KmemCache; 3] {
        [&self.nodes, &self.leaves, &self.records]
    }

    /// Bytes of all slabs.
    fn bytes<P: Platform>(&self, memory: &Memory<P>) -> u64 {
        self.all().iter().map(|cache| cache.stats(memory).pages().bytes()).sum()
    }
}

/// What is tried on each store.
pub(super) trait Trial {
    /// Does it. `slab_bytes` says how much memory the store holds, by other books than its own.
    fn with<S: PfnStore>(&mut self, store: &S, slab_bytes: &dyn Fn() -> u64) -> Outcome;
}

impl Arm {
    /// Baselines first.
    pub(super) const ALL: [Self; 4] = [Self::List, Self::XArray, Self::Ida, Self::Bitmap];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::XArray => "xarray",
            Self::Ida => "ida",
            Self::Bitmap => "bitmap",
        }
    }

    /// Makes an empty store over `range`, does `trial` with it, and gives all of its memory back.
    pub(super) fn try_on<M: Machine>(
        self,
        mm: &Mm<'_, M>,
        caches: &Caches,
        range: PfnRange,
        trial: &mut impl Trial,
    ) -> Outcome {
        let (memory, rcu) = (mm.memory(), &mm.base().rcu);
        let slab_bytes = || caches.bytes(memory);
        let nodes = SlabNodes::new(memory, &caches.nodes, Gfp::KERNEL);
        let ended = match self {
            Self::List => {
                let records = SlabRecords::new(memory, &caches.records, Gfp::KERNEL);
                trial.with(&ListStore::new(mm.platform(), records, range), &slab_bytes)
            }
            Self::XArray => trial.with(&XArrayStore::new(rcu, nodes, range), &slab_bytes),
            Self::Ida => {
                let leaves = SlabRecords::new(memory, &caches.leaves, Gfp::KERNEL);
                trial.with(&IdaStore::new(rcu, nodes, leaves, range), &slab_bytes)
            }
            Self::Bitmap => with_bitmap(mm, range, trial),
        };
        for cache in caches.all() {
            cache.shrink(memory);
        }
        ended
    }
}

fn with_bitmap<M: Machine>(mm: &Mm<'_, M>, range: PfnRange, trial: &mut impl Trial) -> Outcome {
    let memory = mm.memory();
    let words = BitmapStore::<M>::words_for(range).or_fail()?;
    let bytes = words * size_of::<u64>();
    let order = bytes.div_ceil(4096).next_power_of_two().trailing_zeros();
    let backing = memory.alloc_frozen(Order::try_from(order).or_fail()?, Gfp::KERNEL).or_fail()?;
    let start = mm.platform().frame_ptr(backing.head()).cast::<u64>();
    // SAFETY: the block is ours until it is freed below, aligned to a page and large enough
    // for the words; any bits are a u64 (fresh frames are RAM, hence initialised).
    let words = unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), words) };
    let ended = match BitmapStore::new(mm.platform(), range, words) {
        Some(store) => trial.with(&store, &|| bytes as u64),
        None => Err(crate::scenario::Failure::new("too few words for the bitmap")),
    };
    memory.free_frozen(backing);
    ended
}
