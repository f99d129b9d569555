//! The client commands as a user types them, against a mock VM.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use abi::PageCount;
use system_tests::binary::aerostat;
use system_tests::mock_vm::{Driver, MockVm};

const MIB: u64 = 1 << 20;

/// What a command printed and how it ended.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(command: &mut Command) -> Said {
    said(command.stdin(Stdio::null()).output().unwrap())
}

/// `aerostat LINE --api-sock` of the mock.
fn on(vm: &MockVm, line: &str) -> Said {
    let mut command = aerostat();
    command.args(line.split_whitespace()).env("AEROSTAT_SOCK", vm.socket());
    run(&mut command)
}

#[test]
fn a_reached_target_exits_with_0_and_says_bytes_and_what_is_left() {
    let vm = MockVm::start(Driver::Follows);
    let said = on(&vm, "balloon set 256M");
    assert_eq!(said.code, Some(0), "{}", said.err);
    let wanted = "reached: balloon 268435456 B (256 MiB), the guest has 268435456 B (256 MiB) left";
    assert!(said.out.starts_with(wanted), "{}", said.out);
    assert_eq!(vm.log(), ["target 268435456 deadline None"]);
}

#[test]
fn inflate_and_deflate_move_from_the_present_target() {
    let vm = MockVm::start(Driver::Follows);
    for line in [
        "balloon set 64M",
        "balloon inflate 64M",
        "balloon deflate 4K",
        "balloon deflate",
        "balloon inflate 4K",
        "balloon set 0",
    ] {
        assert_eq!(on(&vm, line).code, Some(0), "{line}");
    }
    let targets: Vec<u64> =
        vm.log().iter().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(targets, [64 * MIB, 128 * MIB, 128 * MIB - 4096, 0, 4096, 0]);
}

#[test]
fn plug_and_unplug_move_from_what_is_requested_and_set_does_not() {
    let vm = MockVm::start(Driver::Follows);
    let said = on(&vm, "memory plug 256M");
    assert_eq!(said.code, Some(0), "{}", said.err);
    // RAM is 512 MiB.
    let wanted =
        "reached: hotplug memory 268435456 B (256 MiB), the guest has 805306368 B (768 MiB) in all";
    assert!(said.out.starts_with(wanted), "{}", said.out);
    for line in [
        "memory plug 2M",
        "memory unplug 130M",
        "memory set 128M",
        "memory unplug",
        "memory set 1G --json",
        "memory set 0",
        "memory plug 1G",
    ] {
        assert_eq!(on(&vm, line).code, Some(0), "{line}");
    }
    let sizes: Vec<u64> =
        vm.log().iter().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    let wanted = [256, 258, 128, 128, 0, 1024, 0, 1024];
    assert_eq!(sizes, wanted.map(|mib| mib * MIB), "the same size is asked for again");
    let got = on(&vm, "memory get");
    assert_eq!(got.code, Some(0), "{}", got.err);
    for part in ["1073741824 B (1 GiB) at 0x100000000", "unplugged-inaccessible", "ready"] {
        assert!(got.out.contains(part), "{part}: {}", got.out);
    }
}

#[test]
fn sizes_that_cannot_be_plugged_are_refused_with_value_and_range() {
    let vm = MockVm::start(Driver::Follows);
    assert_eq!(on(&vm, "memory plug 64M").code, Some(0));
    let before = vm.log().len();
    for (line, expected) in [
        ("memory plug 1G", "allowed: up to 1006632960 B (960 MiB)"),
        ("memory plug 1M", "1048576 B (1 MiB) is no multiple of the block size, 2097152 B (2 MiB)"),
        ("memory unplug 66M", "67108864 B (64 MiB) are requested"),
        ("memory unplug 3M", "is no multiple of the block size"),
        ("memory set 1026M", "allowed: up to 1073741824 B (1 GiB), the region's size"),
        ("memory set 3M", "is no multiple of the block size"),
        ("memory plug 0", "0"),
        ("memory plug", "SIZE"),
        ("memory plug -2M", "is no size"),
    ] {
        let said = on(&vm, line);
        assert_eq!(said.code, Some(2), "{line}: {}", said.err);
        assert!(said.err.contains(expected), "{line}: {}", said.err);
    }
    assert_eq!(vm.log().len(), before, "nothing has been asked of the VM");
}

#[test]
fn a_plug_that_stalls_or_times_out_has_the_exit_code_of_a_balloons() {
    let vm = MockVm::start(Driver::StallsAt(PageCount::new(64 * 256)));
    let said = on(&vm, "memory plug 128M");
    assert_eq!(said.code, Some(10), "{}", said.err);
    assert!(said.out.contains("deficit 67108864 B (64 MiB)"), "{}", said.out);
    assert_eq!(on(&MockVm::start(Driver::Hangs), "memory plug 2M --timeout 1s").code, Some(11));
    assert_eq!(on(&MockVm::start(Driver::LosesToAnother), "memory plug 2M").code, Some(12));
    assert_eq!(on(&MockVm::start(Driver::Hangs), "memory plug 2M --no-wait").code, Some(0));
}

#[test]
fn a_stall_exits_with_10_and_says_deficit_and_last_progress() {
    let vm = MockVm::start(Driver::StallsAt(PageCount::new(100 * 256)));
    let said = on(&vm, "balloon set 256M");
    assert_eq!(said.code, Some(10), "{}", said.err);
    assert!(said.out.starts_with("stalled: balloon 104857600 B (100 MiB) of "), "{}", said.out);
    assert!(
        said.out.contains("deficit 163577856 B (156 MiB), last progress 40 ms ago"),
        "{}",
        said.out
    );
    assert_eq!(on(&vm, "info").code, Some(0), "the VM keeps serving");
}

#[test]
fn a_deadline_that_passes_exits_with_11() {
    let vm = MockVm::start(Driver::Hangs);
    let said = on(&vm, "balloon set 256M --timeout 250ms");
    assert_eq!(said.code, Some(11), "{}", said.err);
    assert!(said.out.starts_with("timed out: "), "{}", said.out);
    assert!(said.out.contains("(driver missing)"), "{}", said.out);
    assert_eq!(vm.log(), ["target 268435456 deadline Some(250ms)"]);
}

#[test]
fn a_target_that_another_replaces_exits_with_12() {
    let vm = MockVm::start(Driver::LosesToAnother);
    let said = on(&vm, "balloon set 256M");
    assert_eq!(said.code, Some(12), "{}", said.err);
    assert!(said.out.starts_with("superseded: "), "{}", said.out);
}

#[test]
fn no_wait_returns_while_the_resize_runs() {
    let vm = MockVm::start(Driver::Hangs);
    let said = on(&vm, "balloon set 256M --no-wait");
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.out.starts_with("running: "), "{}", said.out);
}

#[test]
fn json_is_one_object_and_nothing_else() {
    let vm = MockVm::start(Driver::Follows);
    for line in [
        "balloon set 256M --json",
        "balloon get --json",
        "info --json",
        "exec --list --json",
        "stop --json",
    ] {
        let said = on(&vm, line);
        assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{line}");
        let value: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert!(value.is_object(), "{line}: {value}");
    }
}

#[test]
fn sizes_that_are_none_are_refused_with_2_and_change_nothing() {
    let vm = MockVm::start(Driver::Follows);
    for (line, words) in [
        ("balloon set 12Q", "unknown suffix \"Q\"; allowed: none (bytes), K, M, G"),
        ("balloon set 5000", "5000 B is no multiple of 4 KiB (4096 B); nearest: 4096 B or 8192 B"),
        ("balloon set -4K", "\"-4K\" is no size"),
        ("balloon set 17179869184G", "more than 18446744073709551615 B"),
        ("balloon set 1G", "above guest RAM; allowed: 0 to 536870912 B"),
        ("balloon set 17592186048512", "17592186048512 B is above guest RAM"),
        ("balloon inflate 0", "A size of 0 does nothing here"),
        ("balloon inflate 513M", "allowed: up to 536870912 B (512 MiB)"),
        ("balloon inflate 17592186048512", "Cannot inflate by 17592186048512 B"),
        ("balloon deflate 0", "A size of 0 does nothing here"),
        ("balloon deflate 4K", "Cannot deflate by 4096 B (4 KiB): the target is 0 B"),
        ("balloon set", "<SIZE>"),
        ("balloon set 4K --timeout 5", "\"5\" is no duration"),
        ("stop --timeout never", "\"never\" is no duration"),
        ("stop --timeout 11m", "timeout_ms is 660000; allowed: 0 to 600000"),
    ] {
        let said = on(&vm, line);
        assert_eq!(said.code, Some(2), "{line}: {}", said.err);
        assert!(said.err.contains(words), "{line}: {}", said.err);
        assert_eq!(said.out, "", "{line}");
    }
    assert!(vm.log().is_empty(), "{:?}", vm.log());
}

#[test]
fn exec_streams_lines_and_exits_with_the_scenarios_code() {
    let vm = MockVm::start(Driver::Follows);
    let echo = on(&vm, "exec echo one two");
    assert_eq!((echo.code, echo.out.as_str()), (Some(0), "one\ntwo\n"));
    let fail = on(&vm, "exec fail");
    assert_eq!((fail.code, fail.out.as_str()), (Some(3), "about to fail\n"));
    assert!(fail.err.contains("7 lines of output were lost"), "{}", fail.err);
    let json = on(&vm, "exec echo one --json");
    assert_eq!(json.out, "{\"line\":\"one\"}\n{\"exit\":0,\"lost\":0}\n");
    let options = on(&vm, "exec echo -- --json -x");
    assert_eq!(options.out, "--json\n-x\n");
    let unknown = on(&vm, "exec dance");
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.err.contains("it has: echo, fail, hang"), "{}", unknown.err);
}

#[test]
fn exec_fails_when_the_vm_ends_first() {
    let mut vm = MockVm::start(Driver::Follows);
    let mut command = aerostat();
    command.args(["exec", "hang"]).env("AEROSTAT_SOCK", vm.socket());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 8];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    vm.end_event_loop();
    let said = said(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("The VM ended before the scenario did"), "{}", said.err);
}

#[test]
fn pause_resume_stop_and_metrics_reach_the_vm() {
    let vm = MockVm::start(Driver::Follows);
    assert_eq!(on(&vm, "pause").code, Some(0));
    assert!(on(&vm, "info").out.contains("state       paused"));
    assert_eq!(on(&vm, "resume").code, Some(0));
    assert!(on(&vm, "metrics").out.contains("# TYPE aerostat_balloon_actual_bytes gauge"));
    let metrics: serde_json::Value =
        serde_json::from_str(&on(&vm, "metrics --json").out).expect("one JSON object");
    let sample = "aerostat_balloon_actual_bytes{device=\"balloon\"}";
    assert_eq!(metrics[sample], serde_json::json!(0), "{metrics}");
    let stop = on(&vm, "stop --timeout 250ms");
    assert_eq!((stop.code, stop.out.as_str()), (Some(0), "stopped: the guest powered off\n"));
    assert_eq!(vm.log(), ["pause", "resume", "stop 250ms"]);
}

/// `pause` and `resume` used to say that their arguments were wrong, and `info` nothing where the kernel stands.
#[test]
fn a_vm_that_is_not_started_is_told_from_arguments_that_are_wrong() {
    let vm = MockVm::unconfigured(|_config| Ok(()));
    for line in ["pause", "resume", "balloon get", "balloon set 4K", "exec --list"] {
        let said = on(&vm, line);
        assert_eq!(said.code, Some(1), "{line}: {}", said.err);
        assert!(said.err.contains("before starting the microVM"), "{line}: {}", said.err);
    }
    let info = on(&vm, "info").out;
    assert!(info.contains("state       not started\n"), "{info}");
    assert!(info.contains("kernel      not configured\n"), "{info}");
    assert_eq!(on(&vm, "stop").code, Some(0));
}

#[test]
fn info_and_balloon_get_print_bytes_and_a_human_form() {
    let vm = MockVm::start(Driver::Follows);
    let info = on(&vm, "info").out;
    assert!(info.contains("memory      536870912 B (512 MiB)"), "{info}");
    assert!(info.contains("ready       19.000 ms after start"), "{info}");
    let balloon = on(&vm, "balloon get").out;
    assert!(balloon.contains("536870912 B (512 MiB), by smaps Anonymous + Swap"), "{balloon}");
    assert!(balloon.contains("driver        ready"), "{balloon}");
}

#[test]
fn a_socket_where_no_vm_listens_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |path: &std::path::Path| run(aerostat().args(["info", "--api-sock"]).arg(path));
    let missing = ask(&dir.path().join("none"));
    assert_eq!(missing.code, Some(1));
    assert!(missing.err.contains("there is no such socket"), "{}", missing.err);
    let stale = dir.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let refused = ask(&stale);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("nothing listens there"), "{}", refused.err);
    let long = dir.path().join("x".repeat(200));
    assert_eq!(ask(&long).code, Some(1));
}

#[test]
fn the_only_running_vm_is_found_and_several_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("aerostat");
    std::fs::create_dir(&runtime).unwrap();
    let info = || {
        let mut command = aerostat();
        run(command.arg("info").env("XDG_RUNTIME_DIR", dir.path()))
    };
    let none = info();
    assert_eq!(none.code, Some(1));
    assert!(none.err.contains("No VM is running"), "{}", none.err);

    let (a, b) = (MockVm::start(Driver::Follows), MockVm::start(Driver::Follows));
    std::os::unix::fs::symlink(a.socket(), runtime.join("a.sock")).unwrap();
    drop(UnixListener::bind(runtime.join("stale.sock")).unwrap());
    assert_eq!(info().code, Some(0));

    std::os::unix::fs::symlink(b.socket(), runtime.join("b.sock")).unwrap();
    let several = info();
    assert_eq!(several.code, Some(2));
    assert!(several.err.contains("2 VMs are running"), "{}", several.err);
    assert!(several.err.contains("a.sock") && several.err.contains("b.sock"), "{}", several.err);
}

#[test]
fn the_option_goes_before_the_environment() {
    let (vm, other) = (MockVm::start(Driver::Follows), MockVm::start(Driver::Follows));
    let mut command = aerostat();
    command.args(["pause", "--api-sock"]).arg(vm.socket()).env("AEROSTAT_SOCK", other.socket());
    assert_eq!(run(&mut command).code, Some(0));
    assert_eq!((vm.log().len(), other.log().len()), (1, 0));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let vm = MockVm::start(Driver::Follows);
    let mut command = aerostat();
    command.arg("metrics").env("AEROSTAT_SOCK", vm.socket());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let said = said(child.wait_with_output().unwrap());
    assert!(!said.err.contains("panicked"), "{}", said.err);
    assert_eq!(said.code, Some(0));
}
