//! The control thread: accepts connections, bounds them, drains them at the end.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aerostat_api::Fault;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::{Instant, timeout};

use super::connection;
use super::head::HeadNotes;
use super::{ControlSocket, Limits};
use crate::vm::handle::{Metric, VmHandle};

/// How often connections are looked at for one that has become idle, when there are too many.
const ROOM_POLL: Duration = Duration::from_millis(5);
/// A connection idles once it has been silent this long: one that was accepted a moment ago may have
/// sent a request that its task has not seen yet.
const MIN_IDLE: Duration = Duration::from_millis(10);
/// Readiness events taken from the kernel at once: few clients, and a smaller buffer.
const EVENTS_PER_TICK: usize = 32;
/// Stack of the control thread; its futures live on the heap.
const STACK_BYTES: usize = 256 << 10;

/// The control server of one VM.
///
/// Dropping it is [`ControlServer::finish`].
pub struct ControlServer {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    // Last field: unlinked after the thread has ended.
    socket: ControlSocket,
}

impl ControlServer {
    /// Serves `socket` in a thread of its own, with the default limits.
    ///
    /// The thread inherits the caller's signal mask: block the signals that the event loop takes first.
    ///
    /// # Errors
    /// What the system says when it gives no epoll, eventfd or thread.
    pub fn start(socket: ControlSocket, vm: VmHandle) -> io::Result<Self> {
        Self::start_with_limits(socket, vm, Limits::default())
    }

    /// Serves `socket` with `limits`.
    ///
    /// # Errors
    /// As [`ControlServer::start`].
    pub fn start_with_limits(
        socket: ControlSocket,
        vm: VmHandle,
        limits: Limits,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_io_events_per_tick(EVENTS_PER_TICK)
            .build()?;
        let listener = socket.listener()?;
        let (stop, stopped) = watch::channel(false);
        let thread = thread::Builder::new().name("control".into()).stack_size(STACK_BYTES).spawn(
            move || {
                let control = Rc::new(Control { vm, limits, counters: Counters::default() });
                LocalSet::new().block_on(&runtime, serve(listener, control, stopped));
            },
        )?;
        Ok(Self { stop, thread: Some(thread), socket })
    }

    /// The socket that is served.
    pub fn socket(&self) -> &ControlSocket {
        &self.socket
    }

    /// Takes no more clients, lets answers under way go out within the drain time, ends the thread
    /// and unlinks the socket.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("The control thread panicked");
        }
    }
}

/// What every connection shares.
pub(super) struct Control {
    pub(super) vm: VmHandle,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
}

/// The server's own counters.
#[derive(Default)]
pub(super) struct Counters {
    connections: Cell<u64>,
    turned_away: Cell<u64>,
    requests: Cell<u64>,
    refusals: Cell<u64>,
}

impl Counters {
    pub(super) fn count_request(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    pub(super) fn count_refusal(&self) {
        self.refusals.set(self.refusals.get() + 1);
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
    pub(super) fn metrics(&self) -> [Metric; 4] {
        [
            ("aerostat_control_connections_total", "Connections accepted", &self.connections),
            (
                "aerostat_control_turned_away_total",
                "Connections closed because there were too many",
                &self.turned_away,
            ),
            ("aerostat_control_requests_total", "Requests received", &self.requests),
            ("aerostat_control_refusals_total", "Requests refused", &self.refusals),
        ]
        .map(|(name, help, value)| Metric {
            name,
            help,
            labels: String::new(),
            is_counter: true,
            value: value.get() as f64,
        })
    }
}

/// An open connection, as the accepting loop sees it.
struct Open {
    task: AbortHandle,
    notes: Rc<HeadNotes>,
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    control: Rc<Control>,
    mut stop: watch::Receiver<bool>,
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::error!("control: cannot serve the socket: {error}"),
    };
    let mut tasks = JoinSet::new();
    let mut open: Vec<Open> = Vec::new();
    loop {
        let socket = tokio::select! {
            biased;
            _changed_or_gone = stop.wait_for(|stop| *stop) => break,
            Some(_ended) = tasks.join_next(), if !tasks.is_empty() => continue,
            accepted = listener.accept() => match accepted {
                Ok((socket, _address)) => socket,
                Err(error) => {
                    // Out of file descriptors, most likely: closing connections cure it, a tight loop does not.
                    log::warn!("control: cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        if !make_room(&mut tasks, &mut open, &control.limits).await {
            control.counters.turned_away.set(control.counters.turned_away.get() + 1);
            turn_away(&socket, control.limits.connections);
            continue;
        }
        control.counters.connections.set(control.counters.connections.get() + 1);
        let notes = Rc::new(HeadNotes::default());
        let connection =
            connection::serve(socket, Rc::clone(&control), Rc::clone(&notes), stop.clone());
        open.push(Open { task: tasks.spawn_local(connection), notes });
    }
    drop(listener);
    let drained = async { while tasks.join_next().await.is_some() {} };
    if timeout(control.limits.drain_time, drained).await.is_err() {
        log::debug!("control: answers under way were cut off at the end");
    }
}

/// Makes room for one more connection; `false` if all stay busy for the room time.
///
/// Meanwhile nobody is accepted: further clients wait in the socket's queue.
async fn make_room(tasks: &mut JoinSet<()>, open: &mut Vec<Open>, limits: &Limits) -> bool {
    let deadline = Instant::now() + limits.room_time;
    loop {
        open.retain(|connection| !connection.task.is_finished());
        if open.len() < limits.connections || close_idlest(open) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        // One that ends is seen at once, one that becomes idle at the next look.
        timeout(ROOM_POLL, tasks.join_next()).await.ok();
    }
}

/// Closes the connection that has been idle longest; `false` if none is idle.
fn close_idlest(open: &mut Vec<Open>) -> bool {
    let now = Instant::now();
    let idlest = open
        .iter()
        .enumerate()
        .filter_map(|(at, connection)| Some((connection.notes.idle_since()?, at)))
        .filter(|(since, _)| now.duration_since(*since) >= MIN_IDLE)
        .min();
    let Some((_since, at)) = idlest else { return false };
    open.swap_remove(at).task.abort();
    true
}

/// Tells a client that there are too many; what does not fit its socket buffer at once is lost.
fn turn_away(socket: &UnixStream, limit: usize) {
    let fault = Fault::new(format!("More than {limit} connections at once"));
    let body = serde_json::to_string(&fault).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    if let Err(error) = socket.try_write(answer.as_bytes()) {
        log::debug!("control: a client was turned away unheard: {error}");
    }
}
