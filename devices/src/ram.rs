//! Guest RAM as devices see it: reads and writes, and giving memory back.

use std::ops::Deref;
use std::sync::Arc;

use abi::{PageCount, PfnRange};
use vm_memory::GuestMemoryMmap;

/// Guest RAM that a device may access and release.
///
/// `guest-ram` implements it over real backings; tests fake it.
pub trait GuestRam: Send + Sync {
    /// The RAM that is always there, for whoever sets up a guest. Devices use [`Self::present`].
    fn memory(&self) -> &GuestMemoryMmap;

    /// All memory that is there now: the RAM, and what is plugged of hotplug memory.
    ///
    /// Devices reach queues and buffers through it, and take it anew for each
    /// request: what was unplugged in between is refused then.
    fn present(&self) -> PresentMemory<'_> {
        PresentMemory::Fixed(self.memory())
    }

    /// The ranges of RAM that is always there: sorted, disjoint, not empty.
    fn ram_ranges(&self) -> &[PfnRange];

    /// Where hotplug memory may be, above all RAM: a balloon may claim what is plugged of it.
    fn hotplug_range(&self) -> Option<PfnRange> {
        None
    }

    /// Gives the host memory behind `ranges` back; the guest reads zeros there afterwards.
    ///
    /// `ranges`: sorted, disjoint, each inside one of [`Self::ram_ranges`] or of [`Self::hotplug_range`].
    /// On return with `Ok`, every range has been released: no later access by
    /// the guest can see the old contents.
    ///
    /// # Errors
    /// [`DiscardError`] with what was released before the host refused; ranges
    /// after the refused one are still tried.
    fn discard(&self, ranges: &[PfnRange]) -> Result<Discarded, DiscardError>;

    /// The smallest piece whose release frees anything.
    fn release_unit(&self) -> ReleaseUnit {
        ReleaseUnit::Page
    }
}

/// The memory that is there at one moment.
pub enum PresentMemory<'a> {
    /// It never changes.
    Fixed(&'a GuestMemoryMmap),
    /// It has changed, or will: this is how it was. What is unplugged meanwhile can still be accessed through this, and
    /// is given back to the host again when the last such holder has gone.
    Snapshot(Arc<GuestMemoryMmap>),
}

impl Deref for PresentMemory<'_> {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        match self {
            Self::Fixed(memory) => memory,
            Self::Snapshot(memory) => memory,
        }
    }
}

/// The smallest piece of guest RAM that a backing can free, aligned to its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseUnit {
    /// A page of 4 KiB.
    Page,
    /// A block of 2 MiB, as on hugetlb.
    Block2M,
}

/// What one [`GuestRam::discard`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Discarded {
    /// Pages whose release the host accepted.
    pub pages: PageCount,
    /// System calls it took.
    pub calls: u64,
}

/// The host refused to release memory.
#[derive(Debug, thiserror::Error)]
#[error("Releasing {range:?} failed after {} pages", .done.pages.get())]
pub struct DiscardError {
    /// The first range that was refused.
    pub range: PfnRange,
    /// What was released all the same.
    pub done: Discarded,
    /// The host's reason.
    #[source]
    pub source: std::io::Error,
}
