//! `memory`: hotplug memory, shown and resized.

use aerostat_api::{HotplugStatus, Size};

use super::args::{MemoryCommand, QueryOptions};
use super::failure::Failure;
use super::output;
use super::resize::Subject;
use crate::exit_code;

const HOTPLUG: Subject = Subject::HOTPLUG;

pub(super) fn memory(command: MemoryCommand) -> Result<u8, Failure> {
    match command {
        MemoryCommand::Get(query) => get(&query),
        MemoryCommand::Set { size, wait } => HOTPLUG.resize(&wait, |client| {
            requested(&client.hotplug_status()?, size).map_err(Failure::Usage)
        }),
        MemoryCommand::Plug { size, wait } => HOTPLUG.resize(&wait, |client| {
            plugged(&client.hotplug_status()?, size).map_err(Failure::Usage)
        }),
        MemoryCommand::Unplug { size: None, wait } => {
            HOTPLUG.resize(&wait, |_client| Ok(Size::from_bytes(0)))
        }
        MemoryCommand::Unplug { size: Some(size), wait } => HOTPLUG.resize(&wait, |client| {
            unplugged(&client.hotplug_status()?, size).map_err(Failure::Usage)
        }),
    }
}

/// `size`, if it can be requested.
fn requested(status: &HotplugStatus, size: Size) -> Result<Size, String> {
    check_blocks(status, size)?;
    if size.bytes() > status.total_bytes {
        let total = output::size(status.total_bytes);
        return Err(format!("Cannot request {size}: allowed: up to {total}, the region's size"));
    }
    Ok(size)
}

/// The size to request for `size` more.
fn plugged(status: &HotplugStatus, size: Size) -> Result<Size, String> {
    check_blocks(status, size)?;
    let most = status.total_bytes.saturating_sub(status.requested_bytes);
    if size.bytes() > most {
        return Err(format!(
            "Cannot plug {size}: {} of {} are requested; allowed: up to {}",
            output::size(status.requested_bytes),
            output::size(status.total_bytes),
            output::size(most)
        ));
    }
    Ok(Size::from_bytes(status.requested_bytes.saturating_add(size.bytes())))
}

/// The size to request for `size` less.
fn unplugged(status: &HotplugStatus, size: Size) -> Result<Size, String> {
    check_blocks(status, size)?;
    let left = status.requested_bytes.checked_sub(size.bytes());
    left.map(Size::from_bytes).ok_or_else(|| {
        format!(
            "Cannot unplug {size}: {} are requested and {} plugged; without SIZE all of it goes",
            output::size(status.requested_bytes),
            output::size(status.plugged_bytes)
        )
    })
}

fn check_blocks(status: &HotplugStatus, size: Size) -> Result<(), String> {
    if size.bytes().is_multiple_of(status.block_bytes.max(1)) {
        return Ok(());
    }
    let block = output::size(status.block_bytes);
    Err(format!("{size} is no multiple of the block size, {block}"))
}

fn get(query: &QueryOptions) -> Result<u8, Failure> {
    let status = query.target.client()?.hotplug_status()?;
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
    let operation = status.operation.as_ref();
    output::fields(&[
        ("region", format!("{} at {:#x}", output::size(status.total_bytes), status.addr)),
        ("blocks", output::size(status.block_bytes)),
        ("slots", output::size(status.slot_bytes)),
        ("usable", output::size(status.usable_bytes)),
        ("requested", output::size(status.requested_bytes)),
        ("plugged", output::size(status.plugged_bytes)),
        ("host holds", host),
        ("driver", status.driver.to_string()),
        ("acknowledged", status.acked_features.map_or("none".into(), |set| set.names.join(" "))),
        ("last kick", kick),
        ("operation", operation.map_or("none yet".into(), |operation| HOTPLUG.summary(operation))),
    ])?;
    Ok(exit_code::SUCCESS)
}
