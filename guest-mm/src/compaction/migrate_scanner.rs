//! The migrate scanner: finds what can move, from the bottom of the zone up.

use abi::{Pfn, PfnRange};

use super::look::{Look, look};
use crate::memdesc::{MigrateType, Order};
use crate::migrate::{MigrateBatch, MigrateMode};
use crate::mm::Mm;
use crate::platform::Platform;

/// What one look for pages gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Where the next one begins.
    pub(crate) at: Pfn,
    /// Words looked at.
    pub(crate) scanned: u64,
    /// Pages, or blocks, isolated.
    pub(crate) isolated: u64,
}

/// What to leave alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScanRules {
    /// Blocks of a pageblock or more: moving one makes nothing larger than it leaves.
    pub(crate) skip_huge: bool,
    /// Give an aligned block of this order up as soon as something in it cannot move:
    /// the rest would be moved for nothing.
    pub(crate) give_up: Option<Order>,
}

impl ScanRules {
    /// All that moves page by page.
    pub(crate) const EVERYTHING_SMALL: Self = Self { skip_huge: true, give_up: None };
}

impl<'m, P: Platform> Mm<'m, P> {
    /// Whether pages are taken from the pageblock of `pfn`: an asynchronous scan leaves
    /// those alone where it would hardly empty one.
    pub(super) fn is_migration_source(&self, pfn: Pfn, mode: MigrateMode) -> bool {
        match self.memory().map().pageblocks.get(pfn) {
            MigrateType::Movable | MigrateType::Cma => true,
            MigrateType::Unmovable | MigrateType::Reclaimable => mode != MigrateMode::Async,
            MigrateType::HighAtomic | MigrateType::Isolate => false,
        }
    }

    /// Isolates what can move in `range`, from the bottom up, until the batch is full.
    pub(crate) fn isolate_movable(
        &self,
        range: PfnRange,
        rules: ScanRules,
        batch: &mut MigrateBatch<'_, 'm, P>,
    ) -> Scan {
        let mut scan = Scan { at: range.start(), scanned: 0, isolated: 0 };
        let mut given_up = rules.give_up.map(|order| (order, range.start()));
        while scan.at < range.end() && !batch.is_full() {
            if let Some((order, next_block)) = &mut given_up
                && scan.at >= *next_block
            {
                // What was isolated so far empties a block: it moves before the next one is begun.
                if scan.isolated > 0 {
                    break;
                }
                *next_block = end_of_block(scan.at, *order);
            }
            // The words of a hot-plugged block go with it.
            let _section = self.base().rcu.read(self.platform().cpu());
            let (found, pages) = look(self.memory().words(), scan.at, range.end());
            scan.scanned += 1;
            let is_huge = pages >= Order::PAGEBLOCK.pages();
            let stays = match found {
                Look::Free | Look::Hole => false,
                Look::Busy(crate::memdesc::Kind::Tail) => false,
                Look::Busy(_) | Look::Immovable(_) => true,
                Look::Movable if is_huge && rules.skip_huge => true,
                Look::Movable => {
                    let taken = self.isolate_for_migration(scan.at, batch);
                    scan.isolated += u64::from(taken.is_ok());
                    taken.is_err()
                }
            };
            if stays && let Some((order, _)) = given_up {
                batch.putback();
                scan.isolated = 0;
                scan.at = end_of_block(scan.at, order).min(range.end());
                continue;
            }
            let Some(next) = scan.at.checked_add(pages) else { break };
            scan.at = next.min(range.end());
        }
        scan
    }
}

/// First frame after the aligned block of `order` that holds `pfn`.
fn end_of_block(pfn: Pfn, order: Order) -> Pfn {
    pfn.align_down(order.get()).checked_add(order.pages()).unwrap_or(pfn)
}
