//! A range of an address space with one set of rules.

use core::ptr::NonNull;

use bitflags::bitflags;

use super::AddressSpace;
use crate::addr::{VaRange, VirtAddr};
use crate::pagecache::FileMapping;
use crate::platform::Platform;
use crate::rcu::RcuHead;
use crate::rmap::{AnonVma, VmaRmap};
use crate::sync::shim::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

bitflags! {
    /// What a VMA allows and asks for (`include/linux/mm.h`, names without `VM_`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct VmFlags: u32 {
        /// May be read.
        const READ = 1 << 0;
        /// May be written.
        const WRITE = 1 << 1;
        /// May be executed.
        const EXEC = 1 << 2;
        /// Writes reach the file, and are seen by all who map it.
        const SHARED = 1 << 3;
        /// mprotect may allow reading.
        const MAYREAD = 1 << 4;
        /// mprotect may allow writing.
        const MAYWRITE = 1 << 5;
        /// mprotect may allow execution.
        const MAYEXEC = 1 << 6;
        /// Locked in memory.
        const LOCKED = 1 << 8;
        /// MADV_HUGEPAGE.
        const HUGEPAGE = 1 << 9;
        /// MADV_NOHUGEPAGE.
        const NOHUGEPAGE = 1 << 10;
        /// Not copied by fork (MADV_DONTFORK).
        const DONTCOPY = 1 << 11;
        /// Empty in the child after fork (MADV_WIPEONFORK).
        const WIPEONFORK = 1 << 12;
        /// Neither grown nor merged; special pages.
        const PFNMAP = 1 << 13;
        /// Soft-dirty tracking was cleared here.
        const SOFTDIRTY = 1 << 14;
    }
}

/// A range of an address space with one set of rules: `vm_area_struct`.
///
/// Fields change under the space's lock and the VMA's, both for writing; a
/// lockless reader takes the VMA's lock for reading and looks again.
pub struct Vma<'m, P: Platform> {
    pub(crate) space: NonNull<AddressSpace<'m, P>>,
    pub(crate) start: AtomicU64,
    pub(crate) end: AtomicU64,
    /// Page offset of `start`: in the file, or for anonymous memory of the virtual address it was first mapped at.
    pub(crate) pgoff: AtomicU64,
    pub(crate) flags: AtomicU32,
    /// The mapped file, which the VMA holds a reference of.
    pub(crate) file: Option<NonNull<FileMapping<'m, P>>>,
    /// Where its anonymous folios are looked up; null until the first one.
    pub(crate) anon_vma: AtomicPtr<AnonVma<'m, P>>,
    /// Its places in reverse maps.
    pub(crate) rmap: VmaRmap<'m, P>,
    /// Readers, or a writer: see `space::vma_lock`.
    pub(crate) lock: AtomicU32,
    /// Frees it after a grace period.
    pub(crate) rcu: RcuHead,
}

impl<P: Platform> Vma<'_, P> {
    /// Its addresses.
    pub fn range(&self) -> VaRange {
        let at = |field: &AtomicU64| VirtAddr::new(field.load(Ordering::Relaxed));
        at(&self.start)
            .zip(at(&self.end))
            .and_then(|(start, end)| VaRange::new(start, end))
            .unwrap_or_else(|| unreachable!("VMAs are ranges of whole pages"))
    }

    /// What it allows.
    pub fn flags(&self) -> VmFlags {
        VmFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    /// Page offset of `address`, which lies in the VMA: what its folio has as index.
    pub fn linear_index(&self, address: VirtAddr) -> u64 {
        let first = self.start.load(Ordering::Relaxed) >> abi::PAGE_SHIFT;
        self.pgoff.load(Ordering::Relaxed) + (address.page() - first)
    }
}
