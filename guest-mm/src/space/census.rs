//! The VMAs of a space against their tree, their counts and the page tables.

use core::fmt;

use super::lookup::Vmas;
use super::structure::AddressSpace;
use super::vma::{VmFlags, Vma};
use crate::addr::VirtAddr;
use crate::mm::Mm;
use crate::pgtable::{LeafState, PageProt, Pte, SizedLeaf};
use crate::platform::Platform;
use crate::sync::shim::Ordering;

/// What does not agree in a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceDiscrepancy {
    /// A VMA has no page.
    Empty(VirtAddr),
    /// A VMA is in the tree at another place than its end says.
    Key(VirtAddr),
    /// A VMA begins before the one below it ends.
    Overlap(VirtAddr),
    /// A VMA in the tree belongs to another space, or counts as taken out.
    Foreign(VirtAddr),
    /// Somebody has a VMA locked for reading, though everything is quiet.
    Readers(VirtAddr),
    /// A VMA with anonymous folios has nowhere to look them up, or one that is for good shared has.
    AnonVma(VirtAddr),
    /// The space counts other VMAs, or pages that they span, than there are.
    Counts {
        /// VMAs and pages that it counts.
        counted: (u64, u64),
        /// Those in the tree.
        found: (u64, u64),
    },
    /// A leaf where no VMA is.
    Unmapped(VirtAddr),
    /// A leaf that allows what its VMA does not.
    Rights(VirtAddr),
    /// A leaf of a folio that belongs at another place of the mapping, or to another mapping.
    Misplaced {
        /// The leaf.
        at: VirtAddr,
        /// The page offset by the folio.
        folio: u64,
        /// The page offset by the VMA.
        vma: u64,
    },
}

impl fmt::Display for SpaceDiscrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty(at) => write!(f, "VMA at {at} has no page"),
            Self::Key(at) => write!(f, "VMA at {at} stands at a wrong place in the tree"),
            Self::Overlap(at) => write!(f, "VMA at {at} overlaps the one below"),
            Self::Foreign(at) => write!(f, "VMA at {at} is not the space's"),
            Self::Readers(at) => write!(f, "VMA at {at} is locked for reading"),
            Self::AnonVma(at) => write!(f, "VMA at {at} has the wrong anon_vma for its pages"),
            Self::Counts { counted, found } => {
                write!(f, "counts {counted:?} VMAs and pages, has {found:?}")
            }
            Self::Unmapped(at) => write!(f, "leaf at {at} without a VMA"),
            Self::Rights(at) => write!(f, "leaf at {at} allows what its VMA does not"),
            Self::Misplaced { at, folio, vma } => {
                write!(f, "leaf at {at} maps page {folio:#x} in place of {vma:#x}")
            }
        }
    }
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Compares VMAs, tree, counts and page tables of `space`, and calls `tell` with each
    /// discrepancy. Exact when nobody faults; takes the space's lock for reading.
    pub fn check_space(&self, space: &AddressSpace<'m, P>, tell: &mut dyn FnMut(SpaceDiscrepancy)) {
        let guard = space.read();
        let counted = (u64::from(space.map_count()), space.total_pages().get());
        let found = check_vmas(&guard, tell);
        if counted != found {
            tell(SpaceDiscrepancy::Counts { counted, found });
        }
        space.tables().for_each_leaf(&mut |at, leaf| self.check_leaf(&guard, at, leaf, tell));
    }

    fn check_leaf(
        &self,
        vmas: &Vmas<'_, 'm, P>,
        at: VirtAddr,
        leaf: SizedLeaf,
        tell: &mut dyn FnMut(SpaceDiscrepancy),
    ) {
        let end = at.checked_add(leaf.pages() << abi::PAGE_SHIFT);
        let vma = vmas.lookup(at).filter(|vma| end.is_some_and(|end| end <= vma.end()));
        let Some(vma) = vma else { return tell(SpaceDiscrepancy::Unmapped(at)) };
        if let LeafState::Present(pte) = leaf.state {
            if !allows(vma, pte) {
                tell(SpaceDiscrepancy::Rights(at));
            }
            if !pte.is_special() {
                self.check_place(vma, at, pte, tell);
            }
        }
    }

    /// Whether the folio that a leaf maps belongs there.
    fn check_place(
        &self,
        vma: &Vma<'m, P>,
        at: VirtAddr,
        pte: Pte,
        tell: &mut dyn FnMut(SpaceDiscrepancy),
    ) {
        let Ok(folio) = self.folio_of(pte.pfn()) else { return };
        let page = folio.index() + (pte.pfn().number() - folio.pfn().number());
        let is_file = !folio.is_anon();
        let same_file = !is_file || self.mapping_of(&folio) == vma.file();
        if page != vma.linear_index(at) || !same_file {
            tell(SpaceDiscrepancy::Misplaced { at, folio: page, vma: vma.linear_index(at) });
        }
        if folio.is_anon() && vma.anon_vma().is_none() {
            tell(SpaceDiscrepancy::AnonVma(vma.start()));
        }
        self.put(folio);
    }
}

/// Whether the VMA allows what the leaf does.
fn allows<P: Platform>(vma: &Vma<'_, P>, pte: Pte) -> bool {
    let allowed = vma.flags().prot();
    // A page that may be written or executed can be read, on x86.
    let readable = if allowed.is_empty() { allowed } else { allowed | PageProt::READ };
    readable.contains(pte.prot())
}

/// Checks the VMAs by themselves. Returns how many there are, and how many pages they span.
fn check_vmas<P: Platform>(
    vmas: &Vmas<'_, '_, P>,
    tell: &mut dyn FnMut(SpaceDiscrepancy),
) -> (u64, u64) {
    let space = vmas.space();
    let section = space.base.rcu.read(space.platform().cpu());
    let (mut count, mut pages, mut end) = (0, 0, VirtAddr::ZERO);
    for found in space.vmas.entries(&section, 0..=u64::MAX) {
        let Some(vma) = found.entry.as_pointer() else { continue };
        // SAFETY: in the tree, within a read section and the space's lock.
        let vma = unsafe { vma.as_ref() };
        let start = vma.start();
        if vma.end() <= start {
            tell(SpaceDiscrepancy::Empty(start));
            continue;
        }
        if found.index != vma.key() || found.order != 0 {
            tell(SpaceDiscrepancy::Key(start));
        }
        if start < end {
            tell(SpaceDiscrepancy::Overlap(start));
        }
        if !core::ptr::eq(vma.space.as_ptr(), space) || !vma.lock.is_attached() {
            tell(SpaceDiscrepancy::Foreign(start));
        }
        if vma.lock.readers() != 0 {
            tell(SpaceDiscrepancy::Readers(start));
        }
        if vma.anon_vma().is_some() && vma.flags().contains(VmFlags::SHARED) {
            tell(SpaceDiscrepancy::AnonVma(start));
        }
        count += 1;
        pages += vma.pages().get();
        end = vma.end();
    }
    (count, pages)
}

impl<P: Platform> AddressSpace<'_, P> {
    /// Pages that it has in memory, anonymous and of files, and in swap.
    pub fn resident(&self) -> [u64; 3] {
        let rss = &self.rss;
        [&rss.anon, &rss.file, &rss.swap].map(|counter| counter.load(Ordering::Relaxed))
    }
}
