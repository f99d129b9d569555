//! The client's half of HTTP/1.1: one request, one answer, then the connection ends.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::ClientError;

/// Largest head of an answer, in bytes.
const HEAD_LIMIT: usize = 16 << 10;
/// Largest body that is taken as a whole, in bytes.
const TEXT_LIMIT: u64 = 16 << 20;
/// Longest chunk-size line, in bytes.
const CHUNK_LINE_LIMIT: u64 = 64;

/// Sends one request and reads the head of its answer.
pub(super) fn exchange(
    mut stream: UnixStream,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
) -> Result<Response, ClientError> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    request.push_str("Accept: application/json\r\nConnection: close\r\n");
    if let Some(body) = body {
        request.push_str("Content-Type: application/json\r\n");
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    let mut bytes = request.into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    // A server that refuses early may close before it has read everything: its answer counts.
    let sent = stream.write_all(&bytes);
    match Response::read_head(BufReader::with_capacity(4 << 10, stream)) {
        Err(ClientError::Protocol(_)) if sent.is_err() => Err(sent.map_or_else(Into::into, |()| {
            ClientError::Protocol("The VMM closed the connection without an answer".into())
        })),
        answer => answer,
    }
}

/// An answer; reading it reads its body.
pub struct Response {
    status: u16,
    stream: BufReader<UnixStream>,
    rest: Rest,
}

/// What is left of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// This many bytes.
    Bytes(u64),
    /// This many bytes of a chunk, and then more chunks.
    Chunk(u64),
    /// Everything until the connection ends.
    UntilClose,
}

impl Response {
    /// HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The whole body as text.
    ///
    /// # Errors
    /// [`ClientError`]; a body above 16 MiB is refused.
    pub fn into_text(mut self) -> Result<String, ClientError> {
        let mut text = String::new();
        (&mut self).take(TEXT_LIMIT).read_to_string(&mut text)?;
        Ok(text)
    }

    /// How long to wait for more of the body; `None`: for ever.
    pub(super) fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(timeout)
    }

    fn read_head(mut stream: BufReader<UnixStream>) -> Result<Self, ClientError> {
        loop {
            let head = read_head_bytes(&mut stream)?;
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut parsed = httparse::Response::new(&mut headers);
            parsed
                .parse(&head)
                .map_err(|e| ClientError::Protocol(format!("The answer is no HTTP: {e}")))?;
            let status = parsed
                .code
                .ok_or_else(|| ClientError::Protocol("The answer has no HTTP status".into()))?;
            // Interim answers precede the real one.
            if !(100..200).contains(&status) {
                let rest = framing(status, parsed.headers)?;
                return Ok(Self { status, stream, rest });
            }
        }
    }

    /// Moves to the next chunk when the present one is read; the end is `Rest::Bytes(0)`.
    fn next_chunk(&mut self) -> io::Result<()> {
        let mut line = read_line(&mut self.stream)?;
        // The line end after the data of the chunk before.
        if line == b"\r\n" {
            line = read_line(&mut self.stream)?;
        }
        let size = match httparse::parse_chunk_size(&line) {
            Ok(httparse::Status::Complete((_, size))) => size,
            Ok(httparse::Status::Partial) | Err(_) => return Err(malformed("chunk size")),
        };
        if size > 0 {
            self.rest = Rest::Chunk(size);
            return Ok(());
        }
        // Trailers are not used by anyone here: skip to the empty line.
        while !matches!(read_line(&mut self.stream)?.as_slice(), b"\r\n" | b"\n" | b"") {}
        self.rest = Rest::Bytes(0);
        Ok(())
    }
}

impl BufRead for Response {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest == Rest::Chunk(0) {
            self.next_chunk()?;
        }
        let limit = match self.rest {
            Rest::Bytes(0) => return Ok(&[]),
            Rest::Bytes(n) | Rest::Chunk(n) => usize::try_from(n).unwrap_or(usize::MAX),
            Rest::UntilClose => usize::MAX,
        };
        let buffer = self.stream.fill_buf()?;
        if buffer.is_empty() && self.rest != Rest::UntilClose {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&buffer[..buffer.len().min(limit)])
    }

    fn consume(&mut self, amount: usize) {
        self.stream.consume(amount);
        match &mut self.rest {
            Rest::Bytes(left) | Rest::Chunk(left) => *left = left.saturating_sub(amount as u64),
            Rest::UntilClose => {}
        }
    }
}

impl Read for Response {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(out.len());
        out[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

/// Everything up to and with the empty line.
fn read_head_bytes(stream: &mut BufReader<UnixStream>) -> Result<Vec<u8>, ClientError> {
    let mut head = Vec::new();
    loop {
        let room = HEAD_LIMIT.saturating_sub(head.len()) as u64;
        let start = head.len();
        stream.by_ref().take(room).read_until(b'\n', &mut head)?;
        match &head[start..] {
            b"" => return Err(no_answer(head.len())),
            b"\r\n" | b"\n" if start > 0 => return Ok(head),
            _ => {}
        }
    }
}

fn no_answer(read: usize) -> ClientError {
    ClientError::Protocol(match read {
        0 => "The VMM closed the connection without an answer".into(),
        HEAD_LIMIT.. => format!("The head of the answer is above {HEAD_LIMIT} B"),
        _ => "The VMM closed the connection in the middle of an answer".into(),
    })
}

/// One line of a chunked body's own, with its line end.
fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.by_ref().take(CHUNK_LINE_LIMIT).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// How the body ends (RFC 9112 §6.3).
fn framing(status: u16, headers: &[httparse::Header<'_>]) -> Result<Rest, ClientError> {
    let value_of = |name: &str| headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
    if matches!(status, 204 | 304) {
        return Ok(Rest::Bytes(0));
    }
    if let Some(coding) = value_of("transfer-encoding") {
        return if coding.value.eq_ignore_ascii_case(b"chunked") {
            Ok(Rest::Chunk(0))
        } else {
            Err(ClientError::Protocol("The answer has an unknown transfer encoding".into()))
        };
    }
    let Some(length) = value_of("content-length") else { return Ok(Rest::UntilClose) };
    std::str::from_utf8(length.value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map(Rest::Bytes)
        .ok_or_else(|| ClientError::Protocol("The answer has a malformed length".into()))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client makes of a server that writes `answer` and closes.
    fn read(answer: &[u8]) -> Result<(u16, String), ClientError> {
        let (client, mut server) = UnixStream::pair().unwrap();
        server.write_all(answer).unwrap();
        server.shutdown(std::net::Shutdown::Write).unwrap();
        let response = exchange(client, "GET", "/", None)?;
        let status = response.status();
        Ok((status, response.into_text()?))
    }

    #[test]
    fn a_body_of_known_length_ends_at_its_length() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi, ignored";
        assert_eq!(read(answer).unwrap(), (200, "hi".into()));
    }

    #[test]
    fn chunks_are_joined_and_trailers_skipped() {
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
            3\r\nab\n\r\n2;x=y\r\ncd\r\n0\r\nx: y\r\n\r\n";
        assert_eq!(read(answer).unwrap(), (200, "ab\ncd".into()));
    }

    #[test]
    fn interim_answers_are_skipped_and_204_has_no_body() {
        let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(read(answer).unwrap(), (204, String::new()));
    }

    #[test]
    fn a_server_that_closes_early_is_an_error_and_not_an_empty_answer() {
        for answer in [
            &b""[..],
            b"HTTP/1.1 200",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhi",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
        ] {
            assert!(read(answer).is_err(), "{:?}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn an_endless_head_is_cut_at_the_limit() {
        let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
        while answer.len() <= HEAD_LIMIT {
            answer.extend_from_slice(b"x: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n");
        }
        assert!(read(&answer).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_taken_or_refused_without_a_panic(
            answer in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            prefix in 0_usize..3,
        ) {
            let mut bytes = [
                &b""[..],
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                b"HTTP/1.1 200 OK\r\n",
            ][prefix].to_vec();
            bytes.extend(answer);
            match read(&bytes) {
                Ok((status, _)) => proptest::prop_assert!(status >= 200),
                Err(error) => proptest::prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
