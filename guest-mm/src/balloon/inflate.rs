//! Inflation: blocks out to the host, and what happens when it has taken them.

use abi::PageCount;

use super::buffers::{Group, Rejected};
use super::driver::{BLOCKS_PER_POLL, BalloonDriver, Direction, Stage};
use super::frames::{Contents, TakeError};
use super::mutant::Mutant;
use crate::memdesc::Order;
use crate::platform::Platform;
use crate::store::{Block, PfnStore};
use crate::virtio::{MmioBus, QueueError};

impl<P: Platform, B: MmioBus, S: PfnStore> BalloonDriver<'_, P, B, S> {
    /// Publishes blocks until the target, a bound or an obstacle; one kick at the end.
    pub(super) fn inflate_stage(&mut self, now: u64) -> Stage {
        let started = self.now();
        let before = self.counters.inflated_pages;
        let stage = self.take_blocks(now);
        if stage == Stage::Done {
            // The batch ends here: everything goes at once, so that the device
            // can sort and merge all of it.
            let refuse = self.inflate.is_filling() && self.refuse_buffer();
            if let Err(group) = self.inflate.seal(refuse) {
                self.undo(group);
                self.queue_refused(now);
            }
        }
        if self.counters.inflated_pages != before {
            self.counters.inflate_ns += self.now().saturating_sub(started);
        }
        if stage == Stage::Done {
            self.kick(Direction::Inflate);
        }
        stage
    }

    fn take_blocks(&mut self, now: u64) -> Stage {
        for _ in 0..BLOCKS_PER_POLL {
            let need = self.target.saturating_sub(self.committed());
            if !self.inflate_backoff.is_over(now) || need.is_zero() {
                return Stage::Done;
            }
            let wanted = Order::fitting(need.get()).min(self.order_cap);
            let room = self.inflate.largest_with_room(wanted.get());
            let Some(order) = room.and_then(|order| Order::try_from(order).ok()) else {
                // Every buffer is on its way: the next one to return makes room.
                return Stage::Done;
            };
            match self.frames.take(order) {
                Ok(block) => {
                    if !self.send(block, now) {
                        return Stage::Done;
                    }
                }
                Err(TakeError::Pages) if order > Order::ZERO => {
                    // No block that large: smaller ones, until the target changes or a pause ends.
                    self.order_cap = order.down().unwrap_or(Order::ZERO);
                }
                Err(error) => {
                    self.take_failed(error, now);
                    return Stage::Done;
                }
            }
        }
        Stage::More
    }

    /// Puts a block into a buffer; `false` if the ring refused one, which is undone.
    fn send(&mut self, block: Block, now: u64) -> bool {
        let refuse = self.inflate.would_add(block.order()) && self.refuse_buffer();
        match self.inflate.push(block, refuse) {
            Ok(()) => {
                self.counters.inflated_pages += block.pages().get();
                self.counters.inflated_blocks += 1;
                self.inflate_backoff.shorten();
                if self.is_mutant(Mutant::MovableBeforeUsed) {
                    self.settle(block);
                }
                true
            }
            Err(Rejected { group, entered }) => {
                if !entered {
                    self.release_unsent(block);
                } else {
                    // `undo` takes off what it gives back.
                    self.counters.inflated_pages += block.pages().get();
                    self.counters.inflated_blocks += 1;
                }
                self.undo(group);
                self.queue_refused(now);
                false
            }
        }
    }

    fn queue_refused(&mut self, now: u64) {
        self.counters.queue_failures += 1;
        self.inflate_backoff.failed(now);
    }

    fn take_failed(&mut self, error: TakeError, now: u64) {
        match error {
            TakeError::Pages => self.counters.out_of_pages += 1,
            TakeError::Store => self.counters.store_failures += 1,
            TakeError::Unaddressable => self.counters.unaddressable_blocks += 1,
            TakeError::Inconsistent => self.counters.inconsistencies += 1,
        }
        self.inflate_backoff.failed(now);
        // When the pause ends, memory may have merged again.
        self.order_cap = self.max_order;
    }

    /// Takes back the blocks of a group that never reached the ring.
    pub(super) fn undo(&mut self, group: Group) {
        let mut index = 0;
        while let Some(block) = self.block_of(group, &mut index, Direction::Inflate) {
            self.counters.inflated_pages -= block.pages().get();
            self.counters.inflated_blocks -= 1;
            self.release_unsent(block);
        }
        self.inflate.recycle(group);
    }

    /// Takes back a block that the device has never heard of.
    fn release_unsent(&mut self, block: Block) {
        if self.frames.release(block, Contents::Unknown).is_err() {
            self.counters.inconsistencies += 1;
        }
    }

    /// Makes the blocks of used groups movable.
    ///
    /// # Errors
    /// The device broke the rules.
    pub(super) fn settle_used(&mut self) -> Result<Stage, QueueError> {
        let started = self.now();
        let mut blocks = 0;
        let mut pages = PageCount::ZERO;
        let stage = loop {
            if blocks >= BLOCKS_PER_POLL {
                break Stage::More;
            }
            let Some(group) = self.inflate.pop()? else { break Stage::Done };
            let mut index = 0;
            let is_settled = self.is_mutant(Mutant::MovableBeforeUsed);
            while !is_settled
                && let Some(block) = self.block_of(group, &mut index, Direction::Inflate)
            {
                self.settle(block);
                blocks += 1;
            }
            pages = pages.saturating_add(self.inflate.recycle(group));
            self.counters.used_groups += 1;
        };
        if !pages.is_zero() {
            self.device_answered();
            self.counters.settled_pages += pages.get();
            self.counters.settle_ns += self.now().saturating_sub(started);
        }
        Ok(stage)
    }

    /// Makes a block movable whose inflation the host has confirmed, or whose
    /// deflation it has never heard of.
    pub(super) fn settle(&mut self, block: Block) {
        if self.frames.settle(block).is_err() {
            self.counters.inconsistencies += 1;
        }
    }

    /// The device has returned something: it is alive, and faults are forgiven.
    pub(super) fn device_answered(&mut self) {
        self.watchdog.answered();
        self.forgive();
    }

    /// The block whose PFNs start at `index` of the group; moves `index` past them.
    ///
    /// A PFN that names no block in flight was not written by the driver: the
    /// rest of the buffer is not believed, and the device is reset, which gives
    /// every page back.
    pub(super) fn block_of(
        &mut self,
        group: Group,
        index: &mut usize,
        direction: Direction,
    ) -> Option<Block> {
        let queue = match direction {
            Direction::Inflate => &self.inflate,
            Direction::Deflate => &self.deflate,
        };
        let head = queue.pfn(group, *index)?;
        let Some(block) = self.frames.in_flight(head) else {
            self.counters.scribbled_buffers += 1;
            self.is_scribbled = true;
            return None;
        };
        *index += usize::try_from(block.pages().get()).unwrap_or(usize::MAX);
        Some(block)
    }
}
