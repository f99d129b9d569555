//! Deflation: the mirror of inflation.

use abi::PageCount;

use super::buffers::{Group, Rejected};
use super::driver::{BLOCKS_PER_POLL, BalloonDriver, Direction, Stage};
use super::frames::{ClaimFailure, Claimed};
use super::mutant::Mutant;
use crate::memdesc::Order;
use crate::platform::Platform;
use crate::store::{Block, PfnStore};
use crate::virtio::{MmioBus, QueueError};

/// Isolated blocks passed over in one poll before deflation pauses.
const SKIPS_PER_POLL: u32 = 64;

impl<P: Platform, B: MmioBus, S: PfnStore> BalloonDriver<'_, P, B, S> {
    /// Tells the host of blocks until the target, a bound or an obstacle; one kick at the end.
    pub(super) fn deflate_stage(&mut self, now: u64) -> Stage {
        let started = self.now();
        let before = self.counters.deflated_pages;
        let stage = self.claim_blocks(now);
        if stage == Stage::Done {
            let refuse = self.deflate.is_filling() && self.refuse_buffer();
            if let Err(group) = self.deflate.seal(refuse) {
                self.unclaim_group(group);
                self.deflate_refused(now);
            }
        }
        if self.counters.deflated_pages != before {
            self.counters.deflate_ns += self.now().saturating_sub(started);
        }
        if stage == Stage::Done {
            self.kick(Direction::Deflate);
        }
        stage
    }

    fn claim_blocks(&mut self, now: u64) -> Stage {
        let mut skips = 0;
        for _ in 0..BLOCKS_PER_POLL {
            let excess = self.committed().saturating_sub(self.target);
            if !self.deflate_backoff.is_over(now) || excess.is_zero() {
                return Stage::Done;
            }
            let room = self.deflate.largest_with_room(Order::fitting(excess.get()).get());
            let Some(order) = room.and_then(|order| Order::try_from(order).ok()) else {
                return Stage::Done;
            };
            match self.frames.claim(self.claim_from, order) {
                Ok(claimed) => {
                    if !self.tell_host(claimed, now) {
                        return Stage::Done;
                    }
                }
                // What is not settled is on its way to the host: it comes first.
                Err(ClaimFailure::Nothing) => return Stage::Done,
                Err(failure) => {
                    self.pass_over(failure);
                    skips += 1;
                    if skips == SKIPS_PER_POLL || u64::from(skips) > self.frames.store.blocks() {
                        self.deflate_backoff.failed(now);
                        return Stage::Done;
                    }
                }
            }
        }
        Stage::More
    }

    /// Looks behind a block that cannot be had now.
    pub(super) fn pass_over(&mut self, failure: ClaimFailure) {
        let block = match failure {
            ClaimFailure::Nothing => return,
            ClaimFailure::Isolated(block) => {
                self.counters.isolated_skips += 1;
                block
            }
            ClaimFailure::NoSplit(block) => {
                self.counters.split_failures += 1;
                block
            }
            ClaimFailure::Inconsistent(block) => {
                self.counters.inconsistencies += 1;
                block
            }
        };
        self.look_behind(block);
    }

    fn look_behind(&mut self, block: Block) {
        // Past the last frame there is nothing: the store starts again from its lowest block.
        self.claim_from = block.head().checked_add(block.pages()).unwrap_or(abi::Pfn::ZERO);
    }

    /// Puts a claimed block into a buffer; `false` if the ring refused one, which is undone.
    pub(super) fn tell_host(&mut self, claimed: Claimed, now: u64) -> bool {
        let block = claimed.block;
        self.counters.splits += u64::from(claimed.was_split);
        self.look_behind(block);
        let refuse = self.deflate.would_add(block.order()) && self.refuse_buffer();
        match self.deflate.push(block, refuse) {
            Ok(()) => {
                self.counters.deflated_pages += block.pages().get();
                self.deflate_backoff.shorten();
                if self.is_mutant(Mutant::FreedBeforeAnswer) {
                    self.free(block);
                }
                true
            }
            Err(Rejected { group, entered }) => {
                if entered {
                    // `unclaim_group` takes off what it gives back.
                    self.counters.deflated_pages += block.pages().get();
                } else {
                    self.settle(block);
                }
                self.unclaim_group(group);
                self.deflate_refused(now);
                false
            }
        }
    }

    fn deflate_refused(&mut self, now: u64) {
        self.counters.queue_failures += 1;
        self.deflate_backoff.failed(now);
    }

    /// Puts the blocks of a group that never reached the ring back into the balloon.
    pub(super) fn unclaim_group(&mut self, group: Group) {
        let mut index = 0;
        while let Some(block) = self.block_of(group, &mut index, Direction::Deflate) {
            self.counters.deflated_pages -= block.pages().get();
            self.settle(block);
        }
        self.deflate.recycle(group);
    }

    /// Frees the blocks whose deflation the host has confirmed.
    ///
    /// # Errors
    /// The device broke the rules.
    pub(super) fn free_used(&mut self) -> Result<Stage, QueueError> {
        let started = self.now();
        let mut blocks = 0;
        let mut pages = PageCount::ZERO;
        let stage = loop {
            if blocks >= BLOCKS_PER_POLL {
                break Stage::More;
            }
            let Some(group) = self.deflate.pop()? else { break Stage::Done };
            let mut index = 0;
            let is_freed = self.is_mutant(Mutant::FreedBeforeAnswer);
            while !is_freed
                && let Some(block) = self.block_of(group, &mut index, Direction::Deflate)
            {
                self.free(block);
                blocks += 1;
            }
            pages = pages.saturating_add(self.deflate.recycle(group));
            self.counters.used_groups += 1;
        };
        if !pages.is_zero() {
            self.device_answered();
            self.counters.free_ns += self.now().saturating_sub(started);
        }
        Ok(stage)
    }
}
