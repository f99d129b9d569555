//! What the control socket speaks: request and response types, and a client.
//!
//! HTTP/1.1 with JSON bodies over a Unix socket. Where Firecracker has an
//! endpoint for the same thing, path, verb, fields and status codes are
//! Firecracker's; the rest stands beside it and is marked "ours" in
//! `resources/openapi.yaml`. Requests refuse unknown fields by name; answers
//! may gain fields, so a reader ignores those it does not know.
//!
//! Sizes are whole bytes on our own endpoints and MiB on Firecracker's.

pub mod balloon;
pub mod client;
pub mod fault;
pub mod guest;
pub mod machine;
pub mod size;

pub use balloon::{
    BalloonConfig, BalloonStatus, BalloonUpdate, DriverState, FeatureSet, Operation,
    OperationRequest, OperationState,
};
pub use client::{Client, ClientError};
pub use fault::Fault;
pub use guest::{ExecEvent, ExecRequest, Scenarios};
pub use machine::{
    Action, ActionType, BootSource, Instance, InstanceState, MachineConfig, RunState, StopOutcome,
    StopRequest, Version, VmConfig, VmStatus, VmUpdate,
};
pub use size::{Size, SizeError};

/// Environment variable that names the control socket for clients.
pub const SOCKET_ENV: &str = "AEROSTAT_SOCK";
