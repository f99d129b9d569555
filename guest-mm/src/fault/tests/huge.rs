//! Faults on 2 MiB at once.

use super::*;
use crate::addr::PMD_SIZE;
use crate::pgtable::{Pmd, PmdState};
use crate::platform::FaultSite;
use crate::space::VmFlags;

/// 16 pages, then 2 MiB that may be huge, then 16 pages.
fn map_huge(world: &World) -> (u64, u64) {
    let args = MmapArgs::anonymous(PMD_SIZE + 32 * PAGE_SIZE).fixed(0x1_0000_0000 - 16 * PAGE_SIZE);
    let at = world.mm.mmap(world.space(), args).unwrap().get();
    let guard = world.space().write();
    let vma = guard.lookup(va(at)).unwrap();
    guard.lock_vma(vma);
    vma.flags.fetch_or(VmFlags::HUGEPAGE.bits(), Ordering::Relaxed);
    (at, at + 16 * PAGE_SIZE)
}

fn pmd(world: &World, at: u64) -> Pmd {
    let PmdState::Present(pmd) = world.entry(at).pmd() else { panic!("{:?}", world.entry(at)) };
    pmd
}

fn change(world: &World, at: u64, change: impl Fn(Pmd) -> Pmd) {
    let mut guard = world.space().tables().lock_pmd(va(at)).unwrap();
    guard.update(va(at), |entry| {
        let PmdState::Present(pmd) = entry.pmd() else { panic!("{entry:?}") };
        change(pmd).entry()
    });
}

#[test]
fn a_fault_inside_maps_two_mebibytes_and_none_at_the_edges() {
    for access in [FaultAccess::Read, FaultAccess::Write] {
        let world = World::of(4096);
        let (at, huge) = map_huge(&world);
        assert_eq!(world.fault(huge + 0x5008, access), Ok(FaultOutcome::AnonHuge));
        let leaf = pmd(&world, huge);
        assert!(leaf.is_anon_exclusive() && leaf.is_writable() && leaf.is_dirty());
        assert_eq!(world.anon_rss(), 512);
        let folio = world.mm.folio_of(leaf.pfn()).unwrap();
        assert_eq!((folio.pages().get(), folio.refcount(), folio.mapcount()), (512, 2, 1));
        world.mm.put(folio);
        for page in [0, 7, 511] {
            assert_eq!(world.fault(huge + page * PAGE_SIZE, access), Ok(FaultOutcome::Spurious));
        }
        world.store(at, 1).unwrap();
        world.store(huge + PMD_SIZE, 2).unwrap();
        assert_eq!(world.count(FaultOutcome::AnonPage), 2);
        world.end();
    }
}

#[test]
fn without_advice_or_memory_pages_are_small() {
    let world = World::of(4096);
    let at = world.map(2048);
    world.store(at + PMD_SIZE, 1).unwrap();
    assert_eq!(world.anon_rss(), 1);
    world.end();

    for (site, nth) in [(FaultSite::BuddyAlloc, 1), (FaultSite::SlabAlloc, 1)] {
        let world = World::of(4096);
        let (at, huge) = map_huge(&world);
        world.store(at, 1).unwrap();
        world.platform().faults().fail_nth(site, nth);
        assert_eq!(world.fault(huge, FaultAccess::Write), Ok(FaultOutcome::AnonPage), "{site:?}");
        assert_eq!((world.event(FaultEvent::ThpFallback), world.anon_rss()), (1, 2));
        world.end();
    }
}

#[test]
fn a_write_protected_leaf_that_is_ours_is_reused_whole() {
    let world = World::of(4096);
    let (_, huge) = map_huge(&world);
    assert_eq!(world.fault(huge, FaultAccess::Write), Ok(FaultOutcome::AnonHuge));
    let pfn = pmd(&world, huge).pfn();
    for change_leaf in
        [Pmd::wrprotect as fn(Pmd) -> Pmd, |pmd| pmd.wrprotect().clear_anon_exclusive()]
    {
        change(&world, huge, change_leaf);
        assert_eq!(world.fault(huge + 0x7000, FaultAccess::Write), Ok(FaultOutcome::Reused));
        let leaf = pmd(&world, huge);
        assert!(leaf.pfn() == pfn && leaf.is_writable() && leaf.is_anon_exclusive());
    }
    world.end();
}

#[test]
fn a_write_to_a_shared_leaf_splits_it_and_copies_one_page() {
    let world = World::of(4096);
    let (_, huge) = map_huge(&world);
    for page in [0, 3, 511] {
        // A program without a TLB walks PTEs only: split first, map again below.
        assert!(world.fault(huge + page * PAGE_SIZE, FaultAccess::Write).is_ok());
    }
    let pfn = pmd(&world, huge).pfn();
    change(&world, huge, |pmd| pmd.wrprotect().clear_anon_exclusive());
    let other = world.mm.folio_of(pfn).unwrap();
    world.mm.write_folio(&other, 3 * PAGE_SIZE, &7u64.to_ne_bytes());
    assert_eq!(world.fault(huge + 3 * PAGE_SIZE, FaultAccess::Write), Ok(FaultOutcome::Copied));
    assert_eq!(world.event(FaultEvent::PmdSplit), 1);
    assert_eq!(world.load(huge + 3 * PAGE_SIZE), Ok(7));
    let copied = world.pte(huge + 3 * PAGE_SIZE);
    assert!(copied.is_anon_exclusive() && copied.is_writable());
    assert_eq!(world.pte(huge + 4 * PAGE_SIZE).pfn().number(), pfn.number() + 4);
    assert_eq!((other.mapcount(), other.refcount(), world.anon_rss()), (511, 512, 512));
    world.mm.put(other);
    // The rest is ours again: counted leaf by leaf, reused in place.
    assert_eq!(world.fault(huge + 5 * PAGE_SIZE, FaultAccess::Write), Ok(FaultOutcome::Reused));
    assert_eq!(world.pte(huge + 5 * PAGE_SIZE).pfn().number(), pfn.number() + 5);
    world.end();
}

#[test]
fn each_failing_allocation_of_a_huge_fault_leaves_nothing() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        for nth in 1.. {
            let world = World::of(4096);
            let (_, huge) = map_huge(&world);
            world.platform().faults().fail_nth(site, nth);
            let result = world.fault(huge, FaultAccess::Write);
            let struck = world.platform().faults().struck(site) > 0;
            world.platform().faults().fail_nth(site, 0);
            assert!(result.is_ok(), "{site:?} {nth}: {result:?}");
            assert!(world.fault(huge, FaultAccess::Write).is_ok());
            world.end();
            if !struck {
                break;
            }
        }
    }
}

#[test]
fn threads_that_fault_on_one_block_share_it() {
    for _ in 0..5 {
        let world = World::of(8192);
        let (_, huge) = map_huge(&world);
        std::thread::scope(|scope| {
            for cpu in 0..4u64 {
                let world = &world;
                scope.spawn(move || {
                    testing::set_cpu(usize::try_from(cpu).unwrap());
                    world.fault(huge + cpu * 0x8000, FaultAccess::Write).unwrap();
                });
            }
        });
        assert_eq!((world.anon_rss(), world.count(FaultOutcome::AnonHuge)), (512, 1));
        world.end();
    }
}
