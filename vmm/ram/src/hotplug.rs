//! Hotplug memory: one reservation above RAM, of which parts are guest memory at a time.
//!
//! What is there is told by a snapshot that each change replaces: devices take
//! the latest for each request, and find no unplugged part in it. One that
//! took its snapshot before may still access a part that has gone since. That
//! does no harm, as the reservation stays mapped; but the memory that such an
//! access brings back has to be released once more when the holder has let
//! go: [`Hotplug::settle`].
//!
//! Lock order: `state`, then `present`. `settle` alone holds `state` across a release call.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use abi::PfnRange;
use devices::ram::{DiscardError, Discarded};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::backing::{self, Backing, BackingKind};
use crate::error::{HostRamError, TruthError};
use crate::host::{Region, release_ranges};
use crate::mapping::{Mapping, to_usize};
use crate::probe;
use crate::release::Method;

/// The reservation, and what of it is plugged.
#[derive(Debug)]
pub(crate) struct Hotplug {
    region: Region,
    mapping: Mapping,
    backing: Box<dyn Backing>,
    method: Method,
    /// RAM, which every snapshot has too.
    ram: Vec<(Arc<MmapRegion>, GuestAddress)>,
    state: Mutex<State>,
    present: RwLock<Arc<GuestMemoryMmap>>,
}

#[derive(Debug, Default)]
struct State {
    /// What is plugged: ascending, disjoint, maximal.
    runs: Vec<PfnRange>,
    /// Parts of the reservation that someone may still hold; see [`Hotplug::end`].
    handed: Vec<Weak<MmapRegion>>,
    /// Unplugged while someone could still access them.
    lingering: Vec<Lingering>,
}

/// Parts to be released once more when nobody can access them any more.
#[derive(Debug)]
struct Lingering {
    holders: Weak<GuestMemoryMmap>,
    ranges: Vec<PfnRange>,
}

impl Hotplug {
    /// Reserves `pfns` on `kind`, with a file of its own where there are files; nothing is plugged.
    ///
    /// `ram`: the regions of RAM, all below.
    pub(crate) fn new(
        pfns: PfnRange,
        kind: BackingKind,
        ram: Vec<(Arc<MmapRegion>, GuestAddress)>,
    ) -> Result<Self, HostRamError> {
        let (backing, mappings) = backing::map(kind, &[to_usize(pfns.len().bytes())])?;
        let method = probe::choose_method(&*backing, &mappings)?;
        let mapping = mappings.into_iter().next().ok_or(HostRamError::Regions)?;
        let region = Region::new(pfns, &mapping);
        let (state, present) = (Mutex::default(), RwLock::default());
        let hotplug = Self { region, mapping, backing, method, ram, state, present };
        hotplug.publish(&mut hotplug.lock(), Vec::new()).map_err(|_| HostRamError::Regions)?;
        Ok(hotplug)
    }

    pub(crate) const fn region(&self) -> Region {
        self.region
    }

    /// What is there now.
    pub(crate) fn present(&self) -> Arc<GuestMemoryMmap> {
        self.present.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes `range` guest memory that reads zero.
    pub(crate) fn plug(&self, range: PfnRange) -> io::Result<()> {
        // A vCPU may have written where its driver may not; and nobody can see it before the end.
        self.release(&[range]).map_err(|error| error.source)?;
        let mut state = self.lock();
        let runs = with(&state.runs, range);
        self.publish(&mut state, runs).map(drop)
    }

    /// Makes `ranges` no guest memory any more, calls `unmap`, and releases them.
    pub(crate) fn unplug(&self, ranges: &[PfnRange], unmap: impl FnOnce()) -> io::Result<()> {
        let before = {
            let mut state = self.lock();
            let runs = ranges.iter().fold(state.runs.clone(), |runs, range| without(&runs, *range));
            self.publish(&mut state, runs)?
        };
        unmap();
        let released = self.release(ranges);
        // Looked at after the release: whoever has gone by now did what it did before.
        if Arc::strong_count(&before) > 1 {
            let (holders, ranges) = (Arc::downgrade(&before), ranges.to_vec());
            self.lock().lingering.push(Lingering { holders, ranges });
        }
        released.map(drop).map_err(|error| error.source)
    }

    /// Releases again what was accessed after it had been unplugged; returns whether some still may be.
    pub(crate) fn settle(&self) -> bool {
        let mut state = self.lock();
        if state.lingering.is_empty() {
            return false;
        }
        let (left, free): (Vec<_>, Vec<_>) = std::mem::take(&mut state.lingering)
            .into_iter()
            .partition(|lingering| lingering.holders.strong_count() > 0);
        state.lingering = left;
        let is_left = !state.lingering.is_empty();
        let mut stray: Vec<PfnRange> = Vec::new();
        for range in free.iter().flat_map(|lingering| &lingering.ranges) {
            stray = with(&stray, *range);
        }
        let stray = state.runs.iter().fold(stray, |stray, run| without(&stray, *run));
        // Held across this one: a plug of the same blocks has to come after it.
        if let Err(error) = self.release(&stray) {
            log::error!("guest-ram: {error}: {}", error.source);
        }
        is_left
    }

    /// Whether nothing of `range` is plugged.
    pub(crate) fn is_unplugged(&self, range: PfnRange) -> bool {
        self.lock().runs.iter().all(|run| run.intersection(range).is_none())
    }

    /// Gives what is behind `ranges` back; they lie in the region.
    pub(crate) fn release(&self, ranges: &[PfnRange]) -> Result<Discarded, DiscardError> {
        let whole = std::slice::from_ref(&self.region);
        // SAFETY: the region is this value's mapping, on `self.backing`, and lives as long.
        unsafe { release_ranges((&*self.backing, &self.method), whole, ranges) }
    }

    pub(crate) fn resident_bytes(&self) -> Result<Option<u64>, TruthError> {
        self.backing.resident_bytes(&[self.mapping.range()])
    }

    /// Ends the reservation, unless someone still refers to a part of it.
    pub(crate) fn end(self) {
        *self.present.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        let is_held = self.lock().handed.iter().any(|region| region.strong_count() > 0);
        if is_held {
            log::error!("guest-ram: hotplug memory is still referred to; it stays mapped");
            std::mem::forget(self.mapping);
        }
    }

    /// Replaces the snapshot by RAM and `runs`; returns the one before. On an error nothing has changed.
    fn publish(&self, state: &mut State, runs: Vec<PfnRange>) -> io::Result<Arc<GuestMemoryMmap>> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let mut regions = Vec::with_capacity(self.ram.len() + runs.len());
        for (mapped, start) in &self.ram {
            regions.push(GuestRegionMmap::with_arc(mapped.clone(), *start).ok_or_else(invalid)?);
        }
        let mut handed = Vec::with_capacity(runs.len());
        for run in &runs {
            let mapped = Arc::new(self.part(*run)?);
            handed.push(Arc::downgrade(&mapped));
            let start = GuestAddress(run.start().gpa());
            regions.push(GuestRegionMmap::with_arc(mapped, start).ok_or_else(invalid)?);
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|_| invalid())?;
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *present, Arc::new(memory));
        drop(present);
        state.runs = runs;
        state.handed.retain(|region| region.strong_count() > 0);
        state.handed.extend(handed);
        Ok(before)
    }

    /// `run` of the reservation as vm-memory sees it.
    fn part(&self, run: PfnRange) -> io::Result<MmapRegion> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let offset = run.start().offset_from(self.region.pfns().start()).ok_or_else(invalid)?;
        let (offset, len) = (to_usize(offset.bytes()), to_usize(run.len().bytes()));
        self.mapping.slice(offset, len).ok_or_else(invalid)?;
        let start = self.mapping.as_ptr().wrapping_add(offset);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: `slice` has found the part inside the mapping, which is readable and writable and
        // outlives the region: `HostRam::drop` unmaps it only when `end` finds that nobody has one.
        let region = unsafe { MmapRegion::build_raw(start, len, protection, libc::MAP_NORESERVE) };
        region.map_err(io::Error::other)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change replaces whole values, so a panic leaves none half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `runs` and `range`, as maximal runs.
fn with(runs: &[PfnRange], range: PfnRange) -> Vec<PfnRange> {
    let touches = |run: &&PfnRange| run.start() <= range.end() && range.start() <= run.end();
    let start = runs.iter().filter(touches).map(|run| run.start()).min();
    let end = runs.iter().filter(touches).map(|run| run.end()).max();
    let (start, end) = (start.unwrap_or(range.start()), end.unwrap_or(range.end()));
    let merged = PfnRange::new(start.min(range.start()), end.max(range.end()));
    let mut all: Vec<PfnRange> = runs.iter().filter(|run| !touches(run)).copied().collect();
    all.extend(merged.filter(|run| !run.is_empty()));
    all.sort_unstable();
    all
}

/// `runs` without the frames of `range`.
fn without(runs: &[PfnRange], range: PfnRange) -> Vec<PfnRange> {
    let pieces = |run: &PfnRange| {
        let below = PfnRange::new(run.start(), run.end().min(range.start()));
        let above = PfnRange::new(run.start().max(range.end()), run.end());
        [below, above].into_iter().flatten().filter(|piece| !piece.is_empty()).collect::<Vec<_>>()
    };
    runs.iter().flat_map(pieces).collect()
}

#[cfg(test)]
mod tests;
