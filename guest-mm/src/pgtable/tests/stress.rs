//! CPUs that fault, zap, protect, split and free tables of one range at once,
//! through simulated MMUs whose TLBs forget only what they are told to.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{NoTable, PmdState, Protection, PteState, SpaceLeaves, ZapRules};
use super::*;
use crate::buddy::Gfp;
use crate::folio::{FolioFlags, FolioKind};
use crate::memdesc::Order;
use crate::mm::Mm;
use crate::space::{AddressSpace, MmapArgs, Vma};
use crate::sync::shim::Ordering;
use crate::testing::mmu::MmuAccess;

const HERE: u64 = 0x10_0000_0000;
/// Two blocks of 2 MiB; only some of their pages are used.
const PAGES: u64 = 1024;

struct World<'a, 'm> {
    mm: &'a Mm<'m, TestPlatform>,
    space: &'a AddressSpace<'m, TestPlatform>,
    vma: &'a Vma<'m, TestPlatform>,
}

/// What is stored in a page: its own number, so that a store through a stale
/// translation shows in the page that has the frame now.
fn mark(at: u64) -> u64 {
    0x5eed_0000 + at
}

impl World<'_, '_> {
    /// Stores, faulting as often as it takes.
    fn touch(&self, at: u64, rng: &mut StdRng) {
        let address = HERE + at * 4096 + 8 * rng.random_range(0u64..512);
        let platform = self.mm.platform();
        let root = self.space.root();
        let store = |place: core::ptr::NonNull<u8>| {
            // SAFETY: an aligned word of a mapped frame, which the MMU's lock keeps
            // mapped during the access; only atomics touch it.
            unsafe { place.cast::<AtomicU64>().as_ref() }.swap(mark(at), Ordering::Relaxed)
        };
        for _ in 0..1000 {
            let memory = self.mm.memory();
            match platform.mmu().access(memory, root, address, MmuAccess::Write, store) {
                Ok(before) => {
                    assert!(before == 0 || before == mark(at), "{at}: {before:#x}");
                    return;
                }
                Err(_) if rng.random_bool(0.2) && at < 512 => self.fault_huge(0),
                Err(_) => self.fault(page((HERE >> 12) + at)),
            }
        }
        panic!("no end of faults at {at}");
    }

    /// A new page, or write permission for an old one.
    fn fault(&self, at: VirtAddr) {
        let tables = self.space.tables();
        let new = self.mm.alloc_folio(Order::ZERO, Gfp::USER | Gfp::ZERO, FolioKind::Anon).unwrap();
        let mut guard = match tables.alloc_lock_pte(at).unwrap() {
            Ok(guard) => guard,
            Err(_) => {
                self.mm.put(new);
                let Ok(mut pmd) = tables.lock_pmd(at) else { return };
                if matches!(pmd.state(at), PmdState::Present(_)) {
                    pmd.update(at, |entry| match entry.pmd() {
                        PmdState::Present(pmd) => pmd.mk_write().mk_dirty().entry(),
                        PmdState::None
                        | PmdState::Table(_)
                        | PmdState::Soft(_)
                        | PmdState::Unknown(_) => entry,
                    });
                }
                return;
            }
        };
        match guard.state(at) {
            PteState::None => {
                let pte = Pte::new(new.pfn(), PageProt::READ | PageProt::WRITE).unwrap();
                new.set_flags(FolioFlags::UPTODATE);
                self.mm.add_new_anon_rmap(new, self.vma, at);
                self.space.rss.anon.fetch_add(1, Ordering::Relaxed);
                guard.set(at, pte.mk_anon_exclusive().mk_dirty().entry());
            }
            PteState::Present(_) => {
                guard.update(at, |entry| match entry.pte() {
                    PteState::Present(pte) => pte.mk_write().mk_dirty().entry(),
                    PteState::None | PteState::Soft(_) | PteState::Unknown(_) => entry,
                });
                drop(guard);
                self.mm.put(new);
            }
            state @ (PteState::Soft(_) | PteState::Unknown(_)) => panic!("{state:?}"),
        }
    }

    /// 2 MiB at once, if nothing is there.
    fn fault_huge(&self, block: u64) {
        let at = page((HERE >> 12) + block * 512);
        let tables = self.space.tables();
        if !matches!(tables.lock_pte(at), Err(NoTable::Hole { .. })) {
            return;
        }
        let order = Order::new(9).unwrap();
        let Ok(new) = self.mm.alloc_folio(order, Gfp::USER | Gfp::ZERO, FolioKind::Anon) else {
            return;
        };
        let mut guard = tables.alloc_lock_pmd(at).unwrap();
        if !guard.load(at).is_none() {
            drop(guard);
            return self.mm.put(new);
        }
        let pmd = huge_rw(new.pfn().number()).mk_anon_exclusive().mk_dirty();
        new.set_flags(FolioFlags::UPTODATE);
        self.mm.add_new_anon_rmap(new, self.vma, at);
        self.space.rss.anon.fetch_add(512, Ordering::Relaxed);
        guard.set(at, pmd.entry());
    }

    fn zap(&self, range: VaRange, free: bool) {
        let zapped = if free {
            self.mm.unmap_leaves(self.space, range)
        } else {
            self.mm.zap_leaves(self.space, range, ZapRules::DISCARD)
        };
        zapped.unwrap();
    }

    fn protect(&self, range: VaRange, prot: PageProt) {
        let to = Protection { prot, sharing: Sharing::Private, tracks_soft_dirty: false };
        self.mm.protect_leaves(self.space, range, to).unwrap();
    }

    fn step(&self, rng: &mut StdRng) {
        // Pages of four tables' worth of contention: few, so that CPUs meet.
        let at = rng.random_range(0..16u64) * 61;
        let len = rng.random_range(1..200u64).min(PAGES - at);
        let range = pages((HERE >> 12) + at, len);
        match rng.random_range(0..10) {
            0 => self.zap(range, false),
            1 => self.zap(range, true),
            2 => self.zap(pages(HERE >> 12, PAGES), true),
            3 => self.protect(range, PageProt::READ),
            4 => self.protect(range, PageProt::READ | PageProt::WRITE),
            5 => drop(self.mm.split_pmd(self.space, range.start()).unwrap()),
            _ => self.touch(at, rng),
        }
    }
}

/// Runs `act` in a space with one mapping, and checks that nothing is left.
fn with_world(base: &Mem, act: impl FnOnce(&World<'_, '_>)) {
    let mm = Mm::new(base);
    let space = mm.new_space().unwrap();
    mm.mmap(&space, MmapArgs::anonymous(PAGES << 12).fixed(HERE)).unwrap();
    {
        let guard = space.read();
        let vma = guard.lookup(page(HERE >> 12)).unwrap();
        mm.anon_vma_prepare(vma, None).unwrap();
        act(&World { mm: &mm, space: &space, vma });
    }
    let all = pages(HERE >> 12, PAGES);
    let mut books = Owner::default();
    struct Check<'o>(&'o mut Owner);
    impl TableVisitor for Check<'_> {
        fn leaf(&mut self, _: VirtAddr, leaf: SizedLeaf) {
            self.0.add(leaf.state, i64::try_from(leaf.pages()).unwrap());
        }
        fn discrepancy(&mut self, found: TableDiscrepancy) {
            panic!("{found}");
        }
    }
    space.tables().visit(&mut Check(&mut books));
    let mapped: i64 = books.mapcount.values().sum();
    assert_eq!(space.rss.anon.load(Ordering::Relaxed), mapped.cast_unsigned());
    mm.unmap_leaves(&space, all).unwrap();
    assert_eq!(space.rss.anon.load(Ordering::Relaxed), 0);
    {
        let guard = space.write();
        mm.anon_vma_unlink(guard.lookup(page(HERE >> 12)).unwrap());
    }
    mm.exit_space(space);
    nothing_left(base);
    assert_eq!(base.memory.census().pages(Kind::Anon).get(), 0);
}

#[test]
fn cpus_that_meet_in_one_range_never_use_what_another_took_away() {
    for seed in 1..=3 {
        let base = Base::new(testing::memory(8192)).unwrap();
        base.platform().mmu().delay_flushes(seed);
        with_world(&base, |world| {
            for cpu in 0..4 {
                world.space.cpus.insert(cpu);
            }
            std::thread::scope(|scope| {
                for cpu in 0..4 {
                    scope.spawn(move || {
                        testing::set_cpu(cpu);
                        let mut rng = StdRng::seed_from_u64(seed * 16 + cpu as u64);
                        for _ in 0..300 {
                            world.step(&mut rng);
                        }
                    });
                }
            });
            for cpu in 0..4 {
                world.space.cpus.remove(cpu);
            }
            let stats = base.platform().mmu().stats();
            assert!(stats.hits + stats.walks > 100 && stats.flushes > 100, "{stats:?}");
        });
    }
}

#[test]
fn a_lost_flush_is_noticed_when_the_old_translation_is_used() {
    let base = Base::new(testing::memory(4096)).unwrap();
    with_world(&base, |world| {
        world.space.cpus.insert(0);
        let mut rng = StdRng::seed_from_u64(1);
        world.touch(7, &mut rng);
        base.platform().mmu().lose_flushes(1);
        world.zap(pages(HERE >> 12, 16), false);
        base.platform().mmu().lose_flushes(0);
        let used = catch_unwind(AssertUnwindSafe(|| world.touch(7, &mut rng)));
        let message = *used.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("stale TLB entry"), "{message}");
        world.space.tables().flush(crate::platform::TlbFlush::All);
        world.space.cpus.remove(0);
    });
}

#[test]
fn a_gather_that_nobody_flushes_is_noticed() {
    let base = Base::new(testing::memory(4096)).unwrap();
    with_world(&base, |world| {
        world.fault(page(HERE >> 12));
        let tables = world.space.tables();
        let mut owner = SpaceLeaves::new(world.mm, world.space);
        let mut gather = TlbGather::new(tables);
        let range = pages(HERE >> 12, 1);
        tables.zap_range(range, ZapRules::UNMAP, &mut gather, &mut owner).unwrap();
        assert!(!gather.is_empty());
        gather.flush(&mut owner);
        assert!(gather.is_empty() && gather.flushes() == 1);
    });
}
