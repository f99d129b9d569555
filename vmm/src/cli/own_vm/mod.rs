//! A command's own VM: `aerostat run` in a process of its own, in a directory of its own.

mod interrupt;

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, io};

use aerostat_api::{Client, ClientError};

use super::args::MemoryOptions;
use super::failure::Failure;
use crate::exit_code;
use interrupt::remove_on_signal;

/// How long the guest may take until it is ready.
const READY_TIME: Duration = Duration::from_secs(20);
/// How long the process may take to end once its VM is stopped.
const END_TIME: Duration = Duration::from_secs(20);
/// How long the process of a VM that no longer answers may take to end.
const LAST_WORDS_TIME: Duration = Duration::from_millis(500);
/// How long a resize may make no progress: such a command shows what works, on a slow machine too.
const STALL_TIME: &str = "stall-after=30s";
/// How often either is looked at.
const POLL: Duration = Duration::from_millis(2);
/// Last bytes of the VM's output that an error shows.
const TAIL: usize = 2000;

/// A running VM process; ended and cleaned up when dropped.
pub(super) struct OwnVm {
    process: std::process::Child,
    directory: Directory,
}

impl OwnVm {
    /// Starts the VM and waits until its guest is ready.
    pub(super) fn start(memory: &MemoryOptions, vcpus: u8) -> Result<Self, Failure> {
        Self::start_with(memory, vcpus, &[])
    }

    /// The same with further arguments of `run`.
    pub(super) fn start_with(
        memory: &MemoryOptions,
        vcpus: u8,
        further: &[&str],
    ) -> Result<Self, Failure> {
        let fail = |error: io::Error| Failure::other(format!("Cannot start the VM: {error}"));
        let directory = Directory::make().map_err(fail)?;
        remove_on_signal(directory.path().to_owned()).map_err(fail)?;
        let log = File::create(directory.log()).map_err(fail)?;
        let mut command = Command::new(env::current_exe().map_err(fail)?);
        command
            .args(["run", "--memory", &memory.size.bytes().to_string()])
            .args(["--vcpus", &vcpus.to_string(), "--balloon", STALL_TIME])
            .args(["--backing", memory.backing.name(), "--api-sock"])
            .arg(directory.socket())
            .args(further)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(fail)?)
            .stderr(log);
        end_with_parent(&mut command);
        let process = command.spawn().map_err(fail)?;
        let mut child = Self { process, directory };
        child.wait_until_ready()?;
        Ok(child)
    }

    /// A client of the VM.
    pub(super) fn client(&self) -> Client {
        Client::new(self.directory.socket())
    }

    /// Waits for the process to end, which has to be a clean end.
    pub(super) fn wait_for_end(mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + END_TIME;
        while Instant::now() < deadline {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.failure_of(status)),
                None => sleep(POLL),
            }
        }
        Err(Failure::other(format!("The VM did not end within {END_TIME:?}")))
    }

    /// How the VM ended, if it has or is about to; else `failure`, which somebody met who asked it something.
    pub(super) fn failure_or(mut self, failure: Failure) -> Failure {
        let deadline = Instant::now() + LAST_WORDS_TIME;
        while Instant::now() < deadline {
            match self.ended() {
                Ok(Some(status)) => return self.failure_of(status),
                Ok(None) => sleep(POLL),
                Err(_) => break,
            }
        }
        failure
    }

    fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let client = self.client();
        let deadline = Instant::now() + READY_TIME;
        while Instant::now() < deadline {
            if let Some(status) = self.ended()? {
                return Err(self.failure_of(status));
            }
            match client.vm_status() {
                Ok(vm) if vm.ready_us.is_some() => return Ok(()),
                // The socket comes first, the guest later.
                Ok(_) | Err(ClientError::Connect { .. }) => sleep(POLL),
                Err(error) => return Err(error.into()),
            }
        }
        let tail = self.log_tail();
        Err(Failure::other(format!("The guest was not ready within {READY_TIME:?}{tail}")))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.process
            .try_wait()
            .map_err(|error| Failure::other(format!("Cannot watch the VM: {error}")))
    }

    /// The VM's own exit code and words.
    fn failure_of(&self, status: ExitStatus) -> Failure {
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        let code = code.filter(|code| *code != exit_code::SUCCESS).unwrap_or(exit_code::HOST_ERROR);
        let message = format!("The VM ended early ({status}){}", self.log_tail());
        Failure::Other { message, code }
    }

    fn log_tail(&self) -> String {
        let bytes = fs::read(self.directory.log()).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(TAIL)..];
        let tail = String::from_utf8_lossy(tail);
        let tail = tail.trim();
        if tail.is_empty() { String::new() } else { format!("; it said:\n{tail}") }
    }
}

impl Drop for OwnVm {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            // It may end by itself in between: then there is nothing to kill.
            self.process.kill().ok();
            self.process.wait().ok();
        }
    }
}

/// The command may be killed: its VM must not outlive it.
fn end_with_parent(command: &mut Command) {
    let end_with_parent = || {
        // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory of ours (prctl(2)).
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are
    // allowed: it makes one system call, allocates nothing and takes no lock.
    unsafe { command.pre_exec(end_with_parent) };
}

/// A private directory that is removed with its content when dropped.
struct Directory(PathBuf);

impl Directory {
    fn make() -> io::Result<Self> {
        // Fails if it exists, whoever made it: nobody else can have prepared it.
        let path = env::temp_dir().join(format!("aerostat-own-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("vm.sock")
    }

    fn log(&self) -> PathBuf {
        self.0.join("vm.log")
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(self.path()) {
            eprintln!("aerostat: cannot remove {}: {error}", self.path().display());
        }
    }
}
