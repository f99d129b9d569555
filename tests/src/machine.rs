//! A VM within the test's own process, with a kernel of a few instructions.

use std::fs::File;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aerostat::vm::Vm;
use aerostat::vm::config::{Kernel, SerialPort, VmConfig};
use aerostat::vm::exit::ExitReason;
use aerostat::vm::handle::{Reply, VmError, VmHandle, VmRequest};
use tempfile::NamedTempFile;
use tokio::sync::oneshot;

use crate::payload::Payload;
use crate::vm::wait_for;

/// 8 MiB of RAM, one vCPU, and `payload` as the kernel.
pub fn config(payload: &Payload) -> VmConfig {
    VmConfig {
        memory_bytes: 8 << 20,
        kernel: Kernel::Image(Arc::from(payload.elf())),
        ..VmConfig::new(Instant::now())
    }
}

/// A VM on a thread of its own.
pub struct Running {
    handle: VmHandle,
    /// A file description of our own: reading must not move where the VM writes.
    output: NamedTempFile,
    thread: JoinHandle<ExitReason>,
}

/// Builds and runs a VM without serial input.
///
/// # Panics
/// If it cannot be built.
pub fn start(config: VmConfig) -> Running {
    start_with_input(config, None)
}

/// Builds and runs a VM whose serial input is `input`.
///
/// # Panics
/// If it cannot be built.
pub fn start_with_input(config: VmConfig, input: Option<File>) -> Running {
    let output = NamedTempFile::new().expect("a temporary file");
    let files = SerialPort::Files { input, output: output.reopen().expect("a second handle") };
    let config = VmConfig { serial: files, ..config };
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        let vm = Vm::build(config).expect("the VM is built");
        sender.send(vm.handle()).expect("the test waits for it");
        vm.run()
    });
    let handle = receiver.recv().expect("the VM is built");
    Running { handle, output, thread }
}

impl Running {
    /// Posts requests to it.
    pub fn handle(&self) -> &VmHandle {
        &self.handle
    }

    /// Posts a request and waits for its answer.
    ///
    /// # Panics
    /// If the VM has ended.
    #[expect(clippy::missing_errors_doc, reason = "the VM's own")]
    pub fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> VmRequest) -> Result<T, VmError> {
        let (reply, answer) = oneshot::channel();
        self.handle.post(request(reply)).expect("the VM lives");
        answer.blocking_recv().expect("the VM answers")
    }

    fn output(&self) -> Vec<u8> {
        std::fs::read(self.output.path()).expect("the output")
    }

    /// Waits for `what` in the output.
    ///
    /// # Panics
    /// If the VM ends, or a minute passes, without it.
    #[must_use]
    pub fn printed(self, what: &str) -> Self {
        let seen = wait_for(what, || {
            let seen = String::from_utf8_lossy(&self.output()).contains(what);
            (seen || self.thread.is_finished()).then_some(seen)
        });
        if seen {
            self
        } else {
            panic!("the VM ended before it printed {what:?}: {:?}", self.end())
        }
    }

    /// Waits for the VM's end and returns its whole output.
    ///
    /// # Panics
    /// If the VM's thread panicked.
    pub fn end_raw(self) -> (ExitReason, Vec<u8>) {
        let Self { thread, output, .. } = self;
        let reason = thread.join().expect("the VM's thread does not panic");
        (reason, std::fs::read(output.path()).expect("the output"))
    }

    /// As [`Self::end_raw`], with the output as text.
    pub fn end(self) -> (ExitReason, String) {
        let (reason, bytes) = self.end_raw();
        (reason, String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Ends a VM whose guest nobody can ask.
    ///
    /// # Panics
    /// If the guest was asked.
    pub fn stop(self) -> (ExitReason, String) {
        let (reply, answer) = oneshot::channel();
        let posted = self.handle.post(VmRequest::Stop { timeout: Duration::ZERO, reply });
        let by_guest = answer.blocking_recv();
        let end = self.end();
        // A VM that has ended by itself says why.
        assert!(posted.is_ok() && by_guest == Ok(Ok(false)), "{by_guest:?}: {end:?}");
        end
    }
}
