//! What clients ask of a running VM: each request answered, posted on, or remembered until the guest has done its part.

use std::time::{Duration, Instant};

use super::super::balloon_worker::BalloonCommand;
use super::super::exit::ExitReason;
use super::super::handle::{Metric, Reply, VmError, VmRequest, VmState};
use super::super::hotplug_worker::HotplugCommand;
use super::super::metrics;
use super::{EventLoop, RunState};
use crate::acpi::pm1::Press;

impl EventLoop {
    pub(super) fn serve(&mut self, request: VmRequest) -> Option<ExitReason> {
        match request {
            VmRequest::Info(reply) => {
                let info = self.parts.chassis.info(self.vm_state(), self.ready_us);
                answer(reply, Ok(info));
            }
            VmRequest::Configuration(reply) => {
                let mut configuration = self.parts.chassis.configuration();
                self.parts.drives.describe(&mut configuration.drives);
                answer(reply, Ok(configuration));
            }
            VmRequest::Configure { reply, .. } | VmRequest::Start(reply) => {
                answer(reply, Err(VmError::AlreadyStarted));
            }
            VmRequest::Pause(reply) => self.pause(reply),
            VmRequest::Resume(reply) => {
                self.resume();
                answer(reply, Ok(()));
            }
            VmRequest::SetBalloonTarget { target, deadline, reply } => match &self.parts.balloon {
                Some(balloon) => {
                    balloon.post(BalloonCommand::SetTarget { target, deadline, reply });
                }
                None => answer(reply, Err(VmError::NoBalloon)),
            },
            VmRequest::Balloon(reply) => match &self.parts.balloon {
                Some(balloon) => balloon.post(BalloonCommand::Status(reply)),
                None => answer(reply, Err(VmError::NoBalloon)),
            },
            VmRequest::Operation { id, reply } => match &self.parts.balloon {
                Some(balloon) => balloon.post(BalloonCommand::Operation { id, reply }),
                None => answer(reply, Err(VmError::NoBalloon)),
            },
            VmRequest::RequestHotplug { size, deadline, reply } => match &self.parts.hotplug {
                Some(hotplug) => hotplug.post(HotplugCommand::Request { size, deadline, reply }),
                None => answer(reply, Err(VmError::NoHotplug)),
            },
            VmRequest::Hotplug(reply) => match &self.parts.hotplug {
                Some(hotplug) => hotplug.post(HotplugCommand::Status(reply)),
                None => answer(reply, Err(VmError::NoHotplug)),
            },
            VmRequest::HotplugOperation { id, reply } => match &self.parts.hotplug {
                Some(hotplug) => hotplug.post(HotplugCommand::Operation { id, reply }),
                None => answer(reply, Err(VmError::NoHotplug)),
            },
            VmRequest::Exec { scenario, args, reply, events } => {
                let result = if self.run_state == RunState::Running {
                    self.agent.exec(scenario, &args, events)
                } else {
                    Err(VmError::Paused)
                };
                self.send_to_agent();
                answer(reply, result);
            }
            VmRequest::Scenarios(reply) => answer(reply, Ok(self.agent.scenarios().to_vec())),
            VmRequest::PressPowerButton(reply) => self.press_power_button(reply),
            VmRequest::Stop { timeout, reply } => return self.stop(timeout, reply),
            VmRequest::UpdateDrive { id, path, reply } => {
                self.parts.drives.update(&id, path, reply);
            }
            VmRequest::Metrics(reply) => self.metrics(reply),
            VmRequest::FlushMetrics(reply) => match &self.parts.metrics {
                Some(file) => file.flush(reply),
                None => answer(reply, Err(VmError::NoMetricsFile)),
            },
        }
        None
    }

    pub(super) fn metrics(&self, reply: Reply<Vec<Metric>>) {
        let mut own = metrics::collect(&self.parts.chassis, &self.agent);
        self.parts.drives.add_metrics(&mut own);
        match &self.parts.balloon {
            Some(balloon) => balloon.post(BalloonCommand::Metrics { own, reply }),
            None => answer(reply, Ok(own)),
        }
    }

    fn vm_state(&self) -> VmState {
        match (self.run_state, self.ready_us) {
            (RunState::Paused, _) => VmState::Paused,
            (_, None) => VmState::Starting,
            (_, Some(_)) => VmState::Running,
        }
    }

    fn pause(&mut self, reply: Reply<()>) {
        match self.run_state {
            RunState::Paused => answer(reply, Ok(())),
            RunState::Pausing | RunState::Settling => queue_up(&mut self.pausing, reply),
            RunState::Running => {
                self.pausing.push(reply);
                self.run_state = RunState::Pausing;
                self.vcpus.pause();
                // vCPUs that have not noticed a resume are parked still, and will report nothing.
                self.paused();
            }
        }
    }

    pub(super) fn paused(&mut self) {
        // An event of a pause that was taken back in the meantime means nothing.
        if self.run_state == RunState::Pausing && self.vcpus.all_parked() {
            self.run_state = RunState::Settling;
            self.parts.drives.settle();
        }
        if self.run_state == RunState::Settling && self.parts.drives.are_settled() {
            self.run_state = RunState::Paused;
            self.tell_paused(true);
            answer_all(self.pausing.drain(..), Ok(()));
        }
    }

    fn tell_paused(&self, is_paused: bool) {
        if let Some(balloon) = &self.parts.balloon {
            balloon.post(BalloonCommand::Paused(is_paused));
        }
        if let Some(hotplug) = &self.parts.hotplug {
            hotplug.post(HotplugCommand::Paused(is_paused));
        }
    }

    fn resume(&mut self) {
        if self.run_state != RunState::Running {
            self.run_state = RunState::Running;
            self.vcpus.resume();
            self.tell_paused(false);
            // Whoever waits for a pause that a resume has overtaken was paused, for no time at all.
            answer_all(self.pausing.drain(..), Ok(()));
        }
    }

    /// Asks the guest to power off: its agent, else by the power button. Returns whether anyone there listens.
    fn ask_to_power_off(&mut self) -> bool {
        if self.agent.power_off() {
            self.send_to_agent();
            return true;
        }
        match self.parts.chassis.board.pm1().press_power_button() {
            Press::Raised => true,
            // A kernel that powers off disables the button.
            Press::NotEnabled => self.stopping.is_some(),
        }
    }

    fn press_power_button(&mut self, reply: Reply<()>) {
        let result = if self.run_state != RunState::Running {
            Err(VmError::Paused)
        } else if self.ask_to_power_off() {
            Ok(())
        } else {
            Err(VmError::NoPowerButton)
        };
        answer(reply, result);
    }

    fn stop(&mut self, timeout: Duration, reply: Reply<bool>) -> Option<ExitReason> {
        let is_asked = self.run_state == RunState::Running && self.ask_to_power_off();
        // Every stop is answered at the end, when the disks are complete and free again.
        let stopping = self.stopping.get_or_insert_default();
        queue_up(&mut stopping.replies, reply);
        if !is_asked {
            log::info!("stop: the guest is paused, or nobody there listens; ending the VM");
            return Some(ExitReason::Stopped { by_guest: false });
        }
        let deadline = Instant::now().checked_add(timeout);
        stopping.deadline = [stopping.deadline, deadline].into_iter().flatten().min();
        None
    }
}

/// Answers a requester, who may be gone.
pub(crate) fn answer<T>(reply: Reply<T>, value: Result<T, VmError>) {
    reply.send(value).ok();
}

/// Remembers who waits for an answer, and forgets who has gone: a guest that never gives a reason to
/// answer must not make a client's repetitions cost memory.
fn queue_up<T>(waiting: &mut Vec<Reply<T>>, reply: Reply<T>) {
    waiting.retain(|earlier| !earlier.is_closed());
    waiting.push(reply);
}

pub(super) fn answer_all<T: Clone>(
    replies: impl IntoIterator<Item = Reply<T>>,
    value: Result<T, VmError>,
) {
    replies.into_iter().for_each(|reply| answer(reply, value.clone()));
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Each repetition of an action that nobody waits for used to stay for the life of the VM.
    #[test]
    fn requesters_that_are_gone_are_not_remembered() {
        let mut waiting: Vec<Reply<bool>> = Vec::new();
        let (patient, mut answered) = oneshot::channel();
        queue_up(&mut waiting, patient);
        for _ in 0..100 {
            let (reply, gone) = oneshot::channel();
            drop(gone);
            queue_up(&mut waiting, reply);
        }
        assert_eq!(waiting.len(), 2, "the patient one, and the latest");
        answer_all(waiting, Ok(true));
        assert_eq!(answered.try_recv(), Ok(Ok(true)));
    }
}
