//! Batches: what they own, and for how long.

use super::*;
use crate::errno::Errno;
use crate::memdesc::Kind;

#[test]
fn a_full_batch_takes_no_more() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Movable, &[]);
        let pages: Vec<_> = (0..33).map(|_| described::<MovableDesc>(mm)).collect();
        let mut batch = batch_of(mm, &pages[..32]);
        assert!(batch.is_full());
        let refused = mm.isolate_for_migration(pages[32], &mut batch).unwrap_err();
        assert_eq!((refused, refused.errno()), (IsolateError::BatchFull, Errno::EINVAL));
        assert_eq!((batch.len(), mm.isolated_blocks()), (32, 32));
        assert_sound(mm);
        let mut to = Noted::new(mm);
        assert_eq!(mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync).migrated, 32);
        pages[..32].iter().for_each(|&pfn| free(mm, MovableKind::Movable, to.of(pfn)));
        free(mm, MovableKind::Movable, pages[32]);
    });
}

#[test]
fn a_batch_may_be_larger() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Movable, &[]);
        let pages: Vec<_> = (0..100).map(|_| described::<MovableDesc>(mm)).collect();
        let mut batch = MigrateBatch::<_, 128>::new(mm);
        for &pfn in &pages {
            mm.isolate_for_migration(pfn, &mut batch).unwrap();
        }
        assert_eq!(batch.len(), 100);
        let mut to = Noted::new(mm);
        assert_eq!(mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync).migrated, 100);
        pages.iter().for_each(|&pfn| free(mm, MovableKind::Movable, to.of(pfn)));
    });
}

#[test]
fn what_is_dropped_or_put_back_is_its_owners_again() {
    with_mm(|mm| {
        let script = Script::register(mm, MovableKind::Movable, &[]);
        let pages: Vec<_> = (0..4).map(|_| described::<MovableDesc>(mm)).collect();
        drop(batch_of(mm, &pages));
        assert_eq!(mm.isolated_blocks(), 0);
        let backs = script.told().iter().filter(|told| matches!(told, Told::Putback(_))).count();
        assert_eq!(backs, 4);
        let mut batch = batch_of(mm, &pages);
        assert_eq!(batch.putback(), 0);
        assert!(batch.is_empty());
        // It can be used again.
        mm.isolate_for_migration(pages[0], &mut batch).unwrap();
        drop(batch);
        pages.iter().for_each(|&pfn| free(mm, MovableKind::Movable, pfn));
    });
}

#[test]
fn what_its_owner_freed_meanwhile_is_freed_by_the_putback() {
    with_mm(|mm| {
        let script = Script::register(mm, MovableKind::ZpDesc, &[]);
        let pfn = described::<ZpDesc>(mm);
        let page = mm.claim_object::<ZpDesc>(pfn).unwrap();
        let descriptor = page.descriptor_ref();
        mm.let_migrate(page).unwrap();
        let mut batch = batch_of(mm, &[pfn]);
        mm.free_object(pfn, descriptor).unwrap();
        assert!(mm.free_object(pfn, descriptor).is_err(), "twice");
        assert_eq!(batch.putback(), 1);
        assert_eq!(script.told(), [Told::Isolate(pfn)], "its owner has forgotten it");
    });
}

#[test]
fn operations_cannot_go_while_a_batch_has_pages_of_theirs() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Movable, &[]);
        Script::register(mm, MovableKind::ZpDesc, &[]);
        let pfn = described::<MovableDesc>(mm);
        let mut batch = batch_of(mm, &[pfn]);
        let busy = mm.clear_movable_ops(Kind::Movable).unwrap_err();
        assert_eq!(
            (busy, busy.errno()),
            (UnregisterError::Busy(MovableKind::Movable), Errno::EBUSY)
        );
        mm.clear_movable_ops(Kind::ZpDesc).expect("nothing of this kind is isolated");
        batch.putback();
        mm.clear_movable_ops(Kind::Movable).expect("put back");
        let refused = mm.isolate_for_migration(pfn, &mut batch);
        assert_eq!(refused, Err(IsolateError::NoOps(MovableKind::Movable)));
        free(mm, MovableKind::Movable, pfn);
    });
}

#[test]
fn an_isolated_block_that_no_batch_has_shows_in_the_census() {
    with_mm(|mm| {
        let pfn = described::<MovableDesc>(mm);
        let stray = mm.isolate_object::<MovableDesc>(pfn).unwrap();
        let census = mm.census(&[]);
        let found: Vec<_> = census.discrepancies().iter().collect();
        let wrong = crate::mm::MmDiscrepancy::Isolated { entries: 0, found: 1 };
        assert_eq!(found, [&wrong]);
        mm.putback_object(stray).unwrap();
        free(mm, MovableKind::Movable, pfn);
    });
}

#[test]
fn destinations_keep_to_their_range_or_out_of_it() {
    with_mm(|mm| {
        Script::register(mm, MovableKind::Movable, &[]);
        let low = testing::range(0, 512);
        let src = described::<MovableDesc>(mm);
        let mut batch = batch_of(mm, &[src]);
        let mut high = Allocated::new(mm.memory()).outside(low);
        let stats = mm.migrate_pages(&mut batch, &mut high, MigrateMode::Sync);
        let found = |wanted: abi::PfnRange| {
            wanted.iter().find(|&pfn| {
                mm.memory().words().load(pfn).is_ok_and(|word| word.kind() == Ok(Kind::Movable))
            })
        };
        assert_eq!(stats.migrated, 1);
        let now = found(testing::range(512, 512)).expect("outside of the range");
        let mut batch = batch_of(mm, &[now]);
        let mut inside = Allocated::new(mm.memory()).within(low);
        assert_eq!(mm.migrate_pages(&mut batch, &mut inside, MigrateMode::Sync).migrated, 1);
        free(mm, MovableKind::Movable, found(low).expect("inside of the range"));
    });
}
