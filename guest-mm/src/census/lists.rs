//! Free lists and per-CPU lists against the words.

use crate::buddy::{FrameMap, Zone};
use crate::memdesc::{Link, MigrateType, Order, Word};
use crate::memory::CpuLists;

use super::{Census, Discrepancy};

/// Checks the zone's lists and counts. Its lock is held, the words are counted.
pub(super) fn check_zone(map: &FrameMap, zone: &Zone, census: &mut Census) {
    for migratetype in MigrateType::ALL {
        let mut pages = 0;
        for order in Order::all() {
            check_list(map, zone, census, order, migratetype);
            pages += census.free_blocks(order, migratetype) * order.pages().get();
        }
        let free = zone.free_of(migratetype);
        census
            .discrepancies
            .check(free == pages, || Discrepancy::FreePages(migratetype, free, pages));
    }
}

/// Follows a list. Each block links back to the one before, so no block occurs
/// twice; with as many blocks as words, list and words are the same set.
fn check_list(
    map: &FrameMap,
    zone: &Zone,
    census: &mut Census,
    order: Order,
    migratetype: MigrateType,
) {
    let list = zone.list(order, migratetype);
    let (listed, counted) = (list.len(), census.free_blocks(order, migratetype));
    census.discrepancies.check(listed == counted, || Discrepancy::ListLength {
        order,
        migratetype,
        listed,
        counted,
    });
    let mut prev = Link::NONE;
    let mut next = list.first(&map.words);
    for _ in 0..listed {
        let buddy = next.and_then(|pfn| map.words.load(pfn).ok()?.as_buddy());
        let fits = |b: &crate::memdesc::Buddy| {
            b.order == order && b.migratetype == migratetype && b.prev == prev
        };
        let (Some(pfn), Some(buddy)) = (next, buddy.filter(fits)) else {
            let broken = Discrepancy::BrokenList(order, migratetype, next);
            return census.discrepancies.add(broken);
        };
        prev = map.words.link(pfn);
        next = map.words.follow(buddy.next);
    }
    if next.is_some() {
        census.discrepancies.add(Discrepancy::BrokenList(order, migratetype, next));
    }
}

/// Checks one CPU's lists and returns the pages on them. Its lock is held.
pub(super) fn check_cpu(map: &FrameMap, cpu: &CpuLists, census: &mut Census) -> u64 {
    let mut pages = 0;
    for (order, migratetype, head, blocks) in cpu.lists() {
        let mut next = map.words.follow(head);
        for _ in 0..blocks {
            let word = next.and_then(|pfn| map.words.load(pfn).ok());
            let Some(pcp) = word.and_then(Word::as_pcp) else {
                census.discrepancies.add(Discrepancy::BrokenCpuList(order, migratetype, next));
                break;
            };
            let fits = pcp.order == order && pcp.migratetype == migratetype && pcp.cpu == cpu.cpu();
            census
                .discrepancies
                .check(fits, || Discrepancy::BrokenCpuList(order, migratetype, next));
            pages += order.pages().get();
            next = map.words.follow(pcp.next);
        }
        if next.is_some() {
            census.discrepancies.add(Discrepancy::BrokenCpuList(order, migratetype, next));
        }
    }
    let counted = cpu.pages();
    census
        .discrepancies
        .check(pages == counted, || Discrepancy::PcpPages { listed: pages, counted });
    pages
}
