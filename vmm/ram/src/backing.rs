//! What a kind of host memory must be able to do to serve as guest RAM.

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::error::{HostRamError, TruthError};
use crate::mapping::{HostRange, Mapping};

/// A kind of host memory behind guest RAM.
///
/// An implementation maps the memory, names the call that releases a piece of
/// it, and reads the host's own account of what is held. `HostRam` proves all
/// three on the fresh mapping before a guest sees it.
pub trait Backing: Send + Sync + fmt::Debug {
    /// Which kind this is.
    fn kind(&self) -> BackingKind;

    /// Bytes of a host page; release calls take multiples of it.
    fn page_bytes(&self) -> usize;

    /// Advice with which `process_madvise` releases many pieces at once, if there is such.
    fn batch_advice(&self) -> Option<libc::c_int>;

    /// Releases one piece of the mapping with the backing's own call.
    ///
    /// Afterwards the host holds nothing behind it and reads give zeros; the
    /// probe proves it, a return of success alone proves nothing.
    ///
    /// # Errors
    /// The host's reason.
    ///
    /// # Safety
    /// `piece` lies in a live mapping of guest RAM on this backing, at page
    /// boundaries, and no Rust reference covers it.
    unsafe fn release_one(&self, piece: HostRange) -> io::Result<()>;

    /// Name of the source of truth, for people.
    fn truth_name(&self) -> &'static str;

    /// Bytes that the host holds for `mappings`, by the source of truth; `None`: unverified.
    ///
    /// `mappings`: the whole mappings, ascending.
    ///
    /// # Errors
    /// [`TruthError`].
    fn resident_bytes(&self, mappings: &[HostRange]) -> Result<Option<u64>, TruthError>;
}

/// Makes the backing and one mapping per length, in guest-physical order.
pub(crate) fn map(
    kind: BackingKind,
    lens: &[usize],
) -> Result<(Box<dyn Backing>, Vec<Mapping>), HostRamError> {
    match kind {
        BackingKind::Anon => crate::anon::map(lens),
        BackingKind::Memfd => crate::memfd::map(lens),
    }
}

/// The kinds of host memory that guest RAM can stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackingKind {
    /// Private anonymous memory in 4 KiB pages.
    #[default]
    Anon,
    /// A sealed memory file, mapped shared.
    Memfd,
}

impl BackingKind {
    /// Every kind, in the order in which help texts list them.
    pub const ALL: [Self; 2] = [Self::Anon, Self::Memfd];

    /// The name that `--backing` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Memfd => "memfd",
        }
    }
}

impl fmt::Display for BackingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No backing has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("No backing is called {name:?}; there are: anon, memfd")]
pub struct UnknownBacking {
    /// What was asked.
    pub name: String,
}

impl FromStr for BackingKind {
    type Err = UnknownBacking;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| UnknownBacking { name: name.to_owned() })
    }
}

/// Bytes of the host's base page.
pub(crate) fn base_page_bytes() -> usize {
    // SAFETY: `sysconf` has no memory argument.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

/// `madvise` over one piece, for backings whose release call it is.
///
/// # Safety
/// As [`Backing::release_one`], for an advice that discards contents.
pub(crate) unsafe fn madvise(piece: HostRange, advice: libc::c_int) -> io::Result<()> {
    let start = std::ptr::without_provenance_mut::<libc::c_void>(piece.start);
    // SAFETY: the caller's contract: the piece lies in a live mapping at page boundaries, and
    // no Rust reference covers what the advice discards.
    if unsafe { libc::madvise(start, piece.len, advice) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_named() {
        for kind in BackingKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let error = "swap".parse::<BackingKind>().expect_err("no such backing");
        for kind in BackingKind::ALL {
            assert!(error.to_string().contains(kind.name()));
        }
    }
}
