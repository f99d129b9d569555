use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

fn limits() -> Limits {
    Limits { head_bytes: 512, body_bytes: 64, ..Limits::default() }
}

/// What passes the gate when a client sends `pieces` and leaves, and the notes on it.
fn pass(pieces: &[&[u8]]) -> (Vec<u8>, Vec<HeadNote>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let notes = Rc::new(HeadNotes::default());
        let mut gate = HeadGate::new(server, limits(), Rc::clone(&notes));
        let mut passed = Vec::new();
        for piece in pieces {
            client.write_all(piece).await.unwrap();
            read_available(&mut gate, &mut passed).await;
        }
        drop(client);
        read_available(&mut gate, &mut passed).await;
        let notes = notes.notes.borrow().iter().cloned().collect();
        (passed, notes)
    })
}

/// Reads until the gate has nothing more for now.
async fn read_available(gate: &mut HeadGate<tokio::io::DuplexStream>, passed: &mut Vec<u8>) {
    loop {
        let mut chunk = [0; 97];
        let read = tokio::select! {
            biased;
            read = gate.read(&mut chunk) => read.unwrap(),
            () = tokio::task::yield_now() => return,
        };
        match read {
            0 => return,
            n => passed.extend_from_slice(&chunk[..n]),
        }
    }
}

fn faults(pieces: &[&[u8]]) -> Vec<StatusCode> {
    let (_, notes) = pass(pieces);
    notes.into_iter().filter_map(|note| note.fault.map(|(status, _)| status)).collect()
}

#[test]
fn http_1_1_passes_unchanged() {
    let bytes = b"PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n";
    let (passed, notes) = pass(&[bytes]);
    assert_eq!(passed, bytes);
    assert_eq!(notes, [HeadNote::default(), HeadNote::default()]);
}

#[test]
fn http_1_0_passes_as_1_1_and_is_noted() {
    let (passed, notes) = pass(&[b"\r\nGET /HTTP/1.0 HTTP/1.0\r\nA: HTTP/1.0\r\n\r\n"]);
    assert_eq!(passed, b"\r\nGET /HTTP/1.0 HTTP/1.1\r\nA: HTTP/1.0\r\n\r\n");
    assert!(notes[0].is_http10);
}

#[test]
fn a_body_that_looks_like_a_head_is_not_touched() {
    let head = b"PUT / HTTP/1.0\r\nContent-Length: 18\r\n\r\n";
    let body = b"GET / HTTP/1.0\r\n\r\n";
    let (passed, notes) = pass(&[head, body]);
    assert!(passed.ends_with(body));
    assert_eq!(notes.len(), 1);
}

#[test]
fn malformed_heads_become_a_placeholder_with_a_fault() {
    for bytes in [
        &b"garbage\r\n\r\n"[..],
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length:\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ] {
        let (passed, notes) = pass(&[bytes, b"GET /next HTTP/1.1\r\n\r\n"]);
        assert_eq!(passed, PLACEHOLDER, "{:?}", String::from_utf8_lossy(bytes));
        let fault = notes[0].fault.as_ref().unwrap();
        assert_eq!((notes.len(), fault.0), (1, StatusCode::BAD_REQUEST));
    }
}

#[test]
fn limits_are_known_before_the_bytes_are_read() {
    let too_long = [b"GET /".as_slice(), &[b'a'; 600]].concat();
    assert_eq!(faults(&[&too_long]), [StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE]);
    let whole = [&too_long, b" HTTP/1.1\r\n\r\n".as_slice()].concat();
    assert_eq!(faults(&[&whole]), [StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE]);
    let many = [b"GET / HTTP/1.1\r\n".as_slice(), &b"a:b\r\n".repeat(65)].concat();
    assert_eq!(faults(&[&many]), [StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE]);
    for length in ["65", "18446744073709551616"] {
        let head = format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
        assert_eq!(faults(&[head.as_bytes()]), [StatusCode::PAYLOAD_TOO_LARGE]);
    }
    let chunked = b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(faults(&[chunked]), [StatusCode::LENGTH_REQUIRED]);
}

#[tokio::test(start_paused = true)]
async fn the_head_timer_starts_with_the_first_byte_and_not_before() {
    let (mut client, server) = tokio::io::duplex(1024);
    let notes = Rc::new(HeadNotes::default());
    let mut gate = HeadGate::new(server, limits(), Rc::clone(&notes));
    let mut passed = Vec::new();
    let hour = std::time::Duration::from_secs(3600);
    read_for(&mut gate, &mut passed, hour).await;
    assert!(passed.is_empty() && notes.idle_since().is_some());

    client.write_all(b"G").await.unwrap();
    read_for(&mut gate, &mut passed, limits().head_time / 2).await;
    assert!(passed.is_empty() && notes.idle_since().is_none());
    client.write_all(b"E").await.unwrap();
    read_for(&mut gate, &mut passed, limits().head_time).await;
    assert_eq!(passed, PLACEHOLDER);
    assert_eq!(notes.take().fault.unwrap().0, StatusCode::REQUEST_TIMEOUT);
}

async fn read_for(
    gate: &mut HeadGate<tokio::io::DuplexStream>,
    passed: &mut Vec<u8>,
    time: std::time::Duration,
) {
    let read = async {
        loop {
            let mut chunk = [0; 64];
            let n = gate.read(&mut chunk).await.unwrap();
            passed.extend_from_slice(&chunk[..n]);
        }
    };
    assert!(tokio::time::timeout(time, read).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_never_reads_ends_the_connection() {
    let (_client, server) = tokio::io::duplex(16);
    let mut gate = HeadGate::new(server, limits(), Rc::default());
    let error = gate.write_all(&[0; 64]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

/// A request that the gate lets pass: version, body.
fn request() -> impl Strategy<Value = (bool, Vec<u8>)> {
    (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40))
}

proptest! {
    #[test]
    fn however_requests_are_cut_the_same_bytes_pass(
        requests in proptest::collection::vec(request(), 1..5),
        cuts in proptest::collection::vec(1_usize..60, 0..30),
    ) {
        let (mut sent, mut expected) = (Vec::new(), Vec::new());
        for (is_http10, body) in &requests {
            let rest = format!("\r\nContent-Length: {}\r\n\r\n", body.len());
            let minor = if *is_http10 { "0" } else { "1" };
            sent.extend([format!("PUT /a HTTP/1.{minor}{rest}").as_bytes(), body].concat());
            expected.extend([format!("PUT /a HTTP/1.1{rest}").as_bytes(), body].concat());
        }
        let mut pieces = Vec::new();
        let mut left = sent.as_slice();
        for cut in cuts {
            let (piece, rest) = left.split_at(cut.min(left.len()));
            pieces.push(piece);
            left = rest;
        }
        pieces.push(left);
        let (passed, notes) = pass(&pieces);
        prop_assert_eq!(passed, expected);
        let versions: Vec<_> = notes.iter().map(|note| note.is_http10).collect();
        prop_assert_eq!(versions, requests.iter().map(|(v, _)| *v).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_pass_or_are_refused_without_a_panic(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..80), 1..6),
    ) {
        let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).collect();
        let (passed, notes) = pass(&pieces);
        prop_assert!(passed.is_empty() || !notes.is_empty());
    }
}
