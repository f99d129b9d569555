//! `--config-file`: the API's objects as one JSON document.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use aerostat_api as api;

/// Longest file that is read, in bytes: as many MiB as nobody writes by hand.
const MOST_BYTES: u64 = 1 << 20;

/// Reads the configuration in `path`.
///
/// # Errors
/// [`ConfigFileError`], naming the file, and the line, column and field where there is one.
pub fn read(path: &Path) -> Result<api::VmConfig, ConfigFileError> {
    let bytes = read_bytes(path)
        .map_err(|source| ConfigFileError::Unreadable { path: path.to_owned(), source })?;
    let refuse = |reason| ConfigFileError::Malformed { path: path.to_owned(), reason };
    if bytes.len() as u64 > MOST_BYTES {
        return Err(refuse(format!("more than {MOST_BYTES} B long")));
    }
    parse(&bytes).map_err(refuse)
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A pipe, as in `--config-file <(...)`, is waited for: a signal still ends the process.
    File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<api::VmConfig, String> {
    // serde would take an array of the fields' values for an object too.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err("an object is expected, this is an array".into());
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed: api::VmConfig = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (field, reason) = (error.path().to_string(), error.inner());
        if field == "." { reason.to_string() } else { format!("{field}: {reason}") }
    })?;
    json.end().map_err(|error| error.to_string())?;
    Ok(parsed)
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("Cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says; already told in the message.
        source: io::Error,
    },
    /// It is no configuration.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Field, what is wrong with it, line and column.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text.as_bytes()).expect_err("refused")
    }

    #[test]
    fn errors_name_field_line_and_column() {
        for (text, expected) in [
            (
                "{\n \"machine-config\": {\"vcpu_count\": \"two\"}}",
                ["machine-config.vcpu_count", "line 2 column 39"],
            ),
            (
                "{\"drives\": [{\"drive_id\": \"a\", \"is_root_device\": 1}]}",
                ["drives[0].is_root_device", "line 1 column 49"],
            ),
            ("{\n\n \"surprise\": 1}", ["unknown field `surprise`", "line 3 column 11"]),
            (
                "{\"balloon\": {\"amount_mib\": 1, \"colour\": 2}}",
                ["unknown field `colour`", "line 1 column 38"],
            ),
            ("{\"boot-source\": {}}", ["missing field `kernel_image_path`", "line 1 column 18"]),
            (
                "{\"entropy\": {}, \"entropy\": {}}",
                ["duplicate field `entropy`", "line 1 column 25"],
            ),
            ("{\"entropy\": }", ["expected value", "line 1 column 13"]),
            ("{} {}", ["trailing characters", "line 1 column 4"]),
            ("", ["EOF", "line 1 column 0"]),
            ("[]", ["object", "array"]),
        ] {
            let said = refused(text);
            assert!(expected.iter().all(|part| said.contains(part)), "{text}: {said}");
        }
    }

    #[test]
    fn a_document_that_nests_without_end_is_refused_and_not_followed() {
        let deep = "[".repeat(100_000);
        assert!(refused(&format!("{{\"vsock\": {deep}")).contains("recursion limit"));
        refused(&format!("{{\"drives\": {deep}"));
    }

    #[test]
    fn a_file_beyond_the_limit_is_not_read_to_its_end() {
        let error = read(Path::new("/dev/zero")).expect_err("refused").to_string();
        assert!(error.contains("/dev/zero") && error.contains("1048576 B"), "{error}");
        let error = read(Path::new("/nonexistent")).expect_err("refused").to_string();
        assert!(error.contains("/nonexistent"), "{error}");
        let error = read(Path::new("/")).expect_err("refused").to_string();
        assert!(error.contains("directory"), "{error}");
    }
}
