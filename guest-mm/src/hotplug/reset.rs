//! Resets: memory stays plugged, and what became of the request under way is asked for.

use super::driver::{Ask, HotplugDriver, Job, Step, bring_up};
use super::status::DriverError;
use super::wire::{Answer, Config, Request};
use crate::balloon::Wake;
use crate::platform::Platform;
use crate::virtio::{MmioBus, QueueError, SetupError};

/// Restarts after device faults before the driver gives up; what the device has done renews them.
pub(super) const RESTARTS: u8 = 3;
/// Looks at a device that resets before the driver gives up.
const RESET_LOOKS: u16 = 500;
/// Time between them.
const PAUSE_NS: u64 = 10_000_000;

/// Where the driver stands with its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Following the device's wish.
    Running {
        /// Restarts that a faulty device has left.
        restarts_left: u8,
    },
    /// The device was asked to reset.
    Resetting {
        /// Restarts that it has left then; `None` gives it up.
        restarts_left: Option<u8>,
        /// Why.
        cause: DriverError,
        /// Looks left.
        looks_left: u16,
        /// When to look again.
        at: u64,
    },
    /// Given up.
    Failed(DriverError),
}

impl<P: Platform, B: MmioBus> HotplugDriver<'_, '_, P, B> {
    /// The device broke a rule or asks for a reset.
    pub(super) fn fault(&mut self, cause: DriverError) -> Wake {
        self.counters.device_faults += 1;
        if let DriverError::StateLost { .. } = cause {
            return self.give_up(cause);
        }
        let Phase::Running { restarts_left } = self.phase else { return Wake::Now };
        self.counters.resets += 1;
        self.device.begin_reset();
        let restarts_left = restarts_left.checked_sub(1);
        self.phase = Phase::Resetting { restarts_left, cause, looks_left: RESET_LOOKS, at: 0 };
        Wake::Now
    }

    /// The device works: what it did before is forgiven.
    pub(super) fn forgive(&mut self) {
        if let Phase::Running { restarts_left } = &mut self.phase {
            *restarts_left = RESTARTS;
        }
    }

    pub(super) fn await_reset(&mut self, now: u64) -> Wake {
        let Phase::Resetting { restarts_left, cause, looks_left, at } = self.phase else {
            return Wake::Now;
        };
        if now < at {
            return Wake::At(at);
        }
        if !self.device.reset_is_complete() {
            let Some(looks_left) = looks_left.checked_sub(1) else {
                return self.give_up(DriverError::Setup(SetupError::ResetStuck));
            };
            let at = now.saturating_add(PAUSE_NS);
            self.phase = Phase::Resetting { restarts_left, cause, looks_left, at };
            return Wake::At(at);
        }
        self.wire.detach();
        self.watchdog.answered();
        let Some(restarts_left) = restarts_left else { return self.give_up(cause) };
        self.phase = Phase::Running { restarts_left };
        match self.restart() {
            Ok(()) => Wake::Now,
            Err(error @ (DriverError::NeedsReset | DriverError::Queue(_))) => self.fault(error),
            Err(error) => self.give_up(error),
        }
    }

    fn restart(&mut self) -> Result<(), DriverError> {
        let (region, config) = bring_up(&self.device, &mut self.wire)?;
        let before = self.plugged;
        if region != self.region {
            return Err(DriverError::StateLost { device: config.plugged, driver: before });
        }
        (self.config, self.config_changed) = (config, false);
        self.check_plugged = true;
        if let Job::Asked { ask, .. } = self.job {
            // Of UNPLUG_ALL nothing need be known: it is asked for again.
            self.in_doubt = Some(ask).filter(|ask| ask.range().is_some());
            self.job = Job::Idle;
        }
        Ok(())
    }

    /// Asks what became of a request.
    pub(super) fn question(&mut self, ask: Ask) -> Result<Step, QueueError> {
        if let Some(range) = ask.range() {
            self.send(Request::State(range))?;
            self.job = Job::Asked { ask, is_question: true };
        }
        Ok(Step::Again)
    }

    /// What became of a request that a reset cut off.
    pub(super) fn learn(
        &mut self,
        ask: Ask,
        answer: Answer,
        now: u64,
    ) -> Result<Step, DriverError> {
        let is_plugged = match answer {
            Answer::Ack => true,
            Answer::Unplugged => false,
            Answer::Nack | Answer::Busy => {
                self.counters.refusals += 1;
                self.backoff.failed(now);
                return Ok(Step::Again);
            }
            // A request is done as a whole or not at all.
            Answer::Mixed | Answer::Error => {
                let (device, driver) = (self.config.plugged, self.plugged);
                return Err(DriverError::StateLost { device, driver });
            }
        };
        self.in_doubt = None;
        let was_plug = matches!(ask, Ask::Seed(_) | Ask::Plug(_));
        if is_plugged == was_plug {
            self.granted(ask);
        } else {
            self.refused(ask);
            self.backoff.failed(now);
        }
        Ok(Step::Again)
    }

    /// Whether the device has plugged what we think, which only a reset puts in doubt.
    pub(super) fn compare_plugged(&mut self) -> Result<(), DriverError> {
        let config = Config::read(&self.device, self.region).map_err(DriverError::Region)?;
        if config.plugged != self.plugged {
            let (device, driver) = (config.plugged, self.plugged);
            return Err(DriverError::StateLost { device, driver });
        }
        self.config = config;
        Ok(())
    }

    /// Ends the driver. What the device was asked last is not known: those frames stay offline.
    fn give_up(&mut self, error: DriverError) -> Wake {
        self.device.fail();
        if let Job::Dying { block, .. } = self.job {
            // Dropped, the block is put back.
            self.job = Job::Idle;
            self.bring_to_life(block.first_life());
        }
        self.phase = Phase::Failed(error);
        Wake::OnInterrupt
    }
}
