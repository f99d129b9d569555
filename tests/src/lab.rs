//! The lab: a conforming hardware KVM inside an emulated machine (`tests/lab/lab.sh`).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binary::{aerostat_path, workspace_root};

/// Exit status with which `lab.sh` says that its packages are missing.
pub const PACKAGES_MISSING: i32 = 69;

/// One command that runs inside the lab.
pub struct LabRun {
    files: Vec<PathBuf>,
    vars: Vec<String>,
    limit_s: u32,
    memory_mib: u32,
}

/// What a [`LabRun`] printed and how it ended.
pub struct LabOutcome {
    /// The command's exit status, or the lab's own: [`PACKAGES_MISSING`], 124 when it ran out of time.
    pub status: i32,
    /// L1's console.
    pub console: String,
    /// What `lab.sh` itself complained of.
    pub complaints: String,
}

impl LabRun {
    /// A run with the `aerostat` binary in L1, `AEROSTAT_BIN` and `AEROSTAT_LAB` set, and at most `limit_s` seconds.
    pub fn new(limit_s: u32) -> Self {
        Self {
            files: vec![aerostat_path().to_path_buf()],
            vars: vec![
                "AEROSTAT_BIN=/lab/aerostat".to_owned(),
                "AEROSTAT_LAB=1".to_owned(),
                "KVM_TESTS=required".to_owned(),
                "RUST_BACKTRACE=1".to_owned(),
            ],
            limit_s,
            memory_mib: 2048,
        }
    }

    /// Copies one more file into `/lab`.
    #[must_use]
    pub fn file(mut self, path: &Path) -> Self {
        self.files.push(path.to_path_buf());
        self
    }

    /// Runs `script` with L1's shell.
    ///
    /// # Panics
    /// If `lab.sh` cannot be started.
    pub fn run(self, script: &str) -> LabOutcome {
        let mut command = Command::new(workspace_root().join("tests/lab/lab.sh"));
        command.args(["-t", &self.limit_s.to_string(), "-m", &self.memory_mib.to_string()]);
        for var in &self.vars {
            command.args(["-e", var]);
        }
        for file in &self.files {
            command.arg("-f").arg(file);
        }
        let output = command.args(["--", "sh", "-c", script]).output().expect("lab.sh starts");
        LabOutcome {
            status: output.status.code().unwrap_or(-1),
            console: String::from_utf8_lossy(&output.stdout).into_owned(),
            complaints: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Whether the test itself runs inside the lab, on an emulated CPU.
pub fn inside_lab() -> bool {
    std::env::var_os("AEROSTAT_LAB").is_some()
}
