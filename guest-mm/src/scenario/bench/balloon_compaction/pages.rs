//! Whose the inflated pages are: a balloon's, or the scenario's own.

use abi::{PageCount, Pfn};

use crate::buddy::Gfp;
use crate::memdesc::{DriverId, Kind, Memdesc, Offline, Order};
use crate::memory::TransitFrames;
use crate::migrate::{MigrateError, MigrateMode, Migrated, MovableKind, MovableOps, SourceMemory};
use crate::mm::Mm;
use crate::platform::Platform;
use crate::scenario::{Ctx, Failure, Machine, OrFail, Outcome, check};

/// Shares of memory that the scenario inflates itself, in percent.
pub(super) const LEVELS: [u64; 3] = [50, 80, 95];
/// The scenario's driver number: nobody else's.
const DRIVER: DriverId = match DriverId::new(15) {
    Some(driver) => driver,
    None => unreachable!(),
};
/// Below so many percent a balloon counts as none.
const LEAST_PERCENT: u64 = 10;
/// Serves without a change of the balloon after which it counts as settled …
const QUIET_SERVES: u32 = 2000;
/// … and those in all.
const MAX_SERVES: u32 = 2_000_000;

/// Who owns the inflated pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ballooned {
    /// The balloon of the machine, with its device.
    Balloon,
    /// The scenario, without one.
    Scenario,
}

/// Inflated pages.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) whose: Ballooned,
    /// Of managed memory, rounded.
    pub(super) percent: u64,
}

/// Moves the scenario's pages: their words are all that there is of them.
struct Plain;

impl<P: Platform> MovableOps<P> for Plain {
    fn migrate(
        &self,
        mm: &Mm<'_, P>,
        dst: &TransitFrames,
        _src: Pfn,
        _mode: MigrateMode,
    ) -> Result<Migrated, MigrateError> {
        let memory = mm.memory();
        let pfn = memory.adopt_offline(dst, DRIVER).map_err(|_| MigrateError::Busy)?;
        memory.set_movable(pfn, DRIVER).map_err(|_| MigrateError::Busy)?;
        Ok(Migrated::Moved(SourceMemory::Present))
    }
}

static PLAIN: Plain = Plain;

/// The machine's balloon, once it has reached its target; `None` without one, or
/// without pages.
pub(super) fn settled_balloon<M: Machine>(ctx: &mut Ctx<'_, '_, M>) -> Option<Source> {
    drop(ctx.mm.movable_ops(MovableKind::Offline)?);
    let (mut pages, mut quiet) = (0, 0);
    for _ in 0..MAX_SERVES {
        ctx.serve();
        let free = ctx.mm.memory().free_pages().get();
        quiet = if free == pages { quiet + 1 } else { 0 };
        pages = free;
        if quiet == QUIET_SERVES {
            break;
        }
    }
    let percent = percent_offline(ctx.mm);
    let source = Source { whose: Ballooned::Balloon, percent };
    (percent >= LEAST_PERCENT).then_some(source)
}

fn percent_offline<M: Machine>(mm: &Mm<'_, M>) -> u64 {
    let mut offline = 0;
    for_each_offline(mm, DriverId::BALLOON, &mut |_, order| offline += order.pages().get());
    let managed = mm.memory().managed_pages().get();
    (100 * offline + managed / 2) / managed.max(1)
}

/// Calls `visit` with every offline block of a driver.
fn for_each_offline<M: Machine>(mm: &Mm<'_, M>, of: DriverId, visit: &mut dyn FnMut(Pfn, Order)) {
    let words = mm.memory().words();
    for region in words.regions() {
        let range = region.range();
        let mut at = range.start();
        while range.contains(at) {
            let mut step = PageCount::new(1);
            if let Ok(Memdesc::Offline(Offline { order, driver, .. })) = words.decode(at)
                && driver == of
            {
                visit(at, order);
                step = order.pages();
            }
            let Some(next) = at.checked_add(step) else { break };
            at = next;
        }
    }
}

impl Source {
    /// Takes pages one by one until `percent` of memory is offline.
    pub(super) fn inflate<M: Machine>(
        ctx: &mut Ctx<'_, '_, M>,
        percent: u64,
    ) -> Result<Self, Failure> {
        let mm = ctx.mm;
        mm.set_movable_ops(Kind::Offline, &PLAIN).or_fail()?;
        let memory = mm.memory();
        for _ in 0..memory.managed_pages().get() * percent / 100 {
            // Stops at the low watermark, as the balloon does.
            let Ok(frames) = memory.alloc_frozen(Order::ZERO, Gfp::BALLOON) else { break };
            let block = memory.make_offline(frames, DRIVER).or_fail()?;
            let pfn = memory.park(block).or_fail()?;
            memory.set_movable(pfn, DRIVER).or_fail()?;
        }
        Ok(Self { whose: Ballooned::Scenario, percent })
    }

    /// Frees the scenario's pages.
    pub(super) fn deflate<M: Machine>(self, ctx: &mut Ctx<'_, '_, M>) -> Outcome {
        let mm = ctx.mm;
        let mut failed = 0;
        for_each_offline(mm, DRIVER, &mut |pfn, _| {
            let memory = mm.memory();
            match memory.claim_offline(pfn, DRIVER).map(|block| memory.online(block)) {
                Ok(Ok(frames)) => memory.free_frozen(frames),
                Ok(Err(_)) | Err(_) => failed += 1,
            }
        });
        mm.clear_movable_ops(Kind::Offline).or_fail()?;
        check(failed == 0, "every page can be deflated")
    }
}
