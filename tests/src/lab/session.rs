//! One boot of the lab.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::plan::Plan;
use super::report::{Ended, Report};
use crate::binary::workspace_root;

/// Exit status with which `lab.sh` says that its packages are missing.
const PACKAGES_MISSING: i32 = 69;
/// How often the report is looked at.
const POLL: Duration = Duration::from_millis(100);
/// L1's RAM: the largest guest, the VMM and every file, which lie in RAM twice while L1 boots.
const MEMORY_MIB: u32 = 3072;

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

/// A boot of L1 that runs a plan; its report grows while it does.
pub struct Session {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    report: Report,
    /// How the session ended, once it has.
    end: Option<String>,
    /// How long it took.
    total_s: u64,
    /// Reads the report; joined at the end, so that the session's directory is gone when the process ends.
    follower: Option<JoinHandle<()>>,
}

impl Session {
    /// Boots L1 with the stock kernel of `series` and lets it run `plan` within `limit_s` seconds.
    ///
    /// # Panics
    /// If `lab.sh` cannot be started.
    pub fn start(series: &str, plan: &Plan, limit_s: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("plan"), plan.lines()).expect("the plan is written");
        let mut lab = lab_sh();
        lab.args(["-k", series, "-t", &limit_s.to_string(), "-m", &MEMORY_MIB.to_string()]);
        for var in ["AEROSTAT_BIN=/lab/aerostat", "AEROSTAT_LAB=1", "KVM_TESTS=required"] {
            lab.args(["-e", var]);
        }
        lab.args(["-e", "RUST_BACKTRACE=1", "-l", "-r"]).arg(file("report"));
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
        let shared =
            Arc::new(Shared { state: Mutex::new(State::default()), changed: Condvar::new() });
        let follower = std::thread::spawn({
            let shared = shared.clone();
            move || shared.follow(child, &dir)
        });
        shared.lock().follower = Some(follower);
        Self { shared }
    }

    /// Waits until item `name` has ended.
    ///
    /// # Errors
    /// If L1 ended before, with how, which item it was at, and the end of its console.
    pub fn wait(&self, name: &str) -> Result<Ended, String> {
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_while(state, |state| state.end.is_none() && state.report.ended(name).is_none());
        let state = waited.expect("the follower does not panic");
        if let Some(ended) = state.report.ended(name) {
            return Ok(ended.clone());
        }
        let end = state.end.as_deref().unwrap_or_default();
        match state.report.running() {
            Some(running) if running == name => Err(format!("L1 ended while it ran: {end}")),
            Some(running) => Err(format!("not run: L1 ended during {running}: {end}")),
            None => Err(format!("not run: L1 ended: {end}")),
        }
    }

    /// Waits for the end of the session and returns how many seconds it took, and the items' times by L1's clock in tenths of
    /// a second, the slowest first.
    ///
    /// # Panics
    /// If the thread that follows the report panicked.
    pub fn times(&self) -> (u64, Vec<(String, u64)>) {
        let follower = self.shared.lock().follower.take();
        if let Some(follower) = follower {
            follower.join().expect("the follower does not panic");
        }
        let state = self.shared.lock();
        let mut times: Vec<(String, u64)> =
            state.report.all_ended().map(|(name, ended)| (name.to_owned(), ended.tenths)).collect();
        times.sort_by_key(|&(_, tenths)| std::cmp::Reverse(tenths));
        (state.total_s, times)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Reads the report until `lab.sh` has ended.
    fn follow(&self, mut child: Child, dir: &TempDir) {
        let start = Instant::now();
        let mut report = None;
        loop {
            let status = child.try_wait().expect("our own child");
            // QEMU creates it.
            report = report.or_else(|| File::open(dir.path().join("report")).ok());
            let mut bytes = Vec::new();
            if let Some(report) = &mut report {
                report.read_to_end(&mut bytes).expect("the report is readable");
            }
            let mut state = self.lock();
            state.report.feed(&bytes);
            if let Some(status) = status {
                let console = std::fs::read(dir.path().join("console")).unwrap_or_default();
                state.total_s = start.elapsed().as_secs();
                state.end = Some(format!("{status} after {} s; {}", state.total_s, tail(&console)));
            }
            drop(state);
            self.changed.notify_all();
            if status.is_some() {
                return;
            }
            std::thread::sleep(POLL);
        }
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

/// The last lines of L1's console, enough for a panic with its reason above registers and stack.
fn tail(console: &[u8]) -> String {
    const LINES: usize = 150;
    let text = String::from_utf8_lossy(console);
    let lines: Vec<&str> = text.lines().collect();
    format!("its console's end:\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"))
}
