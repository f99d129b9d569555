//! Every address space: its tables, its leaves, its counters.

use abi::Pfn;

use super::{MmDiscrepancy, Taking, folio_weight, weight};
use crate::addr::VirtAddr;
use crate::folio::FolioKind;
use crate::pgtable::{
    LeafState, Location, PageProt, Pte, SizedLeaf, TableDiscrepancy, TableVisitor, Target,
};
use crate::platform::Platform;
use crate::space::AddressSpace;
use crate::sync::shim::Ordering;

/// The walk over the tables of one space.
struct SpaceWalk<'t, 'a, 'm, P: Platform> {
    taking: &'t mut Taking<'a, 'm, P>,
    space: u32,
    /// Anonymous, file and swapped pages.
    rss: [u64; 3],
}

impl<'m, P: Platform> Taking<'_, 'm, P> {
    /// Walks the page tables of every space.
    pub(super) fn spaces(&mut self) {
        let mm = self.mm;
        let mut from = 0;
        while let Some(space) = mm.next_space(from) {
            self.census.spaces += 1;
            self.space(&space);
            from = space.id();
            mm.drop_space(space);
            let Some(next) = from.checked_add(1) else { break };
            from = next;
        }
        let counters = mm.base().table_counters();
        let counted = counters.allocated.wrapping_sub(counters.freed);
        let roots = self.census.spaces;
        let reached = self.census.tables + roots + mm.base().deferred_tables() as u64;
        self.check(counted == reached, || MmDiscrepancy::LostTables { counted, reached });
    }

    fn space(&mut self, space: &AddressSpace<'m, P>) {
        let mut walk = SpaceWalk { taking: self, space: space.id(), rss: [0; 3] };
        let tables = space.tables().visit(&mut walk);
        let found = walk.rss;
        self.census.tables += tables;
        let rss = &space.rss;
        let counted =
            [&rss.anon, &rss.file, &rss.swap].map(|counter| counter.load(Ordering::Relaxed));
        self.check(counted == found, || MmDiscrepancy::Rss { space: space.id(), counted, found });
        let (mm, id) = (self.mm, space.id());
        mm.check_space(space, &mut |found| {
            self.census.discrepancies.add(MmDiscrepancy::Vmas { space: id, found });
        });
    }

    /// Leaves of the folio at `head`, in all spaces.
    pub(super) fn count_leaves(&self, head: Pfn) -> u64 {
        let mm = self.mm;
        let (mut leaves, mut from) = (0, 0);
        while let Some(space) = mm.next_space(from) {
            space.tables().for_each_leaf(&mut |_, leaf| {
                let pfn = match leaf.state {
                    LeafState::Present(pte) => pte.pfn(),
                    LeafState::Soft(soft) => match soft.kind().target() {
                        Target::Mapped(Location::Pfn(pfn)) => pfn,
                        Target::Mapped(Location::DevOffset(_))
                        | Target::Nothing
                        | Target::Swap(_)
                        | Target::Migrating(_) => return,
                    },
                };
                if self.head_of(pfn) == Some(head) {
                    leaves += 1;
                }
            });
            from = space.id();
            mm.drop_space(space);
            let Some(next) = from.checked_add(1) else { break };
            from = next;
        }
        leaves
    }
}

impl<P: Platform> SpaceWalk<'_, '_, '_, P> {
    fn add(&mut self, found: MmDiscrepancy) {
        self.taking.census.discrepancies.add(found);
    }

    fn mapped(&mut self, at: VirtAddr, pte: Pte, pages: u64) {
        let (mm, space) = (self.taking.mm, self.space);
        if pte.is_special() {
            return self.zero_page(at, pte, pages);
        }
        let Ok(folio) = mm.folio_of(pte.pfn()) else {
            return self.add(MmDiscrepancy::NoFolio { space, at, frame: pte.pfn() });
        };
        let head = folio.pfn();
        if pte.pfn().number() + pages > folio.range().end().number() {
            self.add(MmDiscrepancy::BeyondFolio { space, at, folio: head });
        }
        match folio.kind() {
            FolioKind::Anon => {
                self.rss[0] += pages;
                if pte.is_writable() && !pte.is_anon_exclusive() {
                    self.add(MmDiscrepancy::SharedWritable { space, at, folio: head });
                }
                if pte.is_anon_exclusive() && !folio.is_large() && folio.mapcount() > 1 {
                    self.add(MmDiscrepancy::SharedExclusive { space, at, folio: head });
                }
            }
            FolioKind::File | FolioKind::Device => self.rss[1] += pages,
        }
        mm.put(folio);
        self.taking.census.leaves += 1;
        let sums = &mut self.taking.sums;
        sums.leaves = sums.leaves.wrapping_add(folio_weight(head));
    }
}

impl<P: Platform> SpaceWalk<'_, '_, '_, P> {
    /// A leaf whose page nobody counts: only the zero page, and nobody may write to that.
    fn zero_page(&mut self, at: VirtAddr, pte: Pte, pages: u64) {
        let (zero, space) = (self.taking.mm.base().zero_page, self.space);
        if pte.pfn() != zero || pages != 1 {
            self.add(MmDiscrepancy::NoFolio { space, at, frame: pte.pfn() });
        } else if pte.is_writable() {
            self.add(MmDiscrepancy::SharedWritable { space, at, folio: zero });
        }
    }

    /// A leaf whose page is being moved: whoever moves it has its folio locked.
    fn migrating(&mut self, at: VirtAddr, frame: Pfn, pages: u64) {
        let mm = self.taking.mm;
        let folio = mm.folio_of(frame);
        let is_anon = folio.as_ref().is_ok_and(|folio| folio.is_anon());
        if !folio.as_ref().is_ok_and(|folio| folio.is_locked()) {
            self.add(MmDiscrepancy::Migrating { space: self.space, at, frame });
        }
        if let Ok(folio) = folio {
            mm.put(folio);
        }
        // No mapcount, but still a page of the space.
        self.rss[usize::from(!is_anon)] += pages;
    }
}

impl<P: Platform> TableVisitor for SpaceWalk<'_, '_, '_, P> {
    fn leaf(&mut self, at: VirtAddr, leaf: SizedLeaf) {
        match leaf.state {
            LeafState::Present(pte) => self.mapped(at, pte, leaf.pages()),
            LeafState::Soft(soft) => match soft.kind().target() {
                Target::Nothing => {}
                Target::Swap(slot) => {
                    self.rss[2] += 1;
                    let sums = &mut self.taking.sums;
                    sums.swapped += 1;
                    sums.swap_leaves = sums.swap_leaves.wrapping_add(weight(slot.get()));
                }
                // A device has the page to itself; the leaf counts as any other.
                Target::Mapped(Location::Pfn(pfn)) => match Pte::new(pfn, PageProt::empty()) {
                    Some(pte) => self.mapped(at, pte, leaf.pages()),
                    None => self.add(MmDiscrepancy::NoFolio { space: self.space, at, frame: pfn }),
                },
                // Device memory holds anonymous pages only.
                Target::Mapped(Location::DevOffset(_))
                | Target::Migrating(Location::DevOffset(_)) => self.rss[0] += leaf.pages(),
                Target::Migrating(Location::Pfn(pfn)) => self.migrating(at, pfn, leaf.pages()),
            },
        }
    }

    fn discrepancy(&mut self, found: TableDiscrepancy) {
        let space = self.space;
        self.add(MmDiscrepancy::Tables { space, found });
    }
}
