//! What the experiment about batches compares, for the guest's scenario (`exp-e2`) and for counting cache misses on the host
//! (`benches/batch.rs`): a batch of migration as an array of frame numbers, against a list that runs
//! through page descriptors of 64 bytes.
//!
//! Both arms hold the same pages, scattered over the same frames. *add*: a page joins the
//! batch. *walk*: each page of the batch is visited and what is known of it is read (its
//! word, or the flags of its descriptor), as migration does in each pass. *retry*: a walk
//! in which every fourth page stays and the others leave.

use core::fmt;

use abi::{PAGE_SIZE, PageCount, Pfn};

use super::page64::{Page64, PageList};
use crate::buddy::Gfp;
use crate::memdesc::Order;
use crate::memory::{FrozenFrames, Memory};
use crate::platform::Platform;
use crate::scenario::{Failure, OrFail, Outcome, Rng, check_eq};

/// The largest batch.
pub const MAX_SIZE: usize = 512;
/// Frames over which pages are scattered at most: a table of 4 MiB describes them.
const MAX_SPAN: u64 = 1 << 16;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// Frame numbers one after the other.
    Array,
    /// A list through descriptors.
    List,
}

impl Arm {
    /// The design first.
    pub const ALL: [Self; 2] = [Self::Array, Self::List];

    /// Its name in samples.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Array => "array",
            Self::List => "list",
        }
    }

    /// Bytes that migration needs of the descriptor of every page, isolated or not:
    /// a list head, and what holds the page while it is in the list.
    pub const fn descriptor_bytes(self) -> u64 {
        match self {
            Self::Array => 0,
            // Two pointers and a reference count.
            Self::List => 16 + 4,
        }
    }

    /// Bytes of an entry, while the page is in a batch.
    pub const fn entry_bytes(self) -> u64 {
        match self {
            Self::Array => size_of::<Pfn>() as u64,
            Self::List => 0,
        }
    }
}

/// Whether what a batch touches may be in the CPU's caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caches {
    /// The same batch has just been walked.
    Warm,
    /// Other memory was read before each part.
    Flooded,
}

/// Nanoseconds of the parts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// All pages join the batch.
    pub add: u64,
    /// All are visited.
    pub walk: u64,
    /// All are visited, and three in four leave.
    pub retry: u64,
}

/// What both arms walk over.
pub struct Subject<'a, P: Platform> {
    memory: &'a Memory<P>,
    first: Pfn,
    /// One for each frame of the span.
    table: &'a [Page64],
    flood: &'a [u64],
}

impl<P: Platform> fmt::Debug for Subject<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("span", &self.table.len()).finish_non_exhaustive()
    }
}

/// Takes what both arms need, calls `measure` and gives it back.
///
/// # Errors
/// There is no memory; what `measure` says.
pub fn with_subject<P: Platform>(
    memory: &Memory<P>,
    measure: impl FnOnce(&Subject<'_, P>) -> Outcome,
) -> Outcome {
    let region = memory.words().regions().map(|region| region.range());
    let region = region.max_by_key(|range| range.len().get()).or_fail()?;
    // A table of the largest order that memory has, up to what the span needs.
    let frames = MAX_SPAN.min(region.len().get());
    let order = (frames * size_of::<Page64>() as u64).div_ceil(PAGE_SIZE).ilog2();
    let mut order = Order::try_from(order).ok().or_fail()?;
    let table = loop {
        if let Ok(table) = memory.alloc_frozen(order, Gfp::KERNEL | Gfp::ZERO) {
            break table;
        }
        order = order.down().or_fail()?;
    };
    let flood = memory.alloc_frozen(order, Gfp::KERNEL | Gfp::ZERO);
    let outcome = match &flood {
        Ok(flood) => {
            let subject = Subject {
                memory,
                first: region.start(),
                table: zeroed(memory, &table),
                flood: zeroed(memory, flood),
            };
            measure(&subject)
        }
        Err(_) => Err(Failure::new("there is no memory to flood the caches with")),
    };
    flood.into_iter().chain([table]).for_each(|frames| memory.free_frozen(frames));
    outcome
}

/// A type of which zeros are a value, and which is read, or is atomic.
///
/// # Safety
/// All zeros are a value of the type, whose alignment a page has.
unsafe trait Zeroed {}

// SAFETY: a number.
unsafe impl Zeroed for u64 {}
// SAFETY: atomic numbers; aligned to 64.
unsafe impl Zeroed for Page64 {}

fn zeroed<'a, T: Zeroed, P: Platform>(memory: &'a Memory<P>, frames: &'a FrozenFrames) -> &'a [T] {
    let bytes = usize::try_from(frames.pages().bytes()).unwrap_or(0);
    let start = memory.platform().frame_ptr(frames.head()).cast::<T>();
    // SAFETY: the block was zeroed when it was taken, which is a value of the type, nobody
    // writes to it but by atomics, and its owner lends the handle as long as the slice lives.
    unsafe { core::slice::from_raw_parts(start.as_ptr(), bytes / size_of::<T>()) }
}

/// Different pages, in random order, each from a part of its own of the span.
pub fn scatter(pages: &mut [usize], span: usize, rng: &mut Rng) {
    let part = (span / pages.len()).max(1);
    for (at, page) in pages.iter_mut().enumerate() {
        *page = at * part + usize::try_from(rng.below(part as u64)).unwrap_or(0);
    }
    for at in (1..pages.len()).rev() {
        pages.swap(at, usize::try_from(rng.below(at as u64 + 1)).unwrap_or(0));
    }
}

impl<P: Platform> Subject<'_, P> {
    /// Frames over which the pages of a batch can lie.
    pub const fn span(&self) -> usize {
        self.table.len()
    }

    /// One batch of the pages with these numbers in the span, at most [`MAX_SIZE`].
    ///
    /// # Errors
    /// Pages were lost on the way: a bug.
    pub fn sample(&self, arm: Arm, pages: &[usize], caches: Caches) -> Result<Times, Failure> {
        if caches == Caches::Warm {
            // Once for the caches.
            self.round(arm, pages, caches)?;
        }
        self.round(arm, pages, caches)
    }

    /// Reads other memory, so that the caches hold nothing of a batch.
    pub fn flood(&self) {
        core::hint::black_box(self.flood.iter().step_by(8).fold(0, |sum, word| sum ^ word));
    }

    fn round(&self, arm: Arm, pages: &[usize], caches: Caches) -> Result<Times, Failure> {
        match arm {
            Arm::Array => self.array(pages, caches),
            Arm::List => self.list(pages, caches),
        }
    }

    /// What `work` takes, after the caches were flooded if they are to be.
    fn time<T>(&self, caches: Caches, work: impl FnOnce() -> T) -> (u64, T) {
        if caches == Caches::Flooded {
            self.flood();
        }
        let start = self.memory.platform().now_ns();
        let done = work();
        (self.memory.platform().now_ns().saturating_sub(start), done)
    }

    fn array(&self, pages: &[usize], caches: Caches) -> Result<Times, Failure> {
        let mut batch = [Pfn::ZERO; MAX_SIZE];
        let mut len = 0;
        let (add, ()) = self.time(caches, || {
            for &page in pages {
                let pfn = self.first.checked_add(PageCount::new(page as u64));
                batch[len] = pfn.unwrap_or(Pfn::ZERO);
                len += 1;
            }
            core::hint::black_box(&batch);
        });
        let (walk, seen) = self.time(caches, || {
            batch[..len].iter().map(|&pfn| self.look(pfn)).fold(0, u64::wrapping_add)
        });
        core::hint::black_box(seen);
        let (retry, kept) = self.time(caches, || {
            let mut kept = 0;
            for at in 0..len {
                let pfn = batch[at];
                core::hint::black_box(self.look(pfn));
                if at.is_multiple_of(4) {
                    batch[kept] = pfn;
                    kept += 1;
                }
            }
            kept
        });
        check_eq(kept as u64, len.div_ceil(4) as u64, "pages that stay")?;
        Ok(Times { add, walk, retry })
    }

    /// What migration asks the word of an entry: its kind.
    fn look(&self, pfn: Pfn) -> u64 {
        let word = self.memory.words().load(pfn).ok();
        word.and_then(|word| word.kind().ok()).map_or(0, |kind| kind as u64)
    }

    fn list(&self, pages: &[usize], caches: Caches) -> Result<Times, Failure> {
        let mut batch = PageList::new();
        let (add, ()) = self.time(caches, || {
            pages.iter().for_each(|&page| batch.add(self.table, page));
            core::hint::black_box(&batch);
        });
        let (walk, seen) = self.time(caches, || {
            let mut sum = 0u64;
            let mut at = batch.first();
            while let Some(page) = at {
                sum = sum.wrapping_add(self.table[page].flags());
                at = batch.after(self.table, page);
            }
            sum
        });
        core::hint::black_box(seen);
        let len = batch.len();
        let (retry, ()) = self.time(caches, || {
            // `list_for_each_entry_safe`: the next is read before the page leaves.
            let mut at = batch.first();
            let mut n = 0u64;
            while let Some(page) = at {
                core::hint::black_box(self.table[page].flags());
                at = batch.after(self.table, page);
                if !n.is_multiple_of(4) {
                    batch.remove(self.table, page);
                }
                n += 1;
            }
        });
        check_eq(batch.len(), len.div_ceil(4), "pages that stay")?;
        Ok(Times { add, walk, retry })
    }
}
