//! A running `aerostat run` and what its host says of it.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use aerostat_api::balloon::{Operation, OperationRequest, OperationState};
use aerostat_api::client::{Client, ClientError};
use aerostat_api::guest::{ExecEvent, ExecRequest};
use tempfile::TempDir;

use crate::binary::aerostat;
use crate::host_memory::{Mapping, mappings, memfd_bytes};
use crate::lab::inside_lab;

/// How long anything may take before a test gives up on it; generous, since the lab's CPU is emulated: a resize of 16 MiB
/// has taken a second there while the host was busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const POLL: Duration = Duration::from_millis(2);

/// Polls `probe` until it gives a value.
///
/// # Panics
/// After a minute, naming `what`.
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    let value = poll_for(PATIENCE, probe);
    value.unwrap_or_else(|| panic!("gave up waiting for {what}"))
}

/// Polls `probe` until it gives a value, for at most `patience`.
pub fn poll_for<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if start.elapsed() >= patience {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// `on_host`, or `in_lab` where the test runs on the lab's emulated CPU.
pub fn scaled<T>(on_host: T, in_lab: T) -> T {
    if inside_lab() { in_lab } else { on_host }
}

/// A VM in a process of its own, with the embedded guest unless its options name a kernel; killed on drop.
pub struct TestVm {
    child: Child,
    client: Client,
    ram_bytes: u64,
    dir: TempDir,
}

impl TestVm {
    /// Starts `aerostat run --memory ram_bytes OPTIONS…` and waits until the guest is ready.
    ///
    /// # Panics
    /// If the VM does not come up; its output is in the message.
    pub fn start(ram_bytes: u64, options: &[&str]) -> Self {
        let vm = Self::spawn(ram_bytes, options, Stdio::null());
        wait_for("the guest to be ready", || vm.is_ready().then_some(()));
        vm
    }

    /// Starts `aerostat run --memory ram_bytes OPTIONS…` and waits for nothing.
    ///
    /// # Panics
    /// If the process cannot be started.
    pub fn spawn(ram_bytes: u64, options: &[&str], stdin: Stdio) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("vm.sock");
        let file = |name| fs::File::create(dir.path().join(name)).expect("a file in it");
        let child = aerostat()
            .args(["run", "--memory", &ram_bytes.to_string(), "--api-sock"])
            .arg(&socket)
            .args(options)
            .stdin(stdin)
            .stdout(file("console"))
            .stderr(file("log"))
            .spawn()
            .expect("the aerostat binary starts");
        Self { child, client: Client::new(socket), ram_bytes, dir }
    }

    /// The VMM's side of the guest's serial console, if it was spawned with a pipe.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    fn is_ready(&self) -> bool {
        let gone = !Path::new(&format!("/proc/{}/exe", self.pid())).exists();
        assert!(!gone, "the VM ended: {}", self.output());
        self.client.vm_status().is_ok_and(|status| status.ready_us.is_some())
    }

    /// The client of its control socket.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("vm.sock")
    }

    /// The size of the guest's RAM.
    pub fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// The VMM's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the guest's serial console and then the VMM have printed.
    ///
    /// # Panics
    /// If the output files are gone.
    pub fn output(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).expect("the VMM's log");
        format!("{}\n{}", self.console_from(0).1, String::from_utf8_lossy(&log))
    }

    /// The file behind the VMM's standard output: the guest's serial console.
    pub fn console_path(&self) -> PathBuf {
        self.dir.path().join("console")
    }

    /// What the serial console has printed after its first `start` bytes, and how many bytes that is.
    ///
    /// # Panics
    /// If the output file is gone.
    pub fn console_from(&self, start: usize) -> (usize, String) {
        let bytes = fs::read(self.console_path()).expect("the VM's output");
        let new = bytes.get(start..).unwrap_or_default();
        (new.len(), String::from_utf8_lossy(new).into_owned())
    }

    /// The VM's process, waited for or not: whether it has ended, and how.
    ///
    /// # Panics
    /// If the operating system has lost our child.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Waits for the process to end.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the VM to end", || child.try_wait().expect("our own child"))
    }

    /// Runs a scenario and returns its exit code and its output.
    ///
    /// # Panics
    /// If the VMM refuses it or the stream breaks.
    pub fn exec(&self, scenario: &str, args: &[&str]) -> (i32, Vec<String>) {
        let request = ExecRequest {
            scenario: scenario.to_owned(),
            args: args.iter().map(|&a| a.to_owned()).collect(),
        };
        let mut lines = Vec::new();
        for event in self.client.exec(&request).expect("the scenario begins") {
            match event.expect("the stream holds") {
                ExecEvent::Line { line } => lines.push(line),
                ExecEvent::Exit { exit, .. } => return (exit, lines),
            }
        }
        panic!("{scenario} ended without an exit code: {lines:?}\n{}", self.output());
    }

    /// Runs a scenario that must succeed.
    ///
    /// # Panics
    /// If it does not.
    pub fn exec_ok(&self, scenario: &str, args: &[&str]) -> Vec<String> {
        let (code, lines) = self.exec(scenario, args);
        assert_eq!(code, 0, "{scenario} {args:?}: {lines:#?}");
        lines
    }

    /// Begins a resize of the balloon.
    ///
    /// # Panics
    /// If the VMM refuses it.
    pub fn begin_resize(&self, target_bytes: u64) -> Operation {
        self.client
            .begin_operation(&OperationRequest { target_bytes, timeout_ms: None })
            .expect("a valid target is accepted")
    }

    /// Waits until resize operation `id` has reached its target; stalls on the way there are waited out.
    ///
    /// # Panics
    /// If it is unknown, or ends in another way, or goes no further for a minute.
    pub fn finish_resize(&self, id: u64) -> Operation {
        let followed = self.follow(PATIENCE, |client| client.operation(Some(id)));
        followed.unwrap_or_else(|last| panic!("goes no further: {last:?}\n{}", self.output()))
    }

    /// Waits until an operation has reached its target. `Err`: it went no further for `patience`, however long it
    /// went before.
    fn follow(
        &self,
        patience: Duration,
        ask: impl Fn(&Client) -> Result<Option<Operation>, ClientError>,
    ) -> Result<Operation, Operation> {
        let (mut progressed, mut nearest) = (Instant::now(), u64::MAX);
        loop {
            let operation = ask(&self.client).expect("an answer").expect("known");
            match operation.state {
                OperationState::Reached => {
                    assert_eq!(operation.actual_bytes, operation.target_bytes, "{operation:?}");
                    return Ok(operation);
                }
                OperationState::Running | OperationState::Stalled => {}
                OperationState::TimedOut | OperationState::Superseded => {
                    panic!("it ended without its target: {operation:?}\n{}", self.output())
                }
            }
            if operation.deficit_bytes < nearest {
                (progressed, nearest) = (Instant::now(), operation.deficit_bytes);
            }
            if progressed.elapsed() >= patience {
                return Err(operation);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Resizes the balloon and waits until it has exactly that size.
    ///
    /// # Panics
    /// If it does not come to that.
    pub fn resize(&self, target_bytes: u64) -> Operation {
        self.finish_resize(self.begin_resize(target_bytes).id)
    }

    /// Asks the guest for `bytes` of hotplug memory and waits until exactly that is plugged.
    ///
    /// # Panics
    /// If it does not come to that.
    pub fn resize_hotplug(&self, bytes: u64) -> Operation {
        let followed = self.try_resize_hotplug(bytes, PATIENCE);
        followed.unwrap_or_else(|last| panic!("goes no further: {last:?}\n{}", self.output()))
    }

    /// The same. `Err`: how it stood when it had gone no further for `patience`; it is still requested.
    ///
    /// # Panics
    /// If the VMM refuses the size, or the operation ends in another way.
    pub fn try_resize_hotplug(
        &self,
        bytes: u64,
        patience: Duration,
    ) -> Result<Operation, Operation> {
        let request = OperationRequest { target_bytes: bytes, timeout_ms: None };
        let begun = self.client.begin_hotplug_operation(&request).expect("a valid size");
        self.follow(patience, |client| client.hotplug_operation(Some(begun.id)))
    }

    /// Bytes of host memory behind a region of `region_bytes` of hotplug memory on anonymous memory, read from the kernel
    /// without the VMM's help.
    ///
    /// # Panics
    /// If `/proc` cannot be read, or not exactly one mapping has that size.
    pub fn hotplug_host_bytes(&self, region_bytes: u64) -> u64 {
        let found: Vec<Mapping> = self.mappings().filter(|m| m.size == region_bytes).collect();
        let [region] = &found[..] else { panic!("not one mapping has that size: {found:?}") };
        region.anonymous
    }

    /// Bytes of host memory behind the guest's RAM, read from the kernel without the VMM's help.
    ///
    /// # Panics
    /// If `/proc` cannot be read.
    pub fn host_bytes(&self, backing: &str) -> u64 {
        match backing {
            "anon" => {
                self.mappings().filter(|m| m.is_ram(self.ram_bytes)).map(|m| m.anonymous).sum()
            }
            "memfd" => memfd_bytes(self.pid()).expect("the VMM's descriptors"),
            other => panic!("no truth is known for backing {other}"),
        }
    }

    /// Bytes of private memory of the VMM outside the guest's RAM.
    ///
    /// # Panics
    /// If `/proc` cannot be read.
    pub fn private_bytes_beyond_ram(&self) -> u64 {
        self.mappings().filter(|m| !m.is_ram(self.ram_bytes)).map(|m| m.private_dirty).sum()
    }

    fn mappings(&self) -> impl Iterator<Item = Mapping> + use<> {
        mappings(self.pid()).expect("the VMM's smaps").into_iter()
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
            let console = fs::read(self.console_path()).unwrap_or_default();
            let (console, log) = (last_words(&console), last_words(&log));
            eprintln!("the guest's last words:\n{console}\nthe VMM's:\n{log}");
        }
    }
}

/// The end of what a test that failed shows.
pub(crate) fn last_words(output: &[u8]) -> Cow<'_, str> {
    const SHOWN_BYTES: usize = 4096;
    String::from_utf8_lossy(&output[output.len().saturating_sub(SHOWN_BYTES)..])
}

/// A process that process `parent` has started.
#[must_use]
pub fn child_of(parent: u32) -> Option<u32> {
    let children =
        std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}
