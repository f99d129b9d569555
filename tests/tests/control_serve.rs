//! A VM that is configured over its socket: what is allowed when, and who wins.
//!
//! The real configuring state answers; only the machine that a start would build is a mock.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use aerostat_api::{
    ActionType, BalloonConfig, BootSource, ClientError, InstanceState, MachineConfig,
    MemoryHotplugConfig, VmConfig,
};
use proptest::prelude::*;
use system_tests::mock_vm::MockVm;

const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const AFTER: &str = "The requested operation is not supported after starting the microVM.";
const START: &str = r#"{"action_type":"InstanceStart"}"#;

fn startable() -> MockVm {
    MockVm::unconfigured(|_config| Ok(()))
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

fn hotplug(total_size_mib: u64) -> MemoryHotplugConfig {
    MemoryHotplugConfig { total_size_mib, block_size_mib: 2, slot_size_mib: 128 }
}

/// Status and body of a request.
fn send(vm: &MockVm, method: &str, path: &str, body: &str) -> (u16, String) {
    let answer = vm.client().raw(method, path, body.as_bytes()).unwrap();
    (answer.status(), answer.into_text().unwrap())
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, message }) => (status, message),
        other => panic!("not refused: {other:?}"),
    }
}

/// Every request with its answer's status before and after the start. Where one state refuses what the
/// other takes, the message says which.
const RULES: [(&str, &str, &str, u16, u16); 47] = [
    ("GET", "/", "", 200, 200),
    ("GET", "/version", "", 200, 200),
    ("GET", "/vm", "", 200, 200),
    ("GET", "/vm/config", "", 200, 200),
    ("GET", "/vm/info", "", 200, 200),
    ("GET", "/machine-config", "", 200, 200),
    ("GET", "/metrics", "", 200, 200),
    ("PUT", "/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#, 204, 400),
    ("PATCH", "/machine-config", r#"{"vcpu_count":2}"#, 204, 400),
    ("PUT", "/boot-source", r#"{"kernel_image_path":"embedded"}"#, 204, 400),
    ("PUT", "/balloon", r#"{"amount_mib":0,"deflate_on_oom":false}"#, 204, 400),
    ("PUT", "/entropy", "{}", 204, 400),
    ("PUT", "/logger", "{}", 204, 400),
    ("PUT", "/serial", "{}", 204, 400),
    ("PATCH", "/vm", r#"{"state":"Paused"}"#, 400, 204),
    ("PATCH", "/vm", r#"{"state":"Resumed"}"#, 400, 204),
    ("PATCH", "/balloon", r#"{"amount_mib":1}"#, 400, 204),
    ("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#, 400, 204),
    ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#, 400, 400),
    ("GET", "/balloon/statistics", "", 400, 400),
    ("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s":1}"#, 400, 400),
    ("PATCH", "/balloon/hinting/start", "", 400, 400),
    ("GET", "/balloon/hinting/status", "", 400, 400),
    ("PATCH", "/balloon/hinting/stop", "", 400, 400),
    ("PATCH", "/drives/a", r#"{"drive_id":"a","rate_limiter":{}}"#, 400, 400),
    ("GET", "/balloon/status", "", 409, 200),
    ("GET", "/balloon/operation", "", 409, 200),
    ("PUT", "/balloon/operation", r#"{"target_bytes":4096}"#, 409, 200),
    ("GET", "/guest/scenarios", "", 409, 200),
    ("POST", "/guest/scenarios", r#"{"scenario":"echo"}"#, 409, 200),
    ("PUT", "/network-interfaces/eth0", "{}", 400, 400),
    ("PATCH", "/network-interfaces/eth0", "{}", 400, 400),
    ("PUT", "/pmem/a", "{}", 400, 400),
    ("PUT", "/hotplug/memory", r#"{"total_size_mib":1024}"#, 204, 400),
    ("GET", "/hotplug/memory", "", 400, 200),
    ("PATCH", "/hotplug/memory", r#"{"requested_size_mib":2}"#, 400, 204),
    ("GET", "/hotplug/memory/status", "", 409, 200),
    ("GET", "/hotplug/memory/operation", "", 409, 200),
    ("PUT", "/hotplug/memory/operation", r#"{"target_bytes":2097152}"#, 409, 200),
    ("PUT", "/snapshot/create", "{}", 400, 400),
    ("PUT", "/snapshot/load", "{}", 400, 400),
    ("GET", "/mmds", "", 400, 400),
    ("PUT", "/mmds/config", "{}", 400, 400),
    ("PUT", "/cpu-config", "{}", 400, 400),
    ("PUT", "/vsock", "{}", 400, 400),
    ("PUT", "/drives", "{}", 400, 400),
    ("PATCH", "/machine-config", "{}", 400, 400),
];

#[test]
fn every_request_is_answered_as_the_rules_of_its_state_say() {
    let (before, after) = (startable(), startable());
    after.client().set_boot_source(&embedded()).unwrap();
    after.client().set_balloon(&balloon(0)).unwrap();
    after.client().set_hotplug_memory(&hotplug(1024)).unwrap();
    after.client().start().unwrap();
    for (method, path, body, status_before, status_after) in RULES {
        let name = format!("{method} {path} {body}");
        let (status, said_before) = send(&before, method, path, body);
        assert_eq!(status, status_before, "before the start: {name}: {said_before}");
        let (status, said_after) = send(&after, method, path, body);
        assert_eq!(status, status_after, "after the start: {name}: {said_after}");
        let needs_vm = status_before >= 400 && status_after < 400;
        assert_eq!(needs_vm, needs_vm && said_before.contains(BEFORE), "{name}: {said_before}");
        let needs_none = status_before < 400 && status_after >= 400;
        assert_eq!(needs_none, needs_none && said_after.contains(AFTER), "{name}: {said_after}");
    }
    for (method, path, body) in [
        ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#),
        ("PATCH", "/drives/a", r#"{"drive_id":"a"}"#),
        ("GET", "/balloon/statistics", ""),
        ("PATCH", "/balloon/hinting/start", ""),
    ] {
        assert!(send(&before, method, path, body).1.contains(BEFORE), "{method} {path}");
    }
    assert!(send(&before, "GET", "/balloon/status", "").1.contains(BEFORE));
}

#[test]
fn what_is_not_supported_is_refused_by_its_name() {
    let vm = startable();
    for (method, path, name) in [
        ("PUT", "/network-interfaces/eth0", "Network interfaces"),
        ("PUT", "/vsock", "vsock"),
        ("PUT", "/snapshot/create", "Snapshots"),
        ("PUT", "/snapshot/load", "Snapshots"),
        ("PATCH", "/mmds", "MMDS"),
        ("PUT", "/cpu-config", "cpu-config"),
        ("PUT", "/pmem/a", "pmem"),
    ] {
        let (status, said) = send(&vm, method, path, "{}");
        assert_eq!(status, 400, "{said}");
        assert!(said.contains(name) && said.contains("not supported by aerostat"), "{said}");
    }
}

#[test]
fn hotplug_memory_that_cannot_be_is_refused_and_what_was_there_stays() {
    let vm = startable();
    vm.client().set_hotplug_memory(&hotplug(1024)).unwrap();
    for (body, reason) in [
        (r#"{"total_size_mib":1000}"#, "1048576000 B of hotplug memory are not possible"),
        (r#"{"total_size_mib":64}"#, "multiples of the slot size, 134217728 B"),
        (r#"{"total_size_mib":0}"#, "0 B of hotplug memory"),
        (r#"{"total_size_mib":131072}"#, "64 GiB"),
        (r#"{"total_size_mib":18446744073709551615}"#, "allowed"),
        (r#"{"total_size_mib":1024,"block_size_mib":1}"#, "blocks of 1048576 B"),
        (r#"{"total_size_mib":1024,"block_size_mib":3}"#, "powers of two"),
        (r#"{"total_size_mib":1024,"block_size_mib":256}"#, "slots of 134217728 B"),
        (r#"{"total_size_mib":1024,"slot_size_mib":0}"#, "slots of 0 B"),
        (r#"{"block_size_mib":2}"#, "missing field `total_size_mib`"),
        (r#"{"total_size_mib":1024,"colour":1}"#, "unknown field `colour`"),
        (r#"{"total_size_mib":-1}"#, "-1"),
        (r#"{"total_size_mib":"1G"}"#, "1G"),
    ] {
        let (status, said) = send(&vm, "PUT", "/hotplug/memory", body);
        assert_eq!(status, 400, "{body}: {said}");
        assert!(said.contains(reason), "{body}: {said}");
    }
    assert_eq!(vm.client().vm_config().unwrap().memory_hotplug, Some(hotplug(1024)));
    // As strict as can be: every block a slot.
    let body = r#"{"total_size_mib":256,"block_size_mib":2,"slot_size_mib":2}"#;
    assert_eq!(send(&vm, "PUT", "/hotplug/memory", body).0, 204);
}

#[test]
fn a_running_vm_without_hotplug_memory_says_so() {
    let vm = startable();
    vm.client().set_boot_source(&embedded()).unwrap();
    vm.client().start().unwrap();
    for (method, path, body) in [
        ("GET", "/hotplug/memory", ""),
        ("PATCH", "/hotplug/memory", r#"{"requested_size_mib":0}"#),
        ("GET", "/hotplug/memory/status", ""),
        ("GET", "/hotplug/memory/operation", ""),
        ("PUT", "/hotplug/memory/operation", r#"{"target_bytes":0}"#),
    ] {
        let (status, said) = send(&vm, method, path, body);
        assert_eq!(status, 400, "{method} {path}: {said}");
        assert!(said.contains("no hotplug memory"), "{said}");
    }
}

#[test]
fn names_of_drives_are_checked() {
    let vm = startable();
    let drive = |id: &str| {
        format!(r#"{{"drive_id":"{id}","path_on_host":"/dev/null","is_root_device":false}}"#)
    };
    for (path, id, reason) in [
        ("/drives", "a", "The ID cannot be empty"),
        ("/drives/", "a", "The ID cannot be empty"),
        ("/drives/a-b", "a-b", "letters, digits and underscores"),
        ("/drives/a%20b", "a b", "letters, digits and underscores"),
        ("/drives/a", "b", "is not the one in the body"),
        ("/drives/a", "a", "path_on_host"),
    ] {
        let (status, said) = send(&vm, "PUT", path, &drive(id));
        assert!(status == 400 && said.contains(reason), "{path} {id}: {said}");
    }
    assert!(vm.client().vm_config().unwrap().drives.is_empty());
}

#[test]
fn nothing_to_boot_is_no_start_and_the_configuration_stays() {
    let vm = startable();
    let client = vm.client();
    client.set_balloon(&balloon(64)).unwrap();
    let (status, said) = refusal(client.start());
    assert_eq!(status, 400);
    assert!(said.contains("boot-source is not configured"), "{said}");
    assert_eq!(client.instance().unwrap().state, InstanceState::NotStarted);
    assert_eq!(client.balloon_config().unwrap().amount_mib, 64);
}

#[test]
fn a_start_that_fails_says_why_and_can_be_tried_again() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let vm = MockVm::unconfigured(move |config| {
        counted.fetch_add(1, Ordering::SeqCst);
        if config.vcpus == 4 { Ok(()) } else { Err("the host has no room".into()) }
    });
    let client = vm.client();
    client.set_boot_source(&embedded()).unwrap();
    for _ in 0..3 {
        let (status, said) = refusal(client.start());
        assert_eq!(status, 400);
        assert!(said.contains("the host has no room"), "{said}");
        assert_eq!(client.vm_state().unwrap().state, InstanceState::NotStarted);
    }
    let four = MachineConfig { vcpu_count: 4, ..MachineConfig::default() };
    client.set_machine_config(&four).unwrap();
    client.start().unwrap();
    assert_eq!(client.vm_state().unwrap().state, InstanceState::Running);
    assert_eq!(client.vm_config().unwrap().machine_config, four);
    assert_eq!(tries.load(Ordering::SeqCst), 4);
}

#[test]
fn of_many_starts_at_once_exactly_one_wins_and_all_are_answered() {
    const CLIENTS: usize = 24;
    for _ in 0..10 {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        let vm = MockVm::unconfigured(move |_config| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        vm.client().set_boot_source(&embedded()).unwrap();
        let barrier = Barrier::new(CLIENTS);
        let answers: Vec<_> = thread::scope(|scope| {
            let start = || {
                barrier.wait();
                vm.client().start()
            };
            let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), tries.load(Ordering::SeqCst)), (1, 1));
        for answer in lost {
            assert_eq!(refusal(answer), (400, AFTER.to_owned()));
        }
    }
}

#[test]
fn a_client_that_leaves_during_its_start_takes_nothing_with_it() {
    let (left, wait) = mpsc::channel();
    let (begun, begins) = mpsc::channel();
    let wait = Mutex::new(wait);
    let vm = MockVm::unconfigured(move |_config| {
        begun.send(()).unwrap();
        wait.lock().unwrap().recv().unwrap();
        Ok(())
    });
    vm.client().set_boot_source(&embedded()).unwrap();
    let mut client = UnixStream::connect(vm.socket()).unwrap();
    let head = format!("PUT /actions HTTP/1.1\r\nContent-Length: {}\r\n\r\n", START.len());
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(START.as_bytes()).unwrap();
    begins.recv().unwrap();
    drop(client);
    left.send(()).unwrap();
    assert_eq!(vm.client().instance().unwrap().state, InstanceState::Running);
    assert_eq!(refusal(vm.client().start()), (400, AFTER.to_owned()));
}

#[test]
fn requests_that_arrive_during_a_start_are_answered_by_the_state_after_it() {
    let (go, wait) = mpsc::channel();
    let (begun, begins) = mpsc::channel();
    let wait = Mutex::new(wait);
    let vm = MockVm::unconfigured(move |_config| {
        begun.send(()).unwrap();
        wait.lock().unwrap().recv().unwrap();
        Ok(())
    });
    vm.client().set_boot_source(&embedded()).unwrap();
    thread::scope(|scope| {
        let start = scope.spawn(|| vm.client().start());
        begins.recv().unwrap();
        let pause = scope.spawn(|| send(&vm, "PATCH", "/vm", r#"{"state":"Paused"}"#));
        let boot = scope.spawn(|| vm.client().set_boot_source(&embedded()));
        // The server goes on meanwhile.
        vm.client().version().unwrap();
        go.send(()).unwrap();
        start.join().unwrap().unwrap();
        assert_eq!(pause.join().unwrap(), (204, String::new()));
        assert_eq!(refusal(boot.join().unwrap()), (400, AFTER.to_owned()));
    });
}

#[test]
fn a_stop_before_the_start_ends_the_process() {
    let mut vm = startable();
    assert!(!vm.client().stop(Duration::from_secs(60)).unwrap().by_guest);
    vm.end_event_loop();
    assert_eq!(refusal(vm.client().instance()), (503, "The VM has ended".to_owned()));
}

#[test]
fn the_configuration_is_told_as_it_came_and_is_a_configuration_again() {
    let vm = startable();
    let client = vm.client();
    assert_eq!(client.vm_config().unwrap(), VmConfig::default());
    assert_eq!(refusal(client.balloon_config()).0, 400);
    client.set_boot_source(&embedded()).unwrap();
    client.set_balloon(&balloon(16)).unwrap();
    let told = client.vm_config().unwrap();
    assert_eq!((told.boot_source, told.balloon), (Some(embedded()), Some(balloon(16))));
    client.start().unwrap();
    client.update_balloon(32).unwrap();
    assert_eq!(client.vm_config().unwrap().balloon, Some(balloon(32)));
    assert_eq!(client.balloon_config().unwrap(), balloon(32));
}

/// A FIFO's path in `directory`.
fn fifo(vm: &MockVm, name: &str) -> String {
    let path = vm.directory().join(name);
    let c_path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: `c_path` is a string with its NUL, live during the call.
    assert_eq!(unsafe { libc::mkfifo(c_path.as_ptr(), 0o600) }, 0);
    path.to_str().unwrap().to_owned()
}

#[test]
fn fifos_without_a_reader_hold_nobody_up() {
    let vm = startable();
    for (path, field) in
        [("/logger", "log_path"), ("/metrics", "metrics_path"), ("/serial", "serial_out_path")]
    {
        let fifo = fifo(&vm, field);
        let (status, said) = send(&vm, "PUT", path, &format!(r#"{{"{field}":"{fifo}"}}"#));
        assert_eq!(status, 204, "{path}: {said}");
    }
    vm.client().set_boot_source(&embedded()).unwrap();
    vm.client().start().unwrap();
    vm.client().action(ActionType::FlushMetrics).unwrap();
}

/// What a client may do next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Boot,
    BadBoot,
    Balloon,
    Start { fails: bool },
    Pause,
    Resume,
    Resize,
    Flush,
    Signal,
}

#[derive(Debug, Default)]
struct Model {
    boots: bool,
    has_balloon: bool,
    runs: bool,
    paused: bool,
}

impl Model {
    /// Does `step` and gives the status that its request must be answered with.
    fn step(&mut self, step: Step) -> u16 {
        let (before, after) = (!self.runs, self.runs);
        let is_taken = match step {
            Step::Boot | Step::Balloon => before,
            Step::BadBoot => false,
            Step::Start { fails } => before && self.boots && !fails,
            Step::Pause | Step::Resume | Step::Signal => after,
            Step::Resize => after && self.has_balloon,
            // Nothing here configures a file.
            Step::Flush => false,
        };
        if is_taken {
            match step {
                Step::Boot => self.boots = true,
                Step::Balloon => self.has_balloon = true,
                Step::Start { .. } => self.runs = true,
                Step::Pause => self.paused = true,
                Step::Resume => self.paused = false,
                Step::BadBoot | Step::Resize | Step::Flush | Step::Signal => {}
            }
        }
        if is_taken { 204 } else { 400 }
    }

    fn state(&self) -> InstanceState {
        match (self.runs, self.paused) {
            (false, _) => InstanceState::NotStarted,
            (true, false) => InstanceState::Running,
            (true, true) => InstanceState::Paused,
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Boot),
        1 => Just(Step::BadBoot),
        1 => Just(Step::Balloon),
        2 => any::<bool>().prop_map(|fails| Step::Start { fails }),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
        1 => Just(Step::Resize),
        1 => Just(Step::Flush),
        1 => Just(Step::Signal),
    ];
    proptest::collection::vec(step, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sequence_of_requests_is_answered_as_the_model_says(steps in steps()) {
        let fails = Arc::new(Mutex::new(false));
        let will_fail = fails.clone();
        let vm = MockVm::unconfigured(move |_config| {
            if *will_fail.lock().unwrap() { Err("as told".into()) } else { Ok(()) }
        });
        let mut model = Model::default();
        for step in steps {
            if let Step::Start { fails: now } = step {
                *fails.lock().unwrap() = now;
            }
            let (method, path, body) = match step {
                Step::Boot => ("PUT", "/boot-source", r#"{"kernel_image_path":"embedded"}"#),
                Step::BadBoot => ("PUT", "/boot-source", r#"{"kernel_image_path":"/nonexistent"}"#),
                Step::Balloon => ("PUT", "/balloon", r#"{"amount_mib":0,"deflate_on_oom":true}"#),
                Step::Start { .. } => ("PUT", "/actions", START),
                Step::Pause => ("PATCH", "/vm", r#"{"state":"Paused"}"#),
                Step::Resume => ("PATCH", "/vm", r#"{"state":"Resumed"}"#),
                Step::Resize => ("PATCH", "/balloon", r#"{"amount_mib":1}"#),
                Step::Flush => ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#),
                Step::Signal => ("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
            };
            let status = model.step(step);
            let (got, said) = send(&vm, method, path, body);
            prop_assert_eq!(got, status, "{:?}: {}", step, said);
            let config = vm.client().vm_config().unwrap();
            prop_assert_eq!(vm.client().vm_state().unwrap().state, model.state());
            prop_assert_eq!(config.boot_source.is_some(), model.boots);
            prop_assert_eq!(config.balloon.is_some(), model.has_balloon);
        }
    }
}

/// Firecracker's clients send their requests over one connection.
#[test]
fn one_connection_configures_starts_and_goes_on() {
    let vm = startable();
    let mut client = UnixStream::connect(vm.socket()).unwrap();
    let mut ask = |method: &str, path: &str, body: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        String::from_utf8(answer).unwrap()
    };
    let boot = r#"{"kernel_image_path":"embedded"}"#;
    assert!(ask("PUT", "/boot-source", boot).starts_with("HTTP/1.1 204"));
    assert!(ask("PUT", "/actions", START).starts_with("HTTP/1.1 204"));
    assert!(ask("PATCH", "/vm", r#"{"state":"Paused"}"#).starts_with("HTTP/1.1 204"));
}
