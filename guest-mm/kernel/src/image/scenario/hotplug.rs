//! `hotplug`: the memory device driver's state and counters.

use guest_kernel::scenario::{FAILURE, SUCCESS};
use guest_mm::store::PfnStore;

use crate::image::devices::Causes;
use crate::image::kernel::Kernel;

impl<S: PfnStore> Kernel<'_, S> {
    /// Runs the scenario.
    pub(super) fn print_hotplug(&mut self) -> u8 {
        let Some(status) = self.hotplug.as_ref().map(|hotplug| hotplug.driver.status()) else {
            self.print(format_args!("no memory device"));
            return FAILURE;
        };
        self.print(format_args!(
            "phase={} requested={} plugged={} alive={} blocks={}",
            status.phase.name(),
            status.requested.bytes(),
            status.plugged.bytes(),
            status.alive.bytes(),
            status.blocks,
        ));
        self.print(format_args!(
            "region {:#x}..{:#x} in pieces of {} bytes",
            status.region.start().gpa(),
            status.region.end().gpa(),
            status.unit.bytes(),
        ));
        self.print(format_args!("{:?}", status.counters));
        if let Some(refusal) = status.last_refusal {
            self.print(format_args!("last refused: {refusal}"));
        }
        let Some(failure) = status.failure else { return SUCCESS };
        self.print(format_args!("failed: {}", Causes(&failure)));
        FAILURE
    }
}
