//! A gate between socket and HTTP library that admits one checked request head at a time.
//!
//! The library is right about HTTP and wrong for our clients in four points,
//! mended here, at heads only and never inside a body:
//!
//! * Firecracker's clients speak HTTP/1.0 and expect the connection to stay
//!   open: such a head is handed on as HTTP/1.1;
//! * the library's head timer also ends connections that idle between
//!   requests: ours starts with a head's first byte;
//! * it answers malformed heads with an empty body: the gate hands on a
//!   placeholder request instead, and [`HeadNotes`] tells the service what to say;
//! * it takes any Content-Length and waits: the gate knows the limit at once.
//!
//! Invariant: every head that is handed on has exactly one [`HeadNote`], in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::Limits;

/// A valid request that stands for a head that was not.
const PLACEHOLDER: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// What the gate has to say about a head beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct HeadNote {
    /// The request is a placeholder: answer this and close.
    pub(super) fault: Option<(StatusCode, String)>,
    /// The client spoke HTTP/1.0 and cannot read a chunked answer.
    pub(super) is_http10: bool,
}

/// Notes on the heads handed on and not yet served, and since when nothing has been.
#[derive(Default)]
pub(super) struct HeadNotes {
    notes: RefCell<VecDeque<HeadNote>>,
    idle_since: Cell<Option<Instant>>,
}

impl HeadNotes {
    /// The note on the oldest head that has not been served.
    pub(super) fn take(&self) -> HeadNote {
        self.notes.borrow_mut().pop_front().unwrap_or_default()
    }

    /// Since when the connection has been waiting for a request; `None` while it has one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.idle_since.get()
    }
}

/// What the bytes collected so far are.
#[derive(Debug, PartialEq, Eq)]
enum Inspection {
    Incomplete,
    Complete {
        /// Bytes of the head.
        len: usize,
        /// Bytes of the body that follows.
        body: u64,
        is_http10: bool,
    },
    Refused(StatusCode, String),
}

/// Where the gate is in the client's byte stream.
enum State {
    /// In a head; bytes collect in `input`.
    Head,
    /// In a body of which this many bytes are still to come.
    Body(u64),
    /// A placeholder was handed on: nothing further is read.
    Refused,
}

/// The gate around a connected socket.
pub(super) struct HeadGate<S> {
    socket: S,
    limits: Limits,
    notes: Rc<HeadNotes>,
    state: State,
    /// Read and not yet judged.
    input: Vec<u8>,
    /// Judged and not yet handed on.
    output: VecDeque<u8>,
    head_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl<S> HeadGate<S> {
    pub(super) fn new(socket: S, limits: Limits, notes: Rc<HeadNotes>) -> Self {
        notes.idle_since.set(Some(Instant::now()));
        Self {
            socket,
            limits,
            notes,
            state: State::Head,
            input: Vec::new(),
            output: VecDeque::new(),
            head_timer: None,
            write_timer: None,
        }
    }

    /// Judges what is in `input` and moves what may pass to `output`.
    fn advance(&mut self) {
        match self.state {
            State::Refused => self.input.clear(),
            State::Body(left) => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
                self.output.extend(self.input.drain(..here));
                let left = left.saturating_sub(here as u64);
                self.state = if left == 0 { State::Head } else { State::Body(left) };
            }
            State::Head => match inspect(&self.input, &self.limits) {
                Inspection::Incomplete => {}
                Inspection::Refused(status, message) => self.refuse(status, message),
                Inspection::Complete { len, body, is_http10 } => {
                    self.admit(len, body, is_http10);
                }
            },
        }
    }

    fn admit(&mut self, len: usize, body: u64, is_http10: bool) {
        let mut head: Vec<u8> = self.input.drain(..len).collect();
        if is_http10 && let Some(minor) = minor_version(&mut head) {
            *minor = b'1';
        }
        self.output.extend(head);
        self.notes.notes.borrow_mut().push_back(HeadNote { fault: None, is_http10 });
        self.head_timer = None;
        self.state = if body == 0 { State::Head } else { State::Body(body) };
    }

    fn refuse(&mut self, status: StatusCode, message: String) {
        self.output.extend(PLACEHOLDER);
        let fault = Some((status, message));
        self.notes.notes.borrow_mut().push_back(HeadNote { fault, is_http10: false });
        self.head_timer = None;
        self.input = Vec::new();
        self.state = State::Refused;
    }

    /// Hands on what has been judged; `true` if there was something.
    fn hand_on(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let (front, _) = self.output.as_slices();
        let taken = front.len().min(out.remaining());
        out.put_slice(&front[..taken]);
        self.output.drain(..taken);
        taken > 0
    }

    /// Refuses a head that has taken too long.
    fn poll_head_timer(&mut self, cx: &mut Context<'_>) {
        if !matches!(self.state, State::Head) || self.input.is_empty() {
            return;
        }
        let limit = self.limits.head_time;
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if timer.as_mut().poll(cx).is_ready() {
            let message = format!("The request's head was not complete within {limit:?}");
            self.refuse(StatusCode::REQUEST_TIMEOUT, message);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadGate<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        loop {
            if !gate.input.is_empty() {
                gate.advance();
            }
            gate.poll_head_timer(cx);
            if gate.hand_on(out) {
                gate.notes.idle_since.set(None);
                return Poll::Ready(Ok(()));
            }
            if matches!(gate.state, State::Refused) {
                // The answer to the placeholder closes the connection.
                return Poll::Pending;
            }
            let mut chunk = [0; 2048];
            let mut chunk = ReadBuf::new(&mut chunk);
            match Pin::new(&mut gate.socket).poll_read(cx, &mut chunk) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    gate.note_idleness();
                    return Poll::Pending;
                }
            }
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            gate.notes.idle_since.set(None);
            gate.input.extend_from_slice(chunk.filled());
        }
    }
}

impl<S> HeadGate<S> {
    /// The library reads only when it has nothing to answer, so waiting for a head is idleness.
    fn note_idleness(&self) {
        let is_between_requests = matches!(self.state, State::Head) && self.input.is_empty();
        if is_between_requests && self.notes.idle_since.get().is_none() {
            self.notes.idle_since.set(Some(Instant::now()));
        }
    }

    /// Fails a write that has waited for its reader too long.
    fn poll_write_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let limit = self.limits.write_time;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadGate<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        match Pin::new(&mut gate.socket).poll_write(cx, bytes) {
            Poll::Ready(written) => {
                gate.write_timer = None;
                Poll::Ready(written)
            }
            Poll::Pending => gate.poll_write_timer(cx).map(Err),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// Judges the beginning of a request by the parser that the HTTP library uses too.
fn inspect(bytes: &[u8], limits: &Limits) -> Inspection {
    let mut headers = [httparse::EMPTY_HEADER; Limits::HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < limits.head_bytes => {
            return Inspection::Incomplete;
        }
        Ok(httparse::Status::Partial) => return head_too_large(limits),
        Err(httparse::Error::TooManyHeaders) => {
            let message = format!("More than {} headers", Limits::HEADERS);
            return refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &message);
        }
        Err(error) => return bad_request(&format!("Malformed HTTP: {error}")),
    };
    if len > limits.head_bytes {
        return head_too_large(limits);
    }
    if request.path.is_none_or(|target| target.parse::<hyper::Uri>().is_err()) {
        return bad_request("Malformed HTTP: invalid request target");
    }
    match body_length(request.headers, limits) {
        Ok(body) => Inspection::Complete { len, body, is_http10: request.version == Some(0) },
        Err(refusal) => refusal,
    }
}

/// Length of the body (RFC 9112 §6.3), or why it is refused.
fn body_length(headers: &[httparse::Header<'_>], limits: &Limits) -> Result<u64, Inspection> {
    let mut length = None;
    for header in headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            let message = "Transfer-Encoding is not supported; send Content-Length";
            return Err(refused(StatusCode::LENGTH_REQUIRED, message));
        }
        if !header.name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        // Digits only: `+1` parses as a number and is no Content-Length.
        let is_number = !header.value.is_empty() && header.value.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(header.value).unwrap_or_default();
        if !is_number || length.is_some() {
            return Err(bad_request("Malformed HTTP: invalid Content-Length"));
        }
        length = Some(text.parse().unwrap_or(u64::MAX));
    }
    let length = length.unwrap_or(0);
    if length > limits.body_bytes {
        let message = format!("A body of {length} B is above {} B", limits.body_bytes);
        return Err(refused(StatusCode::PAYLOAD_TOO_LARGE, &message));
    }
    Ok(length)
}

/// The minor version's digit in a head that parsed: the last byte of the request line.
fn minor_version(head: &mut [u8]) -> Option<&mut u8> {
    let first = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let line = head.get_mut(first..)?.split_mut(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    line.last_mut()
}

fn head_too_large(limits: &Limits) -> Inspection {
    let message = format!("The request's head is above {} B", limits.head_bytes);
    refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &message)
}

fn bad_request(message: &str) -> Inspection {
    refused(StatusCode::BAD_REQUEST, message)
}

fn refused(status: StatusCode, message: &str) -> Inspection {
    Inspection::Refused(status, message.to_owned())
}

#[cfg(test)]
#[path = "head/tests.rs"]
mod tests;
