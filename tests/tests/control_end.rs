//! The end of a control server: nothing is left behind, and nobody can hold it up.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use aerostat::control::Limits;
use aerostat_api::{ExecEvent, ExecRequest};
use system_tests::mock_vm::{Driver, MockVm};

/// Longer than any test may take: an end that waits for it hangs the test.
const NEVER: Duration = Duration::from_secs(3600);

fn patient() -> Limits {
    Limits { drain_time: NEVER, reply_time: NEVER, ..Limits::default() }
}

fn read_to_end(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_socket_is_gone_and_connections_that_idle_are_closed_at_once() {
    let mut vm = MockVm::start_with_limits(Driver::Follows, patient());
    let silent = UnixStream::connect(vm.socket()).unwrap();
    let mut used = UnixStream::connect(vm.socket()).unwrap();
    used.write_all(b"PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}")
        .unwrap();
    let mut head = [0; 12];
    used.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 204");
    vm.finish_server();
    assert!(!vm.socket().exists());
    assert_eq!(read_to_end(silent), "");
    read_to_end(used);
}

#[test]
fn an_answer_under_way_goes_out_before_the_end() {
    let mut vm = MockVm::start_with_limits(Driver::LoopHangs, patient());
    let mut waiting = UnixStream::connect(vm.socket()).unwrap();
    waiting.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // One thread serves both, in order: when the second is answered the first is with the event loop.
    vm.client().version().unwrap();
    vm.end_event_loop();
    vm.finish_server();
    let text = read_to_end(waiting);
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("The VM has ended"), "{text}");
}

#[test]
fn an_answer_that_never_comes_is_cut_off_after_the_drain_time() {
    let limits = Limits { drain_time: Duration::from_millis(50), ..patient() };
    let mut vm = MockVm::start_with_limits(Driver::LoopHangs, limits);
    let mut waiting = UnixStream::connect(vm.socket()).unwrap();
    waiting.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    vm.client().version().unwrap();
    vm.finish_server();
    assert_eq!(read_to_end(waiting), "");
}

#[test]
fn a_scenario_that_runs_does_not_hold_up_the_end() {
    let limits = Limits { drain_time: Duration::from_millis(50), ..patient() };
    let mut vm = MockVm::start_with_limits(Driver::Follows, limits);
    let request = ExecRequest { scenario: "hang".into(), args: Vec::new() };
    let mut output = vm.client().exec(&request).unwrap();
    assert_eq!(output.next().unwrap().unwrap(), ExecEvent::Line { line: "hanging".into() });
    vm.finish_server();
    // Cut off, which no reader can take for a scenario that succeeded.
    assert!(!matches!(output.next(), Some(Ok(_))));
}
