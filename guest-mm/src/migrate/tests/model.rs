//! Random operations on pages, batches and owners against a model that knows, of
//! each page, its frame, its version and who has it.

use proptest::prelude::*;

use super::*;
use crate::memdesc::Kind;
use crate::migrate::test_driver::{PageError, TEST_MOVABLE, TestPage};
use crate::objects::Freed;
use crate::platform::FaultSite;

/// Pages at most.
const PAGES: usize = 12;
/// Batches.
const BATCHES: usize = 2;

#[derive(Debug, Clone)]
enum Op {
    New,
    Update(usize),
    Free(usize),
    Isolate { page: usize, batch: usize },
    Putback(usize),
    Migrate { batch: usize, mode: MigrateMode, fault: Option<FaultSite> },
    Unregister,
}

fn op() -> impl Strategy<Value = Op> {
    let (page, batch) = (0..PAGES, 0..BATCHES);
    let mode = prop_oneof![
        Just(MigrateMode::Async),
        Just(MigrateMode::SyncLight),
        Just(MigrateMode::Sync)
    ];
    let fault = prop_oneof![
        3 => Just(None),
        1 => Just(Some(FaultSite::MigrateDestination)),
        1 => Just(Some(FaultSite::MigrateCallback)),
    ];
    prop_oneof![
        3 => Just(Op::New),
        2 => page.clone().prop_map(Op::Update),
        1 => page.clone().prop_map(Op::Free),
        5 => (page, batch.clone()).prop_map(|(page, batch)| Op::Isolate { page, batch }),
        1 => batch.clone().prop_map(Op::Putback),
        2 => (batch, mode, fault).prop_map(|(batch, mode, fault)| Op::Migrate { batch, mode, fault }),
        1 => Just(Op::Unregister),
    ]
}

/// What the model knows of a page.
struct Known<'m> {
    page: TestPage<'m>,
    /// The batch that has it.
    batch: Option<usize>,
}

struct World<'a, 'm> {
    mm: &'a TestMm<'m>,
    pages: Vec<Known<'m>>,
    batches: Vec<MigrateBatch<'a, 'm, TestPlatform>>,
    /// Pages in each batch that their owner has freed.
    doomed: [u64; BATCHES],
    next: u64,
}

impl World<'_, '_> {
    fn apply(&mut self, op: &Op) {
        match *op {
            Op::New if self.pages.len() < PAGES => {
                let page = TestPage::new(self.mm, self.next).unwrap();
                self.next += 1;
                self.pages.push(Known { page, batch: None });
            }
            Op::New => {}
            Op::Update(page) => {
                if let Some(known) = self.pages.get_mut(page) {
                    let expected = known.batch.map_or(Ok(()), |_| Err(PageError::Isolated));
                    assert_eq!(known.page.update(self.mm), expected);
                }
            }
            Op::Free(page) if page < self.pages.len() => {
                let known = self.pages.swap_remove(page);
                let freed = known.page.free(self.mm).unwrap();
                match known.batch {
                    None => assert_eq!(freed, Freed::Now),
                    Some(batch) => {
                        assert_eq!(freed, Freed::ByMigration);
                        self.doomed[batch] += 1;
                    }
                }
            }
            Op::Free(_) => {}
            Op::Isolate { page, batch } => self.isolate(page, batch),
            Op::Putback(batch) => {
                assert_eq!(self.batches[batch].putback(), self.doomed[batch]);
                self.left(batch);
            }
            Op::Migrate { batch, mode, fault } => self.migrate(batch, mode, fault),
            Op::Unregister => {
                let busy = self.batches.iter().any(|batch| !batch.is_empty());
                let gone = self.mm.clear_movable_ops(Kind::Movable);
                assert_eq!(gone.is_err(), busy);
                if gone.is_ok() {
                    self.mm.set_movable_ops(Kind::Movable, &TEST_MOVABLE).unwrap();
                }
            }
        }
    }

    fn isolate(&mut self, page: usize, batch: usize) {
        let Some(known) = self.pages.get_mut(page) else { return };
        let done = self.mm.isolate_for_migration(known.page.frame(), &mut self.batches[batch]);
        match (known.batch, self.batches[batch].len()) {
            (Some(_), _) => assert!(done.is_err()),
            (None, _) => {
                done.unwrap();
                known.batch = Some(batch);
            }
        }
    }

    fn left(&mut self, batch: usize) {
        self.doomed[batch] = 0;
        self.pages.iter_mut().filter(|known| known.batch == Some(batch)).for_each(|known| {
            known.batch = None;
            known.page.check(self.mm).unwrap();
        });
    }

    fn migrate(&mut self, batch: usize, mode: MigrateMode, fault: Option<FaultSite>) {
        let mine = self.pages.iter().filter(|known| known.batch == Some(batch));
        let before: Vec<_> = mine.map(|known| (known.page.id(), known.page.frame())).collect();
        let faults = self.mm.platform().faults();
        if let Some(site) = fault {
            faults.fail_nth(site, 1);
        }
        let mut to = Noted::new(self.mm);
        let stats = self.mm.migrate_pages(&mut self.batches[batch], &mut to, mode);
        if let Some(site) = fault {
            faults.fail_nth(site, 0);
        }
        let moved = self.pages.iter().filter(|known| {
            before.iter().any(|&(id, frame)| id == known.page.id() && frame != known.page.frame())
        });
        assert_eq!(stats.migrated, moved.count() as u64);
        assert_eq!(stats.freed, self.doomed[batch]);
        assert_eq!(stats.migrated + stats.failed(), before.len() as u64);
        if fault != Some(FaultSite::MigrateDestination) {
            assert_eq!(stats.failed(), 0, "a callback that fails once is asked again");
        }
        self.left(batch);
    }

    fn validate(&self) {
        let isolated = self.batches.iter().map(|batch| batch.len() as u64).sum::<u64>();
        assert_eq!(self.mm.isolated_blocks(), isolated);
        let census = self.mm.census(&[]);
        let wrong: Vec<_> = census.discrepancies().iter().collect();
        assert!(census.is_consistent(), "{wrong:?}");
        let doomed: u64 = self.doomed.iter().sum();
        assert_eq!(census.memory.blocks(Kind::Movable), self.pages.len() as u64 + doomed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn pages_are_where_and_whose_the_model_says(ops in prop::collection::vec(op(), 1..60)) {
        with_mm(|mm| {
            mm.set_movable_ops(Kind::Movable, &TEST_MOVABLE).unwrap();
            let batches = (0..BATCHES).map(|_| MigrateBatch::new(mm)).collect();
            let mut world =
                World { mm, pages: Vec::new(), batches, doomed: [0; BATCHES], next: 1 };
            for op in &ops {
                world.apply(op);
                world.validate();
            }
            world.batches.clear();
            for known in world.pages {
                known.page.check(mm).unwrap();
                assert_eq!(known.page.free(mm), Ok(Freed::Now));
            }
            mm.clear_movable_ops(Kind::Movable).unwrap();
        });
    }
}
