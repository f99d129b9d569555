//! The control server: HTTP/1.1 with JSON over a Unix socket, in one thread of its own.
//!
//! * [`ControlSocket`] owns the path: taken over race-free, unlinked at the end;
//! * [`ControlServer`] owns the thread: a current-thread runtime that serves
//!   every connection and posts [`VmRequest`](crate::vm::handle::VmRequest)s to
//!   the event loop. It shares no lock with the VM and never waits on the guest:
//!   an answer that needs it is the state of one connection.
//!
//! A request passes `head` (limits, timers, framing), hyper, `router`, one
//! handler of `routes`, and comes back as an `answer`. Design, limits and
//! failure cases: docs/control.md.

mod answer;
mod configure;
mod connection;
mod convert;
mod head;
mod limits;
mod router;
mod routes;
mod server;
mod socket;

pub use limits::Limits;
pub use router::endpoints;
pub use server::ControlServer;
pub(crate) use socket::is_live;
pub use socket::{ControlSocket, SocketError, default_socket, runtime_dir};
