//! [`HostRam`]: guest RAM on a proven backing.

use std::io;
use std::sync::Arc;

use abi::{PageCount, PfnRange};
use devices::ram::{DiscardError, Discarded, GuestRam, PresentMemory};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::backing::{self, Backing, BackingKind};
use crate::error::{HostRamError, TruthError};
use crate::host_memory::{self, HostMemory};
use crate::hotplug::Hotplug;
use crate::layout;
use crate::mapping::{HostRange, Mapping, to_usize};
use crate::prefault;
use crate::probe;
use crate::release::{HostCalls, Method, release_pieces};

/// When the host provides the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefault {
    /// On the guest's first touch of each page.
    #[default]
    OnDemand,
    /// All of it before the guest starts.
    All,
}

/// A range of guest RAM and where it is mapped: what a KVM memory slot needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pfns: PfnRange,
    hva: usize,
}

impl Region {
    /// `pfns`, mapped whole by `mapping`.
    pub(crate) fn new(pfns: PfnRange, mapping: &Mapping) -> Self {
        Self { pfns, hva: mapping.range().start() }
    }

    /// Guest-physical address of the first byte.
    pub const fn gpa(&self) -> u64 {
        self.pfns.start().gpa()
    }

    /// Length in bytes.
    pub const fn len_bytes(&self) -> u64 {
        self.pfns.len().bytes()
    }

    /// Address of the first byte in this process; valid while the [`HostRam`] lives.
    pub const fn hva(&self) -> u64 {
        self.hva as u64
    }

    /// The frames.
    pub const fn pfns(&self) -> PfnRange {
        self.pfns
    }

    /// Where `range` is mapped, if it lies in this region.
    fn translate(&self, range: PfnRange) -> Option<HostRange> {
        let offset = range.start().offset_from(self.pfns.start())?;
        self.pfns.contains_range(range).then(|| HostRange {
            start: self.hva + to_usize(offset.bytes()),
            len: to_usize(range.len().bytes()),
        })
    }
}

/// Guest RAM: mapped, proven to be releasable, and measurable.
///
/// RAM is fixed at construction, hotplug memory comes and goes above it. Every
/// method takes `&self`, so threads share one behind an `Arc`.
#[derive(Debug)]
pub struct HostRam {
    memory: GuestMemoryMmap,
    /// What `memory` and its clones hold; see `drop`.
    held: Vec<Arc<MmapRegion>>,
    mappings: Vec<Mapping>,
    regions: Vec<Region>,
    pfn_ranges: Vec<PfnRange>,
    backing: Box<dyn Backing>,
    method: Method,
    hotplug: Option<Hotplug>,
}

impl HostRam {
    /// Maps `ram_bytes` of guest RAM on `kind`, proves that it can be released, and populates it if asked to.
    ///
    /// # Errors
    /// [`HostRamError`]: an impossible size, memory that the host does not
    /// give, or a backing that does not free what it is told to free.
    pub fn new(
        ram_bytes: u64,
        kind: BackingKind,
        prefault: Prefault,
    ) -> Result<Self, HostRamError> {
        Self::with_hotplug(ram_bytes, kind, prefault, None)
    }

    /// The same, with a region of so many bytes in which memory can be plugged; see [`layout::hotplug_range`].
    ///
    /// It holds no memory until something is plugged and touched, and is never populated in advance.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_hotplug(
        ram_bytes: u64,
        kind: BackingKind,
        prefault: Prefault,
        hotplug_bytes: Option<u64>,
    ) -> Result<Self, HostRamError> {
        let hotplug = hotplug_bytes.map(|bytes| layout::hotplug_range(ram_bytes, bytes));
        let hotplug = hotplug.transpose()?;
        let pfn_ranges = layout::ram_ranges(ram_bytes)?;
        host_memory::judge(ram_bytes, prefault == Prefault::All, HostMemory::read())?;
        let lens: Vec<usize> =
            pfn_ranges.iter().map(|range| to_usize(range.len().bytes())).collect();
        let (backing, mappings) = backing::map(kind, &lens)?;
        let method = probe::choose_method(&*backing, &mappings)?;
        if prefault == Prefault::All {
            prefault::populate(&mappings, backing.page_bytes())?;
        }
        let (memory, held) = guest_memory(&pfn_ranges, &mappings)?;
        let region = |(&pfns, mapping): (&PfnRange, &Mapping)| Region::new(pfns, mapping);
        let regions = pfn_ranges.iter().zip(&mappings).map(region).collect();
        let starts = pfn_ranges.iter().map(|range| GuestAddress(range.start().gpa()));
        let ram = held.iter().cloned().zip(starts).collect();
        let hotplug = hotplug.map(|pfns| Hotplug::new(pfns, kind, ram)).transpose()?;
        log::debug!("guest-ram: bytes={ram_bytes} backing={kind} release={}", method.name());
        Ok(Self { memory, held, mappings, regions, pfn_ranges, backing, method, hotplug })
    }

    /// The regions, ascending: one, or two around the MMIO gap.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Guest RAM in pages, without hotplug memory.
    pub fn pages(&self) -> PageCount {
        let lens = self.pfn_ranges.iter().map(|range| range.len());
        lens.fold(PageCount::ZERO, PageCount::saturating_add)
    }

    /// The backing.
    pub fn backing(&self) -> BackingKind {
        self.backing.kind()
    }

    /// How memory is released here, as found out at start.
    pub fn release_method(&self) -> &'static str {
        self.method.name()
    }

    /// Name of the backing's source of truth.
    pub fn truth_name(&self) -> &'static str {
        self.backing.truth_name()
    }

    /// Bytes of guest RAM and hotplug memory that the host holds now, by the source of truth; `None`: unverified.
    ///
    /// On `anon` the kernel walks guest RAM's page tables: some milliseconds
    /// per resident GiB. Not for a vCPU's path.
    ///
    /// # Errors
    /// [`TruthError`].
    pub fn resident_bytes(&self) -> Result<Option<u64>, TruthError> {
        let whole: Vec<HostRange> = self.mappings.iter().map(Mapping::range).collect();
        let ram = self.backing.resident_bytes(&whole)?;
        let hotplug = self.hotplug_resident_bytes()?;
        Ok(ram.zip(hotplug).map(|(ram, hotplug)| ram.saturating_add(hotplug)))
    }

    /// The same of hotplug memory alone; 0 where there is none.
    ///
    /// # Errors
    /// [`TruthError`].
    pub fn hotplug_resident_bytes(&self) -> Result<Option<u64>, TruthError> {
        self.hotplug.as_ref().map_or(Ok(Some(0)), Hotplug::resident_bytes)
    }

    /// Where hotplug memory can be, if it can.
    pub fn hotplug_region(&self) -> Option<Region> {
        self.hotplug.as_ref().map(Hotplug::region)
    }

    /// Makes `range` guest memory that reads zero. Nothing of it is plugged, and it lies in the region.
    ///
    /// # Errors
    /// The host's reason, or `InvalidInput` outside the region; nothing is plugged then.
    pub fn plug(&self, range: PfnRange) -> io::Result<()> {
        self.hotplug()?.plug(range)
    }

    /// Makes `ranges` no guest memory any more, calls `unmap`, and gives what is behind them back to the host.
    ///
    /// `ranges`: sorted, disjoint, all of them plugged. `unmap`: takes them from the vCPUs.
    ///
    /// # Errors
    /// The host kept some of it; unplugged it is all the same.
    pub fn unplug(&self, ranges: &[PfnRange], unmap: impl FnOnce()) -> io::Result<()> {
        self.hotplug()?.unplug(ranges, unmap)
    }

    /// Whether nothing of `range` is plugged.
    pub fn is_unplugged(&self, range: PfnRange) -> bool {
        self.hotplug.as_ref().is_none_or(|hotplug| hotplug.is_unplugged(range))
    }

    /// Releases again what a device has accessed after it had been unplugged; returns whether one still may.
    pub fn settle(&self) -> bool {
        self.hotplug.as_ref().is_some_and(Hotplug::settle)
    }

    fn hotplug(&self) -> io::Result<&Hotplug> {
        self.hotplug.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }
}

impl GuestRam for HostRam {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn present(&self) -> PresentMemory<'_> {
        match &self.hotplug {
            None => PresentMemory::Fixed(&self.memory),
            Some(hotplug) => PresentMemory::Snapshot(hotplug.present()),
        }
    }

    fn ram_ranges(&self) -> &[PfnRange] {
        &self.pfn_ranges
    }

    fn hotplug_range(&self) -> Option<PfnRange> {
        self.hotplug_region().map(|region| region.pfns())
    }

    fn discard(&self, ranges: &[PfnRange]) -> Result<Discarded, DiscardError> {
        let hotplug = self.hotplug.as_ref();
        let is_ram = |range: &PfnRange| {
            hotplug.is_none_or(|hotplug| range.start() < hotplug.region().pfns().start())
        };
        // Sorted, and hotplug memory is above RAM.
        let (ram, above) = ranges.split_at(ranges.partition_point(is_ram));
        // SAFETY: `self.regions` are `self.mappings`, on `self.backing`, and live as long as `self` is borrowed.
        let done = unsafe { release_ranges((&*self.backing, &self.method), &self.regions, ram) }?;
        let Some(hotplug) = hotplug.filter(|_| !above.is_empty()) else { return Ok(done) };
        let sum = |more: Discarded| Discarded {
            pages: done.pages.saturating_add(more.pages),
            calls: done.calls + more.calls,
        };
        let more = hotplug.release(above);
        more.map(sum).map_err(|error| DiscardError { done: sum(error.done), ..error })
    }
}

/// Releases `ranges`, or nothing if one of them is in no region.
///
/// # Safety
/// `regions` are live mappings on the backing, and no Rust reference covers them.
pub(crate) unsafe fn release_ranges(
    (backing, method): (&dyn Backing, &Method),
    regions: &[Region],
    ranges: &[PfnRange],
) -> Result<Discarded, DiscardError> {
    let mut pieces = Vec::with_capacity(ranges.len());
    for &range in ranges {
        let Some(piece) = regions.iter().find_map(|region| region.translate(range)) else {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a range of guest RAM");
            return Err(DiscardError { range, done: Discarded::default(), source });
        };
        pieces.push(piece);
    }
    // SAFETY: the pieces lie in `regions`, which the caller's contract says are live, at page
    // boundaries (`PfnRange`); guest RAM is reached by volatile access only.
    let calls = unsafe { HostCalls::new(backing, method) };
    let outcome = release_pieces(&calls, &pieces);
    let pages = PageCount::new(outcome.bytes / abi::PAGE_SIZE);
    let done = Discarded { pages, calls: outcome.calls };
    match outcome.refused {
        None => Ok(done),
        Some((index, source)) => Err(DiscardError { range: ranges[index], done, source }),
    }
}

impl Drop for HostRam {
    fn drop(&mut self) {
        self.memory = GuestMemoryMmap::default();
        if let Some(hotplug) = self.hotplug.take() {
            hotplug.end();
        }
        // `into_inner` is exact: it cannot race with a clone that goes away.
        let is_last_holder = self.held.drain(..).all(|region| Arc::into_inner(region).is_some());
        if !is_last_holder {
            log::error!("guest-ram: guest memory is still referred to; it stays mapped");
            self.mappings.drain(..).for_each(std::mem::forget);
        }
    }
}

/// The mappings as vm-memory sees them, and the references that tell whether someone else holds them.
fn guest_memory(
    ranges: &[PfnRange],
    mappings: &[Mapping],
) -> Result<(GuestMemoryMmap, Vec<Arc<MmapRegion>>), HostRamError> {
    let inconsistent = || HostRamError::Regions;
    let mut regions = Vec::with_capacity(ranges.len());
    let mut held = Vec::with_capacity(ranges.len());
    for (range, mapping) in ranges.iter().zip(mappings) {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the mapping is `len` bytes long and readable and writable. It outlives the
        // region: `HostRam::drop` unmaps it only when it holds the last reference to the region.
        let region = unsafe {
            MmapRegion::build_raw(mapping.as_ptr(), mapping.len(), protection, libc::MAP_NORESERVE)
        };
        let region = Arc::new(region.map_err(|_| inconsistent())?);
        held.push(Arc::clone(&region));
        let start = GuestAddress(range.start().gpa());
        regions.push(GuestRegionMmap::with_arc(region, start).ok_or_else(inconsistent)?);
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|_| inconsistent())?;
    Ok((memory, held))
}

#[cfg(test)]
mod tests;
