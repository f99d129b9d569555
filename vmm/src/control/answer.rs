//! What goes back to a client.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use aerostat_api::Fault;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::vm::handle::{ExecEvent, VmError};

/// An answer of the control server.
pub(super) type Answer = Response<AnswerBody>;

/// A request that was refused: status and fault message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// Refuses what the client sent.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The same refusal on an endpoint of Firecracker's, which knows no finer status than 400.
    pub(super) fn in_firecracker_status(mut self) -> Self {
        let is_fine = matches!(
            self.status,
            StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::INTERNAL_SERVER_ERROR
        );
        if is_fine {
            self.status = StatusCode::BAD_REQUEST;
        }
        self
    }
}

impl From<VmError> for Refusal {
    fn from(error: VmError) -> Self {
        let status = match &error {
            VmError::TargetAboveRam { .. }
            | VmError::RequestTooLong { .. }
            | VmError::Configuration(_)
            | VmError::CannotStart(_)
            | VmError::NoMetricsFile
            | VmError::Drive(_)
            | VmError::NoBalloon
            | VmError::NoHotplug
            | VmError::HotplugSize(_) => StatusCode::BAD_REQUEST,
            VmError::NotStarted
            | VmError::AlreadyStarted
            | VmError::NoAgent
            | VmError::NoPowerButton
            | VmError::Busy { .. }
            | VmError::Paused => StatusCode::CONFLICT,
            VmError::NoSuchScenario { .. } | VmError::NoSuchDrive { .. } => StatusCode::NOT_FOUND,
            VmError::Gone => StatusCode::SERVICE_UNAVAILABLE,
            VmError::Host(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        json(refusal.status, &Fault::new(refusal.message))
    }
}

/// An answer with a JSON body.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Our own types have string keys only, so encoding them cannot fail.
    let body = serde_json::to_vec(value).unwrap_or_default();
    whole(status, "application/json", body)
}

/// 200 with text.
pub(super) fn text(content_type: &'static str, body: String) -> Answer {
    whole(StatusCode::OK, content_type, body.into_bytes())
}

/// 204, without a Content-Length as Firecracker's clients expect.
pub(super) fn no_content() -> Answer {
    let mut answer = Response::new(AnswerBody::Whole(None));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// 200 with a scenario's output as it comes, one JSON object a line.
pub(super) fn exec_stream(events: mpsc::Receiver<ExecEvent>) -> Answer {
    let mut answer = Response::new(AnswerBody::Exec(events));
    let content_type = HeaderValue::from_static("application/x-ndjson");
    answer.headers_mut().insert(CONTENT_TYPE, content_type);
    answer
}

/// Marks `answer` as the last one of its connection.
pub(super) fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn whole(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(AnswerBody::Whole(Some(body.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Body of an answer.
pub(super) enum AnswerBody {
    /// All of it, until it is taken.
    Whole(Option<Bytes>),
    /// A scenario's output.
    Exec(mpsc::Receiver<ExecEvent>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Exec(events) => events
                .poll_recv(cx)
                .map(|event| event.map(|event| Ok(Frame::data(exec_line(event))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Exec(_) => SizeHint::default(),
        }
    }
}

fn exec_line(event: ExecEvent) -> Bytes {
    let event = match event {
        ExecEvent::Line(line) => aerostat_api::ExecEvent::Line { line },
        ExecEvent::Exit { code, lost } => aerostat_api::ExecEvent::Exit { exit: code, lost },
    };
    let mut line = serde_json::to_vec(&event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
