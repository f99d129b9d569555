//! `run`: the VMM itself.

use std::path::{Path, PathBuf};
use std::time::Instant;

use abi::PfnRange;

use super::args::RunOptions;
use super::failure::Failure;
use super::output;
use super::value::DriveArgument;
use crate::boot::{BootError, BootInfo, Form, InitrdFile, KernelImage};
use crate::control::{ControlServer, ControlSocket, default_socket};
use crate::exit_code;
use crate::kvm::{Host, KvmKind};
use crate::logger;
use crate::serve::{Configuration, read_config_file};
use crate::vm::config::{DriveConfig, Kernel, VmConfig};
use crate::vm::drives::OpenDrive;
use crate::vm::exit::ExitReason;
use crate::vm::handle::{VmError, VmHandle};
use crate::vm::{StartError, Vm, planned_command_line};

/// Starts a VM and stays until it ends.
pub(super) fn run(options: RunOptions, started: Instant) -> Result<u8, Failure> {
    logger::init(options.log_level.into());
    let id = default_id();
    let path = match &options.api_sock {
        Some(path) => path.clone(),
        None => default_socket(&id)?,
    };
    let is_check = options.check;
    let config = match &options.config_file {
        Some(file) => {
            let (backing, prefault) = (options.memory.backing, options.prefault);
            let (on_reset, console) = (options.on_reset.into(), options.console.into());
            let allow_software_kvm = options.allow_software_kvm;
            let configured = configured(file, id, started)?;
            VmConfig { backing, prefault, on_reset, console, allow_software_kvm, ..configured }
        }
        None => configure(options, id, started),
    };
    config.validate().map_err(StartError::from)?;
    if is_check {
        ControlSocket::check(&path)?;
        return check(&config, &path);
    }
    launch(config, Some(path))
}

/// Name of a VM that was given none.
pub(super) fn default_id() -> String {
    format!("vm-{}", std::process::id())
}

/// The VM that a configuration file describes.
pub(super) fn configured(file: &Path, id: String, started: Instant) -> Result<VmConfig, Failure> {
    let refuse = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let description = read_config_file(file).map_err(|error| refuse(&error))?;
    let in_file = |error: VmError| refuse(&format_args!("{}: {error}", file.display()));
    let configuration = Configuration::from_description(id, description).map_err(in_file)?;
    Ok(VmConfig { started, ..configuration.vm_config().map_err(in_file)? })
}

/// Runs a VM to its end, with a control socket or without.
pub(super) fn launch(config: VmConfig, socket: Option<PathBuf>) -> Result<u8, Failure> {
    // The path first: a VM whose socket is taken should not cost its memory to find out.
    if let Some(path) = &socket {
        ControlSocket::check(path)?;
    }
    let vm = Vm::build(config)?;
    // Bound only now: until here a signal ends the process at once, and would leave the path behind.
    let server = match socket {
        Some(path) => Some(start_server(path, vm.handle())?),
        None => None,
    };
    let end = vm.run();
    drop(server);
    Ok(said(&end))
}

/// Binds `path` and serves it.
pub(super) fn start_server(path: PathBuf, vm: VmHandle) -> Result<ControlServer, Failure> {
    let socket = ControlSocket::bind(path)?;
    let server = ControlServer::start(socket, vm)
        .map_err(|source| StartError::Host { what: "Starting the control server", source })?;
    Ok(server)
}

fn configure(options: RunOptions, id: String, started: Instant) -> VmConfig {
    VmConfig {
        id,
        memory_bytes: options.memory.size.bytes(),
        vcpus: options.vcpus,
        kernel: options.kernel.map_or(Kernel::Embedded, Kernel::Path),
        initrd: options.initrd,
        cmdline: options.cmdline,
        allow_software_kvm: options.allow_software_kvm,
        backing: options.memory.backing,
        prefault: options.prefault,
        on_reset: options.on_reset.into(),
        drives: options.drives.into_iter().enumerate().map(drive).collect(),
        console: options.console.into(),
        balloon: Some(options.balloon.unwrap_or_default()),
        hotplug: options.hotplug_memory,
        ..VmConfig::new(started)
    }
}

fn drive((number, argument): (usize, DriveArgument)) -> DriveConfig {
    let DriveArgument { path, is_read_only } = argument;
    DriveConfig { id: format!("drive{number}"), path, is_read_only, is_root_device: false }
}

/// Says what would run here, without memory, socket or VM.
fn check(config: &VmConfig, socket: &Path) -> Result<u8, Failure> {
    let host = Host::open(config.vcpus).map_err(StartError::from)?;
    let ram = guest_ram::ram_ranges(config.memory_bytes).map_err(StartError::from)?;
    let form = check_kernel(config, &ram, host.kind()).map_err(StartError::from)?;
    let drives = check_drives(config)?;
    let kernel = match &config.kernel {
        Kernel::Embedded => "embedded".to_owned(),
        Kernel::Path(path) => format!("{} ({form})", path.display()),
        Kernel::Image(_) => format!("an image in memory ({form})"),
    };
    let mut fields = vec![
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
    ];
    fields.extend(config.hotplug.iter().map(|hotplug| {
        let [total, block, slot] =
            [hotplug.total_bytes, hotplug.block_bytes, hotplug.slot_bytes].map(output::human);
        ("hotplug memory", format!("{total} in blocks of {block}, slots of {slot}"))
    }));
    fields.extend(config.initrd.iter().map(|path| ("initrd", path.display().to_string())));
    fields.extend(drives.iter().map(|drive| ("drive", drive.clone())));
    output::fields(&fields)?;
    Ok(exit_code::SUCCESS)
}

/// Opens kernel and initrd and finds a place for both in `ram`.
fn check_kernel(config: &VmConfig, ram: &[PfnRange], kvm: KvmKind) -> Result<Form, BootError> {
    let mut kernel = KernelImage::open(&config.kernel)?;
    let mut initrd = config.initrd.as_deref().map(InitrdFile::open).transpose()?;
    let cmdline = &planned_command_line(config);
    let refuse_linux = kvm == KvmKind::Software && !config.allow_software_kvm;
    kernel.check(ram, &BootInfo { cmdline, initrd: initrd.as_mut(), rsdp: None, refuse_linux })
}

/// Opens every drive as a start would, and lets go of it again.
fn check_drives(config: &VmConfig) -> Result<Vec<String>, Failure> {
    let drives = OpenDrive::open_all(&config.drives_in_order()).map_err(StartError::from)?;
    Ok(drives.iter().map(OpenDrive::describe).collect())
}

/// The exit code of `end`. A clean end needs no words; another is said on standard error.
pub(super) fn said(end: &ExitReason) -> u8 {
    match end {
        ExitReason::PowerOff | ExitReason::Stopped { .. } => log::info!("{end}"),
        ExitReason::Reset
        | ExitReason::GuestPanic
        | ExitReason::TripleFault { .. }
        | ExitReason::InternalError(_)
        | ExitReason::HostError(_) => eprintln!("aerostat: {end}"),
    }
    end.exit_code()
}
