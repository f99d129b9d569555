//! The guest agent, seen from the host: who is ready, what runs, what it prints.
//!
//! A pure state machine between bytes of the agent port and requests of the
//! control thread; the event loop moves the bytes. The guest is hostile: lines
//! are bounded, a bad one is counted and dropped, an answer to a request that
//! does not run is one of those.

mod message;

use std::collections::VecDeque;

use tokio::sync::mpsc::{OwnedPermit, Sender, error::TrySendError};

use crate::vm::handle::{ExecEvent, VmError};
use message::{FromGuest, MAX_LINE_BYTES, exec_line};

/// Name of the request that powers the guest off.
const POWEROFF: &str = "poweroff";

/// Counters of the agent port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct AgentCounters {
    /// Lines understood.
    pub(crate) lines: u64,
    /// Lines that were too long.
    pub(crate) overlong: u64,
    /// Lines that are not of the protocol.
    pub(crate) malformed: u64,
    /// Answers to a request that does not run.
    pub(crate) stray: u64,
    /// Lines of output that a slow reader lost.
    pub(crate) lost: u64,
}

/// What became of the guest's bytes, for the event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AgentEvent {
    /// The guest serves.
    Ready {
        /// 4 KiB pages free in the guest then.
        free_pages: u64,
    },
}

/// The host's end of the agent port.
#[derive(Default)]
pub(crate) struct Agent {
    line: Vec<u8>,
    /// The current line is too long: it is skipped up to its newline.
    skipping: bool,
    /// Names of scenarios, once the guest is ready.
    scenarios: Option<Vec<String>>,
    running: Option<Running>,
    power_off_asked: bool,
    last_id: u64,
    /// Bytes for the guest that the port has not taken yet: at most two lines.
    outgoing: VecDeque<u8>,
    counters: AgentCounters,
}

struct Running {
    id: u64,
    scenario: String,
    /// Taken out when the scenario ends: the end event always has room.
    end: OwnedPermit<ExecEvent>,
    events: Sender<ExecEvent>,
    lost: u64,
}

impl Agent {
    /// Takes bytes from the port.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Option<AgentEvent> {
        let mut event = None;
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                if !std::mem::take(&mut self.skipping) {
                    event = self.take_line(&line).or(event);
                }
                // Keeps the allocation for the next line.
                self.line = line;
                self.line.clear();
            } else if self.skipping {
            } else if self.line.len() + 1 < MAX_LINE_BYTES {
                self.line.push(byte);
            } else {
                self.counters.overlong += 1;
                self.skipping = true;
                self.line.clear();
            }
        }
        event
    }

    fn take_line(&mut self, line: &[u8]) -> Option<AgentEvent> {
        let Some(message) = FromGuest::parse(line) else {
            self.counters.malformed += 1;
            return None;
        };
        self.counters.lines += 1;
        match message {
            FromGuest::Ready { free_pages, scenarios } => {
                self.scenarios = Some(scenarios);
                Some(AgentEvent::Ready { free_pages })
            }
            FromGuest::Line { id, text } => {
                self.take_output(id, text);
                None
            }
            FromGuest::Exit { id, code } => {
                self.take_exit(id, code);
                None
            }
        }
    }

    fn take_output(&mut self, id: u64, text: String) {
        let Some(running) = self.running.as_mut().filter(|running| running.id == id) else {
            self.counters.stray += 1;
            return;
        };
        match running.events.try_send(ExecEvent::Line(text)) {
            Ok(()) => {}
            // A reader that has hung up misses nothing.
            Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                running.lost += 1;
                self.counters.lost += 1;
            }
        }
    }

    fn take_exit(&mut self, id: u64, code: i32) {
        match self.running.take_if(|running| running.id == id) {
            Some(running) => drop(running.end.send(ExecEvent::Exit { code, lost: running.lost })),
            None => self.counters.stray += 1,
        }
    }

    /// Starts a scenario.
    ///
    /// # Errors
    /// [`VmError`]: no agent, a scenario runs already, no such scenario, a request that is too long.
    pub(crate) fn exec(
        &mut self,
        scenario: String,
        args: &[String],
        events: Sender<ExecEvent>,
    ) -> Result<(), VmError> {
        let known = self.scenarios.as_ref().ok_or(VmError::NoAgent)?;
        if let Some(running) = &self.running {
            return Err(VmError::Busy { running: running.scenario.clone() });
        }
        if !known.contains(&scenario) {
            return Err(VmError::NoSuchScenario { name: scenario, known: known.join(", ") });
        }
        let id = self.last_id + 1;
        let line = exec_line(id, &scenario, args)
            .map_err(|len| VmError::RequestTooLong { len, max: MAX_LINE_BYTES })?;
        let Ok(end) = events.clone().try_reserve_owned() else {
            return Err(VmError::Host(String::from("The reader of the output is gone already")));
        };
        self.last_id = id;
        self.outgoing.extend(line);
        self.running = Some(Running { id, scenario, end, events, lost: 0 });
        Ok(())
    }

    /// Asks the guest to power off. Returns whether there is anyone to ask.
    ///
    /// Once is enough, since the port loses nothing: a guest that does not read must not make each repetition cost memory.
    pub(crate) fn power_off(&mut self) -> bool {
        if self.scenarios.is_none() {
            return false;
        }
        if std::mem::replace(&mut self.power_off_asked, true) {
            return true;
        }
        self.last_id += 1;
        // Shorter than a line by far.
        self.outgoing.extend(exec_line(self.last_id, POWEROFF, &[]).unwrap_or_default());
        true
    }

    /// Names of scenarios; none until the guest is ready.
    pub(crate) fn scenarios(&self) -> &[String] {
        self.scenarios.as_deref().unwrap_or_default()
    }

    /// Gives the port what it takes of the bytes for the guest.
    pub(crate) fn send(&mut self, mut port: impl FnMut(&[u8]) -> usize) {
        while !self.outgoing.is_empty() {
            let taken = port(self.outgoing.make_contiguous());
            if taken == 0 {
                return;
            }
            self.outgoing.drain(..taken.min(self.outgoing.len()));
        }
    }

    /// The guest is gone: whoever reads its output finds the stream closed without an end event.
    pub(crate) fn reset(&mut self) {
        let (counters, last_id) = (self.counters, self.last_id);
        *self = Self { counters, last_id, ..Self::default() };
    }

    /// What happened so far.
    pub(crate) fn counters(&self) -> AgentCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests;
