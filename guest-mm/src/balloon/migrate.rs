//! Migration: a page of the balloon's goes over to another frame.
//!
//! The new page is inflated before the old one is deflated, so that the host
//! never holds less than it was told of. Everything is done by the time the call
//! returns, under the balloon's lock and with the device waited for, as in
//! [`BalloonDriver::deflate_on_oom`]; pages that migrate together share buffers,
//! notifications and the wait.
//!
//! How far a move has come is nowhere but in the books: whether the destination
//! is taken, and what the store says of both blocks. So whatever ends the work
//! in the middle, [`BalloonDriver::conclude`] finds out what is whose.

use abi::{PageCount, Pfn};

use super::buffers::{Group, Rejected};
use super::driver::{BalloonDriver, BalloonError, Direction, Stage};
use super::frames::{Contents, TakeError};
use super::mutant::Mutant;
use super::reset::Phase;
use crate::memdesc::DriverId;
use crate::memory::{ClaimError, TransitFrames};
use crate::migrate::{MigrateError, Migrated, Move, SourceMemory};
use crate::platform::Platform;
use crate::store::{Block, BlockState, PfnStore};
use crate::virtio::MmioBus;

/// Pages that share a round trip to the device at most.
pub const MIGRATE_BATCH: usize = 64;

/// Where the source of a move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// In the balloon, isolated.
    Settled(Block),
    /// Named in a deflate buffer.
    InFlight,
    /// The host has answered: out of the store.
    Gone,
}

impl<P: Platform, B: MmioBus, S: PfnStore> BalloonDriver<'_, P, B, S> {
    /// Moves pages of the balloon to other frames, and writes into each of
    /// `moves` how it ended; `None`s are passed over.
    ///
    /// `wait` is called between looks at the device; `false` gives up. What is
    /// with the device then stays in the balloon ([`Migrated::Kept`]), which may
    /// be larger than its target for a while and deflates by [`Self::poll`].
    /// A balloon that is too large gives pages up instead of moving them
    /// ([`Migrated::Released`]), and so does one that is giving everything back
    /// after a reset of its device.
    ///
    /// Allocates nothing but nodes of the store, before anything else.
    pub fn migrate(&mut self, moves: &mut [Option<Move<'_>>], wait: &mut dyn FnMut() -> bool) {
        let answer = match self.phase {
            Phase::Running { .. } if !self.watchdog.has_expired() => None,
            // The device has claims that nobody can tell at the moment.
            Phase::Running { .. } | Phase::Resetting { .. } => Some(MigrateError::Again),
            Phase::Draining { .. } => return self.release_drained(moves),
            Phase::Down | Phase::Failed(_) => Some(MigrateError::Busy),
        };
        if let Some(error) = answer {
            moves.iter_mut().flatten().for_each(|step| step.ended = Err(error));
            return;
        }
        let started = self.now();
        self.counters.migrate_rounds += 1;
        for step in moves.iter_mut().flatten() {
            let is_ours = self.is_isolated(step.src, step.dst.order().get());
            step.ended = Err(if is_ours { MigrateError::Again } else { MigrateError::Busy });
        }
        let done = self.go_over(moves, wait);
        for step in moves.iter_mut().flatten() {
            step.ended = self.conclude(step);
        }
        self.counters.migrate_ns += self.now().saturating_sub(started);
        self.tell_actual();
        if let Err(error) = done {
            self.fault(error);
        }
    }

    /// Cuts the isolated block at `src` so that `src` alone, one page, stays
    /// isolated: words, then store. The rest is movable again.
    ///
    /// # Errors
    /// [`MigrateError::Busy`]: no isolated block of the balloon starts there.
    /// [`MigrateError::NoMemory`]: the store has no node for the pieces.
    pub fn split_isolated(&mut self, src: Pfn) -> Result<(), MigrateError> {
        let Source::Settled(whole) = self.source(src) else { return Err(MigrateError::Busy) };
        if !self.is_isolated(src, whole.order()) {
            return Err(MigrateError::Busy);
        }
        if whole.order() == 0 {
            return Ok(());
        }
        let cut = self.frames.cut_isolated(whole).map_err(|error| match error {
            TakeError::Store => MigrateError::NoMemory,
            TakeError::Pages | TakeError::Unaddressable | TakeError::Inconsistent => {
                self.counters.inconsistencies += 1;
                MigrateError::Busy
            }
        });
        match cut {
            Ok(()) => self.counters.splits += 1,
            Err(MigrateError::NoMemory) => self.counters.split_failures += 1,
            Err(MigrateError::Again | MigrateError::Busy | MigrateError::NotTaken) => {}
        }
        cut
    }

    fn go_over(
        &mut self,
        moves: &mut [Option<Move<'_>>],
        wait: &mut dyn FnMut() -> bool,
    ) -> Result<(), BalloonError> {
        self.look()?;
        self.close_buffers();
        if self.is_mutant(Mutant::OldDeflatedFirst) {
            self.deflate_sources(moves, wait)?;
        }
        self.inflate_destinations(moves, wait)?;
        self.deflate_sources(moves, wait)
    }

    /// Takes what the device has returned.
    fn look(&mut self) -> Result<(), BalloonError> {
        while self.settle_used().map_err(BalloonError::Queue)? == Stage::More {}
        while self.free_used().map_err(BalloonError::Queue)? == Stage::More {}
        if self.is_scribbled { Err(BalloonError::Scribbled) } else { Ok(()) }
    }

    /// Ends the buffers that ordinary work has begun, so that a group that the
    /// ring refuses holds blocks of this migration or of ordinary work, never both.
    fn close_buffers(&mut self) {
        let refuse = self.inflate.is_filling() && self.refuse_buffer();
        if let Err(group) = self.inflate.seal(refuse) {
            self.undo(group);
            self.counters.queue_failures += 1;
        }
        let refuse = self.deflate.is_filling() && self.refuse_buffer();
        if let Err(group) = self.deflate.seal(refuse) {
            self.unclaim_group(group);
            self.counters.queue_failures += 1;
        }
    }

    /// Waits until `is_over`, looking at the device in between. `false`: it
    /// does not answer in time.
    fn wait_until(
        &mut self,
        wait: &mut dyn FnMut() -> bool,
        mut is_over: impl FnMut(&Self) -> bool,
    ) -> Result<bool, BalloonError> {
        loop {
            self.look()?;
            if is_over(self) {
                return Ok(true);
            }
            if !wait() {
                self.counters.migrate_timeouts += 1;
                return Ok(false);
            }
        }
    }

    /// Takes the destinations into the balloon, in flight, and waits until the
    /// host has them.
    fn inflate_destinations(
        &mut self,
        moves: &mut [Option<Move<'_>>],
        wait: &mut dyn FnMut() -> bool,
    ) -> Result<(), BalloonError> {
        // Before the destinations count, which are to replace what they come for; and of
        // what the host has confirmed, lest it hold less than the target meanwhile.
        let mut excess = self.actual().saturating_sub(self.target);
        for at in 0..moves.len() {
            let Some(Some(step)) = moves.get(at) else { continue };
            let taken = self.begin(step, &mut excess);
            if let Err((error, refused)) = taken {
                if let Some(group) = refused {
                    self.untake_group(group, moves);
                }
                if let Some(Some(step)) = moves.get_mut(at) {
                    step.ended = Err(error);
                }
            }
        }
        let refuse = self.inflate.is_filling() && self.refuse_buffer();
        if let Err(group) = self.inflate.seal(refuse) {
            self.untake_group(group, moves);
            self.counters.queue_failures += 1;
        }
        self.kick(Direction::Inflate);
        let taken = || moves.iter().flatten().filter(|step| step.dst.is_taken());
        self.wait_until(wait, |driver| taken().all(|step| driver.is_settled(step.dst.head())))?;
        Ok(())
    }

    /// Takes one destination, or tells the host of the source of a balloon that is
    /// too large by `excess` pages.
    fn begin(
        &mut self,
        step: &Move<'_>,
        excess: &mut PageCount,
    ) -> Result<(), (MigrateError, Option<Group>)> {
        let refused = |error| (error, None);
        if step.ended == Err(MigrateError::Busy) {
            return Err(refused(MigrateError::Busy));
        }
        if let Source::Settled(block) = self.source(step.src)
            && *excess >= block.pages()
            && self.deflate.has_room(block.order())
        {
            *excess = excess.saturating_sub(block.pages());
            self.send_source(block);
            return Ok(());
        }
        if !self.inflate.has_room(step.dst.order().get()) {
            return Err(refused(MigrateError::Again));
        }
        let block = self.frames.take_in(step.dst).map_err(|error| {
            refused(match error {
                TakeError::Store => {
                    self.counters.store_failures += 1;
                    MigrateError::NoMemory
                }
                TakeError::Pages | TakeError::Unaddressable => MigrateError::NoMemory,
                TakeError::Inconsistent => {
                    self.counters.inconsistencies += 1;
                    MigrateError::Busy
                }
            })
        })?;
        self.send_destination(block, step.dst)
    }

    fn send_destination(
        &mut self,
        block: Block,
        dst: &TransitFrames,
    ) -> Result<(), (MigrateError, Option<Group>)> {
        let refuse = self.inflate.would_add(block.order()) && self.refuse_buffer();
        match self.inflate.push(block, refuse) {
            Ok(()) => {
                self.counters.inflated_pages += block.pages().get();
                self.counters.inflated_blocks += 1;
                if self.is_mutant(Mutant::MovableBeforeUsed) {
                    self.settle(block);
                }
                Ok(())
            }
            Err(Rejected { group, entered }) => {
                self.counters.queue_failures += 1;
                if entered {
                    // `untake_group` takes off what it gives back.
                    self.counters.inflated_pages += block.pages().get();
                    self.counters.inflated_blocks += 1;
                } else {
                    self.untake(block, dst);
                }
                Err((MigrateError::Again, Some(group)))
            }
        }
    }

    /// Gives destinations back that never reached the ring.
    fn untake_group(&mut self, group: Group, moves: &[Option<Move<'_>>]) {
        let mut index = 0;
        while let Some(block) = self.block_of(group, &mut index, Direction::Inflate) {
            let step = moves.iter().flatten().find(|step| step.dst.head() == block.head());
            if let Some(step) = step {
                self.counters.inflated_pages -= block.pages().get();
                self.counters.inflated_blocks -= 1;
                self.untake(block, step.dst);
            } else {
                self.counters.inconsistencies += 1;
            }
        }
        self.inflate.recycle(group);
    }

    fn untake(&mut self, block: Block, dst: &TransitFrames) {
        if self.frames.give_back(block, dst).is_err() {
            self.counters.inconsistencies += 1;
        }
    }

    /// Tells the host of the sources whose destinations it has, and waits for its answer.
    fn deflate_sources(
        &mut self,
        moves: &[Option<Move<'_>>],
        wait: &mut dyn FnMut() -> bool,
    ) -> Result<(), BalloonError> {
        for step in moves.iter().flatten() {
            let has_room = self.deflate.has_room(step.dst.order().get());
            let may_go = step.dst.is_taken() && self.is_settled(step.dst.head())
                || self.is_mutant(Mutant::OldDeflatedFirst);
            if has_room
                && may_go
                && let Source::Settled(block) = self.source(step.src)
            {
                self.send_source(block);
            }
        }
        let refuse = self.deflate.is_filling() && self.refuse_buffer();
        if let Err(group) = self.deflate.seal(refuse) {
            self.keep_group(group);
            self.counters.queue_failures += 1;
        }
        self.kick(Direction::Deflate);
        let sources = || moves.iter().flatten().map(|step| step.src);
        self.wait_until(wait, |driver| {
            sources().all(|src| driver.source(src) != Source::InFlight)
        })?;
        Ok(())
    }

    /// Puts a source into a buffer. Its word stays isolated: it is migration's
    /// until the host has answered.
    fn send_source(&mut self, block: Block) {
        self.frames.store.set_state(block.head(), BlockState::InFlight);
        let refuse = self.deflate.would_add(block.order()) && self.refuse_buffer();
        match self.deflate.push(block, refuse) {
            Ok(()) => {
                self.counters.deflated_pages += block.pages().get();
                if self.is_mutant(Mutant::FreedBeforeAnswer) {
                    self.free(block);
                }
            }
            Err(Rejected { group, entered }) => {
                self.counters.queue_failures += 1;
                if entered {
                    // `keep_group` takes off what it keeps.
                    self.counters.deflated_pages += block.pages().get();
                } else {
                    self.frames.store.set_state(block.head(), BlockState::Settled);
                }
                self.keep_group(group);
            }
        }
    }

    /// Sources that never reached the ring stay in the balloon.
    fn keep_group(&mut self, group: Group) {
        let mut index = 0;
        while let Some(block) = self.block_of(group, &mut index, Direction::Deflate) {
            self.counters.deflated_pages -= block.pages().get();
            self.frames.store.set_state(block.head(), BlockState::Settled);
        }
        self.deflate.recycle(group);
    }

    /// What has become of a move, from the books; leaves nobody without an owner.
    fn conclude(&mut self, step: &Move<'_>) -> Result<Migrated, MigrateError> {
        let memory = self.frames.memory;
        let source = self.source(step.src);
        let pages = step.dst.pages().get();
        let kept = match (source, step.dst.is_taken()) {
            (Source::Gone, true) => {
                self.counters.migrated_pages += pages;
                return Ok(Migrated::Moved(SourceMemory::Discarded));
            }
            // Not the balloon's, or not isolated.
            (_, false) if step.ended == Err(MigrateError::Busy) => return step.ended,
            (Source::Gone, false) => {
                self.counters.released_pages += pages;
                return Ok(Migrated::Released(SourceMemory::Discarded));
            }
            (Source::Settled(_), false) => return step.ended,
            // The device may have heard of it: it comes free when the device answers.
            (Source::InFlight, _) => memory.park_isolated(step.src, DriverId::BALLOON),
            // The balloon has grown by a page; it shrinks again by itself.
            (Source::Settled(_), true) => memory.unisolate(step.src, DriverId::BALLOON),
        };
        self.counters.kept_pages += pages;
        if kept.is_err() {
            self.counters.inconsistencies += 1;
        }
        Ok(Migrated::Kept)
    }

    /// The device is reset and has no claim any more: pages are given up at once.
    fn release_drained(&mut self, moves: &mut [Option<Move<'_>>]) {
        for step in moves.iter_mut().flatten() {
            if !self.is_isolated(step.src, step.dst.order().get()) {
                step.ended = Err(MigrateError::Busy);
                continue;
            }
            let Source::Settled(block) = self.source(step.src) else { continue };
            self.frames.store.remove(block.head());
            self.counters.released_pages += block.pages().get();
            // It may have been discarded, or not.
            step.ended = Ok(Migrated::Released(SourceMemory::Present));
        }
    }

    /// Frees a block that the host knows to be deflated; one that is isolated
    /// is the source of a move, which the migration core frees.
    pub(super) fn free(&mut self, block: Block) {
        match self.frames.release(block, Contents::GivenAway) {
            Ok(()) => self.counters.freed_pages += block.pages().get(),
            Err(ClaimError::Isolated) => {
                self.frames.store.remove(block.head());
            }
            Err(_) => self.counters.inconsistencies += 1,
        }
    }

    fn source(&self, src: Pfn) -> Source {
        match self.frames.store.block_at(src).filter(|found| found.block.head() == src) {
            None => Source::Gone,
            Some(found) if found.state == BlockState::Settled => Source::Settled(found.block),
            Some(_) => Source::InFlight,
        }
    }

    fn is_settled(&self, head: Pfn) -> bool {
        matches!(self.source(head), Source::Settled(_))
    }

    /// Whether the balloon's block at `src` has this order, and migration has it.
    fn is_isolated(&self, src: Pfn, order: u32) -> bool {
        let isolated = self.frames.memory.isolated_order(src, DriverId::BALLOON);
        let stored = self.source(src);
        isolated.is_ok_and(|isolated| isolated.get() == order)
            && matches!(stored, Source::Settled(block) if block.order() == order)
    }
}
