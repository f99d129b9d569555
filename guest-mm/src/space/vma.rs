//! A range of an address space with one set of rules.

use core::ptr::{self, NonNull};

use abi::PageCount;
use bitflags::bitflags;

use super::AddressSpace;
use super::vma_lock::{LockSeq, Lockable, VmaLock};
use crate::addr::{VaRange, VirtAddr};
use crate::pagecache::FileMapping;
use crate::pgtable::PageProt;
use crate::platform::Platform;
use crate::rcu::{Deferrable, RcuHead};
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
        /// All of it counts as written, whatever its leaves say: it is new, grown or moved.
        /// Who clears soft-dirty bits clears this too; from then on the leaves tell.
        const SOFTDIRTY = 1 << 14;
    }
}

impl VmFlags {
    /// READ, WRITE and EXEC.
    pub const ACCESS: Self = Self::READ.union(Self::WRITE).union(Self::EXEC);
    /// MAYREAD, MAYWRITE and MAYEXEC.
    pub const MAY_ALL: Self = Self::MAYREAD.union(Self::MAYWRITE).union(Self::MAYEXEC);

    /// The access flags that `prot` asks for.
    pub fn of_prot(prot: PageProt) -> Self {
        let mut flags = Self::empty();
        flags.set(Self::READ, prot.contains(PageProt::READ));
        flags.set(Self::WRITE, prot.contains(PageProt::WRITE));
        flags.set(Self::EXEC, prot.contains(PageProt::EXEC));
        flags
    }

    /// What the access flags let a program do.
    pub fn prot(self) -> PageProt {
        let mut prot = PageProt::empty();
        prot.set(PageProt::READ, self.contains(Self::READ));
        prot.set(PageProt::WRITE, self.contains(Self::WRITE));
        prot.set(PageProt::EXEC, self.contains(Self::EXEC));
        prot
    }

    /// The MAY flags that the access flags need.
    pub fn needed_may(self) -> Self {
        let mut may = Self::empty();
        may.set(Self::MAYREAD, self.contains(Self::READ));
        may.set(Self::MAYWRITE, self.contains(Self::WRITE));
        may.set(Self::MAYEXEC, self.contains(Self::EXEC));
        may
    }
}

/// A range of an address space with one set of rules: `vm_area_struct`.
///
/// `start`, `end`, `pgoff` and `flags` change under the space's lock, held for
/// writing, and the VMA's own; who holds either for reading sees them stand
/// still. Objects are freed after a grace period.
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
    /// Readers, or a writer.
    pub(crate) lock: VmaLock,
    /// The next VMA that the same write section took out of the tree.
    pub(super) next_removed: AtomicPtr<Vma<'m, P>>,
    /// Frees it after a grace period.
    pub(crate) rcu: RcuHead,
}

// SAFETY: its pointers lead to objects that are shared between CPUs and kept
// alive by counts and locks, not by who holds the VMA; all else is atomic.
unsafe impl<P: Platform> Send for Vma<'_, P> {}
// SAFETY: as for `Send`.
unsafe impl<P: Platform> Sync for Vma<'_, P> {}

// SAFETY: the head is the object's own, and used by the queue alone.
unsafe impl<P: Platform> Deferrable for Vma<'_, P> {
    fn rcu_head(&self) -> &RcuHead {
        &self.rcu
    }
}

impl<P: Platform> Lockable for Vma<'_, P> {
    fn vma_lock(&self) -> &VmaLock {
        &self.lock
    }

    fn covers(&self, address: u64) -> bool {
        let start = self.start.load(Ordering::Relaxed);
        start <= address && address < self.end.load(Ordering::Relaxed)
    }
}

impl<'m, P: Platform> Vma<'m, P> {
    /// A VMA of `space` that is in no tree yet: its maker's.
    pub(super) fn new(
        space: &AddressSpace<'m, P>,
        seq: &LockSeq,
        range: VaRange,
        pgoff: u64,
        flags: VmFlags,
        file: Option<NonNull<FileMapping<'m, P>>>,
    ) -> Self {
        Self {
            space: NonNull::from(space),
            start: AtomicU64::new(range.start().get()),
            end: AtomicU64::new(range.end().get()),
            pgoff: AtomicU64::new(pgoff),
            flags: AtomicU32::new(flags.bits()),
            file,
            anon_vma: AtomicPtr::new(ptr::null_mut()),
            rmap: VmaRmap::new(),
            lock: VmaLock::new(seq),
            next_removed: AtomicPtr::new(ptr::null_mut()),
            rcu: RcuHead::new(),
        }
    }

    /// Its addresses.
    pub fn range(&self) -> VaRange {
        VaRange::new(self.start(), self.end())
            .unwrap_or_else(|| unreachable!("VMAs are ranges of whole pages"))
    }

    /// Its first address.
    pub fn start(&self) -> VirtAddr {
        VirtAddr::new(self.start.load(Ordering::Relaxed)).unwrap_or(VirtAddr::END)
    }

    /// One past its last address.
    pub fn end(&self) -> VirtAddr {
        VirtAddr::new(self.end.load(Ordering::Relaxed)).unwrap_or(VirtAddr::END)
    }

    /// Its length.
    pub fn pages(&self) -> PageCount {
        self.range().pages()
    }

    /// What it allows.
    pub fn flags(&self) -> VmFlags {
        VmFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }

    /// Page offset of its first page.
    pub fn pgoff(&self) -> u64 {
        self.pgoff.load(Ordering::Relaxed)
    }

    /// The mapped file, if any; shared anonymous memory has one too.
    pub fn file(&self) -> Option<NonNull<FileMapping<'m, P>>> {
        self.file
    }

    /// Whether it maps no file: `vma_is_anonymous`.
    pub fn is_anonymous(&self) -> bool {
        self.file.is_none()
    }

    /// Where its anonymous folios are looked up, if it has had one.
    pub fn anon_vma(&self) -> Option<NonNull<AnonVma<'m, P>>> {
        // Acquire pairs with the Release of who stored it.
        NonNull::new(self.anon_vma.load(Ordering::Acquire))
    }

    /// Page offset of `address`, which lies in the VMA: what its folio has as index.
    pub fn linear_index(&self, address: VirtAddr) -> u64 {
        let first = self.start.load(Ordering::Relaxed) >> abi::PAGE_SHIFT;
        self.pgoff() + (address.page() - first)
    }

    /// Sets its range and the offset of its first page; the space's lock, its own and
    /// those of its reverse maps are held for writing.
    pub(super) fn set_span(&self, range: VaRange, pgoff: u64) {
        self.start.store(range.start().get(), Ordering::Relaxed);
        self.end.store(range.end().get(), Ordering::Relaxed);
        self.pgoff.store(pgoff, Ordering::Relaxed);
    }

    /// Sets what it allows; its lock is held for writing.
    pub(super) fn set_flags(&self, flags: VmFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// The key of its entry in the space's tree: its last page.
    pub(super) fn key(&self) -> u64 {
        key_of(self.end())
    }
}

/// The key of a VMA that ends at `end`.
pub(super) fn key_of(end: VirtAddr) -> u64 {
    end.page().saturating_sub(1)
}

impl<P: Platform> core::fmt::Debug for Vma<'_, P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "vma:{} {:?} pgoff {:x}", self.range(), self.flags(), self.pgoff())
    }
}
