//! `run`: the VMM itself.

use std::path::Path;
use std::time::Instant;

use abi::PfnRange;

use super::args::RunOptions;
use super::failure::Failure;
use super::output;
use crate::boot::{BootError, BootInfo, Form, InitrdFile, KernelImage};
use crate::control::{ControlServer, ControlSocket, default_socket};
use crate::exit_code;
use crate::kvm::Host;
use crate::vm::config::{BalloonConfig, Kernel, VmConfig};
use crate::vm::exit::ExitReason;
use crate::vm::{StartError, Vm};

/// Starts a VM and stays until it ends.
pub(super) fn run(options: RunOptions, started: Instant) -> Result<u8, Failure> {
    env_logger::Builder::new().filter_level(options.log_level.into()).init();
    let id = format!("vm-{}", std::process::id());
    let path = match &options.api_sock {
        Some(path) => path.clone(),
        None => default_socket(&id)?,
    };
    let is_check = options.check;
    let config = configure(options, id, started);
    config.validate().map_err(StartError::from)?;
    // The path first: a VM whose socket is taken should not cost its memory to find out.
    ControlSocket::check(&path)?;
    if is_check {
        return check(&config, &path);
    }
    let vm = Vm::build(config)?;
    // Bound only now: until here a signal ends the process at once, and would leave the path behind.
    let socket = ControlSocket::bind(path)?;
    let server = ControlServer::start(socket, vm.handle())
        .map_err(|source| StartError::Host { what: "Starting the control server", source })?;
    let end = vm.run();
    server.finish();
    say_end(&end);
    Ok(end.exit_code())
}

fn configure(options: RunOptions, id: String, started: Instant) -> VmConfig {
    let balloon = options.balloon.unwrap_or_default();
    VmConfig {
        id,
        memory_bytes: options.memory.size.bytes(),
        vcpus: options.vcpus,
        kernel: options.kernel.map_or(Kernel::Embedded, Kernel::Path),
        initrd: options.initrd,
        cmdline: options.cmdline,
        backing: options.memory.backing,
        prefault: options.prefault,
        on_reset: options.on_reset.into(),
        balloon: Some(BalloonConfig { target: balloon.target, ..BalloonConfig::default() }),
        ..VmConfig::new(started)
    }
}

/// Says what would run here, without memory, socket or VM.
fn check(config: &VmConfig, socket: &Path) -> Result<u8, Failure> {
    let host = Host::open(config.vcpus).map_err(StartError::from)?;
    let ram = guest_ram::ram_ranges(config.memory_bytes).map_err(StartError::from)?;
    let form = check_kernel(config, &ram).map_err(StartError::from)?;
    let kernel = match &config.kernel {
        Kernel::Embedded => "embedded".to_owned(),
        Kernel::Path(path) => format!("{} ({form})", path.display()),
        Kernel::Image(_) => format!("an image in memory ({form})"),
    };
    output::fields(&[
        ("kvm", host.kind().name().to_owned()),
        ("memory", format!("{}, {}", output::size(config.memory_bytes), config.backing)),
        ("vcpus", config.vcpus.to_string()),
        ("kernel", kernel),
        (
            "balloon",
            config
                .balloon
                .map_or("none".to_owned(), |balloon| output::size(balloon.target.bytes())),
        ),
        ("socket", socket.display().to_string()),
    ])?;
    Ok(exit_code::SUCCESS)
}

/// Opens kernel and initrd and finds a place for both in `ram`.
fn check_kernel(config: &VmConfig, ram: &[PfnRange]) -> Result<Form, BootError> {
    let mut kernel = KernelImage::open(&config.kernel)?;
    let mut initrd = config.initrd.as_deref().map(InitrdFile::open).transpose()?;
    let cmdline = config.cmdline.as_deref().unwrap_or_default();
    kernel.check(ram, &BootInfo { cmdline, initrd: initrd.as_mut(), rsdp: None })
}

/// A clean end needs no words; another is said on standard error.
fn say_end(end: &ExitReason) {
    match end {
        ExitReason::PowerOff | ExitReason::Stopped { .. } => log::info!("{end}"),
        ExitReason::Reset
        | ExitReason::GuestPanic
        | ExitReason::TripleFault { .. }
        | ExitReason::InternalError(_)
        | ExitReason::HostError(_) => eprintln!("aerostat: {end}"),
    }
}
