//! A running virtual machine and the handle that commands it.

pub mod config;
pub mod exit;
pub mod handle;

use config::{ConfigError, VmConfig};
use exit::ExitReason;
use handle::VmHandle;

use crate::exit_code;
use crate::kvm::KvmError;

/// A virtual machine, built and not yet running.
pub struct Vm {
    handle: VmHandle,
}

impl Vm {
    /// Builds the machine: RAM, KVM, devices, kernel.
    ///
    /// Call it on the main thread before any other thread exists: it blocks the
    /// signals that end the VM in the calling thread, so that threads which are
    /// started later inherit that and the event loop receives them.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn build(config: VmConfig) -> Result<Self, StartError> {
        config.validate()?;
        unimplemented!("under construction")
    }

    /// Posts requests to the event loop; usable before and while [`Self::run`] runs.
    pub fn handle(&self) -> VmHandle {
        self.handle.clone()
    }

    /// Runs the machine to its end, on the calling thread. All threads are joined on return.
    pub fn run(self) -> ExitReason {
        unimplemented!("under construction")
    }
}

/// A VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration describes no possible VM.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host's KVM cannot run it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host refused something else.
    #[error("{what} failed")]
    Host {
        /// The step.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
}

impl StartError {
    /// The process's exit code for this failure; see [`exit_code`].
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => exit_code::BAD_ARGUMENTS,
            Self::Kvm(_) | Self::Host { .. } => exit_code::HOST_ERROR,
        }
    }
}
