//! Scenarios that run in the guest.

use serde::{Deserialize, Serialize};

/// Body of `POST /guest/scenarios`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Name of the scenario, as `GET /guest/scenarios` lists it.
    pub scenario: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

/// One line of the answer to `POST /guest/scenarios`: a stream of JSON objects, one a line, the
/// last of which is [`ExecEvent::Exit`] unless the VM ended first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ExecEvent {
    /// `{"line":"text"}`: a line of output.
    Line {
        /// The text, without its newline.
        line: String,
    },
    /// `{"exit":0,"lost":0}`: the end.
    Exit {
        /// Exit code of the scenario.
        exit: i32,
        /// Lines of output that were not delivered because this reader was slow.
        lost: u64,
    },
}

/// Body of the answer to `GET /guest/scenarios`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenarios {
    /// What the guest announced; empty before it is ready or when it has no agent.
    pub scenarios: Vec<String>,
}
