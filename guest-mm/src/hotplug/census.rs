//! Bitmaps against words.

use abi::PfnRange;

use super::BlockLayout;
use super::life::is_waiting;
use crate::census::{Discrepancies, Discrepancy};
use crate::memdesc::Memdesc;
use crate::memory::Memory;
use crate::platform::Platform;

/// Checks that in each added block exactly the frames that wait to come to life have their bit set.
/// The zone lock is held.
pub(crate) fn check<P: Platform>(memory: &Memory<P>, discrepancies: &mut Discrepancies) {
    for layout in memory.added_blocks().filter_map(|range| BlockLayout::of(range).ok()) {
        let bits = memory.bits_of(layout);
        let mut at = layout.range().start();
        while at < layout.range().end() {
            let (order, is_offline) = match memory.words().load(at).map(|word| word.decode()) {
                Ok(Ok(Memdesc::Offline(offline))) => (offline.order.get(), is_waiting(offline)),
                Ok(Ok(other)) => (other.order().map_or(0, crate::memdesc::Order::get), false),
                // The walk over the words reports these.
                Ok(Err(_)) | Err(_) => (0, false),
            };
            let Some(frames) = PfnRange::from_start(at, abi::PageCount::of_order(order)) else {
                break;
            };
            for pfn in frames.iter().filter(|pfn| bits.contains(*pfn) != is_offline) {
                discrepancies.add(Discrepancy::OfflineBit { pfn, is_offline });
            }
            at = frames.end();
        }
    }
}
