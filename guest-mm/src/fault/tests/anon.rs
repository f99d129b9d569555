//! Anonymous memory of one process.

use super::*;
use crate::folio::FolioFlags;
use crate::platform::FaultSite;

#[test]
fn a_read_maps_the_zero_page_and_counts_nothing() {
    let world = World::new();
    let at = world.map(4);
    assert_eq!(world.load(at + 8), Ok(0));
    let pte = world.pte(at);
    assert_eq!(pte.pfn(), world.mm.base().zero_page);
    assert!(pte.is_special() && !pte.is_writable() && !pte.is_anon_exclusive());
    assert_eq!((world.anon_rss(), world.count(FaultOutcome::ZeroPage)), (0, 1));
    assert_eq!(world.entry(at + PAGE_SIZE), Entry::NONE, "neighbours stay untouched");
    world.end();
}

#[test]
fn a_write_maps_a_page_of_its_own() {
    let world = World::new();
    let at = world.map(4);
    assert_eq!(world.store(at + 16, 7), Ok(()));
    assert_eq!((world.load(at + 16), world.load(at)), (Ok(7), Ok(0)));
    let pte = world.pte(at);
    assert!(pte.is_writable() && pte.is_dirty() && pte.is_young() && pte.is_anon_exclusive());
    assert_eq!((world.anon_rss(), world.count(FaultOutcome::AnonPage)), (1, 1));
    let folio = world.mm.folio_of(pte.pfn()).unwrap();
    assert!(folio.is_anon() && folio.has(FolioFlags::UPTODATE | FolioFlags::SWAPBACKED));
    assert_eq!((folio.mapcount(), folio.pincount()), (1, 0));
    world.mm.put(folio);
    world.end();
}

#[test]
fn a_write_replaces_the_zero_page_and_leaves_it_zero() {
    let world = World::new();
    let at = world.map(2);
    assert_eq!(world.load(at), Ok(0));
    world.store(at, 5).unwrap();
    assert_eq!(world.load(at + PAGE_SIZE), Ok(0), "the zero page is still one");
    assert_ne!(world.pte(at).pfn(), world.mm.base().zero_page);
    assert_eq!((world.anon_rss(), world.count(FaultOutcome::Copied)), (1, 1));
    world.end();
}

#[test]
fn a_fault_that_another_cpu_has_served_is_spurious() {
    let world = World::new();
    let at = world.map(1);
    assert_eq!(world.fault(at, FaultAccess::Write), Ok(FaultOutcome::AnonPage));
    for access in [FaultAccess::Write, FaultAccess::Read, FaultAccess::Unshare] {
        assert_eq!(world.fault(at + 9, access), Ok(FaultOutcome::Spurious));
    }
    assert_eq!(world.stats().minor(), 4);
    world.end();
}

#[test]
fn an_exclusive_page_is_made_writable_in_place() {
    let world = World::new();
    let at = world.map(1);
    world.store(at, 3).unwrap();
    let pfn = world.pte(at).pfn();
    world.change(at, |pte| pte.wrprotect().mk_clean());
    assert_eq!(world.fault(at, FaultAccess::Write), Ok(FaultOutcome::Reused));
    let pte = world.pte(at);
    assert!(pte.pfn() == pfn && pte.is_writable() && pte.is_dirty());
    assert_eq!(world.load(at), Ok(3));
    world.end();
}

#[test]
fn a_page_without_other_owners_becomes_exclusive_again() {
    let world = World::new();
    let at = world.map(1);
    world.store(at, 3).unwrap();
    let pfn = world.pte(at).pfn();
    let lose = || world.change(at, |pte| pte.wrprotect().clear_anon_exclusive());
    lose();
    assert_eq!(world.fault(at, FaultAccess::Unshare), Ok(FaultOutcome::Reused));
    assert!(world.pte(at).is_anon_exclusive() && !world.pte(at).is_writable());
    lose();
    assert_eq!(world.fault(at, FaultAccess::Write), Ok(FaultOutcome::Reused));
    assert_eq!(world.pte(at).pfn(), pfn);
    lose();
    // Somebody else's reference: the page might be seen by him.
    let folio = world.mm.folio_of(pfn).unwrap();
    assert_eq!(world.fault(at, FaultAccess::Write), Ok(FaultOutcome::Copied));
    assert_ne!(world.pte(at).pfn(), pfn);
    assert_eq!((folio.refcount(), folio.mapcount()), (1, 0));
    world.mm.put(folio);
    assert_eq!((world.load(at), world.anon_rss()), (Ok(3), 1));
    world.end();
}

#[test]
fn unsharing_the_zero_page_gives_a_read_only_page_of_zeros() {
    let world = World::new();
    let at = world.map(1);
    assert_eq!(world.load(at), Ok(0));
    assert_eq!(world.fault(at, FaultAccess::Unshare), Ok(FaultOutcome::Copied));
    let pte = world.pte(at);
    assert!(pte.is_anon_exclusive() && !pte.is_writable() && !pte.is_special());
    assert_eq!(world.load(at), Ok(0));
    assert_eq!(world.fault(at, FaultAccess::Write), Ok(FaultOutcome::Reused));
    world.end();
}

#[test]
fn each_failing_allocation_is_undone_and_tried_again() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        for zero_first in [false, true] {
            for nth in 1.. {
                let world = World::new();
                let at = world.map(1);
                if zero_first {
                    world.load(at).unwrap();
                }
                world.platform().faults().fail_nth(site, nth);
                assert_eq!(world.store(at, 1), Ok(()), "{site:?} {nth}");
                let struck = world.platform().faults().struck(site);
                world.platform().faults().fail_nth(site, 0);
                assert_eq!((world.event(FaultEvent::Retry), world.anon_rss()), (struck, 1));
                assert_eq!(world.load(at), Ok(1));
                world.end();
                if struck == 0 {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_process_that_needs_more_than_there_is_is_killed() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        let world = World::new();
        let at = world.map(2);
        world.store(at, 1).unwrap();
        world.base().settle();
        world.platform().faults().fail_randomly(site, 1);
        assert_eq!(world.store(at + PAGE_SIZE, 1), Err(FaultError::Oom), "{site:?}");
        world.platform().faults().fail_randomly(site, 0);
        assert!(world.space().is_dead());
        assert_eq!(world.entry(at + PAGE_SIZE), Entry::NONE);
        world.end();
    }
}

#[test]
fn a_killed_process_faults_no_more() {
    let world = World::new();
    let at = world.map(1);
    world.space().dead.store(true, Ordering::Release);
    assert_eq!(world.store(at, 1), Err(FaultError::Oom));
    world.end();
}

#[test]
fn two_threads_that_fault_on_one_page_share_it() {
    for _ in 0..20 {
        let world = World::new();
        let at = world.map(8);
        std::thread::scope(|scope| {
            for cpu in 0..4u64 {
                let world = &world;
                scope.spawn(move || {
                    testing::set_cpu(usize::try_from(cpu).unwrap());
                    for page in 0..8 {
                        world.store(at + page * PAGE_SIZE + 8 * cpu, page + cpu).unwrap();
                    }
                });
            }
        });
        for page in 0..8 {
            for cpu in 0..4 {
                assert_eq!(world.load(at + page * PAGE_SIZE + 8 * cpu), Ok(page + cpu));
            }
        }
        assert_eq!(world.anon_rss(), 8);
        world.end();
    }
}
