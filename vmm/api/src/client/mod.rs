//! A blocking client of the control socket.
//!
//! One connection a request: requests are rare, and a server may close an idle
//! connection whenever it likes. Nothing here spawns a thread.

mod configure;
mod http;

use std::io::BufRead as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use http::Response;

use crate::balloon::{BalloonConfig, BalloonStatus, BalloonUpdate, Operation, OperationRequest};
use crate::config::{MachineConfig, VmConfig};
use crate::fault::Fault;
use crate::guest::{ExecEvent, ExecRequest, Scenarios};
use crate::hotplug::{HotplugStatus, MemoryHotplugSizeUpdate, MemoryHotplugStatus};
use crate::machine::{
    Action, ActionType, Instance, RunState, StopOutcome, StopRequest, Version, VmState, VmStatus,
    VmUpdate,
};

/// Longest line of a scenario's output that the client takes, in bytes.
const LINE_LIMIT: u64 = 64 << 10;

/// Commands the VM behind one control socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    answer_timeout: Duration,
}

impl Client {
    /// A client of the VM whose control socket is `socket`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), answer_timeout: Duration::from_secs(10) }
    }

    /// How long to wait for an answer that does not depend on the guest; 10 s unless set.
    pub fn with_answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// The control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Identity and run state, as Firecracker tells them.
    ///
    /// # Errors
    /// Like every request: [`ClientError`].
    pub fn instance(&self) -> Result<Instance, ClientError> {
        self.get("/")
    }

    /// Versions of the API and of the VMM.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn version(&self) -> Result<Version, ClientError> {
        self.get("/version")
    }

    /// Everything about the VM that does not change by itself, exactly.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn vm_status(&self) -> Result<VmStatus, ClientError> {
        self.get("/vm/info")
    }

    /// The VM's configuration, as Firecracker tells it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn vm_config(&self) -> Result<VmConfig, ClientError> {
        self.get("/vm/config")
    }

    /// vCPUs and memory, as Firecracker tells them.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn machine_config(&self) -> Result<MachineConfig, ClientError> {
        self.get("/machine-config")
    }

    /// Run state alone.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn vm_state(&self) -> Result<VmState, ClientError> {
        self.get("/vm")
    }

    /// Stops or starts the vCPUs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_run_state(&self, state: RunState) -> Result<(), ClientError> {
        self.command("PATCH", "/vm", &VmUpdate { state })
    }

    /// Runs one of Firecracker's actions.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn action(&self, action_type: ActionType) -> Result<(), ClientError> {
        self.command("PUT", "/actions", &Action { action_type })
    }

    /// The balloon's configuration, as Firecracker tells it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn balloon_config(&self) -> Result<BalloonConfig, ClientError> {
        self.get("/balloon")
    }

    /// Sets the balloon's target in MiB, as Firecracker's clients do, and waits for nothing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn update_balloon(&self, amount_mib: u32) -> Result<(), ClientError> {
        self.command("PATCH", "/balloon", &BalloonUpdate { amount_mib })
    }

    /// The balloon exactly: sizes in bytes, negotiation, what the host holds.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn balloon_status(&self) -> Result<BalloonStatus, ClientError> {
        self.get("/balloon/status")
    }

    /// Begins a resize operation; the answer is how it began.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn begin_operation(&self, request: &OperationRequest) -> Result<Operation, ClientError> {
        let answer = self.send("PUT", "/balloon/operation", Some(request), self.answer_timeout)?;
        decode(answer)
    }

    /// The resize operation `id`, or the latest; `None` when there has been none, or it is forgotten.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn operation(&self, id: Option<u64>) -> Result<Option<Operation>, ClientError> {
        self.operation_at("/balloon/operation", id)
    }

    fn operation_at(&self, path: &str, id: Option<u64>) -> Result<Option<Operation>, ClientError> {
        let path = id.map_or_else(|| path.to_owned(), |id| format!("{path}?id={id}"));
        let answer = self.send("GET", &path, None::<&()>, self.answer_timeout)?;
        if answer.status() == 204 { Ok(None) } else { decode(answer).map(Some) }
    }

    /// Hotplug memory, as Firecracker tells it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn hotplug_memory(&self) -> Result<MemoryHotplugStatus, ClientError> {
        self.get("/hotplug/memory")
    }

    /// Asks the guest for so much hotplug memory, as Firecracker's clients do, and waits for nothing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn update_hotplug_memory(&self, requested_size_mib: u64) -> Result<(), ClientError> {
        self.command("PATCH", "/hotplug/memory", &MemoryHotplugSizeUpdate { requested_size_mib })
    }

    /// Hotplug memory exactly: sizes in bytes, negotiation, what the host holds.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn hotplug_status(&self) -> Result<HotplugStatus, ClientError> {
        self.get("/hotplug/memory/status")
    }

    /// Begins a resize of hotplug memory; the answer is how it began.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn begin_hotplug_operation(
        &self,
        request: &OperationRequest,
    ) -> Result<Operation, ClientError> {
        let path = "/hotplug/memory/operation";
        decode(self.send("PUT", path, Some(request), self.answer_timeout)?)
    }

    /// The resize of hotplug memory `id`, or the latest; `None` when there has been none, or it is forgotten.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn hotplug_operation(&self, id: Option<u64>) -> Result<Option<Operation>, ClientError> {
        self.operation_at("/hotplug/memory/operation", id)
    }

    /// The scenarios that the guest announced.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn scenarios(&self) -> Result<Scenarios, ClientError> {
        self.get("/guest/scenarios")
    }

    /// Runs a scenario; its output comes as it is produced, and nothing bounds how long that takes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn exec(&self, request: &ExecRequest) -> Result<ExecStream, ClientError> {
        let mut answer =
            self.send("POST", "/guest/scenarios", Some(request), self.answer_timeout)?;
        answer.set_read_timeout(None)?;
        Ok(ExecStream { answer })
    }

    /// Asks the guest to power off, and ends the VM when it has not within `timeout`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stop(&self, timeout: Duration) -> Result<StopOutcome, ClientError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let patience = timeout.saturating_add(self.answer_timeout);
        decode(self.send("PUT", "/vm/stop", Some(&StopRequest { timeout_ms }), patience)?)
    }

    /// Every counter, as Prometheus text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn metrics(&self) -> Result<String, ClientError> {
        self.send("GET", "/metrics", None::<&()>, self.answer_timeout)?.into_text()
    }

    /// Sends any request and gives the answer, whatever its status.
    ///
    /// # Errors
    /// [`ClientError`], but never [`ClientError::Refused`].
    pub fn raw(&self, method: &str, path: &str, body: &[u8]) -> Result<Response, ClientError> {
        let stream = self.connect(self.answer_timeout)?;
        http::exchange(stream, method, path, (!body.is_empty()).then_some(body))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        decode(self.send("GET", path, None::<&()>, self.answer_timeout)?)
    }

    fn command(&self, verb: &str, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.send(verb, path, Some(body), self.answer_timeout).map(|_answer| ())
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
        patience: Duration,
    ) -> Result<Response, ClientError> {
        let body = body
            .map(serde_json::to_vec)
            .transpose()
            .map_err(|e| ClientError::Protocol(format!("Cannot encode the request: {e}")))?;
        let answer = http::exchange(self.connect(patience)?, method, path, body.as_deref())?;
        if (200..300).contains(&answer.status()) {
            return Ok(answer);
        }
        let status = answer.status();
        let text = answer.into_text()?;
        let message = match serde_json::from_str::<Fault>(&text) {
            Ok(fault) => fault.fault_message,
            Err(_) => format!("HTTP status {status}: {text}"),
        };
        Err(ClientError::Refused { status, message })
    }

    fn connect(&self, patience: Duration) -> Result<UnixStream, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        // A zero timeout would mean none at all.
        let patience = patience.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(stream)
    }
}

fn decode<T: DeserializeOwned>(answer: Response) -> Result<T, ClientError> {
    let text = answer.into_text()?;
    serde_json::from_str(&text)
        .map_err(|e| ClientError::Protocol(format!("The answer is not what was asked for: {e}")))
}

/// A scenario's output as it comes; ends after [`ExecEvent::Exit`] or an error.
pub struct ExecStream {
    answer: Response,
}

impl Iterator for ExecStream {
    type Item = Result<ExecEvent, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        let mut limited = std::io::Read::take(&mut self.answer, LINE_LIMIT);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_slice(&line).map_err(|e| {
                ClientError::Protocol(format!("A line of the scenario's output is malformed: {e}"))
            })),
            Err(e) => Some(Err(e.into())),
        }
    }
}

/// Why a request got no useful answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be connected to.
    #[error("{}", connect_message(socket, source))]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system says; already told in the message.
        source: std::io::Error,
    },
    /// The VMM understood and refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The fault message.
        message: String,
    },
    /// The VMM did not answer in time.
    #[error("The VMM did not answer in time")]
    TimedOut,
    /// The connection broke.
    #[error("The connection to the VMM broke: {0}")]
    Io(std::io::Error),
    /// What came is no answer that this client understands.
    #[error("{0}")]
    Protocol(String),
}

impl From<std::io::Error> for ClientError {
    fn from(error: std::io::Error) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "foreign enum without end")]
        match error.kind() {
            // What a socket with SO_RCVTIMEO says when the time is up.
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(error),
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "foreign enum without end")]
fn connect_message(socket: &Path, source: &std::io::Error) -> String {
    let path = socket.display();
    match source.kind() {
        std::io::ErrorKind::NotFound => format!("No VM at {path}: there is no such socket"),
        std::io::ErrorKind::ConnectionRefused => {
            format!("No VM at {path}: nothing listens there (its VM has ended without cleaning up)")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("No permission to use {path}: the VM belongs to another user")
        }
        _ => format!("Cannot connect to {path}: {source}"),
    }
}
