//! Ranges of a process.

use abi::{PAGE_SIZE, PageCount, Pfn, PfnRange};

use crate::addr::{PMD_SIZE, USER_END};
use crate::errno::Errno;
use crate::migrate::{
    Allocated, BATCH, FolioIsolateError, IsolateError, MigrateMode, MigrateRangeError,
};
use crate::rmap::tests::world::{World, va};
use crate::scenario::migration::pool::Pool;
use crate::space::MmapArgs;

#[test]
fn a_range_goes_where_it_is_wanted_again_and_again() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 40);
    // Every third page has none.
    let is_there = |page: u64| page % 3 != 2;
    for page in (0..40).filter(|&page| is_there(page)) {
        world.store(&space, at + page * PAGE_SIZE, page + 1).unwrap();
    }
    for _ in 0..3 {
        let mut to = Pool::new(world.mm.memory()).unwrap();
        let wanted = to.range();
        let done = world.mm.migrate_range(&space, at, 40 * PAGE_SIZE, &mut to, MigrateMode::Sync);
        let done = done.unwrap();
        assert_eq!((done.pages.failed(), done.refused, done.absent), (0, 0, 13), "{done:?}");
        assert_eq!(done.pages.migrated, 27);
        for page in (0..40).filter(|&page| is_there(page)) {
            let at = at + page * PAGE_SIZE;
            assert!(wanted.contains(world.pte(&space, at).pfn()));
            assert_eq!(world.load(&space, at), Ok(page + 1));
        }
        world.assert_consistent();
    }
    world.end([space]);
}

#[test]
fn a_huge_page_in_a_range_moves_once_and_whole() {
    let world = World::new(8192);
    let space = world.space();
    let at = world.map_huge(&space);
    world.store(&space, at + PAGE_SIZE, 3).unwrap();
    let mut to = Allocated::new(world.mm.memory());
    // Not from its start.
    let done =
        world.mm.migrate_range(&space, at + PAGE_SIZE, PAGE_SIZE, &mut to, MigrateMode::Sync);
    assert_eq!(done.unwrap().pages.migrated, 512);
    world.mm.mprotect(&space, at, PAGE_SIZE, crate::pgtable::PageProt::READ).unwrap();
    // By PTEs now.
    let done = world.mm.migrate_range(&space, at, PMD_SIZE, &mut to, MigrateMode::Sync).unwrap();
    assert_eq!((done.pages.migrated, done.absent, done.refused), (512, 0, 0), "{done:?}");
    assert_eq!(world.load(&space, at + PAGE_SIZE), Ok(3));
    world.end([space]);
}

#[test]
fn senseless_ranges_are_refused_by_name() {
    let world = World::new(4096);
    let space = world.space();
    let mut to = Allocated::new(world.mm.memory());
    let mut error = |start, bytes| {
        world.mm.migrate_range(&space, start, bytes, &mut to, MigrateMode::Sync).unwrap_err()
    };
    assert_eq!(error(0x1001, PAGE_SIZE), MigrateRangeError::Unaligned { start: 0x1001 });
    assert_eq!(error(0x1000, 0), MigrateRangeError::Empty { start: 0x1000 });
    for (start, bytes) in [
        (USER_END, PAGE_SIZE),
        (USER_END - PAGE_SIZE, PAGE_SIZE + 1),
        (0xffff_8000_0000_0000, PAGE_SIZE),
        (PAGE_SIZE, u64::MAX),
        (u64::MAX - PAGE_SIZE + 1, PAGE_SIZE),
    ] {
        let error = error(start, bytes);
        assert_eq!(error, MigrateRangeError::NotUser { start, bytes });
        assert_eq!(error.errno(), Errno::EFAULT);
        assert!(error.to_string().contains(&format!("{start:#x}")), "{error}");
    }
    world.end([space]);
}

#[test]
fn holes_zero_pages_and_swapped_pages_are_absent_and_pinned_ones_refused() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 4);
    world.load(&space, at).unwrap();
    world.store(&space, at + PAGE_SIZE, 1).unwrap();
    world.store(&space, at + 2 * PAGE_SIZE, 2).unwrap();
    let pinned = world.folio(&space, at + 2 * PAGE_SIZE).pin();
    let mut to = Allocated::new(world.mm.memory());
    let all =
        world.mm.migrate_range(&space, at, 4 * PAGE_SIZE, &mut to, MigrateMode::Sync).unwrap();
    assert_eq!((all.pages.migrated, all.absent, all.refused), (1, 2, 1), "{all:?}");
    let (where_, why) = all.first_refusal.unwrap();
    assert_eq!(where_, va(at + 2 * PAGE_SIZE));
    assert_eq!(why, IsolateError::Folio(FolioIsolateError::Pinned(pinned.pfn())));
    // Where nothing was ever mapped.
    let none =
        world.mm.migrate_range(&space, 1 << 40, 1 << 30, &mut to, MigrateMode::Sync).unwrap();
    assert_eq!((none.pages.migrated, none.absent), (0, 1 << 18));
    world.mm.unpin(pinned);
    world.end([space]);
}

#[test]
fn a_range_without_memory_for_destinations_stays() {
    let world = World::new(4096);
    let space = world.space();
    let at = world.map(&space, 8);
    for page in 0..8 {
        world.store(&space, at + page * PAGE_SIZE, page).unwrap();
    }
    let nowhere = PfnRange::from_start(Pfn::ZERO, PageCount::ZERO).unwrap();
    let mut to = Allocated::new(world.mm.memory()).within(nowhere);
    let done = world.mm.migrate_range(&space, at, 8 * PAGE_SIZE, &mut to, MigrateMode::Async);
    let done = done.unwrap();
    assert_eq!((done.pages.migrated, done.pages.failed()), (0, 8), "{done:?}");
    for page in 0..8 {
        assert_eq!(world.load(&space, at + page * PAGE_SIZE), Ok(page));
    }
    world.end([space]);
}

/// A page of another folio in between, or the end of a batch, and the folio was met again:
/// each of its leaves was refused, or it moved twice.
#[test]
fn a_huge_page_in_pieces_moves_once_whatever_lies_between() {
    let world = World::new(8192);
    let space = world.space();
    // In one batch: its last entry is the huge page.
    let small = BATCH as u64 - 1;
    let huge = world.map_huge(&space);
    world.store(&space, huge, 1).unwrap();
    world.mm.mprotect(&space, huge, PAGE_SIZE, crate::pgtable::PageProt::READ).unwrap();
    let bytes = small * PAGE_SIZE;
    let start = huge - bytes;
    world.mm.mmap(&space, MmapArgs::anonymous(bytes).fixed(start)).unwrap();
    for page in 0..small {
        world.store(&space, start + page * PAGE_SIZE, page).unwrap();
    }
    let mut to = Allocated::new(world.mm.memory());
    let mode = MigrateMode::Sync;
    let done = world.mm.migrate_range(&space, start, bytes + PMD_SIZE, &mut to, mode).unwrap();
    assert_eq!((done.pages.migrated, done.refused), (small + 512, 0), "{done:?}");
    // With another folio's page in its middle.
    let middle = huge + 7 * PAGE_SIZE;
    world.zap(&space, middle, 1);
    world.store(&space, middle, 7).unwrap();
    let done = world.mm.migrate_range(&space, huge, PMD_SIZE, &mut to, mode).unwrap();
    assert_eq!((done.pages.migrated, done.refused), (513, 0), "{done:?}");
    assert_eq!(world.load(&space, middle), Ok(7));
    world.assert_consistent();
    world.end([space]);
}
