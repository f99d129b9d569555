//! The walk over all words.

use abi::{PageCount, Pfn, PfnRange};

use super::{Census, CensusScope, Discrepancy};
use crate::buddy::{mergeable_buddy, tail_word};
use crate::memdesc::{Buddy, Hold, Kind, Memdesc, Offline, Order, State};
use crate::memory::Memory;
use crate::platform::Platform;
use crate::slab;

/// Counts every frame and checks that blocks are whole.
pub(super) fn walk<P: Platform>(memory: &Memory<P>, census: &mut Census, scope: &CensusScope<'_>) {
    for region in memory.words().regions() {
        let range = region.range();
        let mut at = range.start();
        while range.contains(at) {
            let order = visit(memory, census, scope, range, at);
            let Some(next) = at.checked_add(order.pages()) else { break };
            at = next;
        }
    }
    let ram = memory.words().len().get();
    let counted = census.total_pages().get() + census.unknown;
    census.discrepancies.check(ram == counted, || Discrepancy::TotalPages { ram, counted });
}

/// Counts the block that starts at `pfn` and returns its order.
fn visit<P: Platform>(
    memory: &Memory<P>,
    census: &mut Census,
    scope: &CensusScope<'_>,
    region: PfnRange,
    pfn: Pfn,
) -> Order {
    let Ok(word) = memory.words().load(pfn) else { return Order::ZERO };
    let memdesc = match word.decode() {
        Ok(memdesc) => memdesc,
        Err(_) => {
            census.unknown += 1;
            census.discrepancies.add(Discrepancy::UnknownWord(pfn, word));
            return Order::ZERO;
        }
    };
    let kind = word.kind().unwrap_or(Kind::Empty);
    let order = memdesc.order().unwrap_or(Order::ZERO);
    let inside = PfnRange::from_start(pfn, order.pages()).is_some_and(|b| region.contains_range(b));
    if !pfn.is_aligned(order.get()) || !inside {
        census.discrepancies.add(Discrepancy::Misplaced(pfn, order));
        census.pages[kind.index()] += 1;
        return Order::ZERO;
    }
    census.pages[kind.index()] += order.pages().get();
    census.blocks[kind.index()] += 1;
    let is_isolated = |state: State| matches!(state.hold, Hold::Isolated | Hold::Doomed);
    census.isolated[kind.index()] += u64::from(word.state().is_ok_and(is_isolated));
    match memdesc {
        Memdesc::Tail(_) => census.discrepancies.add(Discrepancy::OrphanTail(pfn)),
        Memdesc::Block(_) if kind == Kind::Empty => {
            census.discrepancies.add(Discrepancy::Uninitialised(pfn));
        }
        Memdesc::Buddy(buddy) => visit_free(memory, census, pfn, buddy),
        Memdesc::Pcp(pcp) if pcp.reported => census.reported += order.pages().get(),
        Memdesc::Offline(offline) => visit_offline(census, offline),
        Memdesc::Descriptor(_) if kind == Kind::Slab => visit_slab(memory, census, scope, pfn),
        Memdesc::Block(_) | Memdesc::Pcp(_) | Memdesc::Descriptor(_) | Memdesc::Transit(_) => {}
    }
    check_tails(memory, census, pfn, order);
    order
}

fn visit_free<P: Platform>(memory: &Memory<P>, census: &mut Census, pfn: Pfn, buddy: Buddy) {
    let Buddy { order, migratetype, reported, .. } = buddy;
    census.free_blocks[order.index()][migratetype.index()] += 1;
    if reported {
        census.reported += order.pages().get();
    }
    // A block of order 10 has two pageblocks.
    let last = pfn.checked_add(PageCount::new(order.pages().get() - 1)).unwrap_or(pfn);
    for at in [pfn, last] {
        let pageblock = memory.map().pageblocks.get(at);
        if pageblock != migratetype {
            census.discrepancies.add(Discrepancy::WrongType(at, pageblock));
        }
    }
    if let Some((other, _)) = mergeable_buddy(memory.map(), pfn, order, migratetype)
        && other > pfn
    {
        census.discrepancies.add(Discrepancy::Unmerged(pfn, other));
    }
}

fn visit_offline(census: &mut Census, offline: Offline) {
    let holds = &mut census.offline[usize::from(offline.driver.get())];
    holds[offline.hold as usize] += offline.order.pages().get();
}

fn visit_slab<P: Platform>(
    memory: &Memory<P>,
    census: &mut Census,
    scope: &CensusScope<'_>,
    pfn: Pfn,
) {
    let Some(view) = slab::view(memory, pfn) else {
        return census.discrepancies.add(Discrepancy::BadSlab(pfn));
    };
    let cache = scope.caches.iter().position(|cache| cache.id() == view.cache);
    if let Some(count) = cache.and_then(|cache| census.slabs.get_mut(cache)) {
        count.slabs += 1;
        count.in_use += u64::from(view.in_use);
    }
}

fn check_tails<P: Platform>(memory: &Memory<P>, census: &mut Census, head: Pfn, order: Order) {
    for n in 1..order.pages().get() {
        let Some(at) = head.checked_add(PageCount::new(n)) else { return };
        if memory.words().load(at) != Ok(tail_word(at)) {
            census.discrepancies.add(Discrepancy::BrokenTail { head, at });
        }
    }
}
