//! Private anonymous memory in 4 KiB pages.

use std::io;

use crate::backing::{self, Backing, BackingKind};
use crate::error::{HostRamError, TruthError};
use crate::mapping::{HostRange, Mapping, Source};
use crate::smaps;

/// Released by `MADV_DONTNEED`; measured by `Anonymous` + `Swap` in `/proc/self/smaps`.
#[derive(Debug)]
pub(crate) struct Anon;

/// Maps one area per length.
pub(crate) fn map(lens: &[usize]) -> Result<(Box<dyn Backing>, Vec<Mapping>), HostRamError> {
    let total = lens.iter().map(|&len| len as u64).sum();
    let mut mappings = Vec::with_capacity(lens.len());
    for &len in lens {
        let mapping = Mapping::new(len, Source::Anonymous).map_err(|source| HostRamError::Map {
            bytes: total,
            backing: BackingKind::Anon,
            hint: "an address-space limit (ulimit -v), or strict accounting (vm.overcommit_memory=2)",
            source,
        })?;
        // A discard of part of a huge page lowers `Anonymous` and frees nothing until the page
        // is split: with huge pages the source of truth would lie.
        mapping.hint(libc::MADV_NOHUGEPAGE);
        mapping.hint(libc::MADV_DONTDUMP);
        mappings.push(mapping);
    }
    Ok((Box::new(Anon), mappings))
}

impl Backing for Anon {
    fn kind(&self) -> BackingKind {
        BackingKind::Anon
    }

    fn page_bytes(&self) -> usize {
        backing::base_page_bytes()
    }

    fn batch_advice(&self) -> Option<libc::c_int> {
        Some(libc::MADV_DONTNEED)
    }

    unsafe fn release_one(&self, piece: HostRange) -> io::Result<()> {
        // SAFETY: the caller's contract is that of `madvise`.
        unsafe { backing::madvise(piece, libc::MADV_DONTNEED) }
    }

    fn truth_name(&self) -> &'static str {
        "smaps Anonymous+Swap of guest RAM"
    }

    fn resident_bytes(&self, mappings: &[HostRange]) -> Result<Option<u64>, TruthError> {
        smaps::anonymous_and_swap_bytes(mappings).map(Some)
    }
}
