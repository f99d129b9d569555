//! Standard output: errors are reported, not panicked on.

use std::io::{self, Write as _};

use aerostat_api::Size;
use serde::Serialize;

use super::failure::Failure;

/// Prints one line.
pub(super) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    Ok(writeln!(io::stdout(), "{}", text.as_ref())?)
}

/// Prints text as it is.
pub(super) fn raw(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints a value as indented JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(serde_json::to_string_pretty(value).map_err(io::Error::from)?)
}

/// Prints `name value` lines with the values in one column.
pub(super) fn fields(fields: &[(&str, String)]) -> Result<(), Failure> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    fields.iter().try_for_each(|(name, value)| line(format!("{name:width$}  {value}")))
}

/// Bytes and their human form.
pub(super) fn size(bytes: u64) -> String {
    Size::from_bytes(bytes).to_string()
}

/// The human form alone.
pub(super) fn human(bytes: u64) -> String {
    Size::from_bytes(bytes).human()
}

/// `0.31 s`, `250 ms`.
pub(super) fn time(millis: u64) -> String {
    if millis < 1000 {
        format!("{millis} ms")
    } else {
        format!("{}.{:02} s", millis / 1000, millis % 1000 / 10)
    }
}
