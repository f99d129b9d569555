//! The slow path: page by page, under locks, with page faults in between.

use abi::{PageCount, Pfn};

use super::fast::must_unshare;
use super::{GupFlags, Hold, PagePin, PageRef, UserPage, check};
use crate::addr::VirtAddr;
use crate::errno::Errno;
use crate::fault::{FaultAccess, FaultError};
use crate::folio::FolioKind;
use crate::mm::Mm;
use crate::pgtable::{HwLeaf, LeafSize, NoTable, PmdState, PteState, Size2M};
use crate::platform::Platform;
use crate::space::{AddressSpace, VmFlags, Vma};

/// What a look at a leaf, under its lock, came to.
enum Follow<H> {
    /// The page is held.
    Held(UserPage<H>),
    /// It is not there, or not as it is wanted: this fault makes it so.
    Fault(FaultAccess),
    /// It cannot be had.
    Fail(Errno),
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Pins the pages from `va` on for whoever uses their contents: fills `out`
    /// from its start and returns how many pages it got. `va` is rounded down to
    /// a page; an empty `out` is 0 pages.
    ///
    /// Handles page faults as the process would. May wait; the caller holds no
    /// lock and is in no read section.
    ///
    /// # Errors
    /// Only if the first page could not be had. EOVERFLOW: the range ends beyond
    /// 2^64. EFAULT: it leaves the user half; nothing is mapped; the mapping
    /// forbids the access; the page cannot be provided, or only by a fault and
    /// NOFAULT is set. ENOMEM: no memory, or LONGTERM where the page cannot stay.
    /// EOPNOTSUPP: LONGTERM for device memory. EINTR: the process is being killed.
    pub fn pin_user_pages(
        &self,
        space: &AddressSpace<'m, P>,
        va: u64,
        flags: GupFlags,
        out: &mut [Option<PagePin<'m>>],
    ) -> Result<usize, Errno> {
        let va = check(va, out.len(), flags, true)?;
        self.gup_slow(space, va, flags, out, 0)
    }

    /// As [`Self::pin_user_pages`], by the fast path as far as that gets.
    ///
    /// # Errors
    /// As there.
    pub fn pin_user_pages_fast(
        &self,
        space: &AddressSpace<'m, P>,
        va: u64,
        flags: GupFlags,
        out: &mut [Option<PagePin<'m>>],
    ) -> Result<usize, Errno> {
        let va = check(va, out.len(), flags, true)?;
        let done = self.gup_fast::<_, true>(space, va, flags, out, || ());
        self.gup_slow(space, va, flags, out, done)
    }

    /// References the pages from `va` on for whoever looks at their state: as
    /// [`Self::pin_user_pages`] without pins.
    ///
    /// # Errors
    /// As there; EINVAL with LONGTERM, which needs a pin.
    pub fn get_user_pages(
        &self,
        space: &AddressSpace<'m, P>,
        va: u64,
        flags: GupFlags,
        out: &mut [Option<PageRef<'m>>],
    ) -> Result<usize, Errno> {
        let va = check(va, out.len(), flags, false)?;
        self.gup_slow(space, va, flags, out, 0)
    }

    /// As [`Self::get_user_pages`], by the fast path as far as that gets.
    ///
    /// # Errors
    /// As there.
    pub fn get_user_pages_fast(
        &self,
        space: &AddressSpace<'m, P>,
        va: u64,
        flags: GupFlags,
        out: &mut [Option<PageRef<'m>>],
    ) -> Result<usize, Errno> {
        let va = check(va, out.len(), flags, false)?;
        let done = self.gup_fast::<_, true>(space, va, flags, out, || ());
        self.gup_slow(space, va, flags, out, done)
    }

    /// Goes on behind the first `done` pages.
    fn gup_slow<H: Hold<'m>>(
        &self,
        space: &AddressSpace<'m, P>,
        va: VirtAddr,
        flags: GupFlags,
        out: &mut [Option<UserPage<H>>],
        mut done: usize,
    ) -> Result<usize, Errno> {
        for (slot, page) in out.iter_mut().zip(va.page()..).skip(done) {
            debug_assert!(slot.is_none(), "a held page would be lost");
            let page = VirtAddr::of_page(page).ok_or(Errno::EFAULT);
            match page.and_then(|page| self.slow_page(space, page, flags)) {
                Ok(held) => *slot = Some(held),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            done += 1;
        }
        Ok(done)
    }

    /// Holds the page at `va`, by faults if it takes some.
    fn slow_page<H: Hold<'m>>(
        &self,
        space: &AddressSpace<'m, P>,
        va: VirtAddr,
        flags: GupFlags,
    ) -> Result<UserPage<H>, Errno> {
        loop {
            if space.is_dead() {
                return Err(Errno::EINTR);
            }
            let follow = {
                let vma = space.vma_read(va)?;
                check_vma(vma.flags(), flags)?;
                self.follow(space, &vma, va, flags)
            };
            match follow {
                Follow::Held(page) => return Ok(page),
                Follow::Fail(error) => return Err(error),
                Follow::Fault(_) if flags.contains(GupFlags::NOFAULT) => return Err(Errno::EFAULT),
                // Whatever it did, the next look shows; the page may be gone again.
                Follow::Fault(access) => match self.handle_fault(space, va, access) {
                    Ok(_) => {}
                    Err(error) => return Err(errno_of(error, space.is_dead())),
                },
            }
        }
    }

    /// Looks at the leaf of `va` under its lock.
    fn follow<H: Hold<'m>>(
        &self,
        space: &AddressSpace<'m, P>,
        vma: &Vma<'m, P>,
        va: VirtAddr,
        flags: GupFlags,
    ) -> Follow<H> {
        let want = Want { mm: self, vma_flags: vma.flags(), flags };
        let tables = space.tables();
        match tables.lock_pte(va) {
            Ok(table) => match table.state(va) {
                PteState::Present(pte) => want.present(pte, PageCount::ZERO),
                PteState::None | PteState::Soft(_) => want.fault(),
                PteState::Unknown(_) => Follow::Fail(Errno::EFAULT),
            },
            Err(NoTable::Huge(_)) => {
                match tables.lock_pmd(va).map(|table| (table.state(va), table)) {
                    Ok((PmdState::Present(pmd), _table)) => {
                        want.present(pmd, PageCount::new(va.page() % (1 << Size2M::ORDER)))
                    }
                    // Changed since: a fault that has nothing to do shows what it is now.
                    Ok((PmdState::None | PmdState::Soft(_) | PmdState::Table(_), _)) => {
                        want.fault()
                    }
                    Ok((PmdState::Unknown(_), _)) => Follow::Fail(Errno::EFAULT),
                    Err(_) => want.fault(),
                }
            }
            Err(NoTable::Hole { .. }) => want.fault(),
            Err(NoTable::Unknown(_)) => Follow::Fail(Errno::EFAULT),
        }
    }
}

/// What is wanted of a page.
struct Want<'a, 'm, P: Platform> {
    mm: &'a Mm<'m, P>,
    vma_flags: VmFlags,
    flags: GupFlags,
}

impl<'m, P: Platform> Want<'_, 'm, P> {
    /// The fault that brings the page in.
    fn fault<H>(&self) -> Follow<H> {
        let is_write = self.flags.contains(GupFlags::WRITE);
        Follow::Fault(if is_write { FaultAccess::Write } else { FaultAccess::Read })
    }

    /// Page `index` of a present leaf, whose lock is held: the mapping keeps the folio.
    fn present<H: Hold<'m>, S: LeafSize>(&self, leaf: HwLeaf<S>, index: PageCount) -> Follow<H> {
        let is_write = self.flags.contains(GupFlags::WRITE);
        if !leaf.is_readable() || (is_write && !leaf.is_writable()) {
            return self.fault();
        }
        let Some(pfn) = leaf.pfn().checked_add(index) else { return Follow::Fail(Errno::EFAULT) };
        if leaf.is_special() {
            return self.zero_page(pfn);
        }
        let Ok(folio) = self.mm.folio_of(pfn) else { return Follow::Fail(Errno::EFAULT) };
        let verdict = match folio.kind() {
            FolioKind::Anon if must_unshare::<H>(self.flags, leaf.is_anon_exclusive()) => {
                Err(Follow::Fault(FaultAccess::Unshare))
            }
            FolioKind::File | FolioKind::Device if self.will_be_replaced() => {
                Err(Follow::Fault(FaultAccess::Unshare))
            }
            FolioKind::Anon | FolioKind::File | FolioKind::Device => {
                self.stays(&folio, pfn).map_err(Follow::Fail)
            }
        };
        match verdict {
            Ok(()) => Follow::Held(UserPage::new(Some(H::take(folio)), pfn)),
            Err(follow) => {
                // Not the last: the leaf has its own, under the lock that is held.
                self.mm.put(folio);
                follow
            }
        }
    }

    /// The zero page: nothing is counted, and nothing happens to it.
    fn zero_page<H: Hold<'m>>(&self, pfn: Pfn) -> Follow<H> {
        if pfn != self.mm.base().zero_page {
            return Follow::Fail(Errno::EFAULT);
        }
        if self.will_be_replaced() {
            return Follow::Fault(FaultAccess::Unshare);
        }
        Follow::Held(UserPage::new(None, pfn))
    }

    /// Whether the process's next write replaces a page that is not anonymous,
    /// while somebody relies on it for ever: a private mapping that may be
    /// written (`is_cow_mapping`).
    fn will_be_replaced(&self) -> bool {
        let is_private = !self.vma_flags.contains(VmFlags::SHARED);
        self.flags.contains(GupFlags::LONGTERM)
            && is_private
            && self.vma_flags.contains(VmFlags::MAYWRITE)
    }

    /// Whether the page can be held where it is for as long as the flags say.
    fn stays(&self, folio: &crate::folio::Folio, pfn: Pfn) -> Result<(), Errno> {
        if self.flags.contains(GupFlags::LONGTERM) {
            self.mm.check_longterm(folio, pfn)
        } else {
            Ok(())
        }
    }
}

/// Whether a mapping with these rights may be held so.
fn check_vma(vma: VmFlags, flags: GupFlags) -> Result<(), Errno> {
    let needed = if flags.contains(GupFlags::WRITE) { VmFlags::WRITE } else { VmFlags::READ };
    let allowed = vma.contains(needed) && !vma.contains(VmFlags::PFNMAP);
    if allowed { Ok(()) } else { Err(Errno::EFAULT) }
}

/// What a caller of GUP hears of a fault that failed.
const fn errno_of(error: FaultError, is_dead: bool) -> Errno {
    match error {
        FaultError::SegvMapErr
        | FaultError::SegvAccErr
        | FaultError::Bus
        | FaultError::HwPoison => Errno::EFAULT,
        FaultError::Oom if is_dead => Errno::EINTR,
        FaultError::Oom => Errno::ENOMEM,
    }
}
