//! What the control socket speaks: request and response types, and a client.
//!
//! HTTP/1.1 with JSON bodies over a Unix socket. Where Firecracker has an
//! endpoint for the same thing, path, verb, fields and status codes are
//! Firecracker's; the rest stands beside it and is marked "ours" in
//! `resources/openapi.yaml`. Requests and configuration objects refuse unknown
//! fields by name; other answers may gain fields, so a reader ignores those it
//! does not know.
//!
//! Sizes are whole bytes on our own endpoints and MiB on Firecracker's.

pub mod balloon;
pub mod client;
pub mod config;
pub mod fault;
pub mod guest;
pub mod hotplug;
pub mod machine;
pub mod size;

pub use balloon::{
    BalloonConfig, BalloonStatsUpdate, BalloonStatus, BalloonUpdate, DriverState, FeatureSet,
    HintingStart, Operation, OperationRequest, OperationState,
};
pub use client::{Client, ClientError};
pub use config::{
    BootSource, CacheType, CpuTemplate, Drive, DriveUpdate, Entropy, HugePages, IoEngine, LogLevel,
    Logger, MachineConfig, MachineConfigUpdate, Metrics, RateLimiter, Serial, TokenBucket,
    VmConfig,
};
pub use fault::Fault;
pub use guest::{ExecEvent, ExecRequest, Scenarios};
pub use hotplug::{
    HotplugStatus, MemoryHotplugConfig, MemoryHotplugSizeUpdate, MemoryHotplugStatus,
};
pub use machine::{
    Action, ActionType, Instance, InstanceState, RunState, StopOutcome, StopRequest, Version,
    VmState, VmStatus, VmUpdate,
};
pub use size::{Size, SizeError};

/// Environment variable that names the control socket for clients.
pub const SOCKET_ENV: &str = "AEROSTAT_SOCK";
