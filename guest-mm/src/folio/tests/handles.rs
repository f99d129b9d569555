use super::super::*;
use crate::buddy::Gfp;
use crate::memdesc::{Kind, Order};
use crate::memory::AllocError;
use crate::mm::{Base, Mm};
use crate::platform::{FaultSite, Platform};
use crate::testing::{self, TestPlatform};
use abi::{PageCount, Pfn};

fn base(pages: u64) -> Base<TestPlatform> {
    Base::new(testing::memory(pages)).unwrap()
}

fn order(n: u8) -> Order {
    Order::new(n).unwrap()
}

fn assert_consistent(base: &Base<TestPlatform>) {
    let census = base.memory.census();
    assert!(census.is_consistent(), "{:?}", census.discrepancies());
}

#[test]
fn every_frame_of_a_folio_leads_to_its_descriptor() {
    let base = base(4096);
    let mm = Mm::new(&base);
    for n in [0, 1, 4, 9] {
        let folio = mm.alloc_folio(order(n), Gfp::USER, FolioKind::Anon).unwrap();
        assert_eq!((folio.order(), folio.refcount(), folio.kind()), (order(n), 1, FolioKind::Anon));
        for pfn in folio.range().iter() {
            let found = mm.folio_of(pfn).unwrap();
            assert_eq!(found, folio);
            mm.put(found);
        }
        assert_consistent(&base);
        let head = folio.pfn();
        mm.put(folio);
        assert!(matches!(mm.folio_of(head), Err(NoFolio::NotFolio(_))));
    }
    assert_eq!(base.memory.census().pages(Kind::Anon), PageCount::ZERO);
    assert_consistent(&base);
}

#[test]
fn frames_without_a_folio_are_refused_and_counted() {
    let base = base(1024);
    let mm = Mm::new(&base);
    let beyond = Pfn::new(1 << 30).unwrap();
    assert!(matches!(mm.folio_of(beyond), Err(NoFolio::OutOfMap(_))));
    assert!(matches!(mm.folio_of(Pfn::ZERO), Err(NoFolio::NotFolio(_))));
    assert_eq!(base.memory.words().unknown_words(), 0);
}

#[test]
fn a_failed_allocation_keeps_nothing() {
    let base = base(1024);
    let mm = Mm::new(&base);
    let free = base.memory.free_pages();
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        let faults = base.platform().faults();
        for nth in 1.. {
            let struck = faults.struck(site);
            faults.fail_nth(site, nth);
            let folio = mm.alloc_folio(order(2), Gfp::USER, FolioKind::File);
            faults.fail_nth(site, 0);
            if faults.struck(site) == struck {
                mm.put(folio.unwrap());
                assert!(nth > 1, "{site:?} was never asked");
                break;
            }
            assert!(matches!(folio, Err(AllocError::OutOfMemory(_))), "{site:?} {nth}");
            assert_consistent(&base);
        }
    }
    base.caches.folio.shrink(&base.memory);
    base.caches.folio.reap(&base.memory, &base.rcu);
    assert_eq!(base.memory.free_pages(), free);
}

#[test]
fn a_frozen_folio_gives_no_reference_and_comes_back_with_those_it_had() {
    let base = base(1024);
    let mm = Mm::new(&base);
    let folio = mm.alloc_folio(order(0), Gfp::USER, FolioKind::Anon).unwrap();
    let other = folio.get();
    let folio = folio.freeze(1).expect_err("another reference");
    let frozen = folio.freeze(2).unwrap();
    assert_eq!(mm.folio_of(frozen.pfn()), Err(NoFolio::Busy));
    mm.convert_folio(&frozen, FolioKind::File).unwrap();
    let folio = frozen.unfreeze(2);
    assert_eq!((folio.kind(), folio.refcount()), (FolioKind::File, 2));
    assert_eq!(base.memory.census().pages(Kind::File), PageCount::ONE);
    mm.put(other);
    mm.put(folio);
    assert_consistent(&base);
}

#[test]
fn pins_are_counted_exactly_beside_references() {
    let base = base(1024);
    let mm = Mm::new(&base);
    let folio = mm.alloc_folio(order(0), Gfp::USER, FolioKind::Anon).unwrap();
    let pin = folio.get().pin();
    let again = pin.repin();
    assert_eq!((folio.refcount(), folio.pincount(), folio.is_pinned()), (3, 2, true));
    mm.unpin(pin);
    mm.unpin(again);
    assert_eq!((folio.refcount(), folio.is_pinned()), (1, false));
    mm.put(folio);
}

#[test]
fn the_folio_lock_admits_one() {
    let base = base(1024);
    let mm = Mm::new(&base);
    let folio = mm.alloc_folio(order(0), Gfp::USER, FolioKind::File).unwrap();
    let guard = folio.lock(mm.platform());
    assert!(folio.try_lock(mm.platform()).is_none());
    drop(guard);
    assert!(folio.try_lock(mm.platform()).is_some());
    assert!(!folio.is_locked());
    mm.put(folio);
}

/// Threads look frames up by number while others free and allocate them.
#[test]
fn references_by_frame_number_race_with_reuse() {
    let base = base(1024);
    let mm = Mm::new(&base);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mm, stop, base) = (&mm, &stop, &base);
        for cpu in 1..3 {
            scope.spawn(move || {
                testing::set_cpu(cpu);
                let mut found = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for n in 0..1024 {
                        let pfn = Pfn::new(n).unwrap();
                        if let Ok(folio) = mm.folio_of(pfn) {
                            assert!(folio.range().contains(pfn), "{folio:?} for {pfn:?}");
                            found += 1;
                            mm.put(folio);
                        }
                    }
                    base.platform().relax();
                }
                found
            });
        }
        for round in 0..400u32 {
            let folios: Vec<_> = (0..8)
                .map(|i| {
                    let order = order(u8::try_from((round + i) % 4).unwrap());
                    mm.alloc_folio(order, Gfp::USER, FolioKind::Anon).unwrap()
                })
                .collect();
            folios.into_iter().for_each(|folio| mm.put(folio));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_consistent(base_of(&mm));
    assert_eq!(base.memory.census().pages(Kind::Anon), PageCount::ZERO);
}

fn base_of<'m>(mm: &Mm<'m, TestPlatform>) -> &'m Base<TestPlatform> {
    mm.base()
}

#[test]
fn an_idle_device_folio_has_no_reference_and_its_last_user_leaves_it_idle() {
    let base = base(1024);
    let mm = Mm::new(&base);
    let frames = base.memory.alloc_frozen(order(2), Gfp::KERNEL).unwrap();
    let pfn = frames.head();
    let idle = mm.device_folio(frames).unwrap();
    assert_eq!(mm.folio_of(pfn), Err(NoFolio::Busy));
    let folio = mm.device_folio_start(idle);
    let found = mm.folio_of(pfn).unwrap();
    assert_eq!((found.kind(), found.refcount()), (FolioKind::Device, 2));
    assert!(mm.put_device_folio(found).is_none());
    let idle = mm.put_device_folio(folio).unwrap();
    assert_eq!(base.memory.census().pages(Kind::DevFolio), PageCount::new(4));
    base.memory.free_frozen(mm.end_device_folio(idle).unwrap());
    assert_consistent(&base);
}
