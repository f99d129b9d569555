//! The test driver.

use super::*;
use crate::memdesc::Kind;
use crate::migrate::test_driver::{PageError, TEST_MOVABLE, TestPage};
use crate::objects::Freed;
use crate::platform::FaultSite;

#[test]
fn a_page_keeps_its_contents_wherever_it_goes() {
    with_mm(|mm| {
        mm.set_movable_ops(Kind::Movable, &TEST_MOVABLE).unwrap();
        let mut page = TestPage::new(mm, 7).unwrap();
        for round in 0..5 {
            let before = page.frame();
            let mut batch = batch_of(mm, &[before]);
            assert_eq!(page.check(mm), Err(PageError::Isolated));
            assert_eq!(page.update(mm), Err(PageError::Isolated));
            let mut to = Noted::new(mm);
            assert_eq!(mm.migrate_pages(&mut batch, &mut to, MigrateMode::Sync).migrated, 1);
            assert_ne!(page.frame(), before, "round {round}");
            assert_eq!(page.update(mm), Ok(()));
            assert_eq!(page.check(mm), Ok(()));
        }
        assert_eq!(page.free(mm), Ok(Freed::Now));
        mm.clear_movable_ops(Kind::Movable).unwrap();
    });
}

#[test]
fn a_wrong_byte_is_noticed() {
    with_mm(|mm| {
        let page = TestPage::new(mm, 1).unwrap();
        let mut claimed = mm.claim_object::<MovableDesc>(page.frame()).unwrap();
        mm.described_bytes(&mut claimed)[800] ^= 1;
        mm.let_migrate(claimed).unwrap();
        assert_eq!(page.check(mm), Err(PageError::Corrupt(100)));
        page.free(mm).unwrap();
    });
}

#[test]
fn freed_while_isolated_it_is_freed_at_the_end_of_the_isolation() {
    with_mm(|mm| {
        mm.set_movable_ops(Kind::Movable, &TEST_MOVABLE).unwrap();
        let [put_back, migrated] = [1, 2].map(|id| TestPage::new(mm, id).unwrap());
        let mut first = batch_of(mm, &[put_back.frame()]);
        let mut second = batch_of(mm, &[migrated.frame()]);
        assert_eq!(put_back.free(mm), Ok(Freed::ByMigration));
        assert_eq!(migrated.free(mm), Ok(Freed::ByMigration));
        assert_sound(mm);
        assert_eq!(first.putback(), 1);
        let stats = mm.migrate_pages(&mut second, &mut Noted::new(mm), MigrateMode::Sync);
        assert_eq!((stats.freed, stats.migrated), (1, 0));
        drop((first, second));
        mm.clear_movable_ops(Kind::Movable).unwrap();
    });
}

#[test]
fn without_memory_there_is_no_page_and_nothing_is_lost() {
    for site in [FaultSite::BuddyAlloc, FaultSite::SlabAlloc] {
        with_mm(|mm| {
            mm.platform().faults().fail_nth(site, 1);
            assert!(TestPage::new(mm, 1).is_err());
        });
    }
}
