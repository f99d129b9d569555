//! The MMU by itself, and what it notices.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};

use abi::Pfn;

use super::{MmuAccess, PageFault};
use crate::addr::{VaRange, VirtAddr};
use crate::buddy::Gfp;
use crate::memdesc::{BlockKind, Order};
use crate::memory::FrozenFrames;
use crate::mm::Base;
use crate::pgtable::{PageProt, Pmd, Pte, PteState, Tables, new_root};
use crate::platform::{AtomicCpuSet, CpuSet, Platform, TlbFlush};
use crate::testing::{self, TestPlatform};

struct Space {
    base: Base<TestPlatform>,
    root: Pfn,
    cpus: AtomicCpuSet,
    pages: AtomicU64,
}

const VA: u64 = 0x7000_0000_0000;

impl Space {
    fn new() -> Self {
        let base = Base::new(testing::memory(4096)).unwrap();
        let root = new_root(&base).unwrap();
        let space = Self { base, root, cpus: AtomicCpuSet::new(), pages: AtomicU64::new(0) };
        space.cpus.insert(0);
        space
    }

    fn tables(&self) -> Tables<'_, TestPlatform> {
        Tables::new(&self.base, self.root, &self.cpus, &self.pages)
    }

    /// A block that may be mapped.
    fn block(&self, order: u8) -> FrozenFrames {
        let order = Order::new(order).unwrap();
        let mut block = self.base.memory.alloc_frozen(order, Gfp::USER).unwrap();
        self.base.memory.retype(&mut block, BlockKind::Driver).unwrap();
        block
    }

    fn map(&self, va: u64, pte: Pte) {
        let va = VirtAddr::new(va).unwrap();
        self.tables().alloc_lock_pte(va).unwrap().unwrap().set(va, pte.entry());
    }

    fn pte(&self, va: u64) -> Pte {
        let va = VirtAddr::new(va).unwrap();
        match self.tables().lock_pte(va).unwrap().state(va) {
            PteState::Present(pte) => pte,
            other @ (PteState::None | PteState::Soft(_) | PteState::Unknown(_)) => {
                panic!("{other:?}")
            }
        }
    }

    fn go(&self, va: u64, access: MmuAccess) -> Result<u64, u64> {
        let mmu = self.base.platform().mmu();
        mmu.translate(&self.base.memory, self.root, va, access).map_err(PageFault::error_code)
    }

    fn flush(&self, va: u64) {
        let page = VaRange::page_of(VirtAddr::new(va).unwrap()).unwrap();
        self.base.platform().flush_tlb(self.root, CpuSet::of(0), TlbFlush::Range(page));
    }
}

use MmuAccess::{Exec, Read, Write};

#[test]
fn permissions_give_the_error_codes_of_hardware() {
    let space = Space::new();
    let block = space.block(0);
    let pte = |prot| Pte::new(block.head(), prot).unwrap();
    assert_eq!(space.go(VA, Read), Err(4));
    assert_eq!(space.go(VA, Write), Err(6));
    assert_eq!(space.go(VA, Exec), Err(0x14));
    assert_eq!(space.go(1 << 47, Read), Err(4));
    space.map(VA, pte(PageProt::READ));
    assert_eq!(space.go(VA + 5, Read), Ok(block.head().gpa() + 5));
    assert_eq!(space.go(VA, Write), Err(7));
    assert_eq!(space.go(VA, Exec), Err(0x15));
    space.map(VA + 0x1000, pte(PageProt::empty()));
    assert_eq!(space.go(VA + 0x1000, Read), Err(5));
    assert_eq!(space.go(VA + 0x1000, Write), Err(7));
    space.map(VA + 0x2000, pte(PageProt::all()));
    assert_eq!(space.go(VA + 0x2000, Exec), Ok(block.head().gpa()));
    assert_eq!(space.go(VA + 0x2000, Write), Ok(block.head().gpa()));
    space.base.platform().load_root(None);
}

#[test]
fn a_and_d_are_set_when_the_page_is_used_and_written() {
    let space = Space::new();
    let block = space.block(0);
    space.map(VA, Pte::new(block.head(), PageProt::READ | PageProt::WRITE).unwrap());
    space.go(VA, Read).unwrap();
    assert!(space.pte(VA).is_young() && !space.pte(VA).is_dirty());
    space.go(VA, Write).unwrap();
    assert!(space.pte(VA).is_dirty());
    assert!(!space.pte(VA).is_soft_dirty(), "the MMU does not know this bit");
    let va = VirtAddr::new(VA).unwrap();
    let old = |space: &Space| {
        space.tables().lock_pte(va).unwrap().update(va, |entry| match entry.pte() {
            PteState::Present(pte) => pte.mk_old().mk_clean().entry(),
            PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
        });
    };
    old(&space);
    space.go(VA, Write).unwrap();
    assert!(!space.pte(VA).is_dirty(), "the TLB knew that D was set");
    old(&space);
    space.flush(VA);
    space.go(VA, Write).unwrap();
    assert!(space.pte(VA).is_dirty() && space.pte(VA).is_young());
}

#[test]
fn a_translation_lives_until_it_is_flushed() {
    let space = Space::new();
    let (first, second) = (space.block(0), space.block(0));
    let map = |block: &FrozenFrames| Pte::new(block.head(), PageProt::READ).unwrap();
    space.map(VA, map(&first));
    assert_eq!(space.go(VA, Read), Ok(first.head().gpa()));
    let va = VirtAddr::new(VA).unwrap();
    space.tables().lock_pte(va).unwrap().swap(va, map(&second).entry());
    assert_eq!(space.go(VA, Read), Ok(first.head().gpa()), "still the old one");
    space.flush(VA);
    assert_eq!(space.go(VA, Read), Ok(second.head().gpa()));
    // Another CPU never had the old one.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            testing::set_cpu(1);
            assert_eq!(space.go(VA, Read), Ok(second.head().gpa()));
        });
    });
    // Removing rights needs a flush, adding them does not.
    space
        .tables()
        .lock_pte(va)
        .unwrap()
        .update(va, |_| map(&second).with_prot(PageProt::all()).entry());
    assert_eq!(space.go(VA, Write), Err(7), "once, by the old translation");
    assert_eq!(space.go(VA, Write), Ok(second.head().gpa()));
}

#[test]
fn a_large_leaf_translates_all_its_pages_and_any_of_them_flushes_it() {
    let space = Space::new();
    let block = space.block(9);
    let va = VirtAddr::new(VA).unwrap();
    let pmd = Pmd::new(block.head(), PageProt::READ | PageProt::WRITE).unwrap();
    space.tables().alloc_lock_pmd(va).unwrap().set(va, pmd.entry());
    for page in [0, 1, 511] {
        let expected = block.head().gpa() + page * 4096;
        assert_eq!(space.go(VA + page * 4096, Write), Ok(expected));
    }
    assert_eq!(space.base.platform().mmu().stats().walks, 1);
    let cleared = space.tables().lock_pmd(va).unwrap().clear(va);
    assert_eq!(cleared, pmd.mk_young().entry().with_d());
    assert!(space.go(VA + 4096, Read).is_ok());
    space.flush(VA + 300 * 4096);
    assert_eq!(space.go(VA + 4096, Read), Err(4));
}

impl crate::pgtable::Entry {
    /// The entry with D, which the MMU sets without the software's bit.
    fn with_d(self) -> Self {
        Self::from_bits(self.bits() | 1 << 6)
    }
}

fn panics<R>(f: impl FnOnce() -> R) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(f)).err()?;
    Some(*panic.downcast::<String>().unwrap())
}

#[test]
fn a_frame_given_away_before_the_flush_is_noticed() {
    let space = Space::new();
    let block = space.block(0);
    space.map(VA, Pte::new(block.head(), PageProt::READ).unwrap());
    space.go(VA, Read).unwrap();
    let va = VirtAddr::new(VA).unwrap();
    space.tables().lock_pte(va).unwrap().clear(va);
    space.base.memory.free_frozen(block);
    let message = panics(|| space.go(VA, Read));
    assert!(message.unwrap().contains("stale TLB entry"));
    space.flush(VA);
    assert_eq!(space.go(VA, Read), Err(4));
}

#[test]
fn a_table_given_away_before_the_flush_is_noticed() {
    // Whether the CPU uses its cached entry of the directory is random: try.
    let noticed = (0..20).any(|_| {
        let space = Space::new();
        let block = space.block(0);
        space.map(VA, Pte::new(block.head(), PageProt::READ).unwrap());
        space.go(VA, Read).unwrap();
        space.cpus.remove(0);
        let va = VirtAddr::new(VA).unwrap();
        space.tables().lock_pte(va).unwrap().clear(va);
        let mut gather = crate::pgtable::TlbGather::new(space.tables());
        let all = VaRange::page_of(va).unwrap();
        space.tables().free_tables(all, &mut gather, &mut Nothing);
        // The flush reaches nobody: CPU 0 was taken out of the set.
        gather.flush(&mut Nothing);
        drop(gather);
        assert_eq!(space.base.reap_tables(8), 3);
        panics(|| space.go(VA + 4096, Read)).is_some_and(|m| m.contains("as a table"))
    });
    assert!(noticed);
}

struct Nothing;

impl crate::pgtable::LeafOwner for Nothing {
    type Put = ();
    fn unmapped(
        &mut self,
        _: VirtAddr,
        _: crate::pgtable::SizedLeaf,
    ) -> crate::pgtable::Unmapped<()> {
        crate::pgtable::Unmapped::NOTHING
    }
    fn put(&mut self, (): ()) {}
    fn split(&mut self, _: VirtAddr, _: crate::pgtable::SizedLeaf) {}
    fn duplicate(
        &mut self,
        _: VirtAddr,
        _: crate::pgtable::SizedLeaf,
    ) -> crate::pgtable::Duplicate {
        crate::pgtable::Duplicate::Skip
    }
    fn prepare_copy(&mut self, _: VirtAddr) -> Result<(), crate::memory::AllocError> {
        Ok(())
    }
}

#[test]
fn stores_through_the_mmu_reach_ram_and_every_mapping_of_it() {
    let space = Space::new();
    let block = space.block(0);
    let pte = Pte::new(block.head(), PageProt::READ | PageProt::WRITE).unwrap();
    space.map(VA, pte);
    space.map(VA + 0x5000, pte);
    let mmu = space.base.platform().mmu();
    let atomic = |at: NonNull<u8>| {
        // SAFETY: an aligned word of a frame that stays ours, reached atomically only.
        unsafe { at.cast::<AtomicU64>().as_ref() }.fetch_add(7, Ordering::Relaxed)
    };
    let memory = &space.base.memory;
    assert_eq!(mmu.access(memory, space.root, VA + 64, Write, atomic), Ok(0));
    assert_eq!(mmu.access(memory, space.root, VA + 0x5040, Write, atomic), Ok(7));
    let fault = mmu.access(memory, space.root, VA + 0x1000, Write, atomic);
    assert_eq!(fault.map_err(PageFault::error_code), Err(6));
}

#[test]
fn the_tables_of_the_mmu_and_ours_agree_on_frames_beyond_ram() {
    let space = Space::new();
    let block = space.block(0);
    space.map(VA, Pte::new(block.head(), PageProt::READ).unwrap());
    let va = VirtAddr::new(VA).unwrap();
    let frame = space.tables().lock_pte(va).unwrap().frame();
    let table = space.base.platform().frame_ptr(frame).cast::<AtomicU64>();
    // SAFETY: the first slot of a page table, reached atomically.
    let slot = unsafe { table.as_ref() };
    slot.store(0xf_ffff_f000 | 7, Ordering::Relaxed);
    assert_eq!(space.go(VA, Read), Err(0xd));
}
