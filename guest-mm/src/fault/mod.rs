//! Page faults: what happens when a program touches a page that its tables do
//! not let it touch.
//!
//! The entry is [`Mm::handle_fault`]. A round takes the VMA's lock, looks at the
//! leaf, prepares what it needs without the leaf's lock, and looks again under
//! it. Whatever is busy is waited for with no lock held; then the next round
//! starts from the top. See `docs/faults.md`.
//!
//! Lock order: VMA or mmap for reading, folio, PMD, PTE.

mod access;
mod anon;
mod device;
mod file;
mod huge;
mod leaf;
mod outcome;
mod policy;
mod present;
mod stats;
mod swap;
pub(crate) mod wait;
mod wp;

pub use access::{FaultAccess, read_only_prot};
pub use device::DeviceFaults;
pub(crate) use device::DeviceSlot;
pub use outcome::{FaultError, FaultOutcome};
pub use policy::FAULT_AROUND_PAGES;
pub use stats::{FaultCounters, FaultEvent, FaultStats};

use abi::PAGE_SHIFT;

use crate::addr::VirtAddr;
use crate::errno::Errno;
use crate::memory::AllocError;
use crate::mm::Mm;
use crate::pgtable::{Entry, Found, MakeTableError, PteGuard, Sharing, Tables};
use crate::platform::Platform;
use crate::space::{AddressSpace, VmFlags, Vma, Vmas};
use leaf::{PmdStep, PteStep, pmd_step, pte_step};
use swap::SwapLeaf;
use wait::{MemoryWait, Wait};

/// One round: the outcome, or why there is none yet.
type Round<'m> = Result<FaultOutcome, Stop<'m>>;

/// Why a round ended without an outcome.
enum Stop<'m> {
    /// The fault cannot be served.
    Fail(FaultError),
    /// Something is busy: wait for it, then start over.
    Wait(Wait<'m>),
    /// The VMA's lock does not suffice: start over with the space's.
    SpaceLock,
}

impl From<MakeTableError> for Stop<'_> {
    fn from(error: MakeTableError) -> Self {
        match error {
            MakeTableError::OutOfMemory(_) => Self::Wait(Wait::Memory),
            // Counted by the walk that met it.
            MakeTableError::Unknown(_) => Self::Fail(FaultError::Bus),
            MakeTableError::OutOfRange => Self::Fail(FaultError::SegvMapErr),
        }
    }
}

impl From<Errno> for Stop<'_> {
    /// An error of a call that fails for want of memory only.
    fn from(error: Errno) -> Self {
        debug_assert_eq!(error, Errno::ENOMEM, "nothing else was to be expected");
        Self::Wait(Wait::Memory)
    }
}

/// Which lock a round takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Locking {
    /// The VMA's, or the space's if that cannot be had at once.
    Vma,
    /// The space's.
    Space,
}

impl From<FaultError> for Stop<'_> {
    fn from(error: FaultError) -> Self {
        Self::Fail(error)
    }
}

impl From<AllocError> for Stop<'_> {
    fn from(_: AllocError) -> Self {
        Self::Wait(Wait::Memory)
    }
}

/// A page fault in one round, with its VMA locked for reading.
struct Fault<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    space: &'a AddressSpace<'m, P>,
    vma: &'a Vma<'m, P>,
    /// Its neighbours too, if the space's lock is held.
    locked: Option<&'a Vmas<'a, 'm, P>>,
    flags: VmFlags,
    /// First address of the page.
    page: VirtAddr,
    access: FaultAccess,
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Serves a page fault: makes `access` to `address` possible, or says why it
    /// is not. Afterwards the access is tried again; it may fault again, if
    /// somebody else took the page away meanwhile.
    ///
    /// May wait: for I/O, for a folio's lock, for memory. The caller holds no lock and is
    /// in no read section.
    ///
    /// # Errors
    /// The signal that the program gets.
    pub fn handle_fault(
        &self,
        space: &AddressSpace<'m, P>,
        address: VirtAddr,
        access: FaultAccess,
    ) -> Result<FaultOutcome, FaultError> {
        let served = self.fault_rounds(space, address.align_down(PAGE_SHIFT), access);
        let cpu = self.platform().cpu();
        match served {
            Ok(outcome) => self.faults.note_outcome(cpu, outcome),
            Err(_) => self.faults.note(cpu, FaultEvent::Failed, 1),
        }
        served
    }

    fn fault_rounds(
        &self,
        space: &AddressSpace<'m, P>,
        page: VirtAddr,
        access: FaultAccess,
    ) -> Result<FaultOutcome, FaultError> {
        let mut memory = MemoryWait::default();
        let mut locking = Locking::Vma;
        loop {
            if space.is_dead() {
                return Err(FaultError::Oom);
            }
            match self.fault_round(space, page, access, locking) {
                Ok(outcome) => return Ok(outcome),
                Err(Stop::Fail(error)) => return Err(error),
                Err(Stop::SpaceLock) => locking = Locking::Space,
                Err(Stop::Wait(wait)) => {
                    self.note_fault(FaultEvent::Retry);
                    self.await_for_fault(space, page, wait, &mut memory)?;
                }
            }
        }
    }

    fn fault_round(
        &self,
        space: &AddressSpace<'m, P>,
        page: VirtAddr,
        access: FaultAccess,
        locking: Locking,
    ) -> Round<'m> {
        if locking == Locking::Vma
            && let Some(vma) = space.lock_vma_under_rcu(page)
        {
            return self.fault_in(space, &vma, None, page, access);
        }
        self.note_fault(FaultEvent::MmapLock);
        let guard = space.read();
        let vma = guard.lookup(page).ok_or(FaultError::SegvMapErr)?;
        self.fault_in(space, vma, Some(&guard), page, access)
    }

    fn fault_in(
        &self,
        space: &AddressSpace<'m, P>,
        vma: &Vma<'m, P>,
        locked: Option<&Vmas<'_, 'm, P>>,
        page: VirtAddr,
        access: FaultAccess,
    ) -> Round<'m> {
        let flags = vma.flags();
        access.check(flags)?;
        Fault { mm: self, space, vma, locked, flags, page, access }.serve()
    }

    fn note_fault(&self, event: FaultEvent) {
        self.faults.note(self.platform().cpu(), event, 1);
    }
}

/// What a look at the tables without their locks showed.
enum Seen {
    /// Nothing in the directory.
    Hole,
    /// This in the PTE table.
    Pte(Entry),
    /// This in the directory: a leaf.
    Pmd(Entry),
}

impl<'a, 'm, P: Platform> Fault<'a, 'm, P> {
    fn serve(&self) -> Round<'m> {
        match self.look()? {
            Seen::Hole => match self.map_huge()? {
                Some(outcome) => Ok(outcome),
                None => self.absent(Entry::NONE, false),
            },
            Seen::Pte(seen) => self.serve_pte(seen),
            Seen::Pmd(seen) => self.serve_pmd(seen),
        }
    }

    fn look(&self) -> Result<Seen, Stop<'m>> {
        let section = self.mm.base().rcu.read(self.mm.platform().cpu());
        match self.tables().walk(&section, self.page) {
            Found::Hole => Ok(Seen::Hole),
            Found::Pte { entry, .. } => Ok(Seen::Pte(entry)),
            Found::Pmd { entry, .. } => Ok(Seen::Pmd(entry)),
            Found::Unknown(_) => self.fail(FaultError::Bus, Some(FaultEvent::UnknownLeaf)),
        }
    }

    fn serve_pte(&self, seen: Entry) -> Round<'m> {
        match pte_step(seen.pte(), self.access, self.sharing()) {
            PteStep::Absent { uffd_wp } => self.absent(seen, uffd_wp),
            PteStep::Sufficient(_) => Ok(self.touch(seen)),
            PteStep::RestoreRights(_) => Ok(self.restore_rights(seen)),
            PteStep::WriteProtect(pte) => self.write_protect(seen, pte),
            PteStep::SwapIn { leaf, slot, exclusive } => {
                self.swap_in(SwapLeaf { entry: seen, leaf, slot, exclusive })
            }
            PteStep::AwaitChange => Err(Stop::Wait(Wait::Leaf(seen))),
            PteStep::Device(leaf) => self.bring_back_from_device(leaf),
            PteStep::Fail(error, event) => self.fail(error, event),
        }
    }

    fn serve_pmd(&self, seen: Entry) -> Round<'m> {
        match pmd_step(seen.pmd(), self.access, self.sharing()) {
            // Changed since the look.
            PmdStep::Absent | PmdStep::Table => Ok(FaultOutcome::Raced),
            PmdStep::Sufficient(_) => Ok(self.touch_huge(seen)),
            PmdStep::RestoreRights(_) => Ok(self.restore_huge_rights(seen)),
            PmdStep::WriteProtect(pmd) => self.write_protect_huge(seen, pmd),
            PmdStep::AwaitChange => Err(Stop::Wait(Wait::Leaf(seen))),
            PmdStep::Device(leaf) => self.bring_back_from_device(leaf.leaf()),
            PmdStep::Fail(error, event) => self.fail(error, event),
        }
    }

    /// A page that is not there, by what the VMA maps.
    fn absent(&self, seen: Entry, uffd_wp: bool) -> Round<'m> {
        if self.flags.contains(VmFlags::PFNMAP) {
            // Its owner maps its pages when the VMA is made, or not at all.
            return self.fail(FaultError::Bus, None);
        }
        match self.vma.file() {
            Some(file) => self.absent_file_page(seen, uffd_wp, file),
            None if self.access.is_write() => self.new_anon_page(seen),
            None => self.zero_page(seen, uffd_wp),
        }
    }

    fn tables(&self) -> Tables<'a, P> {
        self.space.tables()
    }

    fn sharing(&self) -> Sharing {
        if self.flags.contains(VmFlags::SHARED) { Sharing::Shared } else { Sharing::Private }
    }

    /// Locks the PTE table if `seen` still stands at the page; makes the table if
    /// nothing stood there. `None` if somebody was faster.
    ///
    /// Whoever kills a process marks it dead before he takes its pages, under the same locks. So nothing
    /// is put where its pages were, and no zeros are read for what it had written (Linux's `MMF_UNSTABLE`).
    fn lock_same(&self, seen: Entry) -> Result<Option<PteGuard<'a, P>>, Stop<'m>> {
        let tables = self.tables();
        let guard = if seen.is_none() {
            match tables.alloc_lock_pte(self.page) {
                Ok(guard) => guard.ok(),
                Err(error) => return Err(error.into()),
            }
        } else {
            tables.lock_pte(self.page).ok()
        };
        if self.space.is_dead() {
            return Err(FaultError::Oom.into());
        }
        Ok(guard.filter(|guard| guard.load(self.page) == seen))
    }

    fn fail<T>(&self, error: FaultError, event: Option<FaultEvent>) -> Result<T, Stop<'m>> {
        if let Some(event) = event {
            self.mm.note_fault(event);
        }
        Err(error.into())
    }
}

#[cfg(test)]
mod tests;
