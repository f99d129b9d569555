//! Resizing the balloon or hotplug memory, and waiting for it: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, stderr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use aerostat_api::{Client, ClientError, Operation, OperationRequest, OperationState, Size};
use indicatif::{ProgressBar, ProgressStyle};

use super::args::WaitOptions;
use super::failure::Failure;
use super::output;
use crate::exit_code;

/// How often the operation is asked for: often enough that a short resize ends when it ends.
const POLL: Duration = Duration::from_millis(20);
/// How often a plain line may be printed.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// What is resized, and how it is spoken of.
pub(super) struct Subject {
    /// `balloon`
    name: &'static str,
    /// What it does on its way up, and down.
    ways: [&'static str; 2],
    /// What the guest has then: `left`.
    has: &'static str,
    begin: fn(&Client, &OperationRequest) -> Result<Operation, ClientError>,
    operation: fn(&Client, Option<u64>) -> Result<Option<Operation>, ClientError>,
}

impl Subject {
    pub(super) const BALLOON: Self = Self {
        name: "balloon",
        ways: ["inflating", "deflating"],
        has: "left",
        begin: Client::begin_operation,
        operation: Client::operation,
    };
    pub(super) const HOTPLUG: Self = Self {
        name: "hotplug memory",
        ways: ["plugging", "unplugging"],
        has: "in all",
        begin: Client::begin_hotplug_operation,
        operation: Client::hotplug_operation,
    };

    /// Resizes to what `target` says, waits as `wait` says, and tells how it ended.
    pub(super) fn resize(
        &self,
        wait: &WaitOptions,
        target: impl FnOnce(&Client) -> Result<Size, Failure>,
    ) -> Result<u8, Failure> {
        let client = wait.target.client()?;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let request = OperationRequest {
            target_bytes: target(&client)?.bytes(),
            timeout_ms: wait.timeout.map(millis),
        };
        let begun = (self.begin)(&client, &request)?;
        if wait.no_wait {
            self.report(&begun, wait.json)?;
            return Ok(exit_code::SUCCESS);
        }
        let ended = self.wait(&client, begun, !wait.json)?;
        self.report(&ended, wait.json)?;
        Ok(match ended.state {
            OperationState::Running | OperationState::Reached => exit_code::SUCCESS,
            OperationState::Stalled => exit_code::OPERATION_STALLED,
            OperationState::TimedOut => exit_code::OPERATION_TIMED_OUT,
            OperationState::Superseded => exit_code::OPERATION_SUPERSEDED,
        })
    }

    /// Says how an operation stands.
    fn report(&self, operation: &Operation, is_json: bool) -> Result<(), Failure> {
        if is_json { output::json(operation) } else { output::line(self.summary(operation)) }
    }

    /// One line on how an operation stands.
    pub(super) fn summary(&self, operation: &Operation) -> String {
        let Self { name, has, .. } = self;
        let actual = output::size(operation.actual_bytes);
        let left = output::size(operation.guest_left_bytes);
        let elapsed = output::time(operation.elapsed_ms);
        let state = operation.state;
        let mut text = match operation.state {
            OperationState::Reached => {
                format!("{state}: {name} {actual}, the guest has {left} {has}, after {elapsed}")
            }
            OperationState::Running
            | OperationState::Stalled
            | OperationState::TimedOut
            | OperationState::Superseded => format!(
                "{state}: {name} {actual} of {}, deficit {}, last progress {} ago, \
                 the guest has {left} {has}, after {elapsed}",
                output::size(operation.target_bytes),
                output::size(operation.deficit_bytes),
                output::time(operation.since_progress_ms),
            ),
        };
        if let Some(note) = &operation.note {
            text.push_str(&format!(" ({note})"));
        }
        text
    }

    /// Waits until `operation` has ended; shows its progress on standard error if wanted.
    pub(super) fn wait(
        &self,
        client: &Client,
        mut operation: Operation,
        is_shown: bool,
    ) -> Result<Operation, Failure> {
        let mut progress = Progress::new(self, &operation, is_shown);
        while !operation.state.is_final() {
            sleep(POLL);
            match (self.operation)(client, Some(operation.id)) {
                Ok(Some(now)) => operation = now,
                // Forgotten, so many a target has come since.
                Ok(None) | Err(ClientError::Refused { status: 404, .. }) => {
                    operation.state = OperationState::Superseded;
                }
                Err(error) => {
                    progress.clear();
                    return Err(error.into());
                }
            }
            progress.show(&operation);
        }
        progress.clear();
        Ok(operation)
    }
}

enum Progress {
    Bar(ProgressBar, &'static str),
    Lines { last: Instant, name: &'static str },
    Silent,
}

impl Progress {
    fn new(subject: &Subject, operation: &Operation, is_shown: bool) -> Self {
        if !is_shown {
            return Self::Silent;
        }
        if !stderr().is_terminal() {
            return Self::Lines { last: Instant::now(), name: subject.name };
        }
        let bar = ProgressBar::new(way(operation));
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        let [up, down] = subject.ways;
        bar.set_prefix(if operation.target_bytes < operation.from_bytes { down } else { up });
        let mut progress = Self::Bar(bar, subject.name);
        progress.show(operation);
        progress
    }

    fn show(&mut self, operation: &Operation) {
        match self {
            Self::Bar(bar, name) => {
                bar.set_message(message(name, operation));
                bar.set_position(way(operation).saturating_sub(operation.deficit_bytes));
            }
            Self::Lines { last, name } if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                eprintln!("{}", message(name, operation));
            }
            Self::Lines { .. } | Self::Silent => {}
        }
    }

    fn clear(&self) {
        if let Self::Bar(bar, _) = self {
            bar.finish_and_clear();
        }
    }
}

/// The whole way from where the operation began to its target, in bytes.
fn way(operation: &Operation) -> u64 {
    operation.from_bytes.abs_diff(operation.target_bytes)
}

fn message(name: &str, operation: &Operation) -> String {
    let note = operation.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    let actual = output::human(operation.actual_bytes);
    let target = output::human(operation.target_bytes);
    format!("{name} {actual} of {target}, {}{note}", output::time(operation.elapsed_ms))
}
