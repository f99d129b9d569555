//! A client for QEMU's machine protocol: one JSON object a line, answers by id, events in between.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long an answer or an event may take; generous, since the lab's CPU is emulated.
const PATIENCE: Duration = Duration::from_secs(60);

/// QEMU refused a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// QEMU's class of the error.
    pub class: String,
    /// What it says.
    pub description: String,
}

/// A connection to one QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: VecDeque<Value>,
    last_id: u64,
}

impl Qmp {
    /// Connects, reads the greeting and leaves the negotiation.
    ///
    /// # Errors
    /// The socket's, or `InvalidData` if no QEMU is behind it.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let writer = UnixStream::connect(path)?;
        writer.set_read_timeout(Some(PATIENCE))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut qmp = Self { reader, writer, events: VecDeque::new(), last_id: 0 };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            return Err(invalid(format!("no greeting: {greeting}")));
        }
        qmp.execute("qmp_capabilities", json!({}))?
            .map_err(|refused| invalid(format!("{refused:?}")))?;
        Ok(qmp)
    }

    /// Executes `command` and returns what it returns, or why QEMU refuses it.
    ///
    /// # Errors
    /// The socket's.
    pub fn execute(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> io::Result<Result<Value, Refused>> {
        self.last_id += 1;
        let id = self.last_id;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        self.writer.write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if answer.get("event").is_some() {
                self.events.push_back(answer);
                continue;
            }
            if answer["id"] != id {
                return Err(invalid(format!("an answer to nobody: {answer}")));
            }
            let Some(error) = answer.get("error") else { return Ok(Ok(answer["return"].take())) };
            let text = |key: &str| error[key].as_str().unwrap_or("").to_owned();
            return Ok(Err(Refused { class: text("class"), description: text("desc") }));
        }
    }

    /// Waits for the next event that `is_wanted`; those before it are gone.
    ///
    /// # Errors
    /// The socket's: `UnexpectedEof` if QEMU ends, `WouldBlock` if nothing comes for a minute, `TimedOut` if only others do.
    pub fn wait_for_event(
        &mut self,
        mut is_wanted: impl FnMut(&Value) -> bool,
    ) -> io::Result<Value> {
        let start = Instant::now();
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.read()?,
            };
            if is_wanted(&event) {
                return Ok(event);
            }
            if start.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(|error| invalid(format!("{error}: {line}")))
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
