//! The lists.

use std::vec::Vec;

use super::{TestMm, listed, with_mm};
use crate::folio::{FolioFlags, FolioKind, FolioRef};
use crate::reclaim::LruList;
use crate::reclaim::lru::Isolated;
use crate::testing::set_cpu;

fn isolate<'m>(mm: &TestMm<'m>, list: LruList, most: usize) -> Vec<FolioRef<'m>> {
    let mut out = Isolated::new();
    mm.lru_isolate_oldest(list, most, &mut out);
    core::iter::from_fn(|| out.pop()).collect()
}

#[test]
fn folios_come_off_their_list_oldest_first() {
    with_mm(512, |mm| {
        let folios: Vec<_> = (0..40).map(|_| listed(mm, FolioKind::Anon)).collect();
        assert_eq!(mm.lru_counts().pages_of(LruList::InactiveAnon), 40);
        let first = isolate(mm, LruList::InactiveAnon, 32);
        let expected: Vec<_> = folios.iter().take(32).rev().map(|folio| folio.pfn()).collect();
        assert_eq!(first.iter().map(|folio| folio.pfn()).collect::<Vec<_>>(), expected);
        assert!(first.iter().all(|folio| folio.has(FolioFlags::ISOLATED)));
        assert!(first.iter().all(|folio| !mm.lru_isolate(folio)), "isolated twice");
        for folio in first {
            mm.lru_add(&folio);
            mm.lru_putback(&folio);
            mm.put(folio);
        }
        assert_eq!(mm.lru_counts().folios[LruList::InactiveAnon as usize], 40);
        let second = isolate(mm, LruList::InactiveAnon, 1);
        assert_eq!(second[0].pfn(), folios[32].pfn());
        for folio in second {
            mm.lru_putback(&folio);
            mm.put(folio);
        }
        folios.into_iter().for_each(|folio| mm.put(folio));
    });
}

#[test]
fn a_second_use_makes_a_folio_active() {
    with_mm(512, |mm| {
        let (anon, file) = (listed(mm, FolioKind::Anon), listed(mm, FolioKind::File));
        for folio in [&anon, &file] {
            mm.mark_accessed(folio);
            assert!(folio.has(FolioFlags::REFERENCED) && !folio.has(FolioFlags::ACTIVE));
            mm.mark_accessed(folio);
            assert!(folio.has(FolioFlags::ACTIVE) && !folio.has(FolioFlags::REFERENCED));
        }
        assert_eq!(mm.lru_counts().folios, [0, 1, 0, 1]);
        mm.lru_deactivate(&anon);
        assert_eq!(mm.lru_counts().folios, [1, 0, 0, 1]);
        mm.put(anon);
        mm.put(file);
    });
}

#[test]
fn a_folio_that_is_freed_leaves_its_list_and_one_being_freed_is_passed_over() {
    with_mm(512, |mm| {
        let (first, second) = (listed(mm, FolioKind::Anon), listed(mm, FolioKind::Anon));
        let frozen = first.freeze(1).unwrap();
        let got = isolate(mm, LruList::InactiveAnon, 8);
        assert_eq!(got.len(), 1);
        mm.free_folio(frozen);
        for folio in got {
            mm.lru_putback(&folio);
            mm.put(folio);
        }
        mm.put(second);
    });
}

#[test]
fn four_cpus_add_isolate_and_free() {
    with_mm(2048, |mm| {
        std::thread::scope(|scope| {
            for cpu in 0..4 {
                scope.spawn(move || {
                    set_cpu(cpu);
                    let mut mine = Vec::new();
                    for round in 0..400 {
                        mine.push(listed(mm, FolioKind::Anon));
                        if round % 3 == 0 {
                            for folio in isolate(mm, LruList::InactiveAnon, 4) {
                                if round % 2 == 0 {
                                    folio.set_flags(FolioFlags::ACTIVE);
                                }
                                mm.lru_putback(&folio);
                                mm.put(folio);
                            }
                        }
                        if mine.len() > 8 {
                            mm.put(mine.swap_remove(round % 8));
                        }
                    }
                    mine.into_iter().for_each(|folio| mm.put(folio));
                });
            }
        });
    });
}
