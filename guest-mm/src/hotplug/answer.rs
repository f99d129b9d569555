//! What follows from an answer of the device, and taking memory away from its users.

use abi::PageCount;

use super::HotplugError;
use super::add::NewBlock;
use super::driver::{Ask, HotplugDriver, Job, Step};
use super::plan::Seeded;
use super::status::DriverError;
use super::wire::{Answer, Config};
use crate::balloon::Wake;
use crate::platform::{MapError, Platform};
use crate::virtio::{MmioBus, QueueError};

impl<P: Platform, B: MmioBus> HotplugDriver<'_, '_, P, B> {
    pub(super) fn await_answer(&mut self, now: u64) -> Result<Step, DriverError> {
        let answer = self.wire.receive().map_err(DriverError::Queue)?;
        let Some(answer) = answer else {
            let had_expired = self.watchdog.has_expired();
            // The interrupt that would have said so may be what is missing: ask, once a tick.
            if self.watchdog.watch(now) && self.device.needs_reset() {
                return Err(DriverError::NeedsReset);
            }
            self.counters.answer_timeouts += u64::from(self.watchdog.has_expired() && !had_expired);
            return Ok(Step::Wait(self.watchdog.wake()));
        };
        self.watchdog.answered();
        let Job::Asked { ask, is_question } = core::mem::replace(&mut self.job, Job::Idle) else {
            return Ok(Step::Again);
        };
        if is_question {
            return self.learn(ask, answer, now);
        }
        match answer {
            Answer::Ack => self.granted(ask),
            Answer::Nack | Answer::Busy => {
                self.counters.refusals += 1;
                // It may want something else by now. The pause that follows is not cut short by that.
                if let Ok(config) = Config::read(&self.device, self.region) {
                    self.config = config;
                }
                self.refused(ask);
                self.backoff.failed(now);
            }
            Answer::Error | Answer::Unplugged | Answer::Mixed => {
                self.counters.errors += 1;
                self.is_refused = true;
                self.refused(ask);
            }
        }
        Ok(Step::Again)
    }

    /// The device has done what it was asked for, whether it said so at once or when it was asked again after a reset.
    pub(super) fn granted(&mut self, ask: Ask) {
        self.forgive();
        match ask {
            Ask::UnplugAll => self.must_clear = false,
            Ask::Plug(range) => {
                self.plugged = self.plugged.saturating_add(range.len());
                self.bring_to_life(range);
            }
            Ask::Seed(block) => {
                self.plugged = self.plugged.saturating_add(block.seed.len());
                self.add(block);
            }
            Ask::Unplug(range) => self.plugged = self.plugged.saturating_sub(range.len()),
            Ask::Unseed(block) => {
                self.orphan = None;
                self.plugged = self.plugged.saturating_sub(block.seed.len());
            }
        }
    }

    /// The device has not done it: everything is as before the request.
    pub(super) fn refused(&mut self, ask: Ask) {
        match ask {
            Ask::UnplugAll | Ask::Seed(_) | Ask::Plug(_) => {}
            Ask::Unplug(range) => self.bring_to_life(range),
            Ask::Unseed(block) => self.add(block),
        }
    }

    pub(super) fn new_block(&self, block: Seeded) -> NewBlock {
        let unit = self.region.piece();
        NewBlock { range: block.layout.range(), plugged: block.seed.len(), unit }
    }

    /// Adds a block whose first frames are plugged.
    fn add(&mut self, block: Seeded) {
        self.orphan = None;
        match self.mm.memory().add_block(self.new_block(block)) {
            Ok(_) => {
                self.counters.added_blocks += 1;
                self.bring_to_life(block.first_life());
            }
            Err(refused) => {
                self.counters.failed_blocks += 1;
                self.last_refusal = Some(refused);
                self.orphan = Some(block);
                if matches!(
                    refused,
                    HotplugError::Map(MapError::OutOfReach(_) | MapError::Unsupported)
                ) {
                    self.limit = self.limit.min(block.layout.header());
                }
                let now = self.now();
                self.backoff.failed(now);
            }
        }
    }

    pub(super) fn bring_to_life(&mut self, range: abi::PfnRange) {
        if range.is_empty() {
            return;
        }
        match self.mm.memory().bring_to_life(range) {
            Ok(pages) => self.counters.woken_pages += pages.get(),
            // Its words are this driver's alone.
            Err(_) => self.counters.inconsistencies += 1,
        }
    }

    /// Memory is plugged for a block that is not there: make it one, or give it back.
    pub(super) fn adopt_or_return(&mut self, orphan: Seeded) -> Result<Step, QueueError> {
        if self.plugged <= self.config.requested && orphan.layout.header() < self.limit {
            self.add(orphan);
            return Ok(Step::Again);
        }
        self.ask(Ask::Unseed(orphan))
    }

    /// Takes memory away from its users, from the top, until some can be given back.
    pub(super) fn shrink(&mut self, now: u64) -> Result<Step, QueueError> {
        let memory = self.mm.memory();
        let excess = self.plugged.saturating_sub(self.config.requested);
        if excess < self.region.unit {
            return Ok(Step::Wait(Wake::OnInterrupt));
        }
        let to_spare = memory.free_pages().get().saturating_sub(memory.watermarks().high);
        if to_spare < self.region.unit.get() {
            // The host's wish is not worth a killed process.
            self.counters.short_of_memory += 1;
            self.backoff.failed(now);
            return Ok(Step::Again);
        }
        let Some(block) = memory
            .added_in(self.region)
            .rev()
            .find(|block| block.layout.range().start() < self.scan_below)
        else {
            // All were tried.
            self.scan_from_the_top();
            self.backoff.failed(now);
            return Ok(Step::Again);
        };
        let Some(bits) = memory.offline_bits(block.layout.header()) else {
            return Ok(Step::Again);
        };
        let end = block.layout.range().end();
        let below = self.scan_below.min(end);
        let unit = self.region.unit;
        // Where some were not to be had together, one by one.
        let together = excess.min(PageCount::new(to_spare));
        let most = if below > self.one_by_one_from { unit } else { together };
        if let Some(found) = self.region.plugged_in(block, bits, below, most) {
            if self.lay_to_rest(found) {
                self.scan_below = found.start();
                return self.ask(Ask::Unplug(found));
            }
            if found.len() > unit {
                self.one_by_one_from = found.start();
            } else {
                self.scan_below = found.start();
            }
            return Ok(Step::Again);
        }
        self.scan_below = block.layout.range().start();
        let is_last = self.region.plugged_in(block, bits, end, unit).is_none();
        if is_last && excess >= block.seed.len() && self.lay_to_rest(block.first_life()) {
            self.begin_removal(block);
        }
        Ok(Step::Again)
    }

    /// Takes `range` away from its users; `false` if it is in use.
    fn lay_to_rest(&mut self, range: abi::PfnRange) -> bool {
        if range.is_empty() {
            return true;
        }
        let Some(frames) = self.take(range) else {
            self.counters.busy_units += 1;
            return false;
        };
        let memory = self.mm.memory();
        match memory.lay_to_rest(frames, self.region.piece()) {
            Ok(pages) => {
                self.counters.rested_pages += pages.get();
                true
            }
            Err((_, frames)) => {
                self.counters.inconsistencies += 1;
                memory.free_contig(frames);
                false
            }
        }
    }

    /// All but the tables of the block was laid to rest: nobody shall find it any more.
    fn begin_removal(&mut self, block: Seeded) {
        match self.mm.memory().take_block_out(block.layout.range()) {
            Ok(dying) => {
                let stamp = self.mm.base().rcu.stamp();
                self.job = Job::Dying { dying, block, stamp };
            }
            Err(refused) => {
                self.last_refusal = Some(refused);
                self.bring_to_life(block.first_life());
                let now = self.now();
                self.backoff.failed(now);
            }
        }
    }

    /// Nobody uses the block any more.
    pub(super) fn bury(&mut self) -> Result<Step, QueueError> {
        let Job::Dying { dying, block, .. } = core::mem::replace(&mut self.job, Job::Idle) else {
            return Ok(Step::Again);
        };
        // SAFETY: the grace period is over; look-ups of frames follow the rule.
        unsafe { dying.bury() };
        self.counters.removed_blocks += 1;
        self.orphan = Some(block);
        self.ask(Ask::Unseed(block))
    }
}
