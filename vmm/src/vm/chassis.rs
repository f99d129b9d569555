//! The machine as a whole: what is built once, and what a reboot builds again.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use abi::console::AGENT_PORT_NAME;
use abi::platform::{SCI_GSI, SERIAL_GSI};
use aerostat_api as api;
use devices::balloon::{Balloon, BalloonOptions, ReleaseMode};
use devices::console::{Console, ConsoleSize};
use devices::entropy::Entropy;
use devices::mem::{MemRegion, MemoryDevice};
use devices::ram::GuestRam;
use guest_ram::{HostRam, Prefault};
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::balloon_worker::{BalloonParts, BalloonWorker, HostClock};
use super::board::Board;
use super::config::describe::mib;
use super::config::{GuestConsole, Kernel, OnReset, SerialPort, VmConfig};
use super::drives::{Drives, InsertedDrive, OpenDrive};
use super::entropy::{EntropyService, new_entropy};
use super::handle::{VmInfo, VmState};
use super::hotplug::{GuestSlots, HotplugBlocks};
use super::hotplug_worker::{HotplugParts, HotplugWorker};
use super::slots::{Slots, planned_places};
use super::vcpu::{ExitCounters, VcpuEvents, Vcpus};
use super::window::{Place, Window};
use super::{StartError, return_free_heap};
use crate::acpi::pm1::Pm1;
use crate::acpi::{AcpiError, MachineDescription, Tables, VirtioSlot};
use crate::boot::cmdline::{self, DEFAULT_FOR_FILES, DEFAULT_FOR_FILES_ON_HVC};
use crate::boot::{BootError, BootInfo, Entry, InitrdFile, KernelImage};
use crate::kvm::machine::Machine;
use crate::kvm::{Host, KvmError, KvmKind};
use crate::line::{KvmLevelLine, Line};
use crate::serial::{Com1, terminal};

/// The argument parser's, whose stack the C library has kept: no further memory.
const KVM_THREAD_STACK: usize = 512 << 10;

/// RAM, devices, kernel, and the machine in the kernel.
pub(super) struct Chassis {
    id: String,
    description: Box<api::VmConfig>,
    cmdline: String,
    vcpu_count: u8,
    pub(super) on_reset: OnReset,
    pub(super) started: Instant,
    kernel: KernelImage,
    initrd: Option<InitrdFile>,
    acpi: Tables,
    // The machine goes before the RAM that it maps and the lines that it watches.
    /// `None` only while a reboot exchanges it.
    machine: Option<Machine>,
    /// Created and not yet started.
    vcpus: Vec<VcpuFd>,
    host: Host,
    cpuid: CpuId,
    serial_line: Arc<Line>,
    sci: Arc<KvmLevelLine>,
    pub(super) com1: Arc<Com1>,
    /// Every virtio device, in the order of their windows.
    slots: Slots,
    pub(super) balloon: Option<Arc<Window<Balloon>>>,
    pub(super) console: Arc<Window<Console>>,
    pub(super) entropy: Option<Arc<Window<Entropy>>>,
    pub(super) hotplug: Option<Hotplug>,
    /// Those that have no thread yet.
    drives: Vec<InsertedDrive>,
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
        let initrd = config.initrd.as_deref().map(InitrdFile::open).transpose();
        let mut initrd = initrd.map_err(BootError::from)?;
        let drives = OpenDrive::open_all(&config.drives_in_order())?;
        let host = Host::open(config.vcpus)?;
        let prefault = if config.prefault { Prefault::All } else { Prefault::OnDemand };
        if let Some(hotplug) = &config.hotplug {
            // RAM has two at most.
            host.check_slots(hotplug.slots() + 2)?;
        }
        let hotplug_bytes = config.hotplug.map(|hotplug| hotplug.total_bytes);
        let map =
            || HostRam::with_hotplug(config.memory_bytes, config.backing, prefault, hotplug_bytes);
        let (created, ram) = beside_kvm(&host, map);
        let (vm, cpuid) = created?;
        let ram = Arc::new(ram?);
        let eventfds = |source| StartError::host("Creating an eventfd", source);
        let serial_line = Arc::new(Line::new(SERIAL_GSI).map_err(eventfds)?);
        let com1 = Com1::new(serial_line.clone(), serial_drained, config.started);
        let com1 = Arc::new(com1.map_err(eventfds)?);
        let mut slots = Slots::new(ram.clone());
        let balloon = new_balloon(config, &ram)?;
        let balloon = balloon.map(|balloon| slots.insert(balloon)).transpose().map_err(eventfds)?;
        let console =
            slots.insert(Console::new(AGENT_PORT_NAME, console_size(config))).map_err(eventfds)?;
        let entropy = config.entropy.map(|options| new_entropy(options, config.started));
        let entropy = entropy.map(|entropy| slots.insert(entropy)).transpose().map_err(eventfds)?;
        let hotplug = insert_hotplug(config, &ram, &mut slots)?;
        let drives = drives.into_iter().map(|drive| drive.insert_into(&mut slots));
        let drives = drives.collect::<Result<_, _>>().map_err(eventfds)?;
        let sci = Arc::new(KvmLevelLine::new(SCI_GSI));
        let pm1 = Pm1::new(sci.clone());
        let board = Board::new(com1.clone(), pm1, slots.windows().to_vec());
        let board = Arc::new(board.with_hotplug(ram.hotplug_range()));
        debug_assert!(slots.places().eq(planned_places(config)), "a check would speak of others");
        let cmdline = command_line(config, slots.places());
        let acpi = acpi_tables(config.vcpus, &slots)?;
        let rsdp = Some(acpi.write(ram.memory())?);
        let refuse_linux = host.kind() == KvmKind::Software && !config.allow_software_kvm;
        let initrd_file = initrd.as_mut();
        let info = BootInfo { cmdline: &cmdline, initrd: initrd_file, rsdp, refuse_linux };
        let entry = kernel.load(ram.memory(), ram.ram_ranges(), info)?;
        let guest_slots = hotplug.as_ref().map(|hotplug| &*hotplug.slots);
        let wiring = Wiring { serial_line: &serial_line, sci: &sci, slots: &slots, guest_slots };
        let (machine, vcpus) = new_machine(vm, &ram, wiring, (&cpuid, config.vcpus), entry)?;
        let exit_counters = (0..config.vcpus).map(|_| Arc::default()).collect();
        Ok(Self {
            id: config.id.clone(),
            description: Box::new(config.describe()),
            cmdline,
            vcpu_count: config.vcpus,
            on_reset: config.on_reset,
            started: config.started,
            kernel,
            initrd,
            acpi,
            machine: Some(machine),
            vcpus,
            host,
            cpuid,
            serial_line,
            sci,
            com1,
            slots,
            balloon,
            console,
            entropy,
            hotplug,
            drives,
            board,
            exit_counters,
            events,
            ram,
        })
    }

    /// Starts the vCPUs that [`Self::build`] or [`Self::reboot`] has made.
    pub(super) fn start_vcpus(&mut self) -> io::Result<Vcpus> {
        let software = self.host.kind() == KvmKind::Software;
        let vcpus = std::mem::take(&mut self.vcpus);
        Vcpus::start(vcpus, &self.board, &self.events, &self.exit_counters, software)
    }

    /// Starts the thread that serves the balloon, if there is one.
    pub(super) fn start_balloon(&self, stall_after: Duration) -> io::Result<Option<BalloonWorker>> {
        let start = |window: &Arc<Window<Balloon>>| {
            let (window, ram) = (window.clone(), self.ram.clone());
            let clock = HostClock(self.started);
            let parts = BalloonParts { window, ram, clock, stall_after };
            BalloonWorker::start(parts, self.events.clone())
        };
        self.balloon.as_ref().map(start).transpose()
    }

    /// Starts the thread of hotplug memory, if there is any.
    pub(super) fn start_hotplug(&self, config: &VmConfig) -> io::Result<Option<HotplugWorker>> {
        let Some((hotplug, config)) = self.hotplug.as_ref().zip(config.hotplug) else {
            return Ok(None);
        };
        let parts = HotplugParts {
            window: hotplug.window.clone(),
            ram: self.ram.clone(),
            clock: HostClock(self.started),
            stall_after: config.stall_after,
            slot_bytes: config.slot_bytes,
        };
        HotplugWorker::start(parts, self.events.clone()).map(Some)
    }

    /// The event loop's side of the entropy device, if there is one.
    pub(super) fn entropy_service(&self) -> Option<EntropyService> {
        let window = self.entropy.clone()?;
        Some(EntropyService::new(window, self.started))
    }

    /// Starts a thread for each drive.
    pub(super) fn start_drives(&mut self) -> io::Result<Drives> {
        Drives::start(std::mem::take(&mut self.drives), &self.events)
    }

    /// Builds the machine anew over the same RAM, which is emptied, and loads the kernel again.
    ///
    /// Called with the vCPUs stopped, the balloon and the drives reset, and nothing plugged.
    pub(super) fn reboot(&mut self) -> Result<(), StartError> {
        self.console.reset();
        if let Some(entropy) = &self.entropy {
            entropy.reset();
        }
        self.com1.reset();
        self.board.pm1().reset();
        self.ram.discard(self.ram.ram_ranges()).map_err(|error| {
            log::error!("reboot: {error}");
            StartError::host("Emptying guest RAM", error.source)
        })?;
        let (memory, ram) = (self.ram.memory(), self.ram.ram_ranges());
        let rsdp = Some(self.acpi.write(memory)?);
        // Whether it runs here has been decided.
        let refuse_linux = false;
        let initrd = self.initrd.as_mut();
        let info = BootInfo { cmdline: &self.cmdline, initrd, rsdp, refuse_linux };
        let entry = self.kernel.load(memory, ram, info)?;
        self.drop_machine()?;
        let wiring = Wiring {
            serial_line: &self.serial_line,
            sci: &self.sci,
            slots: &self.slots,
            guest_slots: self.hotplug.as_ref().map(|hotplug| &*hotplug.slots),
        };
        let vm = self.host.create_vm()?;
        let cpus = (&self.cpuid, self.vcpu_count);
        let (machine, vcpus) = new_machine(vm, &self.ram, wiring, cpus, entry)?;
        (self.machine, self.vcpus) = (Some(machine), vcpus);
        // The kernel has been read and decompressed once more.
        return_free_heap();
        Ok(())
    }

    /// Ends the old machine before the new one is made: KVM lets an eventfd be the line of one only.
    fn drop_machine(&mut self) -> Result<(), StartError> {
        let Some(machine) = self.machine.take() else { return Ok(()) };
        machine.disconnect_line(self.serial_line.eventfd(), self.serial_line.gsi())?;
        for window in self.slots.windows() {
            window.disconnect(&machine)?;
        }
        Ok(())
    }

    /// The configuration, with the balloon's present target.
    pub(super) fn configuration(&self) -> Box<api::VmConfig> {
        let mut description = self.description.clone();
        if let (Some(told), Some(balloon)) = (&mut description.balloon, &self.balloon) {
            told.amount_mib = mib(balloon.lock().device().target().bytes());
        }
        description
    }

    fn kernel_name(&self) -> String {
        let source = self.description.boot_source.as_ref();
        source.map(|source| source.kernel_image_path.clone()).unwrap_or_default()
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
            kernel: self.kernel_name(),
            cmdline: self.cmdline.clone(),
        }
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

fn new_balloon(config: &VmConfig, ram: &HostRam) -> Result<Option<Balloon>, StartError> {
    let Some(wanted) = config.balloon else { return Ok(None) };
    let options = BalloonOptions {
        release: ReleaseMode::Deferred,
        deflate_on_oom: wanted.deflate_on_oom,
        ..BalloonOptions::default()
    };
    let clock = Arc::new(HostClock(config.started));
    let mut balloon = Balloon::new(ram.pages(), options, clock);
    // `validate` has compared it with the same size.
    balloon.set_target(wanted.target).map_err(StartError::Target)?;
    Ok(Some(balloon))
}

/// Hotplug memory: its device, and how vCPUs reach it.
pub(super) struct Hotplug {
    pub(super) window: Arc<Window<MemoryDevice>>,
    slots: Arc<GuestSlots>,
}

/// Puts the memory device into its slot, if there is hotplug memory.
fn insert_hotplug(
    config: &VmConfig,
    ram: &Arc<HostRam>,
    slots: &mut Slots,
) -> Result<Option<Hotplug>, StartError> {
    let Some((config, region)) = config.hotplug.zip(ram.hotplug_region()) else { return Ok(None) };
    // Never: `validate` has found sizes that go together, and the region starts at a multiple of 2 GiB.
    let impossible = |error| StartError::host("Laying out hotplug memory", io::Error::other(error));
    let place = MemRegion::new(region.gpa(), region.len_bytes(), config.block_bytes);
    let place = place.map_err(impossible)?;
    let first = u32::try_from(ram.regions().len()).unwrap_or(u32::MAX);
    let guest_slots = Arc::new(GuestSlots::new(region, first, config.slot_pages()));
    let blocks = HotplugBlocks { ram: ram.clone(), slots: guest_slots.clone() };
    let window = slots
        .insert(MemoryDevice::new(place, Box::new(blocks)))
        .map_err(|source| StartError::host("Creating an eventfd", source))?;
    Ok(Some(Hotplug { window, slots: guest_slots }))
}

/// What is connected to the interrupt controllers and the I/O bus.
struct Wiring<'a> {
    serial_line: &'a Line,
    sci: &'a KvmLevelLine,
    slots: &'a Slots,
    guest_slots: Option<&'a GuestSlots>,
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
    machine.connect_level(wiring.sci);
    if let Some(slots) = wiring.guest_slots {
        slots.connect(machine.vm());
    }
    for window in wiring.slots.windows() {
        window.connect(&machine)?;
    }
    let vcpus = machine.create_vcpus(cpuid, vcpus, entry)?;
    Ok((machine, vcpus))
}

fn acpi_tables(vcpus: u8, slots: &Slots) -> Result<Tables, AcpiError> {
    let slots: Vec<_> =
        slots.places().map(|Place { base, gsi }| VirtioSlot { base, gsi }).collect();
    Tables::new(&MachineDescription { vcpus, slots: &slots })
}

/// Size of the terminal behind the virtio console, if it is one.
fn console_size(config: &VmConfig) -> Option<ConsoleSize> {
    match (&config.serial, config.console) {
        (SerialPort::Stdio, GuestConsole::Virtio) => terminal::size(),
        (SerialPort::Stdio | SerialPort::Files { .. } | SerialPort::Null, _) => None,
    }
}

/// The command line with which `config` would start.
pub(crate) fn planned_command_line(config: &VmConfig) -> String {
    command_line(config, planned_places(config))
}

/// The operator's words, or the kernel's default, where the root is, then the device announcements.
fn command_line(config: &VmConfig, places: impl Iterator<Item = Place>) -> String {
    let default = match config.kernel {
        Kernel::Embedded | Kernel::Image(_) => "",
        Kernel::Path(_) => match config.console {
            GuestConsole::Serial => DEFAULT_FOR_FILES,
            GuestConsole::Virtio => DEFAULT_FOR_FILES_ON_HVC,
        },
    };
    let announcements: Vec<_> =
        places.map(|place| cmdline::announce(place.base, place.gsi)).collect();
    let words = std::iter::once(config.cmdline.as_deref().unwrap_or(default));
    let words = words.chain(config.root_words());
    cmdline::join(words.chain(announcements.iter().map(String::as_str)))
}
