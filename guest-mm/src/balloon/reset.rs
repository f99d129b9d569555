//! Resets: the device forgets everything, the guest takes every page back.
//!
//! Until the reset is complete, an inflate in flight may still discard pages, so
//! nothing is freed before. Afterwards the device has no claim on any page and
//! is told of none: they go back silently, in bounded pieces. Blocks that
//! somebody has isolated are waited for.

use abi::{PageCount, Pfn};

use super::driver::{BLOCKS_PER_POLL, BalloonDriver, BalloonError};
use super::frames::Contents;
use super::options::Wake;
use crate::platform::Platform;
use crate::store::PfnStore;
use crate::virtio::{MmioBus, SetupError};

/// Restarts after device faults before the driver gives up; answers renew them.
pub(super) const RESTARTS: u8 = 3;
/// Looks at a device that resets before the driver gives up.
const RESET_LOOKS: u16 = 500;
/// Time between them, and between looks at isolated blocks.
const PAUSE_NS: u64 = 10_000_000;

/// Where the driver stands with its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Following the target.
    Running {
        /// Restarts that a faulty device has left.
        restarts_left: u8,
    },
    /// The device was asked to reset.
    Resetting {
        /// What then.
        then: AfterReset,
        /// Looks left.
        looks_left: u16,
        /// When to look again.
        at: u64,
    },
    /// Pages are being taken back.
    Draining {
        /// What then.
        then: AfterReset,
        /// When to look at isolated blocks again.
        at: u64,
    },
    /// Unbound.
    Down,
    /// Given up.
    Failed(BalloonError),
}

/// What comes after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterReset {
    /// Start the device again, as the user asked.
    Restart,
    /// Start the device again after a fault.
    Recover {
        /// Restarts that it has left.
        restarts_left: u8,
    },
    /// Stay down.
    Stop,
    /// Give up.
    Fail(BalloonError),
}

impl<P: Platform, B: MmioBus, S: PfnStore> BalloonDriver<'_, P, B, S> {
    /// The device broke a rule or asks for a reset.
    pub(super) fn fault(&mut self, error: BalloonError) -> Wake {
        self.counters.device_faults += 1;
        let restarts_left = match self.phase {
            Phase::Running { restarts_left } => restarts_left,
            Phase::Resetting { .. } | Phase::Draining { .. } | Phase::Down | Phase::Failed(_) => 0,
        };
        let then = match restarts_left.checked_sub(1) {
            Some(restarts_left) => AfterReset::Recover { restarts_left },
            None => AfterReset::Fail(error),
        };
        self.begin_reset(then);
        Wake::Now
    }

    /// The device works: what it did before is forgiven.
    pub(super) fn forgive(&mut self) {
        if let Phase::Running { restarts_left } = &mut self.phase {
            *restarts_left = RESTARTS;
        }
    }

    pub(super) fn begin_reset(&mut self, then: AfterReset) {
        if let Phase::Failed(_) = self.phase {
            return;
        }
        self.counters.resets += 1;
        self.device.begin_reset();
        self.phase = Phase::Resetting { then, looks_left: RESET_LOOKS, at: 0 };
    }

    pub(super) fn await_reset(&mut self, now: u64) -> Wake {
        let Phase::Resetting { then, looks_left, at } = self.phase else { return Wake::Now };
        if now < at {
            return Wake::At(at);
        }
        if !self.device.reset_is_complete() {
            let Some(looks_left) = looks_left.checked_sub(1) else {
                // The device may still discard what is in flight: every page stays where it is.
                self.phase = Phase::Failed(BalloonError::Setup(SetupError::ResetStuck));
                return Wake::OnInterrupt;
            };
            let at = now.saturating_add(PAUSE_NS);
            self.phase = Phase::Resetting { then, looks_left, at };
            return Wake::At(at);
        }
        self.inflate.detach();
        self.deflate.detach();
        self.watchdog.answered();
        self.told_actual = PageCount::ZERO;
        self.claim_from = Pfn::ZERO;
        self.phase = Phase::Draining { then, at: 0 };
        Wake::Now
    }

    pub(super) fn drain(&mut self, now: u64) -> Wake {
        let Phase::Draining { then, at } = self.phase else { return Wake::Now };
        if now < at {
            return Wake::At(at);
        }
        for _ in 0..BLOCKS_PER_POLL {
            let Some(found) = self.frames.next(self.claim_from) else {
                return self.drained_to_the_end(then, now);
            };
            let block = found.block;
            // Whether the host discarded it is unknown: it may have been in flight.
            if self.frames.release(block, Contents::Unknown).is_err() {
                self.counters.isolated_skips += 1;
            }
            let behind = block.head().checked_add(block.pages());
            let Some(behind) = behind else { return self.drained_to_the_end(then, now) };
            self.claim_from = behind;
        }
        Wake::Now
    }

    fn drained_to_the_end(&mut self, then: AfterReset, now: u64) -> Wake {
        self.claim_from = Pfn::ZERO;
        if self.frames.store.blocks() > 0 {
            let at = now.saturating_add(PAUSE_NS);
            self.phase = Phase::Draining { then, at };
            return Wake::At(at);
        }
        let restarts_left = match then {
            AfterReset::Restart => RESTARTS,
            AfterReset::Recover { restarts_left } => restarts_left,
            AfterReset::Stop => {
                self.phase = Phase::Down;
                return Wake::OnInterrupt;
            }
            AfterReset::Fail(error) => return self.give_up(error),
        };
        self.phase = Phase::Running { restarts_left };
        match self.bring_up() {
            Ok(()) => Wake::Now,
            Err(SetupError::NeedsReset) => self.fault(BalloonError::NeedsReset),
            Err(error) => self.give_up(BalloonError::Setup(error)),
        }
    }

    fn give_up(&mut self, error: BalloonError) -> Wake {
        self.device.fail();
        self.phase = Phase::Failed(error);
        Wake::OnInterrupt
    }
}
