//! The balloon, host-observable: what an operator may rely on, with our guest and real backings.
//!
//! The host's memory is read from `/proc` by the test itself, never from what the VMM claims.

use aerostat_api::balloon::OperationState;
use aerostat_api::client::ClientError;
use aerostat_api::machine::RunState;
use system_tests::kvm::kvm_or_skip;
use system_tests::vm::{TestVm, scaled, wait_for};

const MIB: u64 = 1 << 20;
/// Every backing that there is.
const BACKINGS: [&str; 2] = ["anon", "memfd"];

/// Guest RAM: what the acceptance asks for, or what the lab's CPU bears.
fn ram() -> u64 {
    scaled(512 * MIB, 128 * MIB)
}

/// The guest dirties and frees everything, the balloon takes half: the truth must fall by 95 % of it.
fn half_is_really_freed(backing: &str, options: &[&str], touch: bool) {
    let vm = TestVm::start(ram(), &[&["--backing", backing], options].concat());
    if touch {
        vm.exec_ok("touch", &["all"]);
    }
    let before = vm.host_bytes(backing);
    assert!(before >= ram() / 10 * 8, "only {before} B were resident to begin with");
    let half = ram() / 2;
    vm.resize(half);
    let freed = before - vm.host_bytes(backing).min(before);
    assert!(freed >= half / 100 * 95, "freed {freed} B of {half}");
    let status = vm.client().balloon_status().expect("an answer");
    assert_eq!(status.actual_bytes, half);
    let truth = vm.host_bytes(backing);
    let reported = status.host_resident_bytes.expect("both backings have a source of truth");
    assert!(reported.abs_diff(truth) <= 2 * MIB, "VMM says {reported}, the kernel says {truth}");

    vm.resize(0);
    vm.exec_ok("verify", &[]);
    vm.exec_ok("census", &[]);
}

#[test]
fn inflating_half_frees_it_on_anonymous_memory() {
    if kvm_or_skip() {
        half_is_really_freed("anon", &[], true);
    }
}

#[test]
fn inflating_half_frees_it_on_a_memfd() {
    if kvm_or_skip() {
        half_is_really_freed("memfd", &[], true);
    }
}

#[test]
fn inflating_half_of_a_prefaulted_vm_frees_it_on_anonymous_memory() {
    if kvm_or_skip() {
        half_is_really_freed("anon", &["--prefault"], false);
    }
}

#[test]
fn inflating_half_of_a_prefaulted_vm_frees_it_on_a_memfd() {
    if kvm_or_skip() {
        half_is_really_freed("memfd", &["--prefault"], false);
    }
}

#[test]
fn deflated_pages_read_zero_and_other_data_stays() {
    if !kvm_or_skip() {
        return;
    }
    for backing in BACKINGS {
        let vm = TestVm::start(ram(), &["--backing", backing]);
        vm.exec_ok("touch", &["all"]);
        vm.resize(ram() / 2);
        vm.resize(0);
        let lines = vm.exec_ok("verify", &[]).join("\n");
        println!("{backing}: {lines}");
        // Reading them must not be vacuous: most of the deflated half is checked.
        let zero_pages = number_before(&lines, "discarded pages read as zero");
        assert!(zero_pages * 4096 >= ram() / 4, "{lines}");
        assert!(number_before(&lines, "sentinel pages") > 0, "{lines}");
    }
}

/// The number that stands before `words` in `text`.
fn number_before(text: &str, words: &str) -> u64 {
    let at = text.find(words).unwrap_or_else(|| panic!("no {words:?} in {text:?}"));
    let number = text[..at].split_whitespace().next_back().expect("a word before it");
    number.parse().unwrap_or_else(|e| panic!("{number:?} before {words:?}: {e}"))
}

#[test]
fn cycles_leave_the_vmm_no_larger() {
    if !kvm_or_skip() {
        return;
    }
    for backing in BACKINGS {
        let vm = TestVm::start(ram(), &["--backing", backing]);
        let cycle = || {
            vm.resize(ram() / 4);
            vm.resize(0);
        };
        cycle();
        let before = vm.private_bytes_beyond_ram();
        (0..scaled(50, 10)).for_each(|_| cycle());
        let grown = vm.private_bytes_beyond_ram().saturating_sub(before);
        assert!(grown < MIB, "{backing}: grew by {grown} B");
        vm.exec_ok("census", &[]);
    }
}

#[test]
fn any_target_in_pages_is_reached_exactly() {
    if !kvm_or_skip() {
        return;
    }
    for backing in BACKINGS {
        let vm = TestVm::start(ram(), &["--backing", backing]);
        for pages in [1, 255, 256, 257, 9473, 1023, 3, 0] {
            vm.resize(pages * 4096);
            vm.exec_ok("census", &[]);
        }
    }
}

#[test]
fn retargeting_in_flight_converges_on_the_last() {
    if !kvm_or_skip() {
        return;
    }
    for backing in BACKINGS {
        let vm = TestVm::start(ram(), &["--backing", backing]);
        let targets = [ram() / 2, 7 * MIB, ram() / 4, 4096, ram() / 3 / 4096 * 4096];
        let begun: Vec<_> = targets.iter().map(|&t| vm.begin_resize(t)).collect();
        let last = begun.last().expect("there are some");
        vm.finish_resize(last.id);
        assert_eq!(
            vm.client().balloon_status().expect("an answer").actual_bytes,
            last.target_bytes
        );
        vm.exec_ok("census", &[]);
    }
}

#[test]
fn pause_keeps_target_and_actual_and_a_target_set_meanwhile_is_followed_after() {
    if !kvm_or_skip() {
        return;
    }
    for backing in BACKINGS {
        let vm = TestVm::start(ram(), &["--backing", backing]);
        vm.resize(16 * MIB);
        vm.client().set_run_state(RunState::Paused).expect("it can pause");
        let operation = vm.begin_resize(32 * MIB);
        assert_eq!(operation.state, OperationState::Running);
        let status = vm.client().balloon_status().expect("an answer");
        assert_eq!((status.target_bytes, status.actual_bytes), (32 * MIB, 16 * MIB));
        vm.client().set_run_state(RunState::Resumed).expect("it can resume");
        vm.finish_resize(operation.id);
    }
}

#[test]
fn a_reboot_keeps_the_target_and_the_guest_inflates_anew() {
    if !kvm_or_skip() {
        return;
    }
    for backing in BACKINGS {
        let vm = TestVm::start(ram(), &["--on-reset", "reboot", "--backing", backing]);
        vm.resize(32 * MIB);
        let before = vm.client().balloon_status().expect("an answer");
        // The scenario ends with the machine: no exit code comes.
        let request =
            aerostat_api::guest::ExecRequest { scenario: "reset".into(), args: Vec::new() };
        let reset = vm.client().exec(&request).expect("the scenario begins");
        drop(reset);
        wait_for("the balloon to be inflated anew", || {
            let now = vm.client().balloon_status().ok()?;
            assert_eq!(now.target_bytes, 32 * MIB, "the target survives");
            let again = now.claimed_bytes >= before.claimed_bytes + 32 * MIB;
            (again && now.actual_bytes == 32 * MIB).then_some(())
        });
        wait_for("the agent", || {
            vm.client().scenarios().is_ok_and(|s| !s.scenarios.is_empty()).then_some(())
        });
        vm.exec_ok("census", &[]);
    }
}

#[test]
fn a_target_above_what_the_guest_can_give_ends_stalled_and_the_vm_keeps_serving() {
    if !kvm_or_skip() {
        return;
    }
    for backing in BACKINGS {
        let vm = TestVm::start(64 * MIB, &["--backing", backing]);
        let id = vm.begin_resize(64 * MIB).id;
        // A slow guest may stall before it has given what it can.
        let stalled = wait_for("a stall with all that the guest can give", || {
            let operation = vm.client().operation(Some(id)).expect("an answer").expect("known");
            let is_stalled = operation.state == OperationState::Stalled;
            (is_stalled && operation.actual_bytes > 32 * MIB).then_some(operation)
        });
        assert!(stalled.deficit_bytes > 0, "{stalled:?}");
        vm.exec_ok("census", &[]);
        vm.resize(0);
        vm.exec_ok("verify", &[]);
    }
}

/// Runs the guest out of memory; processes killed, and pages that the balloon gave.
fn run_out_of_memory(vm: &TestVm) -> (u64, u64) {
    let lines = vm.exec_ok("oom", &[]);
    let sums = lines.iter().find(|line| line.contains("pages reaped")).expect("the sums");
    (number_before(sums, "killed, "), number_before(sums, "from the balloon, "))
}

#[test]
fn a_guest_out_of_memory_takes_the_balloon_back_only_if_it_may() {
    if !kvm_or_skip() {
        return;
    }
    const HELD: u64 = 16 * MIB;
    for backing in BACKINGS {
        let options = ["--balloon", "deflate-on-oom", "--backing", backing];
        let vm = TestVm::start(64 * MIB, &options);
        vm.resize(HELD);
        let (killed, given) = run_out_of_memory(&vm);
        assert_eq!(given, HELD / 4096, "the balloon comes before any process");
        assert!(killed > 0);
        let status = vm.client().balloon_status().expect("an answer");
        assert_eq!((status.target_bytes, status.actual_bytes), (HELD, 0));
        vm.exec_ok("census", &[]);
        // Whoever sets a target again, even the same, gets it.
        vm.resize(HELD);
        vm.exec_ok("verify", &[]);

        let vm = TestVm::start(64 * MIB, &["--backing", backing]);
        vm.resize(HELD);
        let (killed, given) = run_out_of_memory(&vm);
        assert_eq!(given, 0);
        assert!(killed > 0);
        assert_eq!(vm.client().balloon_status().expect("an answer").actual_bytes, HELD);
        vm.exec_ok("census", &[]);
    }
}

#[test]
fn targets_above_ram_are_refused_with_the_range_and_change_nothing() {
    if !kvm_or_skip() {
        return;
    }
    let vm = TestVm::start(64 * MIB, &[]);
    vm.resize(8 * MIB);
    for target_bytes in [64 * MIB + 4096, (1 << 44) + 4096, u64::MAX / 4096 * 4096] {
        let request = aerostat_api::balloon::OperationRequest { target_bytes, timeout_ms: None };
        let refused = vm.client().begin_operation(&request);
        let Err(ClientError::Refused { status: 400, message }) = refused else {
            panic!("{target_bytes} was not refused: {refused:?}");
        };
        assert!(message.contains("67108864"), "{message}");
    }
    let status = vm.client().balloon_status().expect("an answer");
    assert_eq!((status.target_bytes, status.actual_bytes), (8 * MIB, 8 * MIB));
}

#[test]
fn a_signal_in_the_middle_of_an_inflate_ends_cleanly_without_a_socket() {
    if !kvm_or_skip() {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut vm = TestVm::start(ram(), &[]);
        vm.exec_ok("touch", &["all"]);
        vm.begin_resize(ram() / 2);
        send(&vm, signal);
        assert_eq!(vm.wait().code(), Some(0), "{}", vm.output());
        assert!(!vm.socket().exists(), "the socket was left behind");
    }
}

#[test]
fn a_socket_left_by_sigkill_is_recognised_and_replaced() {
    if !kvm_or_skip() {
        return;
    }
    let mut killed = TestVm::start(64 * MIB, &[]);
    killed.begin_resize(32 * MIB);
    send(&killed, libc::SIGKILL);
    assert_eq!(killed.wait().code(), None);
    let socket = killed.socket();
    assert!(socket.exists(), "SIGKILL leaves the socket");
    let mut second = system_tests::binary::aerostat()
        .args(["run", "--memory", "64M", "--api-sock"])
        .arg(&socket)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    let client = aerostat_api::client::Client::new(socket.clone());
    wait_for("the second VM", || client.vm_status().ok()?.ready_us);
    client.stop(std::time::Duration::from_secs(60)).expect("it stops");
    assert_eq!(second.wait().expect("our child").code(), Some(0));
    assert!(!socket.exists());
}

fn send(vm: &TestVm, signal: i32) {
    let pid = i32::try_from(vm.pid()).expect("a process id");
    // SAFETY: `kill` takes any pid and signal; ours is a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}
