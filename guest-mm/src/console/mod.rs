//! The virtio-console driver: finds the agent's port by its name and moves bytes.
//!
//! Ports are announced over the control queues (virtio 1.2 §5.3.6); the port
//! named [`abi::console::AGENT_PORT_NAME`] becomes the agent's byte stream.
//! A device without MULTIPORT, or one that never announces the name, simply has
//! no agent: [`AgentState::Absent`] or [`AgentState::Waiting`], not a failure.
//!
//! Buffers are bounded: eight of 512 bytes each way. Received bytes stay in
//! their buffer until [`ConsoleDriver::receive`] takes them, so a slow reader
//! stops the host instead of growing a queue; [`ConsoleDriver::send`] takes what
//! fits and says how much that was.
//!
//! Deliberately absent: the unnamed console port 0 (the serial line serves early
//! boot), resizing, and more than one named port.

mod control;
mod driver;
mod port;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub use driver::{AgentState, ConsoleCounters, ConsoleDriver, ConsoleError};
