//! Deflation by the guest's own decision, when it is out of memory
//! (`VIRTIO_BALLOON_F_DEFLATE_ON_OOM`, virtio 1.2 §5.5.6).
//!
//! The only piece of the driver that waits: whoever allocates has nothing else
//! to do. It allocates nothing, which [`NoAlloc`](crate::memory::NoAlloc)
//! asserts: the device is told by buffers that were lent at start, blocks are
//! cut only where the store needs no node for it.

use abi::PageCount;
use abi::balloon::feature;

use super::driver::{BalloonDriver, BalloonError, Direction};
use super::frames::ClaimFailure;
use super::reset::Phase;
use crate::memdesc::Order;
use crate::platform::Platform;
use crate::store::{PfnStore, Select};
use crate::virtio::{MmioBus, QueueError};

/// Pages that one notification takes back at most (Linux `VIRTBALLOON_OOM_NR_PAGES`).
pub const OOM_PAGES: PageCount = PageCount::new(256);

/// Smallest order at which a store cuts a block without a node of its own.
const CUT_ORDER: u32 = 6;

impl<P: Platform, B: MmioBus, S: PfnStore> BalloonDriver<'_, P, B, S> {
    /// Whether the guest may take pages back by itself: the device offered it.
    pub const fn may_deflate_on_oom(&self) -> bool {
        self.features & feature::DEFLATE_ON_OOM != 0
    }

    /// Takes up to [`OOM_PAGES`] back for an allocation that has nothing left,
    /// and returns how many pages became free, those of deflations that were
    /// under way included.
    ///
    /// The host is told of each page and waited for before the page is freed.
    /// `wait` is called between looks at the device, without a lock of the
    /// driver's; `false` gives up, and what is on its way comes back by
    /// [`Self::poll`]. From now on the driver aims at what is left in the
    /// balloon, until the device shows its configuration anew: else it would
    /// take the memory from whoever needed it.
    ///
    /// 0 if the feature was not negotiated, the balloon is empty, or the
    /// device does not answer. Allocates nothing.
    pub fn deflate_on_oom(&mut self, wait: &mut dyn FnMut() -> bool) -> PageCount {
        let is_running = matches!(self.phase, Phase::Running { .. });
        if !self.may_deflate_on_oom() || !is_running || self.watchdog.has_expired() {
            return PageCount::ZERO;
        }
        self.counters.oom_notifications += 1;
        let before = self.counters.freed_pages;
        let told = self.tell_of_oom_pages().and_then(|()| {
            self.kick(Direction::Deflate);
            loop {
                self.free_without_allocating()?;
                if self.deflate.in_flight().is_zero() {
                    return Ok(());
                }
                if !wait() {
                    self.counters.oom_timeouts += 1;
                    return Ok(());
                }
            }
        });
        let freed = self.counters.freed_pages - before;
        self.counters.oom_pages += freed;
        self.target = self.target.min(self.committed());
        self.tell_actual();
        if let Err(error) = told {
            self.fault(BalloonError::Queue(error));
        } else if self.is_scribbled {
            self.fault(BalloonError::Scribbled);
        }
        PageCount::new(freed)
    }

    /// Whether [`Self::deflate_on_oom`] may have pages later that it could not have now: migration
    /// has isolated them, the host is about to take them, or it has not answered yet.
    pub fn may_give_later(&self) -> bool {
        self.may_deflate_on_oom()
            && matches!(self.phase, Phase::Running { .. })
            && !self.watchdog.has_expired()
            && self.frames.store.blocks() != 0
    }

    /// Claims blocks and puts them into the ring.
    fn tell_of_oom_pages(&mut self) -> Result<(), QueueError> {
        let memory = self.frames.memory;
        let _none = memory.no_alloc();
        // What the host has taken meanwhile can be had too.
        while self.settle_used()? == super::driver::Stage::More {}
        let now = self.now();
        let mut told = PageCount::ZERO;
        let mut passed = 0;
        while let Some(order) = self.next_oom_order(OOM_PAGES.saturating_sub(told)) {
            match self.frames.claim(self.claim_from, order) {
                Ok(claimed) => {
                    if !self.tell_host(claimed, now) {
                        break;
                    }
                    told = told.saturating_add(claimed.block.pages());
                }
                Err(ClaimFailure::Nothing) => break,
                // Migration has this one, and perhaps some more: not all of them.
                Err(failure) => {
                    self.pass_over(failure);
                    passed += 1;
                    if passed > self.frames.store.blocks() {
                        break;
                    }
                }
            }
        }
        if let Err(group) = self.deflate.seal(false) {
            self.unclaim_group(group);
        }
        Ok(())
    }

    /// Order to claim of the next settled block, if at most `left` pages of it can be had.
    fn next_oom_order(&self, left: PageCount) -> Option<Order> {
        if left.is_zero() {
            return None;
        }
        let store = self.frames.store;
        let next = store.next(self.claim_from, Select::Settled);
        let next = next.or_else(|| store.next(abi::Pfn::ZERO, Select::Settled))?;
        let (fits, whole) = (Order::fitting(left.get()), next.block.order());
        let can_be_had = whole <= fits.get() || fits.get() >= CUT_ORDER;
        (can_be_had && self.deflate.has_room(whole.min(fits.get()))).then_some(fits)
    }

    fn free_without_allocating(&mut self) -> Result<(), QueueError> {
        let memory = self.frames.memory;
        let _none = memory.no_alloc();
        while self.free_used()? == super::driver::Stage::More {}
        Ok(())
    }
}
