//! The operations on ranges against a model that knows single pages only.

mod malformed;
mod model;
mod ranges;
mod spaces;
mod stress;

use core::sync::atomic::AtomicU64;
use std::collections::{HashMap, HashSet};

use abi::Pfn;

use super::{
    Duplicate, Entry, ForkRules, LeafOwner, LeafState, Location, PageProt, Pmd, Pte, Sharing,
    SizedLeaf, SwapSlot, TableDiscrepancy, TableVisitor, Tables, Target, TlbGather, Unmapped,
    free_root, new_root,
};
use crate::addr::{VaRange, VirtAddr};
use crate::memdesc::Kind;
use crate::memory::AllocError;
use crate::mm::Base;
use crate::platform::AtomicCpuSet;
use crate::testing::{self, TestPlatform};

type Mem = Base<TestPlatform>;

/// One space of a machine.
struct Space<'m> {
    base: &'m Mem,
    root: Pfn,
    cpus: AtomicCpuSet,
    pages: AtomicU64,
}

fn machine() -> Mem {
    Base::new(testing::memory(4096)).unwrap()
}

impl<'m> Space<'m> {
    fn new(base: &'m Mem) -> Self {
        let root = new_root(base).unwrap();
        Self { base, root, cpus: AtomicCpuSet::new(), pages: AtomicU64::new(0) }
    }

    fn tables(&self) -> Tables<'_, TestPlatform> {
        Tables::new(self.base, self.root, &self.cpus, &self.pages)
    }

    /// Maps without counting: the caller tells the owner.
    fn set_pte(&self, at: VirtAddr, entry: Entry) {
        self.tables().alloc_lock_pte(at).unwrap().unwrap().set(at, entry);
    }

    fn set_pmd(&self, at: VirtAddr, entry: Entry) {
        self.tables().alloc_lock_pmd(at).unwrap().set(at, entry);
    }

    /// Every leaf, page by page.
    fn leaves(&self) -> Vec<(u64, LeafState)> {
        let mut leaves = Vec::new();
        self.tables().for_each_leaf(&mut |at, leaf| {
            for index in 0..leaf.pages() {
                leaves.push((at.page() + index, page_of(leaf, index)));
            }
        });
        leaves
    }

    /// What is wrong with the tables.
    fn discrepancies(&self) -> Vec<TableDiscrepancy> {
        struct Found(Vec<TableDiscrepancy>);
        impl TableVisitor for Found {
            fn leaf(&mut self, _: VirtAddr, _: SizedLeaf) {}
            fn discrepancy(&mut self, found: TableDiscrepancy) {
                self.0.push(found);
            }
        }
        let mut found = Found(Vec::new());
        self.tables().visit(&mut found);
        found.0
    }

    /// Unmaps everything and frees the tables: nothing is left.
    fn destroy(self, owner: &mut Owner) {
        let tables = self.tables();
        let mut gather = TlbGather::new(tables);
        let all = VaRange::new(VirtAddr::ZERO, VirtAddr::END).unwrap();
        tables.zap_range(all, super::ZapRules::UNMAP, &mut gather, owner).unwrap();
        tables.free_tables(all, &mut gather, owner);
        gather.flush(owner);
        assert_eq!(tables.table_pages(), 0);
        // SAFETY: nobody has loaded the root.
        unsafe { free_root(self.base, self.root) }.unwrap();
    }
}

/// Page `index` of a leaf by itself.
fn page_of(leaf: SizedLeaf, index: u64) -> LeafState {
    if leaf.order == 0 {
        return leaf.state;
    }
    match leaf.state {
        LeafState::Present(first) => {
            LeafState::Present(first.collapse().unwrap().split(index).unwrap())
        }
        LeafState::Soft(leaf) => {
            LeafState::Soft(super::PmdLeaf::from_leaf(leaf).unwrap().split(index).unwrap())
        }
    }
}

/// Frames from here on belong to folios of 512; those below are folios of one.
const HUGE_FROM: u64 = 1024;

fn folio_of(at: Location) -> Location {
    match at {
        Location::Pfn(pfn) if pfn.number() >= HUGE_FROM => Location::Pfn(pfn.align_down(9)),
        Location::DevOffset(at) if at.get() >= HUGE_FROM => {
            Location::DevOffset(super::DevOffset::new(at.get() & !511).unwrap())
        }
        Location::Pfn(_) | Location::DevOffset(_) => at,
    }
}

/// Counts what the leaves of all spaces stand for.
#[derive(Debug, Default)]
struct Owner {
    /// Leaves by folio.
    mapcount: HashMap<Location, i64>,
    /// Leaves and references not yet put.
    refcount: HashMap<Location, i64>,
    swap: HashMap<SwapSlot, i64>,
    pinned: HashSet<Pfn>,
    /// Frame for the next copy of a pinned page.
    spare: Option<Pfn>,
    next_spare: u64,
    flush_now: bool,
}

/// What a test owner gives up after the flush.
#[derive(Debug)]
enum Put {
    Folio(Location),
    Swap(SwapSlot),
}

/// What a leaf stands for in the owner's books.
fn target(leaf: LeafState) -> Target {
    match leaf {
        LeafState::Present(pte) if pte.is_special() => Target::Nothing,
        LeafState::Present(pte) => Target::Mapped(Location::Pfn(pte.pfn())),
        LeafState::Soft(leaf) => leaf.kind().target(),
    }
}

impl Owner {
    fn add(&mut self, leaf: LeafState, times: i64) {
        match target(leaf) {
            Target::Mapped(at) => {
                *self.mapcount.entry(folio_of(at)).or_default() += times;
                *self.refcount.entry(folio_of(at)).or_default() += times;
            }
            Target::Swap(slot) => *self.swap.entry(slot).or_default() += times,
            Target::Nothing | Target::Migrating(_) => {}
        }
    }

    /// Compares the books with the leaves of these spaces.
    fn check(&self, spaces: &[&Space<'_>]) {
        let mut counted = Owner::default();
        for space in spaces {
            assert_eq!(space.discrepancies(), []);
            space.tables().for_each_leaf(&mut |_, leaf| counted.add(leaf.state, 1));
        }
        let live = |map: &HashMap<Location, i64>| -> HashMap<Location, i64> {
            map.iter().filter(|(_, n)| **n != 0).map(|(at, n)| (*at, *n)).collect()
        };
        assert_eq!(live(&self.mapcount), live(&counted.mapcount));
        assert_eq!(live(&self.refcount), live(&counted.refcount), "references were put");
        let swap = |map: &HashMap<SwapSlot, i64>| -> HashMap<SwapSlot, i64> {
            map.iter().filter(|(_, n)| **n != 0).map(|(at, n)| (*at, *n)).collect()
        };
        assert_eq!(swap(&self.swap), swap(&counted.swap));
    }
}

impl LeafOwner for Owner {
    type Put = Put;

    fn unmapped(&mut self, _: VirtAddr, leaf: SizedLeaf) -> Unmapped<Put> {
        let put = match target(leaf.state) {
            Target::Mapped(at) => {
                *self.mapcount.entry(folio_of(at)).or_default() -= 1;
                Some(Put::Folio(folio_of(at)))
            }
            Target::Swap(slot) => Some(Put::Swap(slot)),
            Target::Nothing | Target::Migrating(_) => None,
        };
        Unmapped { put, flush_now: self.flush_now }
    }

    fn put(&mut self, put: Put) {
        assert!(!TestPlatform::is_masked(), "put below a page-table lock");
        match put {
            Put::Folio(at) => *self.refcount.entry(at).or_default() -= 1,
            Put::Swap(slot) => *self.swap.entry(slot).or_default() -= 1,
        }
    }

    fn split(&mut self, _: VirtAddr, leaf: SizedLeaf) {
        self.add(leaf.state, 511);
    }

    fn duplicate(&mut self, _: VirtAddr, leaf: SizedLeaf) -> Duplicate {
        if let LeafState::Present(pte) = leaf.state
            && (pte.pfn().number()..pte.pfn().number() + leaf.pages())
                .any(|number| self.pinned.contains(&Pfn::new(number).unwrap()))
        {
            if leaf.order > 0 {
                return Duplicate::NeedsCopy;
            }
            let Some(spare) = self.spare.take() else { return Duplicate::NeedsCopy };
            let copy = pte.with_pfn(spare).unwrap().mk_anon_exclusive();
            self.add(LeafState::Present(copy), 1);
            return Duplicate::Copied(copy);
        }
        self.add(leaf.state, 1);
        Duplicate::Shared
    }

    fn prepare_copy(&mut self, _: VirtAddr) -> Result<(), AllocError> {
        assert!(!TestPlatform::is_masked(), "allocated below a page-table lock");
        self.spare = Pfn::new(self.next_spare);
        self.next_spare += 1;
        Ok(())
    }
}

fn page(number: u64) -> VirtAddr {
    VirtAddr::of_page(number).unwrap()
}

fn pages(first: u64, count: u64) -> VaRange {
    VaRange::new(page(first), page(first + count)).unwrap()
}

fn frame(number: u64) -> Pfn {
    Pfn::new(number).unwrap()
}

fn rw(number: u64) -> Pte {
    Pte::new(frame(number), PageProt::READ | PageProt::WRITE).unwrap()
}

fn huge_rw(number: u64) -> Pmd {
    Pmd::new(frame(number), PageProt::READ | PageProt::WRITE).unwrap()
}

const PRIVATE: ForkRules = ForkRules { sharing: Sharing::Private, child_has_uffd: false };

/// After all spaces are gone nothing of them is left.
fn nothing_left(base: &Mem) {
    base.rcu.synchronize(base.platform());
    while base.reap_tables(64) > 0 {}
    let census = base.memory.census();
    assert!(census.is_consistent());
    assert_eq!(census.pages(Kind::PtDesc).get(), 0);
    let counters = base.table_counters();
    assert_eq!(counters.allocated, counters.freed);
}
