//! What an owner answers, what the words say, and what comes of it.

use super::*;
use crate::memdesc::{Hold, Kind, Memdesc};

fn moves(kind: MovableKind) {
    with_mm(|mm| {
        let script = Script::register(mm, kind, &[]);
        let src = page(mm, kind);
        let mut batch = batch_of(mm, &[src]);
        let mut to = Noted::new(mm);
        let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync);
        assert_eq!((stats.migrated, stats.failed(), stats.passes), (1, 0, 1));
        assert!(batch.is_empty());
        let dst = to.of(src);
        assert_ne!(src, dst);
        let kind_at = |pfn| mm.memory().words().load(pfn).unwrap().kind().unwrap();
        assert_eq!(kind_at(dst), kind.kind());
        assert_ne!(kind_at(src), kind.kind(), "the source is free");
        assert_eq!(script.told(), [Told::Isolate(src), Told::Migrate(src, MigrateMode::Sync)]);
        assert_sound(mm);
        free(mm, kind, dst);
        mm.clear_movable_ops(kind.kind()).unwrap();
    });
}

#[test]
fn a_page_of_each_kind_moves_and_its_source_is_free() {
    MovableKind::ALL.into_iter().for_each(moves);
}

#[test]
fn the_descriptor_goes_with_its_page_and_no_other_is_allocated() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Movable, &[]);
        let src = described::<MovableDesc>(mm);
        let page = mm.claim_object::<MovableDesc>(src).unwrap();
        page.descriptor().owner.store(99, Ordering::Relaxed);
        let before = core::ptr::from_ref(page.descriptor());
        mm.let_migrate(page).unwrap();
        let mut batch = batch_of(mm, &[src]);
        let mut to = Noted::new(mm);
        mm.platform().faults().fail_randomly(crate::platform::FaultSite::SlabAlloc, 1);
        assert_eq!(mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync).migrated, 1);
        mm.platform().faults().fail_randomly(crate::platform::FaultSite::SlabAlloc, 0);
        let page = mm.claim_object::<MovableDesc>(to.of(src)).unwrap();
        assert!(core::ptr::eq(page.descriptor(), before));
        mm.let_migrate(page).unwrap();
        assert_eq!(owner_of(mm, to.of(src)), Some(99));
        free(mm, MovableKind::Movable, to.of(src));
    });
}

#[test]
fn a_block_moves_whole_if_there_is_a_destination_of_its_order() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Offline, &[]);
        let src = offline(mm, 3);
        let mut batch = batch_of(mm, &[src]);
        let mut to = Noted::new(mm);
        let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::SyncLight);
        assert_eq!(stats.migrated, 8);
        free(mm, MovableKind::Offline, to.of(src));
    });
}

#[test]
fn a_page_given_up_is_freed_with_its_descriptor_and_its_destination_comes_back() {
    for kind in MovableKind::ALL {
        with_mm(|mm| {
            Script::register(mm, kind, &[Act::Release]);
            let src = page(mm, kind);
            let mut batch = batch_of(mm, &[src]);
            let mut to = Noted::new(mm);
            let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync);
            assert_eq!((stats.migrated, stats.released, stats.vacated()), (0, 1, 1));
            assert_eq!(to.back, 1);
            assert_eq!(mm.migrate_counters().released, 1);
        });
    }
}

#[test]
fn a_page_that_its_owner_took_back_is_left_alone_with_its_destination() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Offline, &[Act::Keep]);
        let src = offline(mm, 0);
        let mut batch = batch_of(mm, &[src]);
        let mut to = Noted::new(mm);
        let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync);
        assert_eq!((stats.kept, stats.vacated(), stats.failed(), to.back), (1, 0, 0, 0));
        assert_sound(mm);
        free(mm, MovableKind::Offline, src);
        free(mm, MovableKind::Offline, to.of(src));
    });
}

#[test]
fn busy_pages_are_tried_again_as_often_as_the_mode_says_and_put_back() {
    for mode in [MigrateMode::Async, MigrateMode::SyncLight, MigrateMode::Sync] {
        with_mm(|mm| {
            let script =
                Script::register(mm, MovableKind::Movable, &[Act::Fail(MigrateError::Again); 10]);
            let src = described::<MovableDesc>(mm);
            let mut batch = batch_of(mm, &[src]);
            let mut to = Noted::new(mm);
            let stats = mm.migrate_pages(&mut batch, &mut to, mode);
            assert_eq!(stats.failed_with(MigrateError::Again), 1);
            assert_eq!(u64::from(stats.passes), to.back as u64);
            assert_eq!(stats.passes, mode.passes());
            let told = script.told();
            let tried = told.iter().filter(|told| matches!(told, Told::Migrate(..))).count();
            assert_eq!(tried, mode.passes() as usize);
            assert_eq!(told.last(), Some(&Told::Putback(src)));
            free(mm, MovableKind::Movable, src);
        });
    }
}

#[test]
fn a_page_that_was_busy_twice_moves_at_the_third_pass() {
    with_mm(|mm| {
        let again = Act::Fail(MigrateError::Again);
        Script::register(mm, MovableKind::Movable, &[again, again]);
        let src = described::<MovableDesc>(mm);
        let mut batch = batch_of(mm, &[src]);
        let mut to = Noted::new(mm);
        let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::Async);
        assert_eq!((stats.migrated, stats.passes, to.back), (1, 3, 2));
        free(mm, MovableKind::Movable, to.of(src));
    });
}

#[test]
fn pinned_pages_and_owners_without_memory_are_not_asked_twice() {
    for error in [MigrateError::Busy, MigrateError::NoMemory] {
        with_mm(|mm| {
            Script::register(mm, MovableKind::Movable, &[Act::Fail(error)]);
            let src = described::<MovableDesc>(mm);
            let mut batch = batch_of(mm, &[src]);
            let stats = mm.migrate_pages(&mut batch, &mut Noted::new(mm), MigrateMode::Sync);
            assert_eq!((stats.failed_with(error), stats.passes), (1, 1));
            assert_eq!(mm.migrate_counters().failed[error as usize], 1);
            free(mm, MovableKind::Movable, src);
        });
    }
}

#[test]
fn an_owner_that_claims_to_have_moved_and_has_not_gets_its_page_back() {
    for kind in MovableKind::ALL {
        with_mm(|mm| {
            Script::register(mm, kind, &[Act::ClaimMoved]);
            let src = page(mm, kind);
            let mut batch = batch_of(mm, &[src]);
            let mut to = Noted::new(mm);
            let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync);
            assert_eq!(stats.failed_with(MigrateError::NotTaken), 1);
            assert_eq!((stats.vacated(), to.back), (0, 1));
            assert_eq!(mm.migrate_counters().contradictions, 1);
            assert_sound(mm);
            free(mm, kind, src);
        });
    }
}

#[test]
fn an_owner_that_denies_having_moved_owns_one_page_afterwards() {
    for act in [Act::DenyWithError, Act::DenyWithRelease] {
        for kind in MovableKind::ALL {
            with_mm(|mm| {
                Script::register(mm, kind, &[act]);
                let src = page(mm, kind);
                let mut batch = batch_of(mm, &[src]);
                let mut to = Noted::new(mm);
                let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync);
                assert_eq!(mm.migrate_counters().contradictions, 1);
                assert_sound(mm);
                let is_undone = kind == MovableKind::Offline;
                assert_eq!(stats.migrated, u64::from(!is_undone));
                free(mm, kind, if is_undone { src } else { to.of(src) });
            });
        }
    }
}

#[test]
fn a_page_freed_while_it_is_being_moved_is_freed_once_and_does_not_live_on() {
    with_mm(|mm| {
        let script = Script::register(mm, MovableKind::Movable, &[Act::FreeMeanwhile]);
        let src = described::<MovableDesc>(mm);
        let mut batch = batch_of(mm, &[src]);
        let mut to = Noted::new(mm);
        let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync);
        assert_eq!((stats.freed, stats.migrated, stats.failed(), to.back), (1, 0, 0, 1));
        let told = script.told();
        assert_eq!(told, [Told::Isolate(src), Told::Migrate(src, MigrateMode::Sync)]);
    });
}

#[test]
fn a_page_freed_before_it_is_moved_needs_no_destination() {
    with_mm(|mm| {
        let script = Script::register(mm, MovableKind::Movable, &[]);
        let src = described::<MovableDesc>(mm);
        let page = mm.claim_object::<MovableDesc>(src).unwrap();
        let descriptor = page.descriptor_ref();
        mm.let_migrate(page).unwrap();
        let mut batch = batch_of(mm, &[src]);
        let deferred = mm.free_object(src, descriptor).unwrap();
        assert_eq!(deferred, crate::objects::Freed::ByMigration);
        let word = mm.memory().words().decode(src).unwrap();
        assert!(matches!(word, Memdesc::Descriptor(found) if found.hold == Hold::Doomed));
        assert_sound(mm);
        let mut to = Noted::new(mm);
        let stats = mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync);
        assert_eq!((stats.freed, to.sent.len()), (1, 0));
        assert_eq!(script.told(), [Told::Isolate(src)]);
        assert_eq!(mm.memory().census().blocks(Kind::Movable), 0);
    });
}

#[test]
fn pages_of_several_kinds_share_a_batch() {
    with_mm(|mm| {
        MovableKind::ALL.into_iter().for_each(|kind| {
            Script::register(mm, kind, &[]);
        });
        let pages: Vec<_> =
            (0..6).map(|n| (MovableKind::ALL[n % 3], page(mm, MovableKind::ALL[n % 3]))).collect();
        let heads: Vec<_> = pages.iter().map(|(_, pfn)| *pfn).collect();
        let mut batch = batch_of(mm, &heads);
        assert_eq!(batch.entries(), heads);
        let mut to = Noted::new(mm);
        assert_eq!(mm.migrate_pages(&mut batch, &mut to, MigrateMode::Async).migrated, 6);
        pages.iter().for_each(|(kind, pfn)| free(mm, *kind, to.of(*pfn)));
    });
}
