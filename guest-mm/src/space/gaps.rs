//! Finding room for a mapping.
//!
//! Room is searched from the top down. The tree knows no gap sizes, so the
//! search would start over at the top and pass all VMAs each time; a cache of
//! two numbers remembers how far down there is nothing to be had.

use super::lookup::{SpaceWriteGuard, Vmas};
use super::vma::Vma;
use crate::addr::{USER_END, USER_START, VirtAddr};
use crate::platform::Platform;
use crate::sync::shim::{AtomicU64, Ordering};

/// Above `top` no gap is larger than `largest` bytes. Changed by the holder of the
/// space's lock for writing.
#[derive(Debug)]
pub(super) struct GapCache {
    top: AtomicU64,
    largest: AtomicU64,
}

/// The room that a mapping needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes, a multiple of the page size.
    pub bytes: u64,
    /// The start shall be `residue` modulo this power of two.
    pub align: u64,
    /// See `align`; below it.
    pub residue: u64,
}

impl Room {
    /// Room for `bytes` at any page.
    pub const fn of(bytes: u64) -> Self {
        Self { bytes, align: abi::PAGE_SIZE, residue: 0 }
    }

    /// The highest start in `low..high`, if there is one.
    fn fit(self, low: u64, high: u64) -> Option<u64> {
        let highest = high.checked_sub(self.bytes)?;
        let down = highest.wrapping_sub(self.residue) & (self.align - 1);
        highest.checked_sub(down).filter(|start| *start >= low)
    }
}

impl GapCache {
    pub(super) const fn new() -> Self {
        Self { top: AtomicU64::new(USER_END), largest: AtomicU64::new(0) }
    }

    /// Notes that the addresses below `end`, up to which the gap reaches, have become free.
    pub(super) fn freed(&self, end: VirtAddr) {
        if end.get() > self.top.load(Ordering::Relaxed) {
            self.top.store(end.get(), Ordering::Relaxed);
        }
    }
}

impl<P: Platform> SpaceWriteGuard<'_, '_, P> {
    /// The highest place with `room`; `None` if there is none.
    pub fn find_gap(&self, room: Room) -> Option<VirtAddr> {
        let cache = &self.space().gaps;
        let known = cache.largest.load(Ordering::Relaxed);
        let (mut high, mut largest) = match room.bytes > known {
            true => (cache.top.load(Ordering::Relaxed), known),
            false => (USER_END, 0),
        };
        // VMAs that have merged since may cover the place.
        let covering = VirtAddr::new(high - abi::PAGE_SIZE).and_then(|last| self.lookup(last));
        high = covering.map_or(high, |vma| vma.start().get());
        loop {
            let below = self.before(VirtAddr::new(high)?);
            let low = below.map_or(USER_START, |vma| vma.end().get().max(USER_START));
            if let Some(start) = room.fit(low, high) {
                cache.largest.store(largest, Ordering::Relaxed);
                cache.top.store(high, Ordering::Relaxed);
                return VirtAddr::new(start);
            }
            largest = largest.max(high.saturating_sub(low));
            high = below.map(Vma::start)?.get();
        }
    }
}

impl<P: Platform> Vmas<'_, '_, P> {
    /// Whether no VMA has a page in the `bytes` from `start`.
    pub fn is_free(&self, start: VirtAddr, bytes: u64) -> bool {
        let end = start.checked_add(bytes);
        end.is_some_and(|end| self.find(start).is_none_or(|vma| vma.start() >= end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_from_the_top_with_its_residue() {
        let room = Room { bytes: 0x3000, align: 0x10000, residue: 0x2000 };
        assert_eq!(room.fit(0, 0x30000), Some(0x22000));
        assert_eq!(room.fit(0x22000, 0x30000), Some(0x22000));
        assert_eq!(room.fit(0x23000, 0x30000), None);
        assert_eq!(room.fit(0, 0x2000), None);
        assert_eq!(Room::of(0x1000).fit(0x5000, 0x6000), Some(0x5000));
        assert_eq!(Room::of(0x2000).fit(0x5000, 0x6000), None);
    }
}
