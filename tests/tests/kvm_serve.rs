//! `aerostat serve` and `--config-file` as real processes: what they start, refuse, and leave behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Barrier;
use std::thread;

use aerostat_api::{
    BalloonConfig, BootSource, CacheType, Client, ClientError, Drive, DriveUpdate, Entropy,
    InstanceState, IoEngine, Logger, MachineConfig, Metrics, RunState, Serial,
};
use system_tests::binary::{aerostat, aerostat_path, workspace_root};
use system_tests::kvm::{kvm_or_skip, say_loudly};
use system_tests::vm::wait_for;
use tempfile::TempDir;

/// Guest RAM of these tests.
const RAM_MIB: u64 = 64;

/// A process that `serve` or `run` has started; killed on drop.
struct Process {
    child: Child,
    dir: TempDir,
}

impl Process {
    /// Starts `aerostat --api-sock DIR/vm.sock ARGUMENTS…` and waits for the socket.
    fn serve(arguments: &[&str]) -> Self {
        let process = Self::start(tempfile::tempdir().unwrap(), "vm.sock", arguments);
        wait_for("the socket", || process.client().version().ok());
        process
    }

    fn start(dir: TempDir, socket: &str, arguments: &[&str]) -> Self {
        let output = File::create(dir.path().join("output")).unwrap();
        let mut command = aerostat();
        command.args(arguments);
        if !socket.is_empty() {
            command.arg("--api-sock").arg(dir.path().join(socket));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn client(&self) -> Client {
        Client::new(self.socket())
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("vm.sock")
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap()
    }

    /// Configures the embedded guest with a balloon.
    fn configure(&self) {
        let client = self.client();
        let machine = MachineConfig { mem_size_mib: RAM_MIB, ..MachineConfig::default() };
        client.set_machine_config(&machine).unwrap();
        client.set_boot_source(&embedded()).unwrap();
        client.set_balloon(&balloon(0)).unwrap();
    }

    fn wait_until_ready(&self) {
        wait_for("the guest to be ready", || self.client().vm_status().unwrap().ready_us);
    }

    fn signal(&self, signal: i32) {
        // SAFETY: `kill` touches no memory; the process is our own child and not yet reaped.
        let sent = unsafe { libc::kill(self.child.id().try_into().unwrap(), signal) };
        assert_eq!(sent, 0);
    }

    fn end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the process to end", || child.try_wait().unwrap())
    }

    /// Names of the process's threads, sorted.
    fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let name = |task: std::io::Result<fs::DirEntry>| {
            fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default()
        };
        let mut names: Vec<_> = tasks.map(name).collect();
        names.sort();
        names
    }

    /// What the process's descriptors are, sorted; connections are of the tests' own making.
    fn descriptors(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let target = |entry: std::io::Result<fs::DirEntry>| {
            let link = fs::read_link(entry.unwrap().path()).unwrap_or_default();
            link.to_string_lossy().split(':').next().unwrap_or_default().to_owned()
        };
        let mut targets: Vec<_> = entries.map(target).filter(|t| t != "socket").collect();
        targets.sort();
        targets
    }

    /// KiB of a field of `/proc/PID/status`.
    fn kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn embedded() -> BootSource {
    BootSource { kernel_image_path: "embedded".into(), initrd_path: None, boot_args: None }
}

fn balloon(amount_mib: u32) -> BalloonConfig {
    BalloonConfig {
        amount_mib,
        deflate_on_oom: false,
        stats_polling_interval_s: 0,
        free_page_hinting: false,
        free_page_reporting: false,
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Refused { status: 400, message }) => message,
        other => panic!("not refused with 400: {other:?}"),
    }
}

fn fifo(path: &str) {
    let path = std::ffi::CString::new(path).unwrap();
    // SAFETY: `path` is a string with its NUL, live during the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

/// What is in a FIFO now.
fn read_fifo(path: &str) -> String {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    let mut bytes = Vec::new();
    // Ends with WouldBlock, since the VMM holds the other end.
    file.read_to_end(&mut bytes).ok();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_process_is_configured_started_driven_and_powered_off() {
    if !kvm_or_skip() {
        return;
    }
    let mut process = Process::serve(&["--id", "my-vm"]);
    let client = process.client();
    let instance = client.instance().unwrap();
    assert_eq!((instance.id.as_str(), instance.state), ("my-vm", InstanceState::NotStarted));
    process.configure();
    client.set_entropy(&Entropy::default()).unwrap();
    client.start().unwrap();
    assert_eq!(client.instance().unwrap().state, InstanceState::Running);
    process.wait_until_ready();
    client.update_balloon(16).unwrap();
    wait_for("the balloon to follow", || {
        (client.balloon_status().unwrap().actual_bytes == 16 << 20).then_some(())
    });
    let told = client.vm_config().unwrap();
    assert_eq!((told.balloon, told.boot_source), (Some(balloon(16)), Some(embedded())));
    assert!(client.stop(std::time::Duration::from_secs(30)).unwrap().by_guest);
    assert_eq!(process.end().code(), Some(0), "{}", process.output());
    assert!(!process.socket().exists());
}

#[test]
fn a_vm_without_a_balloon_has_none_and_says_so() {
    if !kvm_or_skip() {
        return;
    }
    let process = Process::serve(&[]);
    let client = process.client();
    client.set_boot_source(&embedded()).unwrap();
    client.start().unwrap();
    process.wait_until_ready();
    assert_eq!(client.vm_config().unwrap().balloon, None);
    let none = "This VM has no balloon";
    assert_eq!(refusal(client.balloon_config()), none);
    assert_eq!(refusal(client.update_balloon(1)), none);
    assert_eq!(refusal(client.balloon_status()), none);
    assert!(!client.metrics().unwrap().contains("aerostat_balloon_"));
    let mut command = aerostat();
    command.args(["balloon", "set", "4K", "--api-sock"]).arg(process.socket());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains(none));
}

#[test]
fn a_drive_is_configured_and_gets_another_file_while_the_vm_runs() {
    if !kvm_or_skip() {
        return;
    }
    let process = Process::serve(&[]);
    let client = process.client();
    process.configure();
    let [first, second] = ["first", "second"].map(|name| process.path(name));
    for path in [&first, &second] {
        fs::write(path, [0; 8192]).unwrap();
    }
    let drive = Drive {
        drive_id: "data".into(),
        path_on_host: Some(first.clone()),
        is_root_device: false,
        is_read_only: false,
        cache_type: CacheType::Writeback,
        io_engine: IoEngine::Sync,
        partuuid: None,
        rate_limiter: None,
        socket: None,
    };
    client.set_drive(&drive).unwrap();
    client.start().unwrap();
    let update = |path: &str| DriveUpdate {
        drive_id: "data".into(),
        path_on_host: Some(path.into()),
        rate_limiter: None,
    };
    assert!(refusal(client.update_drive(&update("/nonexistent"))).contains("/nonexistent"));
    assert_eq!(client.vm_config().unwrap().drives, std::slice::from_ref(&drive));
    client.update_drive(&update(&second)).unwrap();
    let changed = Drive { path_on_host: Some(second.clone()), ..drive.clone() };
    assert_eq!(client.vm_config().unwrap().drives, [changed]);
    let other = DriveUpdate { drive_id: "other".into(), ..update(&second) };
    assert!(refusal(client.update_drive(&other)).contains("no drive \"other\""));
    // Its file is locked against a second VM.
    let rival = Process::serve(&[]);
    rival.configure();
    let locked = Drive { path_on_host: Some(second.clone()), ..drive };
    let said = refusal(rival.client().set_drive(&locked));
    assert!(said.contains("data") && said.contains(&second), "{said}");
}

#[test]
fn a_command_line_that_no_kernel_can_have_is_refused_at_the_start() {
    if !kvm_or_skip() {
        return;
    }
    let process = Process::serve(&[]);
    for (boot_args, reason) in [("a\0b".to_owned(), "command line"), ("x".repeat(5000), "2047")] {
        let source = BootSource { boot_args: Some(boot_args), ..embedded() };
        process.client().set_boot_source(&source).unwrap();
        let said = refusal(process.client().start());
        assert!(said.to_lowercase().contains(reason), "{said}");
    }
}

#[test]
fn a_client_of_a_vm_that_is_not_started_is_told_so() {
    if !kvm_or_skip() {
        return;
    }
    let mut process = Process::serve(&["--id", "waiting"]);
    let run = |words: &[&str]| -> Output {
        aerostat().args(words).arg("--api-sock").arg(process.socket()).output().unwrap()
    };
    let info = String::from_utf8(run(&["info"]).stdout).unwrap();
    assert!(info.contains("state       not started"), "{info}");
    for command in [&["balloon", "get"][..], &["pause"], &["exec", "census"]] {
        let output = run(command);
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("before starting the microVM"), "{command:?}: {said}");
    }
    assert!(run(&["stop"]).status.success());
    assert_eq!(process.end().code(), Some(0));
    assert!(!process.socket().exists());
}

#[test]
fn signals_end_every_state_cleanly() {
    if !kvm_or_skip() {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for stage in ["new", "configured", "running", "paused"] {
            let mut process = Process::serve(&[]);
            if stage != "new" {
                process.configure();
            }
            if stage == "running" || stage == "paused" {
                process.client().start().unwrap();
            }
            if stage == "paused" {
                process.client().set_run_state(RunState::Paused).unwrap();
            }
            process.signal(signal);
            assert_eq!(process.end().code(), Some(0), "{stage}: {}", process.output());
            assert!(!process.socket().exists(), "{stage}");
        }
    }
}

/// Whether each name is in `part` at most as often as in `whole`.
fn is_part_of(part: &[String], whole: &[String]) -> bool {
    let count = |names: &[String], name| names.iter().filter(|&other| other == name).count();
    part.iter().all(|name| count(part, name) <= count(whole, name))
}

#[test]
fn starts_that_fail_leave_nothing_behind_and_the_last_one_works() {
    if !kvm_or_skip() {
        return;
    }
    let process = Process::serve(&[]);
    let client = process.client();
    process.configure();
    let prose = process.path("prose");
    fs::write(&prose, "No kernel at all, but a text of more than sixty-four bytes, as files go.\n")
        .unwrap();
    let large = MachineConfig { mem_size_mib: 2, ..MachineConfig::default() };
    let fail = || {
        // Nothing that could be a kernel.
        client
            .set_boot_source(&BootSource { kernel_image_path: prose.clone(), ..embedded() })
            .unwrap();
        let said = refusal(client.start());
        assert!(said.starts_with("The VM cannot be started: "), "{said}");
        // No room for the kernel, which is found when RAM and KVM's machine are there.
        client.set_boot_source(&embedded()).unwrap();
        client.set_machine_config(&large).unwrap();
        let said = refusal(client.start());
        assert!(said.contains("The VM cannot be started: "), "{said}");
        process.configure();
    };
    // The first ones may warm up caches of the C library.
    (0..3).for_each(|_| fail());
    let before = (process.threads(), process.descriptors());
    let (size, private) = (process.kib("VmSize:"), process.kib("RssAnon:"));
    (0..30).for_each(|_| fail());
    // A thread that was joined may be listed a moment longer: now, and when they were counted before.
    wait_for("no more threads and descriptors than before", || {
        let now = (process.threads(), process.descriptors());
        (is_part_of(&now.0, &before.0) && is_part_of(&now.1, &before.1)).then_some(())
    });
    assert!(process.kib("VmSize:") < size + 4096, "{} after {size}", process.kib("VmSize:"));
    assert!(
        process.kib("RssAnon:") < private + 1024,
        "{} after {private}",
        process.kib("RssAnon:")
    );
    client.start().unwrap();
    process.wait_until_ready();
}

#[test]
fn of_many_starts_at_once_exactly_one_wins_and_all_are_answered() {
    if !kvm_or_skip() {
        return;
    }
    const CLIENTS: usize = 8;
    let process = Process::serve(&[]);
    process.configure();
    let barrier = Barrier::new(CLIENTS);
    let won = thread::scope(|scope| {
        let start = || {
            barrier.wait();
            process.client().start()
        };
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(start)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|answer| match answer {
                Ok(()) => true,
                Err(ClientError::Refused { status: 400, message }) => {
                    assert!(message.contains("after starting the microVM"), "{message}");
                    false
                }
                Err(other) => panic!("{other}"),
            })
            .count()
    });
    assert_eq!(won, 1);
    process.wait_until_ready();
}

#[test]
fn logger_metrics_and_console_go_to_fifos_that_nobody_reads_yet() {
    if !kvm_or_skip() {
        return;
    }
    let mut process = Process::serve(&["--id", "piped"]);
    let client = process.client();
    process.configure();
    let [log, metrics, serial] = ["log", "metrics", "serial"].map(|name| process.path(name));
    [&log, &metrics, &serial].into_iter().for_each(|path| fifo(path));
    let logger =
        Logger { log_path: Some(log.clone()), show_level: Some(true), ..Logger::default() };
    client.set_logger(&Logger { level: Some(aerostat_api::LogLevel::Info), ..logger }).unwrap();
    client.set_metrics(&Metrics { metrics_path: metrics.clone() }).unwrap();
    let out = Serial { serial_out_path: Some(serial.clone()), rate_limiter: None };
    client.set_serial(&out).unwrap();
    client.start().unwrap();
    process.wait_until_ready();
    client.action(aerostat_api::ActionType::FlushMetrics).unwrap();
    let text = read_fifo(&log);
    assert!(text.contains("[piped:main:INFO] guest ready"), "{text}");
    let line: serde_json::Value = serde_json::from_str(read_fifo(&metrics).trim()).unwrap();
    assert_eq!(line["aerostat_ram_bytes"], RAM_MIB << 20);
    let console = read_fifo(&serial);
    assert!(console.contains("aerostat guest"), "{console:?}");
    process.signal(libc::SIGTERM);
    assert_eq!(process.end().code(), Some(0));
    assert_eq!(process.output(), "", "nothing goes to the standard streams any more");
}

#[test]
fn the_last_counters_are_written_when_the_vm_ends() {
    if !kvm_or_skip() {
        return;
    }
    let mut process = Process::serve(&[]);
    process.configure();
    let path = process.path("metrics");
    process.client().set_metrics(&Metrics { metrics_path: path.clone() }).unwrap();
    process.client().start().unwrap();
    process.signal(libc::SIGTERM);
    assert_eq!(process.end().code(), Some(0));
    let text = fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("\"aerostat_ram_bytes\":"), "{text}");
}

/// The lab has no copy of the sources.
const SAMPLE: &str = include_str!("../../resources/vm/embedded.json");

/// Starts the sample configuration by `words` and lets its guest power off.
fn run_sample(words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let sample = dir.path().join("vm.json");
    fs::write(&sample, SAMPLE).unwrap();
    let arguments = [words, &["--config-file", sample.to_str().unwrap()]].concat();
    let mut process = Process::start(dir, "vm.sock", &arguments);
    wait_for("the guest to be ready", || process.client().vm_status().ok()?.ready_us);
    let told = process.client().vm_config().unwrap();
    assert_eq!(told, serde_json::from_str(SAMPLE).unwrap());
    process.client().action(aerostat_api::ActionType::SendCtrlAltDel).unwrap();
    assert_eq!(process.end().code(), Some(0), "{}", process.output());
    assert!(!process.socket().exists());
}

#[test]
fn a_configuration_file_starts_its_vm_at_once_whichever_way_it_is_given() {
    if kvm_or_skip() {
        for words in [&["run"][..], &["serve"], &[], &["run", "--backing", "memfd"]] {
            run_sample(words);
        }
    }
}

#[test]
fn without_an_api_there_is_no_socket_and_signals_still_end_the_vm() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("runtime");
    fs::create_dir(&runtime).unwrap();
    let config = dir.path().join("vm.json");
    let console = dir.path().join("console");
    let text = format!(
        r#"{{"boot-source":{{"kernel_image_path":"embedded"}},"serial":{{"serial_out_path":{console:?}}}}}"#
    );
    fs::write(&config, text).unwrap();
    let mut command = aerostat();
    command.args(["serve", "--no-api", "--config-file"]).arg(&config);
    let command = command.env("XDG_RUNTIME_DIR", &runtime).stdin(Stdio::null());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut process = Process { child, dir };
    wait_for("the guest", || fs::read_to_string(&console).ok().filter(|text| !text.is_empty()));
    assert_eq!(fs::read_dir(&runtime).unwrap().count(), 0);
    process.signal(libc::SIGTERM);
    assert_eq!(process.end().code(), Some(0));
}

fn has_curl() -> bool {
    let found = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        let required = std::env::var("KVM_TESTS").is_ok_and(|v| v == "required");
        assert!(!required, "KVM_TESTS=required, but there is no curl: apt-get install curl");
        say_loudly("SKIPPED: the getting-started script: there is no curl: apt-get install curl");
    }
    found
}

#[test]
fn the_getting_started_script_runs_to_its_end() {
    // The lab has no curl, and no copy of the script.
    if system_tests::lab::inside_lab() || !kvm_or_skip() || !has_curl() {
        return;
    }
    let output = Command::new("bash")
        .arg(workspace_root().join("resources/getting-started.sh"))
        .arg("--aerostat")
        .arg(aerostat_path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for part in ["the balloon has 64 MiB", "the balloon has 0 MiB", "exit code 0", "guest ready"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn the_getting_started_script_stops_at_a_refusal_and_leaves_no_process() {
    if system_tests::lab::inside_lab() || !kvm_or_skip() || !has_curl() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let output = Command::new("bash")
        .arg(workspace_root().join("resources/getting-started.sh"))
        .arg("--aerostat")
        .arg(aerostat_path())
        .args(["--memory", "1"])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("mem_size_mib is 1; allowed: 2 to 65536"), "{said}");
    assert!(!said.contains("InstanceStart"), "{said}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}

#[test]
fn the_sample_configuration_for_linux_is_one() {
    let text = include_str!("../../resources/vm/linux.json");
    let config: aerostat_api::VmConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.drives.len(), 1);
}
