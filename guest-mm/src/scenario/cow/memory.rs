//! The kinds of memory that cases run on, and how to come by them.

use core::fmt;

use abi::PAGE_SIZE;

use super::super::split_huge_page::split_at;
use super::super::{Ctx, Failure, Machine, Outcome, Process, check};
use super::OLD;
use crate::addr::{PMD_SIZE, VirtAddr};
use crate::errno::Errno;
use crate::gup::{Contents, GupFlags, PagePin};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::pgtable::{Found, PageProt, PmdState, PteState};
use crate::space::{Advice, MmapArgs, RemapArgs, RemapFlags};

/// Pages of a THP.
const THP_PAGES: usize = 512;

/// A kind of private anonymous memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// A page.
    Base,
    /// A page that was swapped out.
    SwappedBase,
    /// 2 MiB, mapped by a PMD.
    Thp,
    /// The same, swapped out.
    SwappedThp,
    /// 2 MiB, mapped by PTEs.
    PteMappedThp,
    /// The same, swapped out.
    SwappedPteMappedThp,
    /// The only page that is still mapped of 2 MiB.
    SinglePte,
    /// The same, swapped out.
    SwappedSinglePte,
    /// The half of 2 MiB that stayed when the other was moved.
    PartialMremapThp,
    /// 2 MiB, of which a child had the first page.
    PartialSharedThp,
}

impl Kind {
    /// All kinds.
    pub(in super::super) const ALL: [Self; 10] = [
        Self::Base,
        Self::SwappedBase,
        Self::Thp,
        Self::SwappedThp,
        Self::PteMappedThp,
        Self::SwappedPteMappedThp,
        Self::SinglePte,
        Self::SwappedSinglePte,
        Self::PartialMremapThp,
        Self::PartialSharedThp,
    ];

    const fn is_swapped(self) -> bool {
        matches!(
            self,
            Self::SwappedBase
                | Self::SwappedThp
                | Self::SwappedPteMappedThp
                | Self::SwappedSinglePte
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "base",
            Self::SwappedBase => "swapped-base",
            Self::Thp => "thp",
            Self::SwappedThp => "swapped-thp",
            Self::PteMappedThp => "pte-mapped-thp",
            Self::SwappedPteMappedThp => "swapped-pte-mapped-thp",
            Self::SinglePte => "single-pte",
            Self::SwappedSinglePte => "swapped-single-pte",
            Self::PartialMremapThp => "partial-mremap-thp",
            Self::PartialSharedThp => "partial-shared-thp",
        })
    }
}

/// A process with memory of one kind, filled with [`OLD`].
pub(in super::super) struct Memory<'a, 'm, M: Machine> {
    pub(in super::super) process: Process<'a, 'm, M>,
    pub(in super::super) start: u64,
    pub(in super::super) pages: u64,
}

impl<'a, 'm, M: Machine> Memory<'a, 'm, M> {
    /// Makes it; `None` if there is no huge page or no swap to be had.
    ///
    /// # Errors
    /// Whatever fails on the way.
    pub(in super::super) fn new(ctx: &Ctx<'a, 'm, M>, kind: Kind) -> Result<Option<Self>, Failure> {
        let process = Process::new(ctx.mm)?;
        let made = match kind {
            Kind::Base | Kind::SwappedBase => Some(Self::base(process)?),
            Kind::Thp | Kind::SwappedThp => Self::thp(process)?,
            Kind::PteMappedThp | Kind::SwappedPteMappedThp => match Self::thp(process)? {
                Some(thp) => Some(thp.map_by_ptes()?),
                None => None,
            },
            Kind::SinglePte | Kind::SwappedSinglePte => match Self::thp(process)? {
                Some(thp) => Some(thp.keep_one()?),
                None => None,
            },
            Kind::PartialMremapThp => match Self::thp(process)? {
                Some(thp) => Some(thp.move_half()?),
                None => None,
            },
            Kind::PartialSharedThp => match Self::thp(process)? {
                Some(thp) => Some(thp.share_first()?),
                None => None,
            },
        };
        match made {
            Some(memory) if kind.is_swapped() => memory.swap_out(),
            Some(memory) => Ok(Some(memory)),
            None => Ok(None),
        }
    }

    fn bytes(&self) -> u64 {
        self.pages * PAGE_SIZE
    }

    fn base(process: Process<'a, 'm, M>) -> Result<Self, Failure> {
        let start = process.mmap(MmapArgs::anonymous(PAGE_SIZE))?;
        process.madvise(start, PAGE_SIZE, Advice::NoHugePage)?;
        process.fill(start, 1, OLD)?;
        Ok(Self { process, start, pages: 1 })
    }

    fn thp(process: Process<'a, 'm, M>) -> Result<Option<Self>, Failure> {
        let area = process.mmap(MmapArgs::anonymous(2 * PMD_SIZE))?;
        let start = area.next_multiple_of(PMD_SIZE);
        process.madvise(start, PMD_SIZE, Advice::HugePage)?;
        process.fill(start, THP_PAGES as u64, OLD)?;
        let memory = Self { process, start, pages: THP_PAGES as u64 };
        Ok(memory.is_mapped_by_pmd().then_some(memory))
    }

    fn found<R>(&self, va: u64, look: impl FnOnce(Found<'_>) -> R) -> R {
        let mm = self.process.mm();
        let section = mm.base().rcu.read(mm.platform().cpu());
        let va = VirtAddr::new(va).unwrap_or(VirtAddr::ZERO);
        look(self.process.space().tables().walk(&section, va))
    }

    fn is_mapped_by_pmd(&self) -> bool {
        self.found(self.start, |found| {
            matches!(found, Found::Pmd { entry, .. } if matches!(entry.pmd(), PmdState::Present(_)))
        })
    }

    /// Whether every page is in swap.
    fn is_swapped(&self) -> bool {
        (0..self.pages).all(|page| {
            self.found(self.start + page * PAGE_SIZE, |found| {
                matches!(found, Found::Pte { entry, .. } if matches!(entry.pte(), PteState::Soft(_)))
            })
        })
    }

    /// A change of rights of one page and back leaves a table in the PMD's place.
    fn map_by_ptes(self) -> Result<Self, Failure> {
        let second = self.start + PAGE_SIZE;
        self.process.mprotect(second, PAGE_SIZE, PageProt::READ)?;
        self.process.mprotect(second, PAGE_SIZE, PageProt::READ | PageProt::WRITE)?;
        check(!self.is_mapped_by_pmd(), "the THP is mapped by PTEs")?;
        Ok(self)
    }

    fn keep_one(self) -> Result<Self, Failure> {
        let memory = self.map_by_ptes()?;
        let rest = memory.bytes() - PAGE_SIZE;
        memory.process.madvise(memory.start + PAGE_SIZE, rest, Advice::DontNeed)?;
        Ok(Self { pages: 1, ..memory })
    }

    /// Moves the upper half elsewhere; what stays is the memory.
    fn move_half(self) -> Result<Self, Failure> {
        let half = self.bytes() / 2;
        let room = self.process.mmap(MmapArgs::anonymous(half).prot(PageProt::empty()))?;
        let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
        let old = self.start + half;
        let args = RemapArgs { old, old_bytes: half, new_bytes: half, flags, new: room };
        self.process.mremap(args)?;
        check(!self.is_mapped_by_pmd(), "half of the THP is gone")?;
        Ok(Self { pages: self.pages / 2, ..self })
    }

    /// Lets a child have the first page, and go.
    fn share_first(self) -> Result<Self, Failure> {
        let (rest, bytes) = (self.start + PAGE_SIZE, self.bytes() - PAGE_SIZE);
        self.process.madvise(rest, bytes, Advice::DontFork)?;
        drop(self.process.fork()?);
        self.process.madvise(rest, bytes, Advice::DoFork)?;
        Ok(self)
    }

    /// `None` if something stayed in memory.
    fn swap_out(self) -> Result<Option<Self>, Failure> {
        // MADV_PAGEOUT leaves large folios alone. The first split leaves single pages, so the others find nothing to do.
        for page in 0..self.pages {
            match split_at(&self.process, self.start + page * PAGE_SIZE, Order::ZERO) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match self.process.madvise(self.start, self.bytes(), Advice::PageOut) {
            Ok(()) => Ok(self.is_swapped().then_some(self)),
            Err(Errno::EINVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Pins all of it.
    ///
    /// # Errors
    /// As GUP, or if only a part could be pinned.
    pub(in super::super) fn pin(
        &self,
        how: How,
        flags: GupFlags,
    ) -> Result<PinList<'a, 'm, M>, Failure> {
        PinList::new(&self.process, (self.start, self.pages), how, flags)
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The signal that the process gets.
    pub(in super::super) fn fill(&self, tag: u64) -> Outcome {
        Ok(self.process.fill(self.start, self.pages, tag)?)
    }

    /// Changes the rights of all of it.
    ///
    /// # Errors
    /// As mprotect.
    pub(in super::super) fn protect(&self, prot: PageProt) -> Outcome {
        Ok(self.process.mprotect(self.start, self.bytes(), prot)?)
    }
}

/// By which path pins are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum How {
    /// By faults and locks only.
    Slow,
    /// Without locks first.
    Fast,
}

/// Pinned pages; unpinned when dropped.
pub(in super::super) struct PinList<'a, 'm, M: Machine> {
    mm: &'a Mm<'m, M>,
    pages: [Option<PagePin<'m>>; THP_PAGES],
}

impl<'a, 'm, M: Machine> PinList<'a, 'm, M> {
    /// Pins `range`, a first address and a number of pages.
    ///
    /// # Errors
    /// As GUP, or if only a part could be pinned.
    pub(in super::super) fn new(
        process: &Process<'a, 'm, M>,
        range: (u64, u64),
        how: How,
        flags: GupFlags,
    ) -> Result<Self, Failure> {
        let (start, count) = range;
        let (mm, space) = (process.mm(), process.space());
        let mut pins = Self { mm, pages: [const { None }; THP_PAGES] };
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(THP_PAGES);
        let out = &mut pins.pages[..count];
        let got = match how {
            How::Slow => mm.pin_user_pages(space, start, flags, out),
            How::Fast => mm.pin_user_pages_fast(space, start, flags, out),
        }?;
        check(got == count, "all pages are pinned")?;
        Ok(pins)
    }

    /// The memory manager.
    pub(in super::super) const fn mm(&self) -> &'a Mm<'m, M> {
        self.mm
    }

    /// Unpins all pages.
    pub(in super::super) fn give_back(&mut self, contents: Contents) {
        self.mm.unpin_user_pages(&mut self.pages, contents);
    }

    /// The pins, by page.
    pub(in super::super) fn iter(&self) -> impl Iterator<Item = &PagePin<'m>> {
        self.pages.iter().flatten()
    }
}

impl<M: Machine> Drop for PinList<'_, '_, M> {
    fn drop(&mut self) {
        self.mm.unpin_user_pages(&mut self.pages, Contents::Unchanged);
    }
}
