//! From the windows on the command line to drivers that run.
//!
//! Whatever is wrong with a window or the device in it costs that device only, and is said on the serial console.

use core::error::Error;
use core::fmt;

use abi::PfnRange;
use abi::virtio::{VIRTIO_ID_BALLOON, VIRTIO_ID_CONSOLE, VIRTIO_ID_MEM, VIRTIO_ID_RNG};
use guest_kernel::cmdline::Options;
use guest_kernel::layout::FIRST_VECTOR;
use guest_kernel::memory_map::{RamMap, outer_pages};
use guest_mm::balloon::{self, BalloonDriver};
use guest_mm::console::ConsoleDriver;
use guest_mm::entropy::EntropyDriver;
use guest_mm::hotplug::{self, HotplugDriver};
use guest_mm::store::PfnStore;
use guest_mm::virtio::discovery::{self, MmioWindow};
use guest_mm::virtio::{MmioDevice, ProbeError};

use super::ioapic::IoApic;
use super::irq;
use super::kernel::Kernel;
use super::log::{debug, error, warning};
use super::window::Window;

/// Vectors that devices get; the timer and the trap stress have the others.
const DEVICE_VECTORS: core::ops::Range<u8> = FIRST_VECTOR + 1..FIRST_VECTOR + 11;

/// A driver and the interrupts that it has dealt with.
pub(super) struct Served<D> {
    /// The driver.
    pub(super) driver: D,
    vector: u8,
    seen: u64,
}

impl<D> Served<D> {
    pub(super) const fn new(driver: D, vector: u8) -> Self {
        Self { driver, vector, seen: 0 }
    }

    /// Whether the device's line fired since the last call.
    pub(super) fn fired(&mut self) -> bool {
        let count = irq::count(self.vector);
        core::mem::replace(&mut self.seen, count) != count
    }
}

/// An error and what caused it, on one line.
pub(super) struct Causes<'e>(pub(super) &'e dyn Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut error = self.0;
        while let Some(source) = error.source() {
            write!(f, ": {source}")?;
            error = source;
        }
        Ok(())
    }
}

impl<S: PfnStore + Sync> Kernel<'_, S> {
    /// Finds and starts the devices that the command line announces.
    pub(super) fn find_devices(&mut self, cmdline: &str, options: &Options<'_>, ram: &RamMap) {
        let Some(ioapic) = IoApic::new() else { return };
        let mut vectors = DEVICE_VECTORS;
        for window in discovery::windows(cmdline) {
            let window = match window {
                Ok(window) => window,
                Err(error) => {
                    warning!("{error}");
                    continue;
                }
            };
            let Some((bus, id)) = look_into(&window, ram) else { continue };
            if !self.has_driver_for(id) {
                debug!("device {id} at {:#x} has no driver here", window.base);
                continue;
            }
            let Some(vector) = vectors.next() else {
                warning!("too many devices: {:#x} is ignored", window.base);
                continue;
            };
            if ioapic.route(window.gsi, vector).is_err() {
                warning!("device at {:#x} has no such interrupt: {}", window.base, window.gsi);
                continue;
            }
            if let Err(error) = self.start_device(id, bus, vector, options) {
                error!("device {id} at {:#x}: {error}", window.base);
            }
        }
    }

    /// Whether a device of this kind finds a driver that has none yet.
    fn has_driver_for(&self, id: u32) -> bool {
        match id {
            VIRTIO_ID_BALLOON => !self.balloon.exists(),
            VIRTIO_ID_CONSOLE => self.console.is_none(),
            VIRTIO_ID_RNG => self.entropy.is_none(),
            VIRTIO_ID_MEM => self.hotplug.is_none(),
            _ => false,
        }
    }

    /// Starts the driver for the device in `bus`; says why if it cannot.
    fn start_device(
        &mut self,
        id: u32,
        bus: Window,
        vector: u8,
        options: &Options<'_>,
    ) -> Result<(), Failure> {
        match id {
            VIRTIO_ID_BALLOON => {
                let options = balloon::Options {
                    max_order: u32::from(options.balloon_order),
                    ..balloon::Options::default()
                };
                let driver = BalloonDriver::start(self.memory, self.store, bus, options);
                let driver = driver.map_err(Failure::Balloon)?;
                self.balloon.install(self.mm, driver, vector);
            }
            VIRTIO_ID_CONSOLE => {
                let driver = ConsoleDriver::start(bus, self.memory).map_err(Failure::Console)?;
                self.console = Some(Served::new(driver, vector));
            }
            VIRTIO_ID_RNG => {
                let driver = EntropyDriver::start(bus, self.memory).map_err(Failure::Entropy)?;
                self.entropy = Some(Served::new(driver, vector));
            }
            VIRTIO_ID_MEM => {
                let driver = HotplugDriver::start(self.mm, bus, hotplug::HotplugOptions::default());
                let driver = driver.map_err(Failure::Hotplug)?;
                self.hotplug = Some(Served::new(driver, vector));
            }
            _ => {}
        }
        Ok(())
    }
}

/// A driver that did not start.
enum Failure {
    Balloon(balloon::BalloonError),
    Console(guest_mm::console::ConsoleError),
    Entropy(guest_mm::entropy::EntropyError),
    Hotplug(hotplug::DriverError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error: &dyn Error = match self {
            Self::Balloon(error) => error,
            Self::Console(error) => error,
            Self::Entropy(error) => error,
            Self::Hotplug(error) => error,
        };
        Causes(error).fmt(f)
    }
}

/// Where memory can be plugged, before any driver starts. What is wrong with a window is said by who looks for drivers.
pub(super) fn hotplug_region(cmdline: &str, ram: &RamMap) -> Option<PfnRange> {
    let windows = discovery::windows(cmdline).filter_map(Result::ok);
    windows.filter_map(|window| map(&window, ram)).find_map(hotplug::region_of)
}

/// Maps a window; `None` if it is in RAM or out of reach.
fn map(window: &MmioWindow, ram: &RamMap) -> Option<Window> {
    let pages = outer_pages(window.base, window.bytes);
    let in_ram = pages
        .is_some_and(|pages| ram.ranges().iter().any(|range| range.intersection(pages).is_some()));
    (!in_ram).then(|| Window::map(window)).flatten()
}

/// Maps a window and identifies the device in it; `None`, and why, if there is none that we can drive.
fn look_into(window: &MmioWindow, ram: &RamMap) -> Option<(Window, u32)> {
    let Some(bus) = map(window, ram) else {
        warning!("device window at {:#x} is in RAM or out of reach", window.base);
        return None;
    };
    match MmioDevice::probe(bus) {
        Ok(device) => Some((bus, device.id())),
        // VMMs announce slots that they have left empty.
        Err(ProbeError::Empty) => None,
        Err(error) => {
            warning!("device at {:#x} is skipped: {error}", window.base);
            None
        }
    }
}
