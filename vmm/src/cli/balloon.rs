//! `balloon`: show it, resize it.

use std::time::Duration;

use aerostat_api::{BalloonStatus, Client, Operation, OperationRequest, OperationState, Size};

use super::args::{BalloonCommand, QueryOptions, WaitOptions};
use super::failure::Failure;
use super::{output, resize};
use crate::exit_code;

pub(super) fn balloon(command: BalloonCommand) -> Result<u8, Failure> {
    match command {
        BalloonCommand::Get(query) => get(&query),
        BalloonCommand::Set { size, wait } => begin(&wait, |_client| Ok(size)),
        BalloonCommand::Inflate { size, wait } => {
            begin(&wait, |client| inflated(&client.balloon_status()?, size).map_err(Failure::Usage))
        }
        BalloonCommand::Deflate { size: None, wait } => {
            begin(&wait, |_client| Ok(Size::from_bytes(0)))
        }
        BalloonCommand::Deflate { size: Some(size), wait } => {
            begin(&wait, |client| deflated(&client.balloon_status()?, size).map_err(Failure::Usage))
        }
    }
}

fn begin(
    wait: &WaitOptions,
    target: impl FnOnce(&Client) -> Result<Size, Failure>,
) -> Result<u8, Failure> {
    let client = wait.target.client()?;
    let request = OperationRequest {
        target_bytes: target(&client)?.bytes(),
        timeout_ms: wait.timeout.map(millis),
    };
    let begun = client.begin_operation(&request)?;
    if wait.no_wait {
        report(&begun, wait.json)?;
        return Ok(exit_code::SUCCESS);
    }
    let ended = resize::wait(&client, begun, !wait.json)?;
    report(&ended, wait.json)?;
    Ok(match ended.state {
        OperationState::Running | OperationState::Reached => exit_code::SUCCESS,
        OperationState::Stalled => exit_code::OPERATION_STALLED,
        OperationState::TimedOut => exit_code::OPERATION_TIMED_OUT,
        OperationState::Superseded => exit_code::OPERATION_SUPERSEDED,
    })
}

/// The target that takes `size` more.
fn inflated(status: &BalloonStatus, size: Size) -> Result<Size, String> {
    let most = status.ram_bytes.saturating_sub(status.target_bytes);
    if size.bytes() > most {
        return Err(format!(
            "Cannot inflate by {size}: the target is {}, guest RAM {}; allowed: up to {}",
            output::size(status.target_bytes),
            output::size(status.ram_bytes),
            output::size(most)
        ));
    }
    Ok(Size::from_bytes(status.target_bytes.saturating_add(size.bytes())))
}

/// The target that takes `size` less.
fn deflated(status: &BalloonStatus, size: Size) -> Result<Size, String> {
    let left = status.target_bytes.checked_sub(size.bytes());
    left.map(Size::from_bytes).ok_or_else(|| {
        let target = output::size(status.target_bytes);
        format!("Cannot deflate by {size}: the target is {target}; without SIZE all of it goes")
    })
}

/// Says how an operation stands.
fn report(operation: &Operation, is_json: bool) -> Result<(), Failure> {
    if is_json { output::json(operation) } else { output::line(summary(operation)) }
}

/// One line on how an operation stands.
fn summary(operation: &Operation) -> String {
    let balloon = output::size(operation.actual_bytes);
    let left = output::size(operation.guest_left_bytes);
    let elapsed = output::time(operation.elapsed_ms);
    let state = operation.state;
    let mut text = match operation.state {
        OperationState::Reached => {
            format!("{state}: balloon {balloon}, the guest has {left} left, after {elapsed}")
        }
        OperationState::Running
        | OperationState::Stalled
        | OperationState::TimedOut
        | OperationState::Superseded => format!(
            "{state}: balloon {balloon} of {}, deficit {}, last progress {} ago, \
             the guest has {left} left, after {elapsed}",
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

fn get(query: &QueryOptions) -> Result<u8, Failure> {
    let status = query.target.client()?.balloon_status()?;
    if query.json {
        output::json(&status)?;
        return Ok(exit_code::SUCCESS);
    }
    let host = match status.host_resident_bytes {
        Some(bytes) => format!("{}, by {}", output::size(bytes), status.truth),
        None => "unverified".into(),
    };
    let kick = match status.last_kick_ms {
        Some(millis) => format!("{} ago", output::time(millis)),
        None => "never".into(),
    };
    let acknowledged = status.acked_features.map_or("none".into(), |set| set.names.join(" "));
    output::fields(&[
        ("guest RAM", output::size(status.ram_bytes)),
        ("target", output::size(status.target_bytes)),
        ("balloon", output::size(status.actual_bytes)),
        ("guest left", output::size(status.guest_left_bytes)),
        ("host holds", host),
        ("claimed", format!("{} released since start", output::size(status.claimed_bytes))),
        ("driver", status.driver.to_string()),
        ("offered", status.offered_features.names.join(" ")),
        ("acknowledged", acknowledged),
        ("last kick", kick),
        ("operation", status.operation.as_ref().map_or("none yet".into(), summary)),
    ])?;
    Ok(exit_code::SUCCESS)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
