//! Waiting for a resize: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, stderr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use aerostat_api::{Client, ClientError, Operation, OperationState};
use indicatif::{ProgressBar, ProgressStyle};

use super::failure::Failure;
use super::output;

/// How often the operation is asked for: often enough that a short resize ends when it ends.
const POLL: Duration = Duration::from_millis(20);
/// How often a plain line may be printed.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Waits until `operation` has ended; shows its progress on standard error if wanted.
pub(super) fn wait(
    client: &Client,
    mut operation: Operation,
    is_shown: bool,
) -> Result<Operation, Failure> {
    let mut progress = Progress::new(&operation, is_shown);
    while !operation.state.is_final() {
        sleep(POLL);
        match client.operation(Some(operation.id)) {
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

enum Progress {
    Bar(ProgressBar),
    Lines { last: Instant },
    Silent,
}

impl Progress {
    fn new(operation: &Operation, is_shown: bool) -> Self {
        if !is_shown {
            return Self::Silent;
        }
        if !stderr().is_terminal() {
            return Self::Lines { last: Instant::now() };
        }
        let bar = ProgressBar::new(way(operation));
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        let is_deflate = operation.target_bytes < operation.from_bytes;
        bar.set_prefix(if is_deflate { "deflating" } else { "inflating" });
        let mut progress = Self::Bar(bar);
        progress.show(operation);
        progress
    }

    fn show(&mut self, operation: &Operation) {
        match self {
            Self::Bar(bar) => {
                bar.set_message(message(operation));
                bar.set_position(way(operation).saturating_sub(operation.deficit_bytes));
            }
            Self::Lines { last } if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                eprintln!("{}", message(operation));
            }
            Self::Lines { .. } | Self::Silent => {}
        }
    }

    fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// The whole way from where the operation began to its target, in bytes.
fn way(operation: &Operation) -> u64 {
    operation.from_bytes.abs_diff(operation.target_bytes)
}

fn message(operation: &Operation) -> String {
    let note = operation.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    let actual = output::human(operation.actual_bytes);
    let target = output::human(operation.target_bytes);
    format!("balloon {actual} of {target}, {}{note}", output::time(operation.elapsed_ms))
}
