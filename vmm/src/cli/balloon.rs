//! `balloon`: show it, resize it.

use aerostat_api::{BalloonStatus, Size};

use super::args::{BalloonCommand, QueryOptions};
use super::failure::Failure;
use super::output;
use super::resize::Subject;
use crate::exit_code;

const BALLOON: Subject = Subject::BALLOON;

pub(super) fn balloon(command: BalloonCommand) -> Result<u8, Failure> {
    match command {
        BalloonCommand::Get(query) => get(&query),
        BalloonCommand::Set { size, wait } => BALLOON.resize(&wait, |_client| Ok(size)),
        BalloonCommand::Inflate { size, wait } => BALLOON.resize(&wait, |client| {
            inflated(&client.balloon_status()?, size).map_err(Failure::Usage)
        }),
        BalloonCommand::Deflate { size: None, wait } => {
            BALLOON.resize(&wait, |_client| Ok(Size::from_bytes(0)))
        }
        BalloonCommand::Deflate { size: Some(size), wait } => BALLOON.resize(&wait, |client| {
            deflated(&client.balloon_status()?, size).map_err(Failure::Usage)
        }),
    }
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
        (
            "operation",
            status
                .operation
                .as_ref()
                .map_or("none yet".into(), |operation| BALLOON.summary(operation)),
        ),
    ])?;
    Ok(exit_code::SUCCESS)
}
