//! Clients that break the rules, on raw sockets against a live control server.
//!
//! After each of them the server has to serve an honest client as before.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use aerostat::control::Limits;
use system_tests::mock_vm::{Driver, MockVm};

/// Longer than any test runs, for what must not depend on a timer.
const NEVER: Duration = Duration::from_secs(3600);
/// Long enough for a server to answer, short enough to wait for in a test.
const PATIENCE: Duration = Duration::from_secs(20);

fn limits() -> Limits {
    let room_time = PATIENCE;
    Limits { room_time, head_time: NEVER, body_time: NEVER, write_time: NEVER, ..Limits::default() }
}

fn vm() -> MockVm {
    MockVm::start_with_limits(Driver::Follows, limits())
}

fn connect(vm: &MockVm) -> UnixStream {
    let stream = UnixStream::connect(vm.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads one answer of known length: status, head, body.
fn answer(stream: &mut UnixStream) -> (u16, String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|e| panic!("no answer: {e}; head {head:?}"));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    (status, head, String::from_utf8(body).unwrap())
}

/// The answer to `request` on a connection of its own.
fn ask(vm: &MockVm, request: impl AsRef<[u8]>) -> (u16, String, String) {
    let mut stream = connect(vm);
    stream.write_all(request.as_ref()).unwrap();
    answer(&mut stream)
}

/// The status and fault message of a request that is refused.
fn fault(vm: &MockVm, request: impl AsRef<[u8]>) -> (u16, String) {
    let (status, _head, body) = ask(vm, request);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    (status, body["fault_message"].as_str().expect("a fault message").to_owned())
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn is_closed(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(0) => true,
        Ok(_) => false,
        // Closed with bytes of ours unread.
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn assert_serves(vm: &MockVm) {
    assert_eq!(vm.client().instance().unwrap().id, "mock");
}

#[test]
fn malformed_http_is_answered_with_400_and_a_fault_message_and_closed() {
    let vm = vm();
    for bytes in [
        &b"hello\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let mut stream = connect(&vm);
        stream.write_all(bytes).unwrap();
        let (status, head, body) = answer(&mut stream);
        assert_eq!(status, 400, "{bytes:?}");
        assert!(body.contains("fault_message") && body.contains("Malformed HTTP"), "{body}");
        assert!(head.contains("connection: close"), "{head}");
        assert!(is_closed(&mut stream));
    }
    assert_serves(&vm);
}

#[test]
fn malformed_json_is_refused_by_what_is_wrong_and_the_connection_goes_on() {
    let vm = vm();
    let mut stream = connect(&vm);
    for (body, words) in [
        ("{", "EOF"),
        ("not json", "expected"),
        ("[]", "invalid"),
        ("{}", "missing field `amount_mib`"),
        (r#"{"amount_mib":"12"}"#, "invalid type: string"),
        ("[1]", "invalid type: sequence, expected an object"),
        (" \n[1]", "invalid type: sequence, expected an object"),
        (r#"{"amount_mib":1,"amount_mib":2}"#, "duplicate field `amount_mib`"),
        (r#"{"amount_mib":1} trailing"#, "trailing characters"),
        (r#"{"amount_mib":4294967296}"#, "4294967296"),
        (r#"{"amount_mib":-1}"#, "-1"),
        ("{\"amount_mib\":\u{0}1}", "expected value"),
    ] {
        stream.write_all(request("PATCH", "/balloon", body).as_bytes()).unwrap();
        let (status, _, answer) = answer(&mut stream);
        assert_eq!(status, 400, "{body}");
        assert!(answer.contains(words), "{body}: {answer}");
    }
    stream.write_all(&request("PATCH", "/balloon", "x").into_bytes()).unwrap();
    assert_eq!(answer(&mut stream).0, 400);
    assert!(vm.log().is_empty());
}

#[test]
fn bytes_that_are_no_utf8_are_refused() {
    let vm = vm();
    let mut bytes = b"PATCH /vm HTTP/1.1\r\nContent-Length: 16\r\n\r\n{\"state\":\"".to_vec();
    bytes.extend_from_slice(b"\xff\xff\xff\xff\"}");
    assert_eq!(fault(&vm, bytes).0, 400);
}

#[test]
fn unknown_fields_are_refused_by_name_on_every_endpoint_that_takes_a_body() {
    let vm = vm();
    for (method, path, body) in [
        ("PATCH", "/vm", r#"{"state":"Paused","surprise":1}"#),
        ("PATCH", "/balloon", r#"{"amount_mib":1,"surprise":1}"#),
        ("PUT", "/balloon/operation", r#"{"target_bytes":4096,"surprise":1}"#),
        ("POST", "/guest/scenarios", r#"{"scenario":"echo","surprise":1}"#),
        ("PUT", "/vm/stop", r#"{"timeout_ms":1,"surprise":1}"#),
        ("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel","surprise":1}"#),
    ] {
        let (status, message) = fault(&vm, request(method, path, body));
        assert_eq!(status, 400, "{method} {path}");
        assert!(message.contains("unknown field `surprise`"), "{message}");
    }
    assert!(vm.log().is_empty(), "{:?}", vm.log());
}

#[test]
fn deep_json_is_refused_without_a_deep_stack() {
    let vm = vm();
    let deep = format!(r#"{{"amount_mib":{}1{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    assert_eq!(fault(&vm, request("PATCH", "/balloon", &deep)).0, 400);
    let deep = format!(r#"{{"x":{}{}}}"#, r#"{"x":"#.repeat(8_000), "}".repeat(8_000));
    assert_eq!(fault(&vm, request("PATCH", "/vm", &deep)).0, 400);
    assert_serves(&vm);
}

#[test]
fn unknown_paths_and_verbs_are_refused_in_firecrackers_words() {
    let vm = vm();
    let (status, message) = fault(&vm, "GET /nothing HTTP/1.1\r\n\r\n");
    assert_eq!(
        (status, message.as_str()),
        (400, "Invalid request method and/or path: GET /nothing.")
    );
    assert_eq!(fault(&vm, request("DELETE", "/balloon", "{}")).0, 400);
    assert_eq!(fault(&vm, request("PUT", "/vm", "{}")).0, 400);
    assert_eq!(fault(&vm, "FROB / HTTP/1.1\r\n\r\n").0, 400);
    assert_eq!(fault(&vm, "OPTIONS * HTTP/1.1\r\n\r\n").0, 400);
    assert_eq!(fault(&vm, "GET /version?x=1 HTTP/1.1\r\n\r\n").0, 400);
    let (_, message) = fault(&vm, request("GET", "/balloon", "{}"));
    assert_eq!(message, "GET request cannot have a body.");
    let (_, message) = fault(&vm, request("PUT", "/actions", ""));
    assert_eq!(message, "Empty PUT request.");
    let (_, message) = fault(&vm, request("PUT", "/entropy", "{}"));
    assert!(message.contains("not supported after starting"), "{message}");
}

#[test]
fn heads_and_bodies_above_the_limits_are_refused_before_they_are_read() {
    let vm = vm();
    let long_target = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000));
    assert_eq!(fault(&vm, long_target).0, 431);
    let long_header = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(20_000));
    assert_eq!(fault(&vm, long_header).0, 431);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    assert_eq!(fault(&vm, many).0, 431);
    let (status, message) = fault(&vm, "PUT /actions HTTP/1.1\r\nContent-Length: 51201\r\n\r\n");
    assert_eq!(status, 413);
    assert!(message.contains("51201") && message.contains("51200"), "{message}");
    let huge = "PUT /actions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n";
    assert_eq!(fault(&vm, huge).0, 413);
    let chunked = "PUT /actions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(fault(&vm, chunked).0, 411);
    assert_serves(&vm);
}

#[test]
fn a_body_at_the_limit_is_read() {
    let vm = vm();
    let spaces = " ".repeat(51_200 - r#"{"state":"Paused"}"#.len());
    let body = format!(r#"{{"state":"Paused"{spaces}}}"#);
    assert_eq!(ask(&vm, request("PATCH", "/vm", &body)).0, 204);
}

#[test]
fn a_client_that_sends_a_byte_at_a_time_gets_408_while_others_are_served() {
    let limits = Limits { head_time: Duration::from_millis(300), ..limits() };
    let vm = MockVm::start_with_limits(Driver::Follows, limits);
    let mut slow = connect(&vm);
    let mut feeder = slow.try_clone().unwrap();
    let feeding = thread::spawn(move || {
        for byte in b"GET /version HTTP/1.1\r\nx: y".iter().cycle() {
            if feeder.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert_serves(&vm);
    let (status, _, body) = answer(&mut slow);
    assert_eq!(status, 408);
    assert!(body.contains("head was not complete"), "{body}");
    feeding.join().unwrap();
    assert_serves(&vm);
}

#[test]
fn a_body_that_never_comes_gets_408() {
    let limits = Limits { body_time: Duration::from_millis(100), ..limits() };
    let vm = MockVm::start_with_limits(Driver::Follows, limits);
    let mut stream = connect(&vm);
    stream.write_all(b"PUT /actions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{").unwrap();
    let (status, _, body) = answer(&mut stream);
    assert_eq!(status, 408);
    assert!(body.contains("body was not complete"), "{body}");
    assert!(is_closed(&mut stream));
    assert_serves(&vm);
}

#[test]
fn clients_that_hang_without_a_byte_cost_nothing_to_others() {
    let vm = vm();
    let _hanging: Vec<_> = (0..20).map(|_| connect(&vm)).collect();
    for _ in 0..3 {
        assert_serves(&vm);
    }
}

#[test]
fn clients_that_disconnect_in_mid_request_are_forgotten() {
    let vm = vm();
    for bytes in [
        &b""[..],
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"PATCH /balloon HTTP/1.1\r\nContent-Length: 20\r\n\r\n{\"amount_mib\"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /guest/scenarios HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"scenario\":\"echo\"}",
    ] {
        for _ in 0..20 {
            let mut stream = connect(&vm);
            stream.write_all(bytes).unwrap();
        }
    }
    assert_serves(&vm);
    assert!(vm.log().is_empty(), "a request that never ended was served: {:?}", vm.log());
}

#[test]
fn a_client_that_closes_its_half_still_gets_its_answer() {
    let vm = vm();
    let mut stream = connect(&vm);
    stream.write_all(b"GET /version HTTP/1.1\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(&mut stream).0, 200);
    assert!(is_closed(&mut stream));
}

#[test]
fn beyond_the_cap_the_idlest_connection_makes_room() {
    let vm = MockVm::start_with_limits(Driver::Follows, Limits { connections: 4, ..limits() });
    let mut idle: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = connect(&vm);
            stream.write_all(b"GET /version HTTP/1.1\r\n\r\n").unwrap();
            assert_eq!(answer(&mut stream).0, 200);
            stream
        })
        .collect();
    assert_serves(&vm);
    assert!(is_closed(&mut idle[0]), "the longest idle one was to go");
    idle[3].write_all(b"GET /version HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(answer(&mut idle[3]).0, 200);
}

#[test]
fn beyond_the_cap_of_busy_connections_a_client_is_told_so() {
    let room_time = Duration::from_millis(20);
    let limits = Limits { connections: 3, room_time, reply_time: NEVER, ..limits() };
    let vm = MockVm::start_with_limits(Driver::LoopHangs, limits);
    let busy: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = connect(&vm);
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let mut stream = connect(&vm);
    let (status, _, body) = answer(&mut stream);
    assert_eq!(status, 503);
    assert!(body.contains("More than 3 connections"), "{body}");
    drop(busy);
}

#[test]
fn an_event_loop_that_hangs_is_answered_for_and_does_not_block_others() {
    let limits = Limits { reply_time: Duration::from_millis(200), ..limits() };
    let vm = MockVm::start_with_limits(Driver::LoopHangs, limits);
    let mut waiting = connect(&vm);
    waiting.write_all(b"GET /balloon HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(ask(&vm, "GET /version HTTP/1.1\r\n\r\n").0, 200);
    let (status, _, body) = answer(&mut waiting);
    assert_eq!(status, 503);
    assert!(body.contains("event loop did not answer"), "{body}");
}

#[test]
fn http_1_0_connections_stay_open_as_firecrackers_clients_expect() {
    let vm = vm();
    let mut stream = connect(&vm);
    for _ in 0..3 {
        stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!(answer(&mut stream).0, 200);
    }
    stream
        .write_all(b"PATCH /vm HTTP/1.0\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}")
        .unwrap();
    assert_eq!(answer(&mut stream).0, 204);
    let exec =
        "POST /guest/scenarios HTTP/1.0\r\nContent-Length: 19\r\n\r\n{\"scenario\":\"echo\"}";
    stream.write_all(exec.as_bytes()).unwrap();
    let (status, _, body) = answer(&mut stream);
    assert_eq!(status, 400);
    assert!(body.contains("HTTP/1.1"), "{body}");
}

#[test]
fn an_empty_success_is_204_without_a_content_length() {
    let vm = vm();
    let (status, head, _) = ask(&vm, request("PATCH", "/balloon", r#"{"amount_mib":128}"#));
    assert_eq!(status, 204);
    assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
    assert_eq!(vm.log(), ["target 134217728 deadline None"]);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let vm = vm();
    let mut stream = connect(&vm);
    let bodies = [r#"{"amount_mib":1}"#, r#"{"amount_mib":9999}"#, r#"{"amount_mib":2}"#];
    let all: String = bodies.iter().map(|body| request("PATCH", "/balloon", body)).collect();
    stream.write_all(format!("{all}broken\r\n\r\n").as_bytes()).unwrap();
    let statuses: Vec<_> = (0..4).map(|_| answer(&mut stream).0).collect();
    assert_eq!(statuses, [204, 400, 204, 400]);
    assert!(is_closed(&mut stream));
}

#[test]
fn a_client_that_expects_100_continue_gets_it() {
    let vm = vm();
    let mut stream = connect(&vm);
    let head = "PATCH /vm HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 18\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(answer(&mut stream).0, 100);
    stream.write_all(b"{\"state\":\"Paused\"}").unwrap();
    assert_eq!(answer(&mut stream).0, 204);
}

#[test]
fn random_bytes_never_stop_the_server() {
    use rand::{Rng as _, RngExt as _, SeedableRng as _};
    let vm = vm();
    let mut random = rand::rngs::StdRng::seed_from_u64(20);
    for round in 0..200 {
        let mut bytes = vec![0; random.random_range(1..400)];
        random.fill_bytes(&mut bytes);
        if round % 2 == 0 {
            let mut head = b"PATCH /balloon HTTP/1.1\r\nContent-Length: 40\r\n".to_vec();
            let at = random.random_range(0..head.len());
            head[at] = bytes[0];
            bytes = [head, bytes].concat();
        }
        let mut stream = connect(&vm);
        // The server may refuse and close before everything is sent.
        stream.write_all(&bytes).ok();
    }
    assert_serves(&vm);
}
