//! [`HostRam`]: guest RAM on a proven backing.

use std::io;
use std::sync::Arc;

use abi::{PageCount, PfnRange};
use devices::ram::{DiscardError, Discarded, GuestRam};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::backing::{self, Backing, BackingKind};
use crate::error::{HostRamError, TruthError};
use crate::host_memory::{self, HostMemory};
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
/// Everything is fixed at construction and every method takes `&self`, so
/// threads share one behind an `Arc`.
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
        let region =
            |(&pfns, mapping): (&PfnRange, &Mapping)| Region { pfns, hva: mapping.range().start() };
        let regions = pfn_ranges.iter().zip(&mappings).map(region).collect();
        log::debug!("guest-ram: bytes={ram_bytes} backing={kind} release={}", method.name());
        Ok(Self { memory, held, mappings, regions, pfn_ranges, backing, method })
    }

    /// The regions, ascending: one, or two around the MMIO gap.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Guest RAM in pages.
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

    /// Bytes of guest RAM that the host holds now, by the source of truth; `None`: unverified.
    ///
    /// On `anon` the kernel walks guest RAM's page tables: some milliseconds
    /// per resident GiB. Not for a vCPU's path.
    ///
    /// # Errors
    /// [`TruthError`].
    pub fn resident_bytes(&self) -> Result<Option<u64>, TruthError> {
        let whole: Vec<HostRange> = self.mappings.iter().map(Mapping::range).collect();
        self.backing.resident_bytes(&whole)
    }

    fn translate(&self, range: PfnRange) -> Option<HostRange> {
        self.regions.iter().find_map(|region| region.translate(range))
    }
}

impl GuestRam for HostRam {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn ram_ranges(&self) -> &[PfnRange] {
        &self.pfn_ranges
    }

    fn discard(&self, ranges: &[PfnRange]) -> Result<Discarded, DiscardError> {
        let mut pieces = Vec::with_capacity(ranges.len());
        for &range in ranges {
            let Some(piece) = self.translate(range) else {
                let source =
                    io::Error::new(io::ErrorKind::InvalidInput, "not a range of guest RAM");
                return Err(DiscardError { range, done: Discarded::default(), source });
            };
            pieces.push(piece);
        }
        // SAFETY: the pieces lie in `self.mappings`, which live as long as `self` is borrowed, at
        // page boundaries (`PfnRange`); guest RAM is reached by volatile access only.
        let calls = unsafe { HostCalls::new(&*self.backing, &self.method) };
        let outcome = release_pieces(&calls, &pieces);
        let pages = PageCount::new(outcome.bytes / abi::PAGE_SIZE);
        let done = Discarded { pages, calls: outcome.calls };
        match outcome.refused {
            None => Ok(done),
            Some((index, source)) => Err(DiscardError { range: ranges[index], done, source }),
        }
    }
}

impl Drop for HostRam {
    fn drop(&mut self) {
        self.memory = GuestMemoryMmap::default();
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
