//! A process that is configured over its control socket before it is a VM.
//!
//! [`configure`] answers the same mailbox that the event loop answers later:
//! requests change a [`Configuration`] until one of them starts it. There are
//! three states and no way back:
//!
//! ```text
//! configuring ── InstanceStart succeeds ──▶ a VM runs ── it ends ──▶ ended
//!      │ ▲                                                             ▲
//!      │ └─ InstanceStart fails: as before                             │
//!      └───────────── a signal, PUT /vm/stop ──────────────────────────┘
//! ```
//!
//! One thread takes requests one at a time in either state, so of many starts
//! exactly one succeeds, and every request is answered by the state in which it
//! is taken. Design and failure cases: docs/control.md.

mod configuration;
mod file;
mod unsupported;

use std::io;

use abi::{PAGE_SIZE, PageCount};

pub use configuration::Configuration;
pub use file::{ConfigFileError, read as read_config_file};

use crate::vm::config::VmConfig;
use crate::vm::event_loop::answer;
use crate::vm::handle::{Reply, VmError, VmInfo, VmRequest, VmState};
use crate::vm::{Letter, Mailbox, NotStarted, StartedVm, Vm};

/// How configuring ended.
pub enum Outcome<V> {
    /// The VM runs.
    Started(V),
    /// Somebody ended the process before.
    Ended,
}

/// A start that failed: why, and the mailbox.
pub struct Failed {
    /// For the client.
    pub reason: String,
    /// Still to be answered.
    pub mailbox: Mailbox,
}

/// Builds and starts a VM.
///
/// # Errors
/// [`Failed`]; nothing of the VM is left behind.
pub fn start_vm(config: VmConfig, mailbox: Mailbox) -> Result<StartedVm, Failed> {
    Vm::start(config, mailbox).map_err(|refused| {
        let NotStarted { error, mailbox } = *refused;
        Failed { reason: configuration::said(&error), mailbox }
    })
}

/// Answers `mailbox` until a VM is started by `start` or the process is to end.
///
/// # Errors
/// The host's, when it gives no epoll instance.
pub fn configure<V>(
    mailbox: Mailbox,
    configuration: Configuration,
    mut start: impl FnMut(VmConfig, Mailbox) -> Result<V, Failed>,
) -> io::Result<Outcome<V>> {
    let mut configuring = Configuring { mailbox, configuration };
    loop {
        let reply = match configuring.serve_until_start()? {
            Next::Start(reply) => reply,
            Next::End => return Ok(Outcome::Ended),
        };
        let config = match configuring.configuration.vm_config() {
            Ok(config) => config,
            Err(error) => {
                answer(reply, Err(VmError::CannotStart(error.to_string())));
                continue;
            }
        };
        // Others may have asked already, and their wake-up is taken: whoever answers next looks for them.
        configuring.mailbox.rearm();
        match start(config, configuring.mailbox) {
            Ok(vm) => {
                answer(reply, Ok(()));
                return Ok(Outcome::Started(vm));
            }
            Err(Failed { reason, mailbox }) => {
                log::error!("The VM cannot be started: {reason}");
                answer(reply, Err(VmError::CannotStart(reason)));
                configuring = Configuring { mailbox, ..configuring };
            }
        }
    }
}

enum Next {
    Start(Reply<()>),
    End,
}

struct Configuring {
    mailbox: Mailbox,
    configuration: Configuration,
}

impl Configuring {
    fn serve_until_start(&mut self) -> io::Result<Next> {
        loop {
            match self.mailbox.receive()? {
                Letter::Request(request) => {
                    if let Some(next) = self.serve(request) {
                        return Ok(next);
                    }
                }
                Letter::Signal(signal) => {
                    log::info!("signal {signal}: ending without a VM");
                    return Ok(Next::End);
                }
            }
        }
    }

    fn serve(&mut self, request: VmRequest) -> Option<Next> {
        match request {
            VmRequest::Info(reply) => answer(reply, Ok(self.info())),
            VmRequest::Configuration(reply) => {
                answer(reply, Ok(Box::new(self.configuration.description().clone())));
            }
            VmRequest::Configure { change, reply } => {
                answer(reply, self.configuration.change(*change));
            }
            VmRequest::Start(reply) => return Some(Next::Start(reply)),
            VmRequest::Stop { timeout: _, reply } => {
                answer(reply, Ok(false));
                return Some(Next::End);
            }
            // There is nothing to count yet but what the server itself counts.
            VmRequest::Metrics(reply) => answer(reply, Ok(Vec::new())),
            other @ (VmRequest::Pause(_)
            | VmRequest::Resume(_)
            | VmRequest::SetBalloonTarget { .. }
            | VmRequest::Balloon(_)
            | VmRequest::Operation { .. }
            | VmRequest::RequestHotplug { .. }
            | VmRequest::Hotplug(_)
            | VmRequest::HotplugOperation { .. }
            | VmRequest::Exec { .. }
            | VmRequest::UpdateDrive { .. }
            | VmRequest::Scenarios(_)
            | VmRequest::PressPowerButton(_)
            | VmRequest::FlushMetrics(_)) => other.refuse(VmError::NotStarted),
        }
        None
    }

    fn info(&self) -> VmInfo {
        let description = self.configuration.description();
        let source = description.boot_source.clone();
        let (kernel, cmdline) = source
            .map(|source| (source.kernel_image_path, source.boot_args.unwrap_or_default()))
            .unwrap_or_default();
        VmInfo {
            id: self.configuration.id().to_owned(),
            state: VmState::NotStarted,
            ram: PageCount::new((description.machine_config.mem_size_mib << 20) / PAGE_SIZE),
            vcpus: description.machine_config.vcpu_count,
            backing: "anon",
            kvm: "unknown",
            first_byte_us: None,
            ready_us: None,
            kernel,
            cmdline,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::oneshot;

    use super::*;
    use crate::vm::handle::Change;
    use crate::vm::poll::Poller;

    /// One that was in the mailbox together with the start, its wake-up taken with the start's, would
    /// wait for ever.
    #[test]
    fn whoever_answers_after_the_start_is_woken_for_requests_that_came_before_it() {
        let mailbox = Mailbox::new().unwrap();
        let handle = mailbox.handle();
        let (start, _unheard) = oneshot::channel();
        let (info, _unheard) = oneshot::channel();
        handle.post(VmRequest::Start(start)).unwrap();
        handle.post(VmRequest::Info(info)).unwrap();
        mailbox.acknowledge();
        let mut configuration = Configuration::new("a");
        let kernel_image_path = aerostat_api::BootSource::EMBEDDED.into();
        let source =
            aerostat_api::BootSource { kernel_image_path, initrd_path: None, boot_args: None };
        configuration.change(Change::BootSource(source)).unwrap();
        let outcome = configure(mailbox, configuration, |_config, mailbox| {
            let mut poller = Poller::new().unwrap();
            mailbox.register(&mut poller, "requests", "signals").unwrap();
            Ok(poller.wait(Some(Instant::now())).unwrap())
        });
        assert!(matches!(outcome.unwrap(), Outcome::Started(woken) if woken == ["requests"]));
    }
}
