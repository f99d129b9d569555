//! The `aerostat` binary that the tests drive.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A command for the `aerostat` binary, built from the current sources.
///
/// `AEROSTAT_BIN` names a binary to use instead: the lab sets it, where there
/// is no cargo. The environment's socket variables are removed so that a test
/// never talks to the user's VM.
///
/// # Panics
/// If cargo cannot build the binary.
pub fn aerostat() -> Command {
    let mut command = Command::new(aerostat_path());
    command.env_remove("AEROSTAT_SOCK");
    command
}

/// Path of the binary that [`aerostat()`] runs.
///
/// # Panics
/// If cargo cannot build the binary.
pub fn aerostat_path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| std::env::var_os("AEROSTAT_BIN").map_or_else(build, PathBuf::from))
}

/// Builds the binary with the profile of the running test and returns its path.
fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // …/target/PROFILE/deps/TEST-HASH
    let exe = std::env::current_exe().expect("a running test has a path");
    let profile_dir = exe.ancestors().nth(2).expect("test binaries live in PROFILE/deps");
    let profile = match profile_dir.file_name().and_then(|n| n.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "aerostat", "--bin", "aerostat"])
        .args(["--profile", profile])
        .current_dir(workspace_root())
        .status()
        .expect("cargo starts");
    assert!(status.success(), "building the aerostat binary failed");
    profile_dir.join("aerostat")
}

/// The workspace's root directory.
///
/// # Panics
/// Never in a checkout: the test package lies one below the root.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent")
}
