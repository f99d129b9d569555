//! How a command fails: one line on standard error and an exit code.

use std::io;

use aerostat_api::ClientError;

use crate::control::SocketError;
use crate::exit_code;
use crate::vm::StartError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Arguments that can never work.
    #[error("{0}")]
    Usage(String),
    /// The VMM could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The control socket could not be taken.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The VM could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Output could not be written.
    #[error("Cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// Anything else, with the exit code that says so.
    #[error("{message}")]
    Other {
        /// One sentence.
        message: String,
        /// Exit code of the process.
        code: u8,
    },
}

impl Failure {
    /// A failure of the host or the VM.
    pub(super) fn other(message: impl Into<String>) -> Self {
        Self::Other { message: message.into(), code: exit_code::HOST_ERROR }
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Client(ClientError::Refused { status: 400 | 404, .. })
            | Self::Socket(SocketError::TooLong { .. }) => exit_code::BAD_ARGUMENTS,
            Self::Client(_) | Self::Socket(_) => exit_code::HOST_ERROR,
            // Whoever stopped reading has what they wanted: `aerostat metrics | head`.
            Self::Output(_) if self.is_closed_pipe() => exit_code::SUCCESS,
            Self::Output(_) => exit_code::HOST_ERROR,
            Self::Start(error) => error.exit_code(),
            Self::Other { code, .. } => *code,
        }
    }

    /// Says it on standard error, causes included.
    pub(super) fn say(&self) {
        if self.is_closed_pipe() {
            return;
        }
        let mut text = format!("aerostat: {self}");
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = error.source();
        }
        text.push('\n');
        // Without standard error there is nobody to tell.
        io::Write::write_all(&mut io::stderr(), text.as_bytes()).ok();
    }

    fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
