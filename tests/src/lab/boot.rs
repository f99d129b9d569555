//! One boot of L1: `lab.sh` with a plan.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::INTERRUPT_WHILE_OFF;
use super::plan::Plan;
use super::session::Patience;
use crate::binary::workspace_root;

/// Exit status with which `lab.sh` says that its packages are missing.
const PACKAGES_MISSING: i32 = 69;
/// L1's RAM: the largest guest, the VMM and every file, which lie in RAM twice while L1 boots.
const MEMORY_MIB: u32 = 3072;
/// How long QEMU may take to answer its monitor.
const MONITOR_PATIENCE: Duration = Duration::from_secs(5);

/// What the lab lacks on this host, in the words of `lab.sh` with the `apt-get` line; nothing if it can run.
///
/// # Panics
/// If `lab.sh` cannot be started or complains of something else.
pub fn packages_missing(series: &str) -> Option<String> {
    let output = lab_sh().args(["-k", series, "-n", "--", "true"]).output().expect("lab.sh starts");
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.code() == Some(PACKAGES_MISSING) {
        return Some(complaint);
    }
    assert!(output.status.success(), "{complaint}");
    None
}

fn lab_sh() -> Command {
    Command::new(workspace_root().join("tests/lab/lab.sh"))
}

/// A running L1 with its report, its console and QEMU's monitor.
pub(super) struct Boot {
    child: Child,
    dir: TempDir,
    /// QEMU creates it.
    report: Option<File>,
    /// When L1 last wrote to its report; `None` before QEMU runs.
    heard: Option<Instant>,
}

impl Boot {
    /// Boots L1 with the stock kernel of `series` for the `number`th time and lets it run `plan` with `patience`, whose limit
    /// counts from now.
    ///
    /// # Panics
    /// If `lab.sh` cannot be started.
    pub(super) fn start(series: &str, plan: &Plan, patience: Patience, number: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("plan"), plan.lines()).expect("the plan is written");
        let mut lab = lab_sh();
        let seconds = patience.limit.as_secs().max(1).to_string();
        lab.args(["-k", series, "-t", &seconds, "-m", &MEMORY_MIB.to_string()]);
        for var in ["AEROSTAT_BIN=/lab/aerostat", "AEROSTAT_LAB=1", "KVM_TESTS=required"] {
            lab.args(["-e", var]);
        }
        lab.args(["-e", &format!("AEROSTAT_LAB_BOOT={number}")]);
        lab.args(["-e", &format!("AEROSTAT_LAB_EXCUSE={INTERRUPT_WHILE_OFF}")]);
        lab.args(["-e", &format!("AEROSTAT_LAB_EXCUSES={}", patience.excuses)]);
        lab.args(["-e", "RUST_BACKTRACE=1", "-l", "-r"]).arg(file("report"));
        lab.arg("-q");
        lab.arg(format!("-monitor unix:{},server=on,wait=off", file("monitor").display()));
        for path in &plan.files {
            lab.args(["-f", path]);
        }
        lab.arg("-f")
            .arg(workspace_root().join("tests/lab/run-plan.sh"))
            .arg("-f")
            .arg(file("plan"));
        let console = File::create(file("console")).expect("a file in it");
        // SAFETY: `prctl` is a system call without memory arguments: async-signal-safe, as the child of a fork needs.
        unsafe { lab.pre_exec(end_with_parent) };
        let child = lab
            .args(["--", "sh", "/lab/run-plan.sh", "/lab/plan"])
            .stdin(Stdio::null())
            .stdout(console.try_clone().expect("a second handle"))
            .stderr(console)
            .spawn()
            .expect("lab.sh starts");
        Self { child, dir, report: None, heard: None }
    }

    /// How the boot ended, once it has. What it reported before is still to be [read](Self::read).
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// What the report has more than before.
    pub(super) fn read(&mut self) -> Vec<u8> {
        if self.report.is_none() {
            self.report = File::open(self.dir.path().join("report")).ok();
            self.heard = self.report.is_some().then(Instant::now);
        }
        let mut bytes = Vec::new();
        if let Some(report) = &mut self.report {
            report.read_to_end(&mut bytes).expect("the report is readable");
        }
        if !bytes.is_empty() {
            self.heard = Some(Instant::now());
        }
        bytes
    }

    /// How long L1 has been silent.
    pub(super) fn silence(&self) -> Duration {
        self.heard.map_or(Duration::ZERO, |heard| heard.elapsed())
    }

    /// Ends it, and returns what its CPU and interrupt controllers were at, as far as QEMU still tells.
    pub(super) fn kill(mut self) -> String {
        let state = self.ask_monitor().unwrap_or_else(|error| format!("no answer: {error}"));
        let tail = self.console_tail();
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: `kill` takes two numbers and touches no memory; the child has not been waited for, so the id is its own.
        // SIGTERM, so that `lab.sh` ends QEMU and removes its files.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        self.child.wait().expect("our own child");
        format!("{tail}\nQEMU's monitor:\n{state}")
    }

    /// The last lines of L1's console, enough for a panic with its reason above registers and stack.
    pub(super) fn console_tail(&self) -> String {
        const LINES: usize = 150;
        let console = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = text.lines().collect();
        format!("its console's end:\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"))
    }

    fn ask_monitor(&self) -> std::io::Result<String> {
        use std::io::Write as _;
        let mut monitor = UnixStream::connect(self.dir.path().join("monitor"))?;
        monitor.set_read_timeout(Some(MONITOR_PATIENCE))?;
        monitor.set_write_timeout(Some(MONITOR_PATIENCE))?;
        monitor.write_all(b"info status\ninfo registers\ninfo lapic\ninfo pic\n")?;
        let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
        // It does not hang up: a pause is its end.
        while let Ok(read @ 1..) = monitor.read(&mut chunk) {
            answer.extend_from_slice(&chunk[..read]);
        }
        // Its line editor echoes what we typed; the vector registers tell nothing.
        let told = |line: &&str| !line.contains('\x1b') && !line.starts_with("XMM");
        let answer = String::from_utf8_lossy(&answer).replace('\r', "");
        Ok(answer.lines().filter(told).collect::<Vec<_>>().join("\n"))
    }
}

/// Lets a session whose test process is killed end too: the death of the thread that started it is a SIGTERM.
fn end_with_parent() -> std::io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
