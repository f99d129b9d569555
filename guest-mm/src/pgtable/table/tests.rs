//! Tables by themselves: made, found, locked, refused.

use core::sync::atomic::AtomicU64;

use abi::Pfn;

use super::{Found, MakeTableError, NoTable, Tables, new_root};
use crate::addr::VirtAddr;
use crate::buddy::Gfp;
use crate::memdesc::{Kind, Order};
use crate::mm::Base;
use crate::pgtable::{Entry, PageProt, Pmd, PmdState, Pte, PteState};
use crate::platform::{AtomicCpuSet, FaultSite};
use crate::testing::{self, TestPlatform};

struct Space {
    base: Base<TestPlatform>,
    root: Pfn,
    cpus: AtomicCpuSet,
    pages: AtomicU64,
}

impl Space {
    fn new(pages: u64) -> Self {
        let base = Base::new(testing::memory(pages)).unwrap();
        let root = new_root(&base).unwrap();
        Self { base, root, cpus: AtomicCpuSet::new(), pages: AtomicU64::new(0) }
    }

    fn tables(&self) -> Tables<'_, TestPlatform> {
        Tables::new(&self.base, self.root, &self.cpus, &self.pages)
    }
}

fn va(address: u64) -> VirtAddr {
    VirtAddr::new(address).unwrap()
}

const A: u64 = 0x7f12_3456_7000;

#[test]
fn an_empty_root_is_a_hole_at_its_own_level() {
    let space = Space::new(1024);
    let tables = space.tables();
    assert!(matches!(tables.lock_pte(va(A)), Err(NoTable::Hole { level: 3 })));
    let section = space.base.rcu.read(0);
    assert!(matches!(tables.walk(&section, va(A)), Found::Hole));
    drop(section);
    tables.alloc_pmd(va(A)).unwrap();
    assert_eq!(tables.table_pages(), 2);
    assert!(matches!(tables.lock_pte(va(A)), Err(NoTable::Hole { level: 1 })));
    assert!(matches!(tables.lock_pte(va(A ^ 1 << 39)), Err(NoTable::Hole { level: 3 })));
    assert!(matches!(tables.lock_pte(va(A ^ 1 << 30)), Err(NoTable::Hole { level: 2 })));
    tables.alloc_pte(va(A)).unwrap();
    tables.alloc_pte(va(A + 4096)).unwrap();
    assert_eq!(tables.table_pages(), 3);
    assert_eq!(space.base.memory.census().pages(Kind::PtDesc).get(), 4);
    assert!(space.base.memory.census().is_consistent());
}

#[test]
fn what_is_set_under_the_lock_is_what_a_lockless_walk_finds() {
    let space = Space::new(1024);
    let tables = space.tables();
    let page = space.base.memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    let pte = Pte::new(page.head(), PageProt::READ).unwrap();
    {
        let mut guard = tables.alloc_lock_pte(va(A)).unwrap().unwrap();
        assert_eq!((guard.live(), guard.state(va(A))), (0, PteState::None));
        guard.set(va(A), pte.entry());
        assert_eq!((guard.live(), guard.state(va(A))), (1, PteState::Present(pte)));
        assert_eq!(guard.first(), va(A & !0x1f_ffff));
        let before = guard.update(va(A), |entry| match entry.pte() {
            PteState::Present(pte) => pte.mk_young().entry(),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
        });
        assert_eq!(before, pte.entry());
    }
    let section = space.base.rcu.read(0);
    let Found::Pte { pmd_slot, pmd, slot, entry } = tables.walk(&section, va(A)) else {
        panic!("no PTE");
    };
    assert_eq!(entry, pte.mk_young().entry());
    assert!(pmd_slot.is_still(pmd) && slot.is_still(entry));
    let cleared = tables.lock_pte(va(A)).unwrap().clear(va(A));
    assert_eq!(cleared, entry);
    assert!(!slot.is_still(entry) && pmd_slot.is_still(pmd));
    assert_eq!(tables.lock_pte(va(A)).unwrap().live(), 0);
    space.base.memory.free_frozen(page);
}

#[test]
fn a_leaf_of_the_directory_stands_in_the_way_of_a_table() {
    let space = Space::new(4096);
    let tables = space.tables();
    let block = space.base.memory.alloc_frozen(Order::new(9).unwrap(), Gfp::USER).unwrap();
    let pmd = Pmd::new(block.head(), PageProt::READ | PageProt::WRITE).unwrap();
    tables.alloc_lock_pmd(va(A)).unwrap().set(va(A), pmd.entry());
    assert!(matches!(tables.lock_pte(va(A)), Err(NoTable::Huge(PmdState::Present(p))) if p == pmd));
    assert!(matches!(tables.alloc_lock_pte(va(A)), Ok(Err(PmdState::Present(p))) if p == pmd));
    let section = space.base.rcu.read(0);
    let found = tables.walk(&section, va(A + 0x5000));
    assert!(matches!(found, Found::Pmd { entry, .. } if entry == pmd.entry()));
    drop(section);
    assert_eq!(tables.lock_pmd(va(A)).unwrap().clear(va(A)), pmd.entry());
    space.base.memory.free_frozen(block);
}

#[test]
fn each_failing_allocation_leaves_tables_that_balance() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        for nth in 1.. {
            let space = Space::new(1024);
            let tables = space.tables();
            space.base.platform().faults().fail_nth(site, nth);
            let made = tables.alloc_pte(va(A));
            let struck = space.base.platform().faults().struck(site) > 0;
            assert_eq!(made.is_err(), struck, "{site:?} {nth}");
            let expected = 1 + tables.table_pages();
            assert_eq!(space.base.memory.census().pages(Kind::PtDesc).get(), expected);
            assert!(space.base.memory.census().is_consistent());
            if !struck {
                break;
            }
            assert!(matches!(made, Err(MakeTableError::OutOfMemory(_))));
            assert!(tables.alloc_pte(va(A)).is_ok(), "a second try succeeds");
        }
    }
}

#[test]
fn entries_that_lead_nowhere_are_counted_and_not_followed() {
    let space = Space::new(1024);
    let tables = space.tables();
    tables.alloc_pte(va(A)).unwrap();
    let beyond = Entry::table(Pfn::new(0xff_ffff).unwrap()).unwrap();
    let page = space.base.memory.alloc_frozen(Order::ZERO, Gfp::USER).unwrap();
    let no_table = Entry::table(page.head()).unwrap();
    let malformed = Entry::from_bits(0xdead_beef_0000_0001);
    let directory = tables.lock_pmd(va(A)).unwrap().frame();
    let root = space.root;
    for (n, bad) in [beyond, no_table, malformed].into_iter().enumerate() {
        for (frame, level) in [(directory, 1), (root, 3)] {
            let slot = tables.slot(frame, va(A).table_index(level));
            let good = slot.swap(bad.bits(), core::sync::atomic::Ordering::Relaxed);
            let before = space.base.table_counters().unknown;
            assert!(matches!(tables.lock_pte(va(A)), Err(NoTable::Unknown(_))), "{n} {level}");
            assert!(matches!(tables.alloc_lock_pte(va(A)), Err(MakeTableError::Unknown(_))));
            let section = space.base.rcu.read(0);
            assert!(matches!(tables.walk(&section, va(A)), Found::Unknown(_)));
            drop(section);
            assert!(space.base.table_counters().unknown >= before + 3);
            slot.store(good, core::sync::atomic::Ordering::Relaxed);
        }
    }
    assert!(tables.lock_pte(va(A)).is_ok());
    space.base.memory.free_frozen(page);
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "entry"))]
fn a_mapping_of_a_frame_beyond_the_map_is_refused() {
    let space = Space::new(1024);
    let tables = space.tables();
    let beyond = Pte::new(Pfn::new(1 << 30).unwrap(), PageProt::READ).unwrap();
    let mut guard = tables.alloc_lock_pte(va(A)).unwrap().unwrap();
    guard.set(va(A), beyond.entry());
    assert_eq!((guard.state(va(A)), guard.live()), (PteState::None, 0));
    assert_eq!(space.base.table_counters().unknown, 1);
}

#[test]
fn racing_makers_agree_on_one_set_of_tables() {
    let space = Space::new(2048);
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let space = &space;
            scope.spawn(move || {
                testing::set_cpu(cpu);
                for n in 0..40u64 {
                    let at = va(A + n * (1 << 21) + cpu as u64 * 4096);
                    let page = Pfn::new(cpu as u64).unwrap();
                    let pte = Pte::new(page, PageProt::READ).unwrap().mk_special();
                    space.tables().alloc_lock_pte(at).unwrap().unwrap().set(at, pte.entry());
                }
            });
        }
    });
    let tables = space.tables();
    for n in 0..40 {
        let guard = tables.lock_pte(va(A + n * (1 << 21))).unwrap();
        assert_eq!(guard.live(), 4);
    }
    let census = space.base.memory.census();
    assert_eq!(census.pages(Kind::PtDesc).get(), 1 + tables.table_pages());
    let counters = space.base.table_counters();
    assert_eq!(counters.allocated - counters.freed, 1 + tables.table_pages());
}
