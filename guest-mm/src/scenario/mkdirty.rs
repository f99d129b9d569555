//! `mkdirty`: what makes a page dirty does not make it writable; cases of Linux's `mkdirty`, tested anew.
//!
//! Ported: `test_page_migration` and its THP variant, `test_pte_mapping_thp`. In the place of writes by ptrace, which
//! need FOLL_FORCE, stand pins whose holder wrote. Absent: UFFDIO_COPY, which is not there yet.

use abi::PAGE_SIZE;

use super::cow::{How, Kind, Memory, PinList};
use super::migration::pool::Pool;
use super::{Case, Ctx, Machine, OrFail as _, Outcome, Signal, check, check_eq, check_err};
use crate::gup::{Contents, GupFlags};
use crate::migrate::MigrateMode;
use crate::pgtable::PageProt;

/// What the memory was filled with before.
const OLD: u64 = 1;

/// Runs the scenario.
pub(super) fn run<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    ctx.run_cases(&[
        Case { name: "test_page_migration", run: |ctx| migration(ctx, Kind::Base) },
        Case { name: "test_page_migration_thp", run: |ctx| migration(ctx, Kind::Thp) },
        Case { name: "test_pte_mapping_thp", run: pte_mapping_thp },
        Case { name: "test_pin_write_access", run: |ctx| pin_write(ctx, Kind::Base) },
        Case { name: "test_pin_write_access_thp", run: |ctx| pin_write(ctx, Kind::Thp) },
    ])
}

/// A store gets SEGV_ACCERR and changes nothing.
fn expect_read_only<M: Machine>(memory: &Memory<'_, '_, M>) -> Outcome {
    for page in [0, memory.pages / 2, memory.pages - 1] {
        let at = memory.start + page * PAGE_SIZE;
        check_err(memory.process.store(at + 8, 1), Signal::SegvAccErr, "a store is refused")?;
        check_eq(memory.process.load(at + 8)?, 0, "nothing was stored")?;
    }
    memory.process.expect(memory.start, memory.pages, OLD)
}

/// A dirty page that moves is dirty afterwards and as read-only as before.
fn migration<M: Machine>(ctx: &mut Ctx<'_, '_, M>, kind: Kind) -> Outcome {
    let Some(memory) = Memory::new(ctx, kind)? else {
        return check(false, "the memory can be had");
    };
    memory.protect(PageProt::READ)?;
    let mm = memory.process.mm();
    let (space, bytes) = (memory.process.space(), memory.pages * PAGE_SIZE);
    let mut pool = Pool::new(mm.memory())?;
    let done = mm.migrate_range(space, memory.start, bytes, &mut pool, MigrateMode::Sync);
    check_eq(done.or_fail()?.pages.migrated, memory.pages, "pages that moved")?;
    expect_read_only(&memory)
}

/// The PTEs that a dirty, read-only PMD leaf becomes are read-only.
fn pte_mapping_thp<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Outcome {
    let Some(memory) = Memory::new(ctx, Kind::Thp)? else {
        return check(false, "there is a THP");
    };
    memory.protect(PageProt::READ)?;
    expect_read_only(&memory)?;
    // Other rights for one page take a table.
    let second = memory.start + PAGE_SIZE;
    memory.process.mprotect(second, PAGE_SIZE, PageProt::READ | PageProt::EXEC)?;
    expect_read_only(&memory)
}

/// A page is read-only again after somebody who had pinned it for writing gave it back as written.
fn pin_write<M: Machine>(ctx: &mut Ctx<'_, '_, M>, kind: Kind) -> Outcome {
    let Some(memory) = Memory::new(ctx, kind)? else {
        return check(false, "the memory can be had");
    };
    let mut pins = memory.pin(How::Fast, GupFlags::WRITE)?;
    memory.protect(PageProt::READ)?;
    give_back_as_written(&mut pins);
    expect_read_only(&memory)
}

fn give_back_as_written<M: Machine>(pins: &mut PinList<'_, '_, M>) {
    for pin in pins.iter() {
        pins.mm().write_user_page(pin, 2, 9);
    }
    pins.give_back(Contents::Written);
}
