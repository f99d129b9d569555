//! The commands as a user types them, against a real VM.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use system_tests::binary::aerostat;
use system_tests::kvm::kvm_or_skip;
use system_tests::vm::{TestVm, child_of, scaled, wait_for};

const MIB: u64 = 1 << 20;

/// Guest RAM of these tests.
fn ram() -> u64 {
    scaled(256 * MIB, 64 * MIB)
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `aerostat LINE` on `vm`: exit code, standard output and error together.
fn on(vm: &TestVm, line: &str) -> (Option<i32>, String) {
    let mut command = aerostat();
    let output = run(command.args(line.split_whitespace()).env("AEROSTAT_SOCK", vm.socket()));
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn on_ok(vm: &TestVm, line: &str) -> String {
    let (code, said) = on(vm, line);
    assert_eq!(code, Some(0), "{line}: {said}");
    said
}

#[test]
fn half_of_the_memory_goes_to_the_host_and_comes_back_by_commands_alone() {
    if !kvm_or_skip() {
        return;
    }
    let mut vm = TestVm::start(ram(), &["--balloon", "stall-after=60s"]);
    let half = ram() / 2;
    on_ok(&vm, "exec touch all");
    let full = vm.host_bytes("anon");
    let said = on_ok(&vm, &format!("balloon set {half}"));
    assert!(said.starts_with(&format!("reached: balloon {half} B")), "{said}");
    let freed = full - vm.host_bytes("anon");
    assert!(freed * 100 >= half * 95, "freed {freed} of {half}");

    let get = on_ok(&vm, "balloon get");
    assert!(get.contains("driver        ready"), "{get}");
    let said = on_ok(&vm, "balloon deflate");
    assert!(said.starts_with("reached: balloon 0 B"), "{said}");
    on_ok(&vm, "exec verify");

    assert_eq!(on_ok(&vm, "stop --timeout 60s"), "stopped: the guest powered off\n");
    assert_eq!(vm.wait().code(), Some(0), "{}", vm.output());
    assert!(!vm.socket().exists());
}

#[test]
fn a_target_beyond_what_the_guest_has_stalls_with_10_and_the_vm_goes_on() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(ram(), &[]);
    let (code, said) = on(&vm, &format!("balloon set {}", ram()));
    assert_eq!(code, Some(10), "{said}");
    assert!(said.contains("stalled: ") && said.contains("deficit "), "{said}");
    vm.resize(0);
    on_ok(&vm, "exec verify");
}

#[test]
fn pausing_shows_and_resuming_lets_a_resize_go_on() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(ram(), &[]);
    on_ok(&vm, "pause");
    assert!(on_ok(&vm, "info").contains("state       paused"));
    on_ok(&vm, "balloon set 16M --no-wait");
    on_ok(&vm, "resume");
    wait_for("the balloon to follow", || {
        (vm.client().balloon_status().unwrap().actual_bytes == 16 * MIB).then_some(())
    });
}

#[test]
fn firecrackers_patch_answers_204_and_the_balloon_follows() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(ram(), &[]);
    let body = br#"{"amount_mib":24}"#;
    assert_eq!(vm.client().raw("PATCH", "/balloon", body).unwrap().status(), 204);
    wait_for("the balloon to follow", || {
        (vm.client().balloon_status().unwrap().actual_bytes == 24 * MIB).then_some(())
    });
    assert_eq!(vm.client().balloon_config().unwrap().amount_mib, 24);
}

#[test]
fn an_initial_target_is_reached_without_a_command() {
    if !kvm_or_skip() {
        return;
    }
    let vm =
        TestVm::start(ram(), &["--balloon", "target=16M", "--backing", "memfd", "--vcpus", "2"]);
    wait_for("the balloon to follow", || {
        (vm.client().balloon_status().unwrap().actual_bytes == 16 * MIB).then_some(())
    });
    let info = on_ok(&vm, "info");
    assert!(info.contains("backing     memfd") && info.contains("vcpus       2"), "{info}");
}

#[test]
fn a_vm_in_the_default_directory_is_found_without_its_path() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |line: &str| {
        let mut command = aerostat();
        command.args(line.split_whitespace()).env("XDG_RUNTIME_DIR", dir.path());
        command
    };
    let mut vm = at("run --memory 64M");
    let mut vm = vm.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the VM to be found", || run(&mut at("info")).status.success().then_some(()));
    assert!(run(&mut at("stop --timeout 30s")).status.success());
    assert!(vm.wait().unwrap().success());
    let left = fs::read_dir(dir.path().join("aerostat")).unwrap().count();
    assert_eq!(left, 0, "the directory is empty again");
}

#[test]
fn a_check_says_what_would_run_and_starts_nothing() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let output = run(aerostat().args(["run", "--check", "--api-sock"]).arg(&socket));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("kvm "), "{}", text(&output.stdout));
    assert!(!socket.exists());
}

/// A check that a kernel which is not there passes is worth nothing.
#[test]
fn a_check_refuses_what_a_run_would_refuse() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let long = "x".repeat(3000);
    // Too long with the devices that the VMM adds.
    let short = "x".repeat(2000);
    let prose = dir.path().join("prose");
    fs::write(
        &prose,
        "This is a text of more than sixty-four bytes, and therefore no kernel at all.\n",
    )
    .unwrap();
    for (option, value, reason) in [
        ("--kernel", "/nonexistent", "/nonexistent"),
        ("--kernel", prose.to_str().unwrap(), "no ELF file"),
        ("--cmdline", long.as_str(), "2047"),
        ("--cmdline", short.as_str(), "2047"),
        ("--memory", "2M", "does not fit"),
    ] {
        let mut command = aerostat();
        command.args(["run", "--check", option, value, "--api-sock"]).arg(&socket);
        let output = run(&mut command);
        assert_eq!(output.status.code(), Some(2), "{option} {value}");
        assert!(text(&output.stderr).contains(reason), "{}", text(&output.stderr));
    }
}

#[test]
fn the_bench_measures_in_the_guest_and_leaves_nothing() {
    if !kvm_or_skip() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let mut command = aerostat();
    command.args(["bench", "mm", "--json", "--rounds", "1", "--memory", &ram().to_string()]);
    let output = run(command.env("TMPDIR", temporary.path()));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = report["figures"].as_array().unwrap();
    let find = |name: &str, case: &str| {
        let found = figures.iter().find(|figure| figure["name"] == name && figure["case"] == case);
        found.unwrap_or_else(|| panic!("{name}, {case} is missing: {report:#}"))["median"].as_f64()
    };
    for (name, case) in [
        ("memory init", "at boot"),
        ("buddy pair", "order 0"),
        ("fault", "anonymous, write"),
        ("fork", "256 dirty pages"),
        ("gup", "fast"),
        ("layout init", "8 B"),
    ] {
        assert!(find(name, case).unwrap() > 0.0, "{name}, {case}");
    }
    // What does not depend on the clock.
    assert_eq!(find("layout bytes", "64 B, large folios"), Some(64.0));
    assert!(find("layout bytes", "8 B, large folios").unwrap() < 32.0);
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the bench leaves nothing");
}

fn demo_frees_half(backing: &str) {
    if !kvm_or_skip() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let mut command = aerostat();
    command.args(["demo", "--json", "--memory", &ram().to_string(), "--backing", backing]);
    let output = run(command.env("TMPDIR", temporary.path()));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert_eq!(bytes("balloon_bytes"), ram() / 2);
    assert!(bytes("freed_bytes") * 100 >= bytes("balloon_bytes") * 95, "{report}");
    assert!(bytes("claimed_bytes") >= bytes("balloon_bytes"), "{report}");
    assert_eq!(report["steps"].as_array().unwrap().len(), 5, "{report}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "the demo leaves nothing");
}

#[test]
fn the_demo_gets_half_of_anonymous_memory_back() {
    demo_frees_half("anon");
}

#[test]
fn the_demo_gets_half_of_a_memfd_back() {
    demo_frees_half("memfd");
}

#[test]
fn the_demos_table_has_a_row_for_each_step() {
    if !kvm_or_skip() {
        return;
    }
    let output = run(aerostat().args(["demo", "--memory", &ram().to_string()]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for row in ["boot until", "touch all", "inflate by half", "deflate", "verify", "power off"] {
        assert!(table.contains(row), "{row} is missing:\n{table}");
    }
    assert!(table.contains("The host really got back"), "{table}");
}

#[test]
fn the_demos_vm_does_not_outlive_a_killed_demo() {
    if kvm_or_skip() {
        end_demo_by(libc::SIGKILL);
    }
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    if kvm_or_skip() {
        let temporary = end_demo_by(libc::SIGINT);
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    }
}

/// Ends a demo by `signal` once its guest is ready and waits for its VM to end; its temporary directory.
fn end_demo_by(signal: i32) -> tempfile::TempDir {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = aerostat();
    command.args(["demo", "--memory", &ram().to_string()]).env("TMPDIR", temporary.path());
    let mut demo = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    // The heading comes once the guest is ready.
    demo.stdout.as_mut().unwrap().read_exact(&mut [0; 16]).unwrap();
    let vm = child_of(demo.id()).expect("the demo's VM");
    // SAFETY: `kill` touches no memory; the process is our own child and not yet reaped.
    let sent = unsafe { libc::kill(demo.id().try_into().unwrap(), signal) };
    assert_eq!(sent, 0);
    assert!(!demo.wait().unwrap().success());
    wait_for("the demo's VM to end", || (!is_running(vm)).then_some(()));
    temporary
}

/// Whether `pid` still runs; what has ended and waits to be reaped does not.
fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok()
}
