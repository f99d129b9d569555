//! The typed client against a live control server over a mock VM.

use std::time::Duration;

use abi::PageCount;
use aerostat_api::{
    ActionType, ClientError, DriverState, ExecEvent, ExecRequest, InstanceState, OperationRequest,
    OperationState, RunState,
};
use system_tests::mock_vm::{Driver, MockVm, RAM};

const MIB: u64 = 1 << 20;

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, message }) => (status, message),
        other => panic!("not refused: {other:?}"),
    }
}

fn resize(target_bytes: u64) -> OperationRequest {
    OperationRequest { target_bytes, timeout_ms: None }
}

fn exec(scenario: &str, args: &[&str]) -> ExecRequest {
    let args = args.iter().map(ToString::to_string).collect();
    ExecRequest { scenario: scenario.into(), args }
}

#[test]
fn identity_and_configuration_have_firecrackers_shape() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    let instance = client.instance().unwrap();
    assert_eq!((instance.state, instance.app_name.as_str()), (InstanceState::Running, "aerostat"));
    assert_eq!(client.machine_config().unwrap().mem_size_mib, 512);
    assert_eq!(client.vm_config().unwrap().boot_source.unwrap().kernel_image_path, "embedded");
    assert!(!client.version().unwrap().firecracker_version.is_empty());
    assert_eq!(client.vm_status().unwrap().ram_bytes, RAM.bytes());
}

#[test]
fn pausing_and_resuming_show_in_the_state() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    client.set_run_state(RunState::Paused).unwrap();
    assert_eq!(client.instance().unwrap().state, InstanceState::Paused);
    client.set_run_state(RunState::Resumed).unwrap();
    assert_eq!(client.instance().unwrap().state, InstanceState::Running);
    assert_eq!(vm.log(), ["pause", "resume"]);
}

#[test]
fn firecrackers_update_moves_the_exact_target() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    client.update_balloon(128).unwrap();
    assert_eq!(client.balloon_config().unwrap().amount_mib, 128);
    let status = client.balloon_status().unwrap();
    assert_eq!(status.target_bytes, 128 * MIB);
    assert_eq!(status.driver, DriverState::Ready);
    assert_eq!(status.offered_features.names, ["must-tell-host", "version-1"]);
    assert_eq!(status.acked_features.unwrap().names, ["version-1"]);
}

#[test]
fn an_operation_is_followed_by_its_id_to_the_end() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    assert_eq!(client.operation(None).unwrap(), None);
    let begun = client.begin_operation(&resize(256 * MIB)).unwrap();
    assert_eq!(
        (begun.id, begun.state, begun.deficit_bytes),
        (1, OperationState::Running, 256 * MIB)
    );
    let mut seen = Vec::new();
    loop {
        let now = client.operation(Some(1)).unwrap().unwrap();
        seen.push(now.actual_bytes / MIB);
        assert_eq!(now.guest_left_bytes + now.actual_bytes, RAM.bytes());
        if now.state.is_final() {
            assert_eq!(now.state, OperationState::Reached);
            break;
        }
    }
    assert_eq!(seen, [64, 128, 192, 256]);
    assert_eq!(refusal(client.operation(Some(2))).0, 404);
}

#[test]
fn a_superseded_operation_is_still_known_by_its_id() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    client.begin_operation(&resize(256 * MIB)).unwrap();
    client.begin_operation(&resize(128 * MIB)).unwrap();
    let first = client.operation(Some(1)).unwrap().unwrap();
    assert_eq!(first.state, OperationState::Superseded);
}

#[test]
fn a_stall_says_the_deficit() {
    let vm = MockVm::start(Driver::StallsAt(PageCount::new(100 * 256)));
    let client = vm.client();
    client.begin_operation(&resize(256 * MIB)).unwrap();
    let end = (0..10)
        .map(|_| client.operation(None).unwrap().unwrap())
        .find(|operation| operation.state.is_final())
        .unwrap();
    assert_eq!((end.state, end.deficit_bytes), (OperationState::Stalled, 156 * MIB));
    client.instance().unwrap();
}

#[test]
fn targets_that_no_balloon_can_have_are_refused_with_the_range() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    let (status, message) = refusal(client.begin_operation(&resize((1 << 44) + 4096)));
    assert_eq!(status, 400);
    assert!(message.contains("17592186048512") && message.contains("536870912"), "{message}");
    let (status, message) = refusal(client.begin_operation(&resize(4097)));
    assert_eq!(status, 400);
    assert!(message.contains("4096 B or 8192 B"), "{message}");
    assert_eq!(refusal(client.begin_operation(&resize(u64::MAX))).0, 400);
    assert_eq!(refusal(client.begin_operation(&resize(RAM.bytes() + 4096))).0, 400);
    assert_eq!(refusal(client.update_balloon(513)).0, 400);
    assert_eq!(refusal(client.update_balloon(u32::MAX)).0, 400);
    assert!(vm.log().is_empty(), "{:?}", vm.log());
    client.begin_operation(&resize(RAM.bytes())).unwrap();
    client.begin_operation(&resize(0)).unwrap();
}

#[test]
fn a_scenario_streams_its_lines_and_ends_with_its_code() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    assert_eq!(client.scenarios().unwrap().scenarios, ["echo", "fail", "hang"]);
    let events: Result<Vec<_>, _> =
        client.exec(&exec("echo", &["a b", "\"ü\n"])).unwrap().collect();
    let line = |line: &str| ExecEvent::Line { line: line.into() };
    let exit = ExecEvent::Exit { exit: 0, lost: 0 };
    assert_eq!(events.unwrap(), [line("a b"), line("\"ü\n"), exit]);
    let last = client.exec(&exec("fail", &[])).unwrap().last().unwrap().unwrap();
    assert_eq!(last, ExecEvent::Exit { exit: 3, lost: 7 });
}

#[test]
fn scenarios_are_refused_by_reason() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    let (status, message) = refusal(client.exec(&exec("dance", &[])).map(|_stream| ()));
    assert_eq!(status, 404);
    assert!(message.contains("dance") && message.contains("echo, fail, hang"), "{message}");
    let long = "x".repeat(4000);
    assert_eq!(refusal(client.exec(&exec("echo", &[&long])).map(|_stream| ())).0, 400);
    let mut hanging = client.exec(&exec("hang", &[])).unwrap();
    assert!(hanging.next().unwrap().is_ok());
    let (status, message) = refusal(client.exec(&exec("echo", &[])).map(|_stream| ()));
    assert_eq!(status, 409);
    assert!(message.contains("hang"), "{message}");
}

#[test]
fn a_scenario_whose_vm_ends_has_no_exit_code() {
    let mut vm = MockVm::start(Driver::Follows);
    let mut hanging = vm.client().exec(&exec("hang", &[])).unwrap();
    assert!(hanging.next().unwrap().is_ok());
    vm.end_event_loop();
    assert!(hanging.next().is_none());
}

#[test]
fn requests_to_a_vm_that_has_ended_are_answered() {
    let mut vm = MockVm::start(Driver::Follows);
    vm.end_event_loop();
    let (status, message) = refusal(vm.client().instance());
    assert_eq!((status, message.as_str()), (503, "The VM has ended"));
}

#[test]
fn stop_says_who_ended_the_vm_and_the_answer_outlives_it() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    assert!(client.stop(Duration::from_secs(5)).unwrap().by_guest);
    assert_eq!(vm.log(), ["stop 5s"]);
}

#[test]
fn stop_refuses_a_wait_beyond_the_limit() {
    let vm = MockVm::start(Driver::Follows);
    let (status, message) = refusal(vm.client().stop(Duration::MAX));
    assert_eq!(status, 400);
    assert!(message.contains("600000"), "{message}");
}

#[test]
fn firecrackers_actions_do_what_they_can() {
    let vm = MockVm::start(Driver::Follows);
    let client = vm.client();
    client.action(ActionType::SendCtrlAltDel).unwrap();
    assert_eq!(refusal(client.action(ActionType::InstanceStart)).0, 400);
    assert_eq!(refusal(client.action(ActionType::FlushMetrics)).0, 400);
    client.instance().unwrap();
    assert_eq!(vm.log(), ["power button"]);
}

#[test]
fn metrics_are_prometheus_text_with_the_servers_own() {
    let vm = MockVm::start(Driver::Follows);
    let text = vm.client().metrics().unwrap();
    assert!(text.contains("# TYPE aerostat_balloon_actual_bytes gauge\n"), "{text}");
    assert!(text.contains("\naerostat_balloon_actual_bytes{device=\"balloon\"} 0\n"), "{text}");
    assert!(text.contains("\naerostat_control_requests_total 1\n"), "{text}");
}
