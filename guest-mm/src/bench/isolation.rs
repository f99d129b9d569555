//! What the experiment about isolation compares, for the guest's scenario (`exp-e5`) and the bench on the host
//! (`benches/isolation.rs`): one swap of the page's word, against a reference, a page lock and the owner's list.
//!
//! A sample is a fixed number of attempts of one thread to isolate a page, each put back at once.

use core::fmt;

use abi::{PAGE_SIZE, Pfn};

use super::page64::{Owner, Page64, Pages64};
use super::sample::per_item;
use super::{Param, Sample};
use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Order};
use crate::memory::{FrozenFrames, Memory};
use crate::platform::Platform;
use crate::scenario::Rng;
use crate::sync::shim::{AtomicU32, AtomicU64, Ordering};

/// Attempts of a sample.
pub const ATTEMPTS: u64 = 4096;
/// Pages of each thread.
pub const OWN: usize = 64;
/// Pages for which all threads compete.
pub const SHARED: usize = 4;

/// The driver of the pages; no other has the number.
const DRIVER: DriverId = match DriverId::new(15) {
    Some(driver) => driver,
    None => unreachable!(),
};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// One swap of the word.
    Cas,
    /// Reference, page lock and flags.
    LockRef,
    /// The same, and the owner's list below the owner's lock.
    LockRefList,
}

impl Arm {
    /// All, the design first.
    pub const ALL: [Self; 3] = [Self::Cas, Self::LockRef, Self::LockRefList];

    /// Its name in samples.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cas => "cas",
            Self::LockRef => "lock+ref",
            Self::LockRefList => "lock+ref+list",
        }
    }
}

/// Whose pages a thread isolates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Those that nobody else wants.
    Own,
    /// Those that all want.
    Shared,
}

impl Pattern {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Own, Self::Shared];

    /// Its name in samples.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Shared => "shared",
        }
    }

    /// A page for `thread`.
    fn page(self, thread: usize, rng: &mut Rng) -> usize {
        let below = |end: usize, rng: &mut Rng| usize::try_from(rng.below(end as u64)).unwrap_or(0);
        match self {
            Self::Own => thread * OWN + below(OWN, rng),
            Self::Shared => below(SHARED, rng),
        }
    }
}

/// What one sample found.
#[derive(Debug)]
pub struct Slot {
    ns: AtomicU64,
    /// Attempts that somebody else won.
    lost: AtomicU64,
}

impl Default for Slot {
    fn default() -> Self {
        Self { ns: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }
}

impl Slot {
    /// What to print of a sample of `attempts`: metric, unit and value.
    pub fn values(&self, attempts: u64) -> [(&'static str, &'static str, u64); 2] {
        let [ns, lost] = [&self.ns, &self.lost].map(|value| value.load(Ordering::Relaxed));
        [
            ("isolate and put back", "ns/page", per_item(ns, attempts - lost)),
            ("lost to others", "of 1000 attempts", per_item(lost * 1000, attempts)),
        ]
    }

    /// Calls `print` with each sample of it.
    pub fn print(
        &self,
        arm: Arm,
        params: &[(&'static str, Param)],
        attempts: u64,
        print: &mut dyn FnMut(&Sample<'_>),
    ) {
        for (metric, unit, value) in self.values(attempts) {
            print(&Sample { arm: arm.name(), params, metric, unit, value });
        }
    }
}

/// Where threads wait for each other.
#[derive(Debug)]
pub struct Barrier {
    threads: u32,
    arrived: AtomicU32,
}

impl Barrier {
    /// For so many threads.
    pub fn new(threads: usize) -> Self {
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        Self { threads, arrived: AtomicU32::new(0) }
    }

    /// Returns when all threads have called it `turn` times.
    pub fn wait<P: Platform>(&self, platform: &P, turn: u32) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while self.arrived.load(Ordering::Acquire) < turn * self.threads {
            platform.relax();
        }
    }
}

/// Why there is nothing to measure with, or what was not as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsolationError {
    /// There is no memory for pages or descriptors.
    NoMemory,
    /// Pages that are not on their owner's list afterwards, or still isolated.
    NotPutBack(u64),
    /// A page is no longer the experiment's.
    PageLost(Pfn),
}

impl IsolationError {
    /// What went wrong, without figures.
    pub const fn what(self) -> &'static str {
        match self {
            Self::NoMemory => "there is no memory for pages and descriptors",
            Self::NotPutBack(_) => "pages were not put back",
            Self::PageLost(_) => "a page is somebody else's",
        }
    }
}

impl fmt::Display for IsolationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())?;
        match self {
            Self::NoMemory => Ok(()),
            Self::NotPutBack(pages) => write!(f, ": {pages}"),
            Self::PageLost(pfn) => write!(f, ": {pfn:?}"),
        }
    }
}

impl core::error::Error for IsolationError {}

/// The pages of all arms.
pub struct Subject<'a, P: Platform> {
    memory: &'a Memory<P>,
    frames: &'a [Pfn],
    idle: Pages64<'a>,
    lists: Pages64<'a>,
}

impl<P: Platform> fmt::Debug for Subject<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("pages", &self.frames.len()).finish_non_exhaustive()
    }
}

/// Makes the pages of `frames.len() / OWN` threads, calls `measure` and gives all back.
///
/// # Errors
/// [`IsolationError`]; what was taken is given back, but for pages that somebody else has.
pub fn with_subject<P: Platform>(
    memory: &Memory<P>,
    frames: &mut [Pfn],
    measure: impl FnOnce(&Subject<'_, P>),
) -> Result<(), IsolationError> {
    let taken = take_pages(memory, frames);
    let outcome = if taken == frames.len() {
        with_tables(memory, frames, measure)
    } else {
        Err(IsolationError::NoMemory)
    };
    let mut freed = Ok(());
    for &pfn in &frames[..taken] {
        let block = memory.claim_offline(pfn, DRIVER).map_err(|_| ());
        match block.and_then(|block| memory.online(block).map_err(|_| ())) {
            Ok(frames) => memory.free_frozen(frames),
            Err(()) => freed = Err(IsolationError::PageLost(pfn)),
        }
    }
    outcome.and(freed)
}

/// Takes movable pages; returns how many there are.
fn take_pages<P: Platform>(memory: &Memory<P>, frames: &mut [Pfn]) -> usize {
    let take = || {
        let page = memory.alloc_frozen(Order::ZERO, Gfp::MOVABLE).ok()?;
        let pfn = memory.park(memory.make_offline(page, DRIVER).ok()?).ok()?;
        memory.set_movable(pfn, DRIVER).ok()?;
        Some(pfn)
    };
    let mut taken = 0;
    for slot in frames {
        let Some(pfn) = take() else { break };
        *slot = pfn;
        taken += 1;
    }
    taken
}

/// `pages` descriptors in frames of their own.
fn table<'a, P: Platform>(
    memory: &'a Memory<P>,
    frames: &'a FrozenFrames,
    pages: usize,
) -> &'a [Page64] {
    assert!((pages * size_of::<Page64>()) as u64 <= frames.pages().bytes(), "{pages} pages");
    let start = memory.platform().frame_ptr(frames.head()).cast::<Page64>();
    // SAFETY: the block has this many zeroed descriptors (asserted), which is what they are when free,
    // is aligned to a page, and its owner lends the handle for as long as the slice lives.
    unsafe { core::slice::from_raw_parts(start.as_ptr(), pages) }
}

fn with_tables<P: Platform>(
    memory: &Memory<P>,
    frames: &[Pfn],
    measure: impl FnOnce(&Subject<'_, P>),
) -> Result<(), IsolationError> {
    let bytes = (frames.len() * size_of::<Page64>()) as u64;
    let order = bytes.div_ceil(PAGE_SIZE).next_power_of_two().ilog2();
    let order = Order::try_from(order).map_err(|_| IsolationError::NoMemory)?;
    let take = || memory.alloc_frozen(order, Gfp::KERNEL | Gfp::ZERO).ok();
    let (idle, lists) = (take(), take());
    let outcome = match (&idle, &lists) {
        (Some(idle), Some(lists)) => {
            let [idle, lists] = [idle, lists].map(|block| table(memory, block, frames.len()));
            let idle = Pages64::new(memory.platform(), idle, Owner::Idle);
            let lists = Pages64::new(memory.platform(), lists, Owner::Lists);
            let subject = Subject { memory, frames, idle, lists };
            measure(&subject);
            subject.check()
        }
        _ => Err(IsolationError::NoMemory),
    };
    [idle, lists].into_iter().flatten().for_each(|frames| memory.free_frozen(frames));
    outcome
}

impl<P: Platform> Subject<'_, P> {
    /// One thread's sample. Never fails: others wait for it at the barrier.
    pub fn sample(
        &self,
        arm: Arm,
        pattern: Pattern,
        attempts: u64,
        (thread, rng): (usize, &mut Rng),
        slot: &Slot,
    ) {
        let platform = self.memory.platform();
        let start = platform.now_ns();
        let mut lost = 0;
        for _ in 0..attempts {
            let at = pattern.page(thread, rng);
            let won = match arm {
                Arm::Cas => self.swap(at),
                Arm::LockRef => turn(platform, &self.idle, at),
                Arm::LockRefList => turn(platform, &self.lists, at),
            };
            lost += u64::from(!won);
        }
        let ns = platform.now_ns().saturating_sub(start);
        slot.ns.store(ns, Ordering::Relaxed);
        slot.lost.store(lost, Ordering::Relaxed);
    }

    fn swap(&self, at: usize) -> bool {
        let Ok(block) = self.memory.isolate(self.frames[at], DRIVER) else { return false };
        // A word that is not the handle's stays isolated, which the end notices.
        self.memory.putback(block).is_ok()
    }

    /// Whether every page was put back, by each arm.
    fn check(&self) -> Result<(), IsolationError> {
        let pages = self.frames.len() as u64;
        let unlisted = pages - self.lists.listed(self.memory.platform());
        let isolated = |pfn: &&Pfn| self.memory.isolated_order(**pfn, DRIVER).is_ok();
        match unlisted + self.frames.iter().filter(isolated).count() as u64 {
            0 => Ok(()),
            pages => Err(IsolationError::NotPutBack(pages)),
        }
    }
}

fn turn<P: Platform>(platform: &P, pages: &Pages64<'_>, at: usize) -> bool {
    let won = pages.isolate(platform, at);
    if won {
        pages.put_back(platform, at);
    }
    won
}
