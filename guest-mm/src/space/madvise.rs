//! madvise and mlock: what a program says about its memory.

use abi::PAGE_SIZE;

use super::age::Aging;
use super::lookup::{SpaceWriteGuard, Vmas};
use super::mprotect::user_part;
use super::structure::AddressSpace;
use super::vma::{VmFlags, Vma};
use crate::addr::VaRange;
use crate::errno::Errno;
use crate::fault::{FaultAccess, FaultError, FaultOutcome};
use crate::mm::Mm;
use crate::pgtable::ZapRules;
use crate::platform::Platform;

/// What madvise says (`MADV_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// The contents are not needed: gone at once.
    DontNeed,
    /// The contents are not needed: gone when memory is short, unless written before.
    Free,
    /// Use 2 MiB blocks.
    HugePage,
    /// Use none.
    NoHugePage,
    /// A child does not get it.
    DontFork,
    /// A child gets it.
    DoFork,
    /// A child gets it empty.
    WipeOnFork,
    /// A child gets it with its contents.
    KeepOnFork,
    /// Fault it in for reading.
    PopulateRead,
    /// Fault it in for writing.
    PopulateWrite,
    /// Not used soon.
    Cold,
    /// Take it out of memory.
    PageOut,
    /// Make it 2 MiB blocks now.
    Collapse,
}

impl Advice {
    /// The advice with Linux's number (`include/uapi/asm-generic/mman-common.h`).
    ///
    /// # Errors
    /// EINVAL: no such advice here.
    pub const fn from_number(number: i32) -> Result<Self, Errno> {
        Ok(match number {
            4 => Self::DontNeed,
            8 => Self::Free,
            10 => Self::DontFork,
            11 => Self::DoFork,
            14 => Self::HugePage,
            15 => Self::NoHugePage,
            18 => Self::WipeOnFork,
            19 => Self::KeepOnFork,
            20 => Self::Cold,
            21 => Self::PageOut,
            22 => Self::PopulateRead,
            23 => Self::PopulateWrite,
            25 => Self::Collapse,
            _ => return Err(Errno::EINVAL),
        })
    }

    /// What the flags of `vma` become, if that is all there is to do.
    fn new_flags<P: Platform>(self, vma: &Vma<'_, P>) -> Option<Result<VmFlags, Errno>> {
        let flags = vma.flags();
        Some(Ok(match self {
            Self::HugePage => (flags - VmFlags::NOHUGEPAGE) | VmFlags::HUGEPAGE,
            Self::NoHugePage => (flags - VmFlags::HUGEPAGE) | VmFlags::NOHUGEPAGE,
            Self::DontFork => flags | VmFlags::DONTCOPY,
            Self::DoFork if flags.contains(VmFlags::PFNMAP) => return Some(Err(Errno::EINVAL)),
            Self::DoFork => flags - VmFlags::DONTCOPY,
            Self::WipeOnFork if !vma.is_anonymous() => return Some(Err(Errno::EINVAL)),
            Self::WipeOnFork => flags | VmFlags::WIPEONFORK,
            Self::KeepOnFork => flags - VmFlags::WIPEONFORK,
            Self::DontNeed
            | Self::Free
            | Self::PopulateRead
            | Self::PopulateWrite
            | Self::Cold
            | Self::PageOut
            | Self::Collapse => return None,
        }))
    }
}

/// The part of a call's range in the user half, and whether there is another.
///
/// # Errors
/// EINVAL: `start` is not page-aligned, or the end overflows. ENOMEM: all of it is the kernel's.
fn advised(start: u64, bytes: u64) -> Result<Option<(VaRange, bool)>, Errno> {
    if !start.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let bytes = bytes.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::EINVAL)?;
    let end = start.checked_add(bytes).ok_or(Errno::EINVAL)?;
    if bytes == 0 {
        return Ok(None);
    }
    user_part(start, end).map(Some).ok_or(Errno::ENOMEM)
}

/// The parts of `range` that VMAs cover, ascending, each with its VMA; changes of
/// the VMA's flags and splits by the caller are allowed.
fn parts<'g, 'm, P: Platform>(
    vmas: &'g Vmas<'_, 'm, P>,
    range: VaRange,
) -> impl Iterator<Item = (&'g Vma<'m, P>, VaRange)> {
    vmas.overlapping(range).filter_map(move |vma| Some((vma, vma.range().intersection(range)?)))
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Takes advice about the pages of `bytes` bytes from `start`.
    ///
    /// # Errors
    /// * EINVAL: `start` is not page-aligned, the range overflows, or a VMA is not of the kind that
    ///   the advice is for (DONTNEED and FREE: locked, or special pages; FREE and WIPEONFORK: not
    ///   anonymous; POPULATE: no permission); COLLAPSE always, as on a Linux without it.
    ///   What lies before that VMA is done.
    /// * ENOMEM: a part is not mapped; all others are done (POPULATE: those before).
    /// * EAGAIN: no memory, or no VMA left, to split one.
    /// * EFAULT, EHWPOISON: POPULATE met a bus error.
    pub fn madvise(
        &self,
        space: &AddressSpace<'m, P>,
        start: u64,
        bytes: u64,
        advice: Advice,
    ) -> Result<(), Errno> {
        let Some((range, beyond)) = advised(start, bytes)? else { return Ok(()) };
        let covered = match advice {
            Advice::PopulateRead => self.populate(space, range, FaultAccess::Read),
            Advice::PopulateWrite => self.populate(space, range, FaultAccess::Write),
            Advice::HugePage
            | Advice::NoHugePage
            | Advice::DontFork
            | Advice::DoFork
            | Advice::WipeOnFork
            | Advice::KeepOnFork => self.advise_vmas(&space.write(), range, advice),
            Advice::DontNeed | Advice::Free | Advice::Cold | Advice::PageOut => {
                self.advise_pages(space, range, advice)
            }
            Advice::Collapse => Err(Errno::EINVAL),
        };
        let covered = covered?;
        if beyond || covered < range.pages().get() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Advice that changes VMAs. Returns the pages that VMAs cover.
    fn advise_vmas(
        &self,
        guard: &SpaceWriteGuard<'_, 'm, P>,
        range: VaRange,
        advice: Advice,
    ) -> Result<u64, Errno> {
        let mut covered = 0;
        for (vma, part) in parts(guard, range) {
            let flags = advice.new_flags(vma).unwrap_or(Err(Errno::EINVAL))?;
            self.change_part(guard, vma, part, flags).map_err(|_| Errno::EAGAIN)?;
            covered += part.pages().get();
        }
        self.merge_at(guard, range.end());
        Ok(covered)
    }

    /// Advice about pages. Returns the pages that VMAs cover.
    fn advise_pages(
        &self,
        space: &AddressSpace<'m, P>,
        range: VaRange,
        advice: Advice,
    ) -> Result<u64, Errno> {
        let guard = space.read();
        let mut covered = 0;
        for (vma, part) in parts(&guard, range) {
            self.advise_part(space, vma, part, advice)?;
            covered += part.pages().get();
        }
        Ok(covered)
    }

    fn advise_part(
        &self,
        space: &AddressSpace<'m, P>,
        vma: &Vma<'m, P>,
        part: VaRange,
        advice: Advice,
    ) -> Result<(), Errno> {
        let flags = vma.flags();
        if flags.intersects(VmFlags::LOCKED | VmFlags::PFNMAP) {
            return Err(Errno::EINVAL);
        }
        match advice {
            Advice::DontNeed => {
                self.zap_leaves(space, part, ZapRules::DISCARD).map_err(|_| Errno::EAGAIN)
            }
            Advice::Free if !vma.is_anonymous() => Err(Errno::EINVAL),
            Advice::Free => {
                self.age_leaves(space, part, Aging::Free);
                Ok(())
            }
            Advice::Cold => {
                self.age_leaves(space, part, Aging::Cold);
                Ok(())
            }
            Advice::PageOut => {
                self.pageout(space, part);
                Ok(())
            }
            Advice::HugePage
            | Advice::NoHugePage
            | Advice::DontFork
            | Advice::DoFork
            | Advice::WipeOnFork
            | Advice::KeepOnFork
            | Advice::PopulateRead
            | Advice::PopulateWrite
            | Advice::Collapse => Err(Errno::EINVAL),
        }
    }

    /// Faults the pages of `range` in, up to the first hole. Returns the pages that were.
    ///
    /// # Errors
    /// EINVAL: a VMA does not allow it; ENOMEM: no memory; EFAULT, EHWPOISON: a bus error.
    pub(super) fn populate(
        &self,
        space: &AddressSpace<'m, P>,
        range: VaRange,
        access: FaultAccess,
    ) -> Result<u64, Errno> {
        let mut done = 0;
        for page in range.iter_pages() {
            loop {
                match self.handle_fault(space, page, access) {
                    Ok(FaultOutcome::Raced) => {}
                    Ok(_) => break,
                    Err(FaultError::SegvMapErr) => return Ok(done),
                    Err(FaultError::SegvAccErr) => return Err(Errno::EINVAL),
                    Err(FaultError::Oom) => return Err(Errno::ENOMEM),
                    Err(FaultError::Bus) => return Err(Errno::EFAULT),
                    Err(FaultError::HwPoison) => return Err(Errno::EHWPOISON),
                }
            }
            done += 1;
        }
        Ok(done)
    }

    /// Locks the pages of `bytes` bytes from `start` in memory, and faults them in.
    ///
    /// # Errors
    /// * EINVAL: the range overflows.
    /// * ENOMEM: a part is not mapped, or cannot be faulted in, or no memory. What lies before the hole is locked.
    pub fn mlock(&self, space: &AddressSpace<'m, P>, start: u64, bytes: u64) -> Result<(), Errno> {
        let Some(range) = self.change_locked(space, start, bytes, true)? else { return Ok(()) };
        self.fault_in_range(space, range).map_err(|_| Errno::ENOMEM)
    }

    /// Undoes [`Self::mlock`].
    ///
    /// # Errors
    /// As there.
    pub fn munlock(
        &self,
        space: &AddressSpace<'m, P>,
        start: u64,
        bytes: u64,
    ) -> Result<(), Errno> {
        self.change_locked(space, start, bytes, false).map(drop)
    }

    fn change_locked(
        &self,
        space: &AddressSpace<'m, P>,
        start: u64,
        bytes: u64,
        locked: bool,
    ) -> Result<Option<VaRange>, Errno> {
        // Both take the pages that the bytes touch, wherever they start.
        let first = start & !(PAGE_SIZE - 1);
        let end = start.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
        let end = end.ok_or(Errno::EINVAL)?;
        if bytes == 0 {
            return Ok(None);
        }
        let part = user_part(first, end).ok_or(Errno::ENOMEM)?;
        let guard = space.write();
        self.change_vmas(&guard, part, |vma| {
            let rest = vma.flags() - VmFlags::LOCKED;
            Ok(if locked { rest | VmFlags::LOCKED } else { rest })
        })?;
        Ok(Some(part.0))
    }

    /// Faults the pages of `range` in for what each VMA allows: as written where
    /// writes are private, so that they stay.
    pub(super) fn fault_in_range(
        &self,
        space: &AddressSpace<'m, P>,
        range: VaRange,
    ) -> Result<(), Errno> {
        let mut at = range.start();
        while at < range.end() {
            let (part, access) = {
                let guard = space.read();
                let vma = guard.lookup(at).ok_or(Errno::ENOMEM)?;
                let flags = vma.flags();
                let own = flags.contains(VmFlags::WRITE) && !flags.contains(VmFlags::SHARED);
                let part = VaRange::new(at, vma.end().min(range.end())).ok_or(Errno::ENOMEM)?;
                (part, if own { FaultAccess::Write } else { FaultAccess::Read })
            };
            self.populate(space, part, access)?;
            at = part.end();
        }
        Ok(())
    }
}
