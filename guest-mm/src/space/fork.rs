//! fork: a child that shares everything until one of the two writes.

use super::lifetime::SpaceRef;
use super::lookup::SpaceWriteGuard;
use super::object::NewVma;
use super::structure::AddressSpace;
use super::vma::{VmFlags, Vma};
use crate::errno::Errno;
use crate::mm::Mm;
use crate::pgtable::{ForkError, ForkRules, Sharing};
use crate::platform::Platform;
use crate::sync::shim::Ordering;

impl<'m, P: Platform> Mm<'m, P> {
    /// Makes a copy of a space.
    ///
    /// Private pages are shared read-only until one side writes, but pinned ones,
    /// which the child gets copies of; shared files are faulted in by the child
    /// itself. VMAs of MADV_DONTFORK are left out, those of MADV_WIPEONFORK are empty.
    ///
    /// # Errors
    /// ENOMEM; EIO: a device did not give a page back; EINTR: the parent was killed, and has its
    /// pages no more. There is no child then, and a living parent is as before but that some of its
    /// pages are write-protected until their next fault.
    pub fn fork(&self, parent: &AddressSpace<'m, P>) -> Result<SpaceRef<'m, P>, Errno> {
        let child = self.new_space()?;
        let copied = loop {
            let copied = {
                let from = parent.write();
                // Whoever kills it marks it dead first, and takes its pages under its lock.
                if parent.is_dead() {
                    break Err(Errno::EINTR);
                }
                let to = child.write_nested();
                let limit = parent.max_pages.load(Ordering::Relaxed);
                child.max_pages.store(limit, Ordering::Relaxed);
                self.copy_space(&from, &to)
            };
            match copied {
                Err(ForkError::Restore(at)) => {
                    // The fault waits, so it comes without locks, and then all over again.
                    self.unmap_all(&child);
                    if let Err(error) = self.restore_exclusive(parent, at) {
                        break Err(error);
                    }
                }
                Err(ForkError::OutOfMemory) => break Err(Errno::ENOMEM),
                Ok(()) => break Ok(()),
            }
        };
        match copied {
            Ok(()) => Ok(child),
            Err(error) => {
                self.exit_space(child);
                Err(error)
            }
        }
    }

    /// Ends a device's exclusive access to the page at `at`.
    fn restore_exclusive(
        &self,
        parent: &AddressSpace<'m, P>,
        at: crate::addr::VirtAddr,
    ) -> Result<(), Errno> {
        let served = self.handle_fault(parent, at, crate::fault::FaultAccess::Read);
        served.map(drop).map_err(|_| Errno::EIO)
    }

    fn copy_space(
        &self,
        from: &SpaceWriteGuard<'_, 'm, P>,
        to: &SpaceWriteGuard<'_, 'm, P>,
    ) -> Result<(), ForkError> {
        for vma in from.iter() {
            if !vma.flags().contains(VmFlags::DONTCOPY) {
                self.copy_vma(from, to, vma)?;
            }
        }
        Ok(())
    }

    fn copy_vma(
        &self,
        from: &SpaceWriteGuard<'_, 'm, P>,
        to: &SpaceWriteGuard<'_, 'm, P>,
        vma: &Vma<'m, P>,
    ) -> Result<(), ForkError> {
        from.lock_vma(vma);
        let flags = vma.flags();
        let wiped = flags.contains(VmFlags::WIPEONFORK);
        let no_memory = |_: Errno| ForkError::OutOfMemory;
        // What is locked in memory is so in the parent alone.
        let flags_there = flags - VmFlags::LOCKED;
        let new = NewVma::new(self, to.space(), vma.range(), vma.pgoff(), flags_there, vma.file())
            .map_err(no_memory)?;
        if !wiped {
            self.anon_vma_fork(new.vma(), vma).map_err(no_memory)?;
        }
        let new = to.insert(new).map_err(no_memory)?;
        self.vma_link_file(new);
        // Without anonymous pages the child can fault everything in from the file.
        if wiped || vma.anon_vma().is_none() {
            return Ok(());
        }
        let shared = flags.contains(VmFlags::SHARED);
        let rules = ForkRules {
            sharing: if shared { Sharing::Shared } else { Sharing::Private },
            child_has_uffd: false,
        };
        self.copy_leaves(from.space(), (to.space(), new), vma.range(), rules)
    }
}
