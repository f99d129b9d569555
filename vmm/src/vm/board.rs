//! What vCPUs reach by port and memory-mapped I/O.
//!
//! Unknown ports and addresses read all ones and ignore writes, as an empty bus does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::mmio::WINDOW_BYTES;
use abi::platform::{
    I8042_COMMAND_PORT, I8042_RESET, PVPANIC_PANICKED, PVPANIC_PORT, SERIAL_PORT, VIRTIO_MMIO_BASE,
};
use abi::{Pfn, PfnRange};

use super::exit::ExitReason;
use super::window::MmioWindow;
use crate::acpi::pm1::{self, Pm1, Pm1Write};
use crate::serial::{self, Com1};

/// Last port of the serial console.
const SERIAL_LAST: u16 = SERIAL_PORT + serial::REGISTERS - 1;

/// Accesses that nothing answered.
#[derive(Debug, Default)]
pub(crate) struct BoardCounters {
    /// Ports.
    pub(crate) unknown_ports: AtomicU64,
    /// Guest-physical addresses.
    pub(crate) unknown_mmio: AtomicU64,
    /// Those of hotplug memory that is not plugged, which a driver must not touch.
    pub(crate) unplugged: AtomicU64,
}

/// Everything on the board's buses.
pub(crate) struct Board {
    com1: Arc<Com1>,
    pm1: Pm1,
    /// By slot.
    windows: Vec<Arc<dyn MmioWindow>>,
    hotplug: Option<PfnRange>,
    counters: BoardCounters,
}

impl Board {
    /// A board with a serial console, power management and these virtio windows, which lie in the order of their slots.
    pub(crate) fn new(com1: Arc<Com1>, pm1: Pm1, windows: Vec<Arc<dyn MmioWindow>>) -> Self {
        Self { com1, pm1, windows, hotplug: None, counters: BoardCounters::default() }
    }

    /// The same, with hotplug memory at `hotplug`: vCPUs come here for what of it is not plugged.
    pub(crate) fn with_hotplug(self, hotplug: Option<PfnRange>) -> Self {
        Self { hotplug, ..self }
    }

    /// A write of `data` to `port`; string instructions bring several elements at once.
    /// Returns the VM's end if that is what the write means.
    pub(crate) fn port_write(&self, port: u16, data: &[u8]) -> Option<ExitReason> {
        match port {
            SERIAL_PORT..=SERIAL_LAST => {
                let register = serial_register(port);
                data.iter().for_each(|&byte| self.com1.write(register, byte));
                None
            }
            I8042_COMMAND_PORT => data.contains(&I8042_RESET).then_some(ExitReason::Reset),
            PVPANIC_PORT => data
                .iter()
                .any(|byte| byte & PVPANIC_PANICKED != 0)
                .then_some(ExitReason::GuestPanic),
            pm1::FIRST_PORT..=pm1::LAST_PORT => match self.pm1.write(port, data) {
                Pm1Write::Done => None,
                Pm1Write::PowerOff => Some(ExitReason::PowerOff),
                Pm1Write::Ignored => self.unknown_port(),
            },
            _ => self.unknown_port(),
        }
    }

    /// A read of `data` from `port`.
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        match port {
            SERIAL_PORT..=SERIAL_LAST => {
                let register = serial_register(port);
                data.iter_mut().for_each(|byte| *byte = self.com1.read(register));
            }
            // Status of the i8042: both buffers empty, so that a driver goes on to its command.
            I8042_COMMAND_PORT => data.fill(0),
            // The events that can be reported.
            PVPANIC_PORT => data.fill(PVPANIC_PANICKED),
            pm1::FIRST_PORT..=pm1::LAST_PORT => self.pm1.read(port, data),
            _ => {
                self.counters.unknown_ports.fetch_add(1, Ordering::Relaxed);
                data.fill(0xff);
            }
        }
    }

    fn unknown_port(&self) -> Option<ExitReason> {
        // Relaxed: a statistic.
        self.counters.unknown_ports.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// The fixed hardware of ACPI.
    pub(crate) fn pm1(&self) -> &Pm1 {
        &self.pm1
    }

    /// A read of `data` at guest-physical `gpa`.
    pub(crate) fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        match self.window(gpa, data.len()) {
            Some((window, offset)) => window.read(offset, data),
            None => {
                self.count_unknown(gpa);
                data.fill(0xff);
            }
        }
    }

    /// A write of `data` at guest-physical `gpa`.
    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) {
        match self.window(gpa, data.len()) {
            Some((window, offset)) => window.write(offset, data),
            None => self.count_unknown(gpa),
        }
    }

    fn count_unknown(&self, gpa: u64) {
        let is_unplugged = self.hotplug.is_some_and(|range| range.contains(Pfn::containing(gpa)));
        let counters = &self.counters;
        let counter = if is_unplugged { &counters.unplugged } else { &counters.unknown_mmio };
        // Relaxed: a statistic.
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The window that has all of `len` bytes at `gpa`, and the offset in it.
    fn window(&self, gpa: u64, len: usize) -> Option<(&dyn MmioWindow, u64)> {
        let offset = gpa.checked_sub(VIRTIO_MMIO_BASE)?;
        let slot = usize::try_from(offset / WINDOW_BYTES).ok()?;
        let offset = offset % WINDOW_BYTES;
        let window = self.windows.get(slot)?;
        (offset + len as u64 <= WINDOW_BYTES).then_some((&**window, offset))
    }

    /// Accesses that nothing answered.
    pub(crate) fn counters(&self) -> &BoardCounters {
        &self.counters
    }
}

/// `port`: one of the serial console's.
fn serial_register(port: u16) -> u8 {
    u8::try_from(port - SERIAL_PORT).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

    use super::*;
    use crate::kvm::KvmError;
    use crate::kvm::machine::Machine;
    use crate::line::{KvmLevelLine, Line};
    use crate::vm::window::Place;

    /// Records writes as (offset, length) and reads its own number.
    struct Probe {
        number: u8,
        writes: Mutex<Vec<(u64, usize)>>,
    }

    impl MmioWindow for Probe {
        fn place(&self) -> Place {
            Place { base: VIRTIO_MMIO_BASE + u64::from(self.number) * WINDOW_BYTES, gsi: 5 }
        }

        fn connect(&self, _machine: &Machine) -> Result<(), KvmError> {
            Ok(())
        }

        fn disconnect(&self, _machine: &Machine) -> Result<(), KvmError> {
            Ok(())
        }

        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(self.number);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.writes.lock().expect("no panic").push((offset, data.len()));
        }
    }

    fn board() -> (Board, Vec<Arc<Probe>>) {
        let drained = Arc::new(EventFd::new(EFD_CLOEXEC).expect("eventfd"));
        let line = Arc::new(Line::new(4).expect("line"));
        let com1 = Arc::new(Com1::new(line, drained, Instant::now()).expect("com1"));
        let probe = |number| Arc::new(Probe { number, writes: Mutex::new(Vec::new()) });
        let probes: Vec<_> = (0..2).map(probe).collect();
        let windows = probes.iter().map(|probe| probe.clone() as Arc<dyn MmioWindow>).collect();
        let pm1 = Pm1::new(Arc::new(KvmLevelLine::new(9)));
        (Board::new(com1, pm1, windows), probes)
    }

    #[test]
    fn the_ends_of_a_machine_are_told_apart() {
        let (board, _) = board();
        assert_eq!(board.port_write(0x64, &[0xfe]), Some(ExitReason::Reset));
        assert_eq!(board.port_write(0x64, &[0xaa]), None);
        assert_eq!(board.port_write(0x505, &[1]), Some(ExitReason::GuestPanic));
        assert_eq!(board.port_write(0x505, &[2]), None, "a crash kernel was loaded: no panic");
        assert_eq!(board.port_write(0x604, &[0x00, 0x20]), Some(ExitReason::PowerOff));
        assert_eq!(board.port_write(0x604, &[0x00, 0x00]), None, "SLP_EN is clear");
        assert_eq!(board.port_write(0x604, &[0x20]), None, "half a register");
    }

    #[test]
    fn unknown_ports_and_addresses_read_all_ones_and_are_counted() {
        let (board, probes) = board();
        let mut data = [0; 4];
        board.port_read(0x1234, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(board.port_write(0xffff, &data), None);
        for gpa in [0, VIRTIO_MMIO_BASE - 1, VIRTIO_MMIO_BASE + 2 * WINDOW_BYTES, u64::MAX] {
            data = [0; 4];
            board.mmio_read(gpa, &mut data);
            assert_eq!(data, [0xff; 4], "{gpa:#x}");
            board.mmio_write(gpa, &data);
        }
        assert_eq!(board.counters().unknown_ports.load(Ordering::Relaxed), 2);
        assert_eq!(board.counters().unknown_mmio.load(Ordering::Relaxed), 8);
        assert!(probes.iter().all(|probe| probe.writes.lock().expect("no panic").is_empty()));
    }

    #[test]
    fn accesses_to_unplugged_memory_read_all_ones_and_are_counted_apart() {
        let (board, _) = board();
        let page = |gpa: u64| Pfn::from_aligned(gpa).expect("aligned");
        let board = board.with_hotplug(PfnRange::new(page(1 << 32), page(2 << 32)));
        let mut data = [0; 8];
        for gpa in [1 << 32, (2 << 32) - 8, (1 << 32) - 8, 2 << 32] {
            board.mmio_read(gpa, &mut data);
            assert_eq!(data, [0xff; 8]);
            board.mmio_write(gpa, &data);
        }
        assert_eq!(board.counters().unplugged.load(Ordering::Relaxed), 4);
        assert_eq!(board.counters().unknown_mmio.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn accesses_reach_their_window_and_never_straddle_two() {
        let (board, probes) = board();
        let mut data = [0; 4];
        board.mmio_read(VIRTIO_MMIO_BASE + WINDOW_BYTES, &mut data);
        assert_eq!(data, [1; 4]);
        board.mmio_write(VIRTIO_MMIO_BASE + WINDOW_BYTES - 4, &data);
        board.mmio_write(VIRTIO_MMIO_BASE + WINDOW_BYTES - 2, &data);
        assert_eq!(*probes[0].writes.lock().expect("no panic"), [(0xffc, 4)]);
        assert!(probes[1].writes.lock().expect("no panic").is_empty());
    }

    #[test]
    fn string_output_to_the_serial_port_arrives_whole() {
        let (board, _) = board();
        assert_eq!(board.port_write(SERIAL_PORT, b"abc"), None);
        assert_eq!(board.com1.output().written(), 3);
    }
}
