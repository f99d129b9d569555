//! The virtio devices of a VM in the order of their windows.
//!
//! Board, machine, command line and firmware tables are all made from this one list.

use std::io;
use std::sync::Arc;

use devices::ram::GuestRam;
use devices::virtio::VirtioDevice;

use super::config::VmConfig;
use super::window::{MmioWindow, Place, Window};

/// Where the guest of `config` will find its devices, before there are any: what [`Slots::places`] will be.
pub(crate) fn planned_places(config: &VmConfig) -> impl Iterator<Item = Place> {
    let optional = [config.balloon.is_some(), config.entropy.is_some(), config.hotplug.is_some()];
    let optional = optional.into_iter().filter(|is_there| *is_there).count();
    // There is always a console.
    let devices = optional + 1 + config.drives.len();
    (0..).map_while(Place::of_slot).take(devices)
}

/// Devices in their slots.
pub(crate) struct Slots {
    ram: Arc<dyn GuestRam>,
    windows: Vec<Arc<dyn MmioWindow>>,
}

impl Slots {
    /// No device yet; those to come work on `ram`.
    pub(crate) fn new(ram: Arc<dyn GuestRam>) -> Self {
        Self { ram, windows: Vec::new() }
    }

    /// Puts `device` into the next slot.
    ///
    /// # Errors
    /// The host's when it gives no eventfd; ENODEV when all slots are taken.
    pub(crate) fn insert<D>(&mut self, device: D) -> io::Result<Arc<Window<D>>>
    where
        D: VirtioDevice + 'static,
    {
        let slot = u16::try_from(self.windows.len()).unwrap_or(u16::MAX);
        let window = Arc::new(Window::new(device, slot, self.ram.clone())?);
        self.windows.push(window.clone());
        Ok(window)
    }

    /// The windows, the first at the lowest address.
    pub(crate) fn windows(&self) -> &[Arc<dyn MmioWindow>] {
        &self.windows
    }

    /// Where the guest finds each of them.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.windows.iter().map(|window| window.place())
    }
}
