//! `serve`: a process that waits to be told what VM it is.

use std::path::PathBuf;
use std::time::Instant;

use super::args::ServeOptions;
use super::failure::Failure;
use super::run::{configured, default_id, launch, said, start_server};
use crate::control::{ControlSocket, default_socket};
use crate::exit_code;
use crate::logger;
use crate::serve::{self, Configuration, Outcome};
use crate::vm::config::VmConfig;
use crate::vm::{Mailbox, StartError};

/// Serves the control socket, is configured and started over it, and stays until the VM ends.
///
/// With a configuration file the VM is started at once.
pub(super) fn serve(options: ServeOptions, started: Instant) -> Result<u8, Failure> {
    logger::init(options.log_level.into());
    let id = options.id.unwrap_or_else(default_id);
    let allow_software_kvm = options.allow_software_kvm;
    let path = match options.api_sock {
        Some(path) => Some(path),
        None if options.no_api => None,
        None => Some(default_socket(&id)?),
    };
    match (options.config_file, path) {
        (Some(file), path) => {
            let config = configured(&file, id, started)?;
            launch(VmConfig { allow_software_kvm, ..config }, path)
        }
        (None, Some(path)) => {
            serve_unconfigured(Configuration::new(id).allow_software_kvm(allow_software_kvm), path)
        }
        // The arguments' definition refuses it.
        (None, None) => Err(Failure::Usage("--no-api needs --config-file".into())),
    }
}

fn serve_unconfigured(configuration: Configuration, path: PathBuf) -> Result<u8, Failure> {
    let host = |what| move |source| StartError::Host { what, source };
    // Refused before signals are blocked and anything is made.
    ControlSocket::check(&path)?;
    let mailbox = Mailbox::new().map_err(host("Opening the mailbox"))?;
    let server = start_server(path, mailbox.handle())?;
    let outcome = serve::configure(mailbox, configuration, serve::start_vm)
        .map_err(host("Waiting for requests"))?;
    let end = match outcome {
        Outcome::Started(vm) => Some(vm.run()),
        Outcome::Ended => None,
    };
    server.finish();
    Ok(end.as_ref().map_or(exit_code::SUCCESS, said))
}
