//! The machine as a whole: what is built once, and what a reboot builds again.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use abi::console::AGENT_PORT_NAME;
use abi::platform::SERIAL_GSI;
use devices::balloon::{Balloon, BalloonOptions, ReleaseMode};
use devices::console::Console;
use devices::ram::GuestRam;
use guest_ram::{HostRam, Prefault};
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::StartError;
use super::balloon_worker::HostClock;
use super::board::Board;
use super::config::{Kernel, OnReset, VmConfig};
use super::handle::{VmInfo, VmState};
use super::vcpu::{ExitCounters, VcpuEvents, Vcpus};
use super::window::{MmioWindow, Window};
use crate::boot::cmdline::{self, DEFAULT_FOR_FILES};
use crate::boot::{Entry, KernelImage};
use crate::kvm::machine::Machine;
use crate::kvm::{Host, KvmError};
use crate::line::Line;
use crate::serial::Com1;

/// Slot of the balloon.
const BALLOON_SLOT: u16 = 0;
/// Slot of the console.
const CONSOLE_SLOT: u16 = 1;
/// The argument parser's, whose stack the C library has kept: no further memory.
const KVM_THREAD_STACK: usize = 512 << 10;

/// RAM, devices, kernel, and the machine in the kernel.
pub(super) struct Chassis {
    id: String,
    kernel_name: String,
    cmdline: String,
    vcpu_count: u8,
    pub(super) on_reset: OnReset,
    pub(super) started: Instant,
    kernel: KernelImage,
    // The machine goes before the RAM that it maps and the lines that it watches.
    /// `None` only while a reboot exchanges it.
    machine: Option<Machine>,
    /// Created and not yet started.
    vcpus: Vec<VcpuFd>,
    host: Host,
    cpuid: CpuId,
    serial_line: Arc<Line>,
    pub(super) com1: Arc<Com1>,
    pub(super) balloon: Arc<Window<Balloon>>,
    pub(super) console: Arc<Window<Console>>,
    pub(super) board: Arc<Board>,
    pub(super) exit_counters: Vec<Arc<ExitCounters>>,
    events: VcpuEvents,
    pub(super) ram: Arc<HostRam>,
}

impl Chassis {
    /// Builds everything that `config` names, except the ends of the serial console.
    pub(super) fn build(
        config: &VmConfig,
        events: VcpuEvents,
        serial_drained: Arc<EventFd>,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let mut kernel = KernelImage::open(&config.kernel)?;
        let host = Host::open(config.vcpus)?;
        let prefault = if config.prefault { Prefault::All } else { Prefault::OnDemand };
        let (created, ram) =
            beside_kvm(&host, || HostRam::new(config.memory_bytes, config.backing, prefault));
        let (vm, cpuid) = created?;
        let ram = Arc::new(ram?);
        let eventfds = |source| StartError::host("Creating an eventfd", source);
        let serial_line = Arc::new(Line::new(SERIAL_GSI).map_err(eventfds)?);
        let com1 = Com1::new(serial_line.clone(), serial_drained, config.started);
        let com1 = Arc::new(com1.map_err(eventfds)?);
        let balloon = new_balloon(config, &ram)?;
        let balloon = Window::new(balloon, BALLOON_SLOT, ram.clone());
        let balloon = Arc::new(balloon.map_err(eventfds)?);
        let console = Window::new(Console::new(AGENT_PORT_NAME), CONSOLE_SLOT, ram.clone());
        let console = Arc::new(console.map_err(eventfds)?);
        let windows: Vec<Arc<dyn MmioWindow>> = vec![balloon.clone(), console.clone()];
        let board = Arc::new(Board::new(com1.clone(), windows));
        let cmdline = command_line(config, &balloon, &console);
        let entry = kernel.load(ram.memory(), ram.ram_ranges(), &cmdline)?;
        let wiring = Wiring { serial_line: &serial_line, balloon: &balloon, console: &console };
        let (machine, vcpus) = new_machine(vm, &ram, wiring, (&cpuid, config.vcpus), entry)?;
        let exit_counters = (0..config.vcpus).map(|_| Arc::default()).collect();
        Ok(Self {
            id: config.id.clone(),
            kernel_name: kernel_name(&config.kernel),
            cmdline,
            vcpu_count: config.vcpus,
            on_reset: config.on_reset,
            started: config.started,
            kernel,
            machine: Some(machine),
            vcpus,
            host,
            cpuid,
            serial_line,
            com1,
            balloon,
            console,
            board,
            exit_counters,
            events,
            ram,
        })
    }

    /// Starts the vCPUs that [`Self::build`] or [`Self::reboot`] has made.
    pub(super) fn start_vcpus(&mut self) -> io::Result<Vcpus> {
        let software = self.host.kind() == crate::kvm::KvmKind::Software;
        let vcpus = std::mem::take(&mut self.vcpus);
        Vcpus::start(vcpus, &self.board, &self.events, &self.exit_counters, software)
    }

    /// Builds the machine anew over the same RAM, which is emptied, and loads the kernel again.
    ///
    /// Called with the vCPUs stopped and the balloon reset.
    pub(super) fn reboot(&mut self) -> Result<(), StartError> {
        self.console.lock().reset();
        for doorbell in self.console.doorbells() {
            // A kick of the machine that is gone.
            doorbell.read().ok();
        }
        self.com1.reset();
        self.ram.discard(self.ram.ram_ranges()).map_err(|error| {
            log::error!("reboot: {error}");
            StartError::host("Emptying guest RAM", error.source)
        })?;
        let entry = self.kernel.load(self.ram.memory(), self.ram.ram_ranges(), &self.cmdline)?;
        // Before the new one: KVM lets an eventfd be the line of one machine only.
        self.machine = None;
        let wiring = Wiring {
            serial_line: &self.serial_line,
            balloon: &self.balloon,
            console: &self.console,
        };
        let vm = self.host.create_vm()?;
        let cpus = (&self.cpuid, self.vcpu_count);
        let (machine, vcpus) = new_machine(vm, &self.ram, wiring, cpus, entry)?;
        (self.machine, self.vcpus) = (Some(machine), vcpus);
        Ok(())
    }

    /// What `aerostat info` shows.
    pub(super) fn info(&self, state: VmState, ready_us: Option<u64>) -> VmInfo {
        VmInfo {
            id: self.id.clone(),
            state,
            ram: self.ram.pages(),
            vcpus: self.vcpu_count,
            backing: self.ram.backing().name(),
            kvm: self.host.kind().name(),
            first_byte_us: self.com1.output().first_byte_us(),
            ready_us,
            kernel: self.kernel_name.clone(),
            cmdline: self.cmdline.clone(),
        }
    }

    /// The clock that the balloon's operations run by.
    pub(super) fn clock(&self) -> HostClock {
        HostClock(self.started)
    }

    /// Where vCPUs, and others that cannot go on, report.
    pub(super) fn events(&self) -> VcpuEvents {
        self.events.clone()
    }
}

/// Runs `map` while another thread has KVM create a VM and tell its CPUID.
///
/// Both take about half a millisecond, which is a good part of the time to the
/// guest's first instruction. Without a second thread one follows the other.
fn beside_kvm<T>(host: &Host, map: impl FnOnce() -> T) -> (Result<(VmFd, CpuId), KvmError>, T) {
    let create = || Ok((host.create_vm()?, host.cpuid()?));
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("kvm".into()).stack_size(KVM_THREAD_STACK);
        let thread = builder.spawn_scoped(scope, create);
        let mapped = map();
        let created = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => create(),
        };
        (created, mapped)
    })
}

fn new_balloon(config: &VmConfig, ram: &HostRam) -> Result<Balloon, StartError> {
    let options = BalloonOptions { release: ReleaseMode::Deferred, ..BalloonOptions::default() };
    let clock = Arc::new(HostClock(config.started));
    let mut balloon = Balloon::new(ram.pages(), options, clock);
    // `validate` has compared it with the same size.
    balloon.set_target(config.balloon.target).map_err(StartError::Target)?;
    Ok(balloon)
}

/// What is connected to the interrupt controllers and the I/O bus.
struct Wiring<'a> {
    serial_line: &'a Line,
    balloon: &'a Window<Balloon>,
    console: &'a Window<Console>,
}

fn new_machine(
    vm: VmFd,
    ram: &Arc<HostRam>,
    wiring: Wiring<'_>,
    (cpuid, vcpus): (&CpuId, u8),
    entry: Entry,
) -> Result<(Machine, Vec<VcpuFd>), StartError> {
    let machine = Machine::new(vm, ram.clone())?;
    machine.connect_line(wiring.serial_line.eventfd(), wiring.serial_line.gsi())?;
    wiring.balloon.connect(&machine)?;
    wiring.console.connect(&machine)?;
    let vcpus = machine.create_vcpus(cpuid, vcpus, entry)?;
    Ok((machine, vcpus))
}

fn kernel_name(kernel: &Kernel) -> String {
    match kernel {
        Kernel::Embedded => String::from("embedded"),
        Kernel::Path(path) => path.display().to_string(),
        Kernel::Image(_) => String::from("image"),
    }
}

/// The operator's words, or the kernel's default, then the device announcements.
fn command_line(config: &VmConfig, balloon: &Window<Balloon>, console: &Window<Console>) -> String {
    let default = match config.kernel {
        Kernel::Embedded | Kernel::Image(_) => "",
        Kernel::Path(_) => DEFAULT_FOR_FILES,
    };
    let announce = [
        cmdline::announce(balloon.base(), balloon.gsi()),
        cmdline::announce(console.base(), console.gsi()),
    ];
    let words = [config.cmdline.as_deref().unwrap_or(default), &announce[0], &announce[1]];
    cmdline::join(words)
}
