//! mprotect: other permissions.

use abi::PAGE_SIZE;

use super::lookup::SpaceWriteGuard;
use super::structure::AddressSpace;
use super::vma::{VmFlags, Vma};
use crate::addr::{VaRange, VirtAddr};
use crate::errno::Errno;
use crate::mm::Mm;
use crate::pgtable::{PageProt, Protection, Sharing};
use crate::platform::Platform;

/// The pages that a call names, up to the end of the user half, and whether some lie
/// beyond, where nothing is mapped. `None`: all do.
pub(super) fn user_part(start: u64, end: u64) -> Option<(VaRange, bool)> {
    let last = VirtAddr::new(end).unwrap_or(VirtAddr::END);
    let range = VaRange::new(VirtAddr::new(start)?, last)?;
    Some((range, end > last.get()))
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Changes what the pages of `bytes` bytes from `start` allow.
    ///
    /// # Errors
    /// * EINVAL: `start` is not page-aligned, or unknown bits in `prot`.
    /// * ENOMEM: a page of the range is not mapped, or no memory or VMA to split one.
    /// * EACCES: the file was not opened for that.
    ///
    /// As on Linux, what lies before the place in question has been changed then.
    pub fn mprotect(
        &self,
        space: &AddressSpace<'m, P>,
        start: u64,
        bytes: u64,
        prot: PageProt,
    ) -> Result<(), Errno> {
        if !PageProt::all().contains(prot) || !start.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if bytes == 0 {
            return Ok(());
        }
        let bytes = bytes.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        let end = start.checked_add(bytes).ok_or(Errno::ENOMEM)?;
        let part = user_part(start, end).ok_or(Errno::ENOMEM)?;
        let guard = space.write();
        self.change_vmas(&guard, part, |vma| {
            let flags = (vma.flags() - VmFlags::ACCESS) | VmFlags::of_prot(prot);
            if vma.flags().contains(flags.needed_may()) { Ok(flags) } else { Err(Errno::EACCES) }
        })
    }

    /// Gives every VMA of a range the flags that `rule` says, splitting and merging
    /// them; leaves follow if the permissions change. The range comes with whether it
    /// goes on beyond the user half ([`user_part`]).
    ///
    /// # Errors
    /// ENOMEM at a hole, beyond the user half, or from a split; or the rule's. What lies before is changed.
    pub(super) fn change_vmas(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        (range, goes_on): (VaRange, bool),
        rule: impl Fn(&Vma<'m, P>) -> Result<VmFlags, Errno>,
    ) -> Result<(), Errno> {
        let mut at = range.start();
        while at < range.end() {
            let vma = guard.lookup(at).ok_or(Errno::ENOMEM)?;
            let part = VaRange::new(at, vma.end().min(range.end()))
                .unwrap_or_else(|| unreachable!("`at` lies in the VMA and the range"));
            self.change_part(guard, vma, part, rule(vma)?)?;
            at = part.end();
        }
        self.merge_at(guard, range.end());
        if goes_on { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Gives `part` of `vma` these flags, and merges it with what lies below.
    pub(super) fn change_part(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        vma: &Vma<'m, P>,
        part: VaRange,
        flags: VmFlags,
    ) -> Result<(), Errno> {
        let changed = vma.flags() ^ flags;
        if changed.is_empty() {
            self.merge_at(guard, part.start());
            return Ok(());
        }
        self.isolate(guard, part)?;
        let vma = guard.lookup(part.start()).ok_or(Errno::ENOMEM)?;
        guard.lock_vma(vma);
        vma.set_flags(flags);
        if changed.intersects(VmFlags::ACCESS) {
            let shared = flags.contains(VmFlags::SHARED);
            let to = Protection {
                prot: flags.prot(),
                sharing: if shared { Sharing::Shared } else { Sharing::Private },
                tracks_soft_dirty: !flags.contains(VmFlags::SOFTDIRTY),
            };
            let changed = self.protect_leaves(guard.space(), part, to);
            debug_assert!(changed.is_ok(), "PMD leaves were split where VMAs end: {changed:?}");
        }
        self.merge_at(guard, part.start());
        Ok(())
    }
}
