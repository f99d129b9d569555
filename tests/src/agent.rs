//! The host's side of the agent port (`docs/agent-protocol.md`) over a Unix socket: what a VMM other than ours connects it to.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long the guest may be silent; generous, since the lab's CPU is emulated.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest line of either side.
const MAX_LINE_BYTES: usize = 4096;

/// A guest that has said that it is ready.
pub struct Agent {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    ready: Value,
    last_id: u64,
}

impl Agent {
    /// Connects and waits for the guest's `ready`.
    ///
    /// # Errors
    /// The socket's, or `InvalidData` if something else comes first.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let writer = UnixStream::connect(path)?;
        writer.set_read_timeout(Some(PATIENCE))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut agent = Self { reader, writer, ready: Value::Null, last_id: 0 };
        agent.ready = agent.read()?;
        if agent.ready["event"] != "ready" || agent.ready["protocol"] != 1 {
            return Err(unexpected(&agent.ready));
        }
        Ok(agent)
    }

    /// Pages that the guest said were free when it was ready.
    pub fn free_pages(&self) -> u64 {
        self.ready["free_pages"].as_u64().unwrap_or(0)
    }

    /// Runs a scenario; returns its exit code and its output.
    ///
    /// # Errors
    /// The socket's, or `InvalidData` if the guest breaks the protocol.
    pub fn exec(&mut self, scenario: &str, args: &[&str]) -> io::Result<(u64, Vec<String>)> {
        let id = self.send(scenario, args)?;
        let mut lines = Vec::new();
        loop {
            let event = self.read()?;
            match (event["id"].as_u64(), event["line"].as_str(), event["exit"].as_u64()) {
                (Some(of), Some(line), None) if of == id => lines.push(line.to_owned()),
                (Some(of), None, Some(code)) if of == id => return Ok((code, lines)),
                _ => return Err(unexpected(&event)),
            }
        }
    }

    /// Asks for something whose answer is the end of the guest.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&mut self, scenario: &str, args: &[&str]) -> io::Result<u64> {
        self.last_id += 1;
        let id = self.last_id;
        let request = json!({ "id": id, "exec": scenario, "args": args });
        self.writer.write_all(format!("{request}\n").as_bytes())?;
        Ok(id)
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a line longer than 4096 bytes",
            ));
        }
        serde_json::from_str(&line).map_err(io::Error::from)
    }
}

fn unexpected(event: &Value) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected: {event}"))
}
