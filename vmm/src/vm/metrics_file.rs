//! The metrics file: a line of JSON when somebody asks, each minute, and at the end.
//!
//! A thread of its own, which exists only where a file is configured: neither
//! the event loop nor the control thread waits for a disk.

use std::fs::File;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::event_loop::answer;
use super::handle::{Metric, Reply, VmError, VmHandle, VmRequest};
use crate::line_file::LineFile;

/// Between lines that nobody asked for; Firecracker's.
pub(super) const PERIOD: Duration = Duration::from_secs(60);
/// Stack of the thread; only what is touched costs memory.
const STACK_BYTES: usize = 256 << 10;

/// The thread, as the event loop holds it.
pub(super) struct MetricsFile {
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

enum Command {
    /// Asks the event loop for the metrics and writes them.
    Flush(Reply<()>),
    /// Writes these.
    Write(Vec<Metric>),
}

impl MetricsFile {
    /// Starts the thread, which asks `vm` for what it writes to `file`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(file: File, vm: VmHandle, period: Duration) -> io::Result<Self> {
        let (commands, receiver) = mpsc::channel();
        let writer = Writer { file: LineFile::new(file), vm, has_failed: false };
        let thread = thread::Builder::new()
            .name(String::from("metrics"))
            .stack_size(STACK_BYTES)
            .spawn(move || writer.main(&receiver, period))?;
        Ok(Self { commands: Some(commands), thread: Some(thread) })
    }

    /// Writes a line now, and then answers.
    pub(super) fn flush(&self, reply: Reply<()>) {
        if let Some(commands) = &self.commands {
            // If the thread is gone, the requester sees its reply dropped.
            commands.send(Command::Flush(reply)).ok();
        }
    }

    /// Writes the last line and ends the thread.
    ///
    /// Call it when nobody can ask the event loop any more: the thread may be waiting for its answer.
    pub(super) fn finish(mut self, last: Vec<Metric>) {
        if let Some(commands) = self.commands.take() {
            commands.send(Command::Write(last)).ok();
        }
    }
}

impl Drop for MetricsFile {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("The metrics thread panicked");
        }
    }
}

struct Writer {
    file: LineFile,
    vm: VmHandle,
    /// The last periodic line was lost, which has been said.
    has_failed: bool,
}

impl Writer {
    fn main(mut self, commands: &mpsc::Receiver<Command>, period: Duration) {
        let mut next = Instant::now() + period;
        loop {
            match commands.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Command::Flush(reply)) => {
                    let written = self.flush();
                    answer(reply, written);
                }
                Ok(Command::Write(metrics)) => {
                    let written = self.write(&metrics);
                    self.report(&written);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let written = self.flush();
                    self.report(&written);
                    next += period;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn flush(&mut self) -> Result<(), VmError> {
        let (reply, metrics) = oneshot::channel();
        self.vm.post(VmRequest::Metrics(reply))?;
        let metrics = metrics.blocking_recv().map_err(|_| VmError::Gone)??;
        self.write(&metrics)
    }

    fn write(&mut self, metrics: &[Metric]) -> Result<(), VmError> {
        self.file.write_line(line(metrics).as_bytes()).map_err(|error| {
            let lost = self.file.dropped();
            VmError::Host(format!(
                "The metrics file takes no line, {lost} are lost so far: {error}"
            ))
        })
    }

    /// Says that a line was lost which nobody has asked for, once until one is written again.
    fn report(&mut self, written: &Result<(), VmError>) {
        match written {
            Ok(()) => self.has_failed = false,
            Err(VmError::Gone) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    log::warn!("{error}");
                }
            }
        }
    }
}

/// One JSON object with the time and every sample by its name and labels, and a newline.
fn line(metrics: &[Metric]) -> String {
    let mut object: serde_json::Map<_, _> =
        metrics.iter().map(|metric| (metric.full_name(), number(metric.value))).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    object.insert("utc_timestamp_ms".into(), u64::try_from(now).unwrap_or(u64::MAX).into());
    format!("{}\n", serde_json::Value::from(object))
}

/// A whole number as one.
fn number(value: f64) -> serde_json::Value {
    /// 2^53: whole numbers below it are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && (0.0..EXACT).contains(&value) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked above"
        )]
        return (value as u64).into();
    }
    value.into()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::line_file;

    fn metric(name: &'static str, labels: &str, value: f64) -> Metric {
        Metric { name, labels: labels.into(), help: "", is_counter: true, value }
    }

    /// A VM whose only metric counts how often it was asked.
    fn vm() -> VmHandle {
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            let mut asked = 0.0;
            while let Ok(VmRequest::Metrics(reply)) = requests.recv() {
                asked += 1.0;
                answer(reply, Ok(vec![metric("asked", "", asked)]));
            }
        });
        VmHandle::new(sender, Arc::new(EventFd::new(0).unwrap()))
    }

    fn start(period: Duration) -> (tempfile::TempDir, PathBuf, MetricsFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics");
        let file = MetricsFile::start(line_file::open(&path).unwrap(), vm(), period).unwrap();
        (directory, path, file)
    }

    fn asked(path: &PathBuf) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        let lines =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| line["asked"].as_u64().unwrap()).collect()
    }

    #[test]
    fn a_flush_is_answered_when_its_line_is_written() {
        let (_directory, path, file) = start(PERIOD);
        for count in 1..=3 {
            let (reply, written) = oneshot::channel();
            file.flush(reply);
            written.blocking_recv().unwrap().unwrap();
            assert_eq!(asked(&path).len(), count);
        }
        file.finish(vec![metric("asked", "", 99.0)]);
        assert_eq!(asked(&path), [1, 2, 3, 99]);
    }

    #[test]
    fn lines_come_by_themselves_each_period() {
        let (_directory, path, file) = start(Duration::from_millis(1));
        while asked(&path).len() < 3 {
            thread::sleep(Duration::from_millis(1));
        }
        drop(file);
        assert_eq!(asked(&path)[..3], [1, 2, 3]);
    }

    #[test]
    fn a_line_is_one_json_object_with_every_sample_and_the_time() {
        let text = line(&[metric("a_total", "x=\"1\"", 5.0), metric("b", "", 0.5)]);
        assert_eq!(text.matches('\n').count(), 1);
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["a_total{x=\"1\"}"], 5);
        assert_eq!(object["b"], 0.5);
        assert!(object["utc_timestamp_ms"].as_u64().unwrap() > 1_700_000_000_000);
    }
}
